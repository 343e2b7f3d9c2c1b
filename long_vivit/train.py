"""Teach a video encoder in stages: image -> short video -> long video.

    python -m long_vivit.train --config=configs/long.py --config.workdir=runs/mine

Everything lands in the work directory. The same command goes on where it was stopped, by whatever;
a finished stage is not taught again. With --multihost it is one of several processes, each started
with the same command: on a TPU pod, under Slurm ... (scripts/); the work directory is shared.
"""

import time

BEGUN = time.monotonic()  # before the imports, which count as start-up

import contextlib

import jax
from absl import flags

from long_vivit import (
    command_line,
    hardware,
    hosts,
    long_text,
    masking,
    recipe,
    retrieval,
    stage_loss,
    start,
    stills,
    stories,
)
from long_vivit.compiling import keep_compiled
from long_vivit.inputs import opening
from long_vivit.inputs.looks import in_words
from long_vivit.inputs.sources import open_source
from long_vivit.ledger import BadSteps, Ledger
from long_vivit.perf import StartUp, keep_freed_memory
from long_vivit.profiler import Profile
from long_vivit.scoring import score_stage
from long_vivit.stage import teach
from long_vivit.stop import Signalled, Signals, Stopped, words
from long_vivit.tables import print_results
from long_vivit.tools import Tools
from long_vivit.workdir import Workdir, writable
from long_vivit.writers import JsonlWriter, TensorBoardWriter, write_json_atomic

MULTIHOST = flags.DEFINE_bool('multihost', False, 'one of several processes of one run')
PROFILE = flags.DEFINE_string(
    'profile', '', 'START:COUNT traces so many steps from step START of this command on into '
    'WORKDIR/profile',
)  # fmt: skip


def main(run):
    """`train`, alone or as one of several processes -> exit status."""
    if MULTIHOST.value:
        hosts.start()
    else:
        try:
            with Signals():
                stories.build_missing(run, say)
        except Signalled as signalled:
            say(f'{words(signalled.number)}: the same command goes on with what is left to build')
            return 128 + signalled.number
    with hosts.one_voice():
        return train(run, PROFILE.value)


def train(run, profile=''):
    """Teach all stages of a resolved configuration -> exit status. profile: see `Profile`."""
    keep_freed_memory()
    workdir = Workdir(run.workdir)
    profile = Profile(profile, workdir.profile, say)
    start.check_weights(run)
    tokenizer = start.tokenizer(run)
    mesh, images = hardware.mesh_of(run), stills.source_of(run)
    with jax.set_mesh(mesh):
        attention, why = recipe.attention_of(run)
    sources = {stage.name: open_sources(run, stage) for stage in run.stages}
    if not (run.eval.allow_broken or workdir.config.exists()):
        hosts.on_first(lambda: check_files(run, [one['eval'] for one in sources.values()]))
    hosts.on_first(lambda: workdir.open(run, tokenizer.to_json()))
    names = ', '.join(stage.name for stage in run.stages)
    say(f'{workdir.path}: {names} on {hardware.words(mesh)}')
    say(f'attention: {attention} ({why})')
    if kept := keep_compiled(run.compile_cache, workdir.path):
        say(kept)
    try:
        with (
            Signals(wait=not hosts.alone()) as signals,
            writable(workdir.path),
            contextlib.ExitStack() as stack,
        ):
            stack.callback(workdir.close)
            tools = make_tools(run, workdir, tokenizer, mesh, images, profile, signals, stack)
            teach_all(tools, sources)
    except Stopped as stopped:
        say(stopped)
        return 128 + stopped.signal
    except Signalled as signalled:
        say(
            f'{words(signalled.number)}: stopped at once; the same command goes on from what is '
            f'saved in {workdir.path}'
        )
        return 128 + signalled.number
    if not hosts.first():
        return 0
    results = {'stages': {stage.name: workdir.finished(stage.name) for stage in run.stages}}
    if before := stills.of_these(run, images, workdir):
        results['before'] = before
    with writable(workdir.path):
        write_json_atomic(workdir.results, results)
    print()
    print_results(results)
    say(f"\nThe same in {workdir.results}; the model: long_vivit.load('{workdir.path}')")
    return 0


