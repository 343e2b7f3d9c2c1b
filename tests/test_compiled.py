"""Programs made ahead: of the right shapes, once for each, with their faults at the call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from long_vivit import recipe, sharding
from long_vivit.compiled import Compiled
from long_vivit.inputs.pipeline import HOST_ONLY, Batches
from long_vivit.inputs.sources import open_source
from long_vivit.inputs.text import Tokenizer
from tests import tiny_run


@pytest.mark.parametrize('name', tiny_run.STAGES)
def test_the_shapes_foretold_are_those_of_a_batch(name, tiny_stories, tmp_path):
    run = tiny_run.resolved(tiny_stories, tmp_path)
    stage = run.stages[tiny_run.STAGES.index(name)]
    source = open_source(stage.train, data_dir=run.data.dir, text=stage.text)
    tokenizer = Tokenizer.load(tiny_stories / 'shape_stories/tokenizer.json')
    examples = recipe.examples(run, stage, source, tokenizer)
    batch = Batches(videos=examples, batch=stage.batch, steps=1)[0]
    came = {key: (x.shape, x.dtype) for key, x in batch.items() if key not in HOST_ONLY}
    assert came == {k: (x.shape, x.dtype) for k, x in recipe.batch_like(run, stage).items()}


@pytest.fixture
def state():
    everywhere = sharding.everywhere(sharding.make_mesh())
    return jax.device_put({'sum': jnp.zeros(())}, everywhere), everywhere


def test_a_program_for_each_shape_and_each_made_once(state):
    state, everywhere = state
    traced = []

    def step(state, batch):
        traced.append(batch['x'].shape)
        return {'sum': state['sum'] + batch['x'].sum()}, batch['x'].max()

    compiled = Compiled(step, sharding.like(state, everywhere))
    batches = [sharding.place(sharding.make_mesh(), {'x': np.ones(n)}) for n in (8, 16, 8)]
    compiled.expect(sharding.like(batches[0], sharding.over_batch(sharding.make_mesh())))
    for batch in batches:
        state, _ = compiled(state, batch)
    assert float(state['sum']) == 32
    assert sorted(traced) == [(8,), (16,)]


def test_a_fault_of_the_step_shows_at_the_call(state):
    state, everywhere = state

    def step(state, batch):
        raise ValueError('no such thing')

    compiled = Compiled(step, sharding.like(state, everywhere))
    compiled.expect({'x': jax.ShapeDtypeStruct((8,), jnp.float32)})
    with pytest.raises(ValueError, match='no such thing'):
        compiled(state, {'x': jnp.ones(8, jnp.float32)})
