"""What a run does to still images, which a tower that came from images must not forget.

`eval.images` is scored by the image stem, as the first stage would look at it, before the first
step of a run that starts from other weights, and at each stage's end as that stage would.
"""

import json

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


def read_before(workdir):
    """What `before` wrote: {'images': {...}}, or {} where it has not."""
    return json.loads(workdir.before.read_text()) if workdir.before.exists() else {}


def _scored(tools):
    """Whether the work directory has the scores of these images."""
    source, stored = tools.images, read_before(tools.workdir).get('images', {})
    protocol = stored.get('protocol', {})
    wanted = {'data': source.name, 'fingerprint': source.fingerprint}
    wanted['text'] = tools.run.eval.images_text
    return all(protocol.get(key) == value for key, value in wanted.items())