def teach_all(tools, sources):
    """The stages that are not finished, one after the other."""
    names = [stage.name for stage in tools.run.stages]
    finished = hosts.told([name for name in names if tools.workdir.finished(name)])
    for before, stage in zip((None, *tools.run.stages), tools.run.stages, strict=False):
        if stage.name in finished:
            say(f'{stage.name}: finished before')
            continue
        if before:
            heed_signals(before, tools)
        teach_and_score(stage, tools, sources[stage.name])
    stills.make_up(tools)
    for ledger in (tools.broken, tools.bad_steps):
        if len(ledger):
            say(ledger.summary())


def heed_signals(stage, tools):
    """Ends the run in all processes, where one was told to, behind the taught `stage`."""
    signal = max(hosts.gathered(tools.signals.noted or 0))
    if signal:
        raise Stopped(signal, stage.name, stage.steps)


def teach_and_score(stage, tools, sources):
    """One stage from its start to its record in the work directory."""
    with jax.set_mesh(tools.mesh):
        lines = [
            words(tools.run, stage)
            for words in (stage_loss.in_words, stage_loss.warning, long_text.in_words)
        ]
    for line in filter(
        None, [*lines, masking.in_words(stage), in_words(recipe.view(tools.run, stage))]
    ):
        say(f'{stage.name}: {line}')
    model, cost = teach(stage, tools, sources, lambda: begin(stage, tools))
    heed_signals(stage, tools)
    result = {'scores': {}, 'protocol': {}} | cost
    if sources['eval'] is not None:
        say(f'{stage.name}: scoring on {sources["eval"].name}')
        frame_orders = ('ordered',)
        if tools.run.eval.ablations and stage.frames > 1:
            frame_orders = ('ordered', 'shuffled', 'one_frame')
        result |= score_stage(model, stage, tools, sources['eval'], frame_orders)
    if tools.images is not None:
        result['images'] = stills.score(model, stage, tools)
    if hosts.first():
        tools.workdir.finish(stage.name, result)


def begin(stage, tools):
    """`start_params`, and what the first stage starts from is scored on the still images."""
    params = start_params(stage, tools)
    if tools.images is not None and params is not None and stage is tools.run.stages[0]:
        tools.start_up.mark('weights')
        stills.before(params, tools)
        tools.start_up.mark('still images')
    return params


def start_params(stage, tools):
    """The parameters a stage starts from, or None; says what was done to them."""
    found = start.start_params(tools.run, stage, tools.workdir, tools.tokenizer.vocab_size)
    if found is None:
        return None
    for line in found.lines:
        say(line)
    return found.params


def open_sources(run, stage):
    """The data sets of a stage: all are opened, so that a fault shows before anything is built."""
    directory, short = run.data.dir, stage.short_text
    mixed = stage.image_train if stage.image_ratio else ''
    of_images = recipe.view(run, stage, image=True).text
    return {
        'train': open_source(stage.train, data_dir=directory, text=stage.text, short_text=short),
        'images': open_source(mixed, data_dir=directory, text=of_images, short_text=short)
        if mixed
        else None,
        'eval': open_source(stage.eval, data_dir=directory, text=stage.text)
        if stage.eval
        else None,
    }


def check_files(run, sources):
    """Raises ValueError where a video to score on is of no use: it would end the run later on."""
    for source in {source.name: source for source in sources if source}.values():
        broken = opening.unusable(
            source, time_limit_s=run.data.time_limit_s, threads=recipe.num_threads(run)
        )
        if broken:
            raise ValueError(retrieval.broken_message(source, broken))


def make_tools(run, workdir, tokenizer, mesh, images, profile, signals, stack):
    """What the stages share; the files among it are closed with `stack`."""
    curves, writers = None, []
    if hosts.first():
        curves = stack.enter_context(JsonlWriter(workdir.metrics))
        writers.append(curves)
        if run.log.tensorboard:
            writers.append(stack.enter_context(TensorBoardWriter(workdir.tensorboard)))
    broken = stack.enter_context(Ledger(workdir.broken))
    bad_steps = stack.enter_context(BadSteps(workdir.bad_steps))
    start_up = StartUp(BEGUN)
    start_up.mark('imports')
    return Tools(
        run=run, workdir=workdir, tokenizer=tokenizer, mesh=mesh, curves=curves,
        writers=tuple(writers), start_up=start_up, broken=broken, bad_steps=bad_steps,
        threads=recipe.num_threads(run), profile=stack.enter_context(profile), signals=signals,
        say=say, images=images,
    )  # fmt: skip


def say(text):
    """A line on the screen, there at once."""
    print(text, flush=True)


if __name__ == '__main__':
    command_line.main(main, default='configs/long.py')
