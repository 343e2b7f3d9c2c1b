"""Teach one stage: compile its step, begin it or go on with it, and go through the loop."""

import jax

from long_vivit import hosts, layout, masking, recipe, sharding, trained, tuning
from long_vivit.checkpoints import Checkpoints
from long_vivit.compiling import compiler_options
from long_vivit.loop import Loop
from long_vivit.names import flatten, unflatten
from long_vivit.perf import give_back_freed_memory
from long_vivit.programs import Programs
from long_vivit.state import fresh


def teach(stage, tools, sources, start):
    """Teach a stage from its beginning, or go on from its newest checkpoint.

    Args:
      sources: {'train': Source, 'images': Source or None, 'eval': Source or None}.
      start: () -> flat dict of the parameters to start from, shaped for this stage; None starts
        from nothing. Not called when there is a checkpoint.

    Returns:
      the taught model (its running mean where there is one) and a dict of what it cost.

    Raises:
      Stopped: after a signal. ValueError: too many steps in a row without a finite loss.
    """
    run, mesh = tools.run, tools.mesh
    tools.start_up.begin()
    if stage.batch > len(sources['train']):
        tools.say(
            f'{stage.name}: a batch of {stage.batch} takes some of the {len(sources["train"])} '
            'examples more than once'
        )
    with jax.set_mesh(mesh):
        init, step_function = recipe.training(run, stage, tools.tokenizer.vocab_size)
        shapes = jax.eval_shape(init)
    num_trained, num_all = trained.counts(shapes)
    if num_trained < num_all:
        tools.say(f'{stage.name}: {tuning.in_words(stage, num_trained, num_all)}')
    lies, whole = layout.shardings(shapes, mesh)
    for line in whole:
        if line.startswith('model/'):
            tools.say(f'{stage.name}: stays whole on every device: {line}')
    step = jax.jit(
        step_function, donate_argnums=0, compiler_options=compiler_options(),
        out_shardings=(lies, sharding.everywhere(mesh)),
    )  # fmt: skip
    step, like = Programs(step), layout.like(shapes, lies)
    folder = tools.workdir.checkpoints(stage.name)
    with jax.set_mesh(mesh), Checkpoints(folder, keep=run.checkpoint.keep) as saved:
        at = hosts.told(saved.latest())
        first = recipe.batch_like(run, stage, masking.rate_at(stage, at or 0))
        step.prepare(like, layout.batch(first, mesh))
        tools.start_up.mark('compile')
        loop = Loop(stage, tools, sources, saved, step)
        if at is None:
            state = fresh(init, lies, start())
        else:
            state = unflatten(like, saved.restore(at, flatten(like)))
            loop.remember(at, saved.info(at))
            tools.say(f'{stage.name}: goes on from step {at}')
        jax.block_until_ready(state)
        give_back_freed_memory()
        tools.start_up.mark('parameters')
        state = loop.go(state, at or 0)
    model = state.model if state.ema is None else state.ema
    return model, loop.cost()
