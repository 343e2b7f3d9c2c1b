"""What a run does to still images, which a tower that came from images must not forget.

`eval.images` is scored by the image stem, as the first stage would look at it, before the first
step of a run that starts from other weights, and at each stage's end as that stage would.
"""

import json

import jax

from long_vivit import hosts, recipe, start
from long_vivit.inputs.sources import open_source
from long_vivit.names import unflatten
from long_vivit.scoring import score_stage
from long_vivit.workdir import writable
from long_vivit.writers import write_json_atomic


def source_of(run):
    """The opened source of eval.images, or None."""
    if not run.eval.images:
        return None
    return open_source(run.eval.images, data_dir=run.data.dir, text=run.eval.images_text)


def score(model, stage, tools):
    """Scores and protocol of a model of `stage` on eval.images."""
    tools.say(f'{stage.name}: scoring still images of {tools.images.name}')
    return score_stage(model, stage, tools, tools.images, view=recipe.image_view(tools.run, stage))


def before(params, tools):
    """Scores what the first stage starts from, a flat dict shaped for it, into the work directory.

    Once: what is there already is left.
    """
    run, workdir, stage = tools.run, tools.workdir, tools.run.stages[0]
    if hosts.told(_scored(tools)):
        return
    like = start.model_like(run, stage, tools.tokenizer.vocab_size)
    found = score(unflatten(like, params), stage, tools)
    if hosts.first():
        with writable(workdir.path):
            write_json_atomic(workdir.before, {'images': found})


def make_up(tools):
    """Does what `before` does for a run that began without these images: eval.images is new.

    What it starts from is read once more; where that is no longer to be had, a line says so.
    """
    run, stage = tools.run, tools.run.stages[0]
    if tools.images is None or not run.init or hosts.told(_scored(tools)):
        return
    missing = f'still images: not scored before the first step, which was without {run.eval.images}'
    with jax.set_mesh(tools.mesh):
        found, fault = None, ''
        try:
            found = start.start_params(run, stage, tools.workdir, tools.tokenizer.vocab_size)
        except (OSError, ValueError) as error:
            fault = str(error).splitlines()[0]
        fault = next(filter(None, hosts.gathered(fault)), '')
        if fault:
            tools.say(f'{missing}; now it cannot be: {fault}')
            return
        tools.say(f'{missing}; now it is, from {run.init} as it is today')
        before(found.params, tools)


def read_before(workdir):
    """What `before` wrote: {'images': {...}}, or {} where it has not."""
    return json.loads(workdir.before.read_text()) if workdir.before.exists() else {}


def of_these(run, source, workdir):
    """`read_before` where it is of the images `source` (None: there are none), else {}.

    It may be of others, which eval.images named when the run began.
    """
    stored = read_before(workdir)
    protocol = stored.get('images', {}).get('protocol')
    if source is None or protocol is None:
        return {}
    wanted = {'fingerprint': source.fingerprint, 'text': run.eval.images_text}
    return stored if all(protocol.get(key) == value for key, value in wanted.items()) else {}


def _scored(tools):
    """Whether the work directory has the scores of these images."""
    return bool(of_these(tools.run, tools.images, tools.workdir))
