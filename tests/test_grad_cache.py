"""Gradient caching: a batch in parts has the gradients of the batch, in less memory."""

import contextlib
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from long_vivit import grad_cache, optim, tuning
from long_vivit.names import flatten, unflatten
from long_vivit.state import State
from long_vivit.step import make_step
from tests.tiny_models import FAST, batch, dual

pytestmark = pytest.mark.usefixtures('quick_compilation')

DEPTH, B = 2, 32
SIGMOID = {'kind': 'sigmoid', 'form': 'ring', 'tile': 3}
NCE = {'kind': 'nce', 'label_smoothing': 0.1, 'form': 'dense'}
PROGRAMS = {}  # what is compiled, so that two tests may share it
FIELDS = {'lr': 0.05, 'steps': 20, 'warmup_steps': 4}
needs_eight = pytest.mark.usefixtures('eight_devices')


def one_batch():
    one = batch(b=B)
    one['ok'][5] = False
    one['text_key'][[1, 12]] = 3
    return one


def fresh(kind):
    """A state whose model has what the loss of this kind needs; the first layer is frozen.

    The optimiser is plain descent in all but name, so that parameters show gradients as they are.
    """
    model = dual({'depth': DEPTH}, {'depth': 1}, logit_bias=-3.0 if kind == 'sigmoid' else None)
    tune = tuning.Tuning((), last=DEPTH - 1)
    optimiser = optim.make(model, **FIELDS, b1=0.0, b2=0.0, eps=1.0, tune=tune)
    state = State(
        jnp.zeros((), jnp.int32), model, optimiser.init(model), jax.tree.map(jnp.copy, model)
    )
    return optimiser, state


def compiled(micro_batch, loss, sizes=()):
    """The compiled step on a mesh of these sizes, and the state and batch placed for it."""
    sizes = dict(sizes)
    optimiser, state = fresh(loss['kind'])
    step = make_step(
        optimiser, optim.lr_schedule(**FIELDS), max_scale=100.0, num_frozen=1, ema_decay=0.5,
        micro_batch=micro_batch, **loss,
    )  # fmt: skip
    one = one_batch()
    if sizes:
        devices = np.array(jax.devices()).reshape(tuple(sizes.values()))
        mesh = Mesh(devices, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
        rows = tuple(name for name in sizes if name != 'seq')
        spec = {key: PartitionSpec(rows) for key in one}
        if 'seq' in sizes:
            spec |= {key: PartitionSpec(rows, 'seq') for key in ('patches', 'where')}
        one = {k: jax.device_put(x, NamedSharding(mesh, spec[k])) for k, x in one.items()}
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    key = micro_batch, tuple(loss.items()), tuple(sizes)
    if key not in PROGRAMS:
        with jax.set_mesh(mesh) if sizes else contextlib.nullcontext():
            jitted = jax.jit(step, donate_argnums=0, compiler_options=FAST)
            PROGRAMS[key] = jitted.lower(state, one).compile()
    return PROGRAMS[key], state, one


@lru_cache(None)
def plain(kind):
    """State and watch after a step of the whole batch at once on one device; its compiled size."""
    program, state, one = compiled(0, {'nce': NCE, 'sigmoid': SIGMOID}[kind])
    return *jax.device_get(program(state, one)), program.memory_analysis()


CASES = {
    'nce, alone': (4, NCE, ()),
    'sigmoid ring, on 2 x 2 x 2': (8, SIGMOID, (('data', 2), ('fsdp', 2), ('seq', 2))),
}


@needs_eight
@pytest.mark.parametrize(('micro_batch', 'loss', 'sizes'), CASES.values(), ids=CASES)
def test_the_step_is_that_of_the_whole_batch(micro_batch, loss, sizes):
    """Loss, what is watched, and every parameter, moment and mean after it; state donated."""
    wanted, watched, _ = plain(loss['kind'])
    program, state, one = compiled(micro_batch, loss, sizes)
    before = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    after, watch = program(state, one)
    assert watch.keys() == watched.keys() and watched['skipped'] == 0
    for key, value in watched.items():
        np.testing.assert_allclose(watch[key], value, rtol=1e-5, atol=1e-5, err_msg=key)
    got = flatten(after)
    for name, leaf in flatten(wanted).items():
        within = 1e-5 * max(1, np.abs(leaf).max())
        np.testing.assert_allclose(got[name], leaf, rtol=0, atol=within, err_msg=name)
    assert program.memory_analysis().alias_size_in_bytes == before


def test_that_step_moves_parameters_further_than_the_tolerance():
    before, after = flatten(fresh('nce')[1].model), flatten(plain('nce')[0].model)
    moved = [name for name in before if np.abs(after[name] - before[name]).max() > 1e-3]
    assert len(moved) > 0.7 * len(before)
    assert plain('nce')[1]['grad_norm'] > 0.1


def test_memory_falls_with_the_micro_batch():
    """16, 4 of 32: activations of a part are all that is kept."""
    half, eighth = (compiled(m, NCE)[0].memory_analysis().temp_size_in_bytes for m in (16, 4))
    assert 2.5 * eighth < half < 0.7 * plain('nce')[2].temp_size_in_bytes


def test_a_step_that_is_not_finite_changes_no_bit():
    program, state, one = compiled(4, NCE)
    flat = flatten(state)
    flat['model/log_scale'] = jnp.full((), jnp.nan)
    before = jax.device_get(flat)
    after, watch = program(unflatten(state, flat), one)
    assert float(watch['skipped']) == 1 and int(after.step) == 1
    for name, leaf in flatten(after._replace(step=after.step - 1)).items():
        np.testing.assert_array_equal(leaf, before[name], err_msg=name)


@needs_eight
def test_each_device_keeps_its_own_rows():
    """The parts are cut without moving a row from one device to another."""
    mesh = Mesh(np.array(jax.devices()), ('data',), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec('data'))
    x = jax.device_put(np.arange(64).reshape(32, 2), rows)
    with jax.set_mesh(mesh):
        cut = jax.jit(lambda x: grad_cache._split(x, 2))
        joined = jax.jit(lambda x: grad_cache._join(grad_cache._split(x, 2)))(x)
    np.testing.assert_array_equal(joined, x)
    np.testing.assert_array_equal(cut(x)[1], x[1::2])
    text = cut.lower(x).compile().as_text()
    assert not [word for word in ('all-gather', 'all-to-all', 'collective-permute') if word in text]
    for shard in cut(x).addressable_shards:
        held = np.unique(np.asarray(shard.data) // 2 // 4)
        assert len(held) == 1  # four rows of the batch lie on each device


@pytest.mark.parametrize(('micro_batch', 'devices'), [(3, 1), (4, 8), (64, 1)])
def test_parts_that_do_not_fit_are_refused(micro_batch, devices):
    with pytest.raises(ValueError, match=f'micro_batch: {micro_batch} must divide the batch of 32'):
        grad_cache.check(32, micro_batch, devices)
    grad_cache.check(32, 16, 8)
