"""Eight devices give what one gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from long_vivit import optim, sharding
from long_vivit.names import flatten
from long_vivit.state import State
from long_vivit.step import make_step
from tests.tiny_models import FAST, batch, dual

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason='needs eight devices')


def two_steps(mesh):
    """Losses of two steps on a mesh, and the state after them."""
    model = dual(video={'attention': 'blockwise'})
    fields = {'lr': 0.01, 'steps': 10, 'warmup_steps': 0}
    # A large eps: Adam divides gradients that ought to be 0, such as those of the key's bias, by
    # themselves, and what is left of them after rounding is not the same on one device and eight.
    optimiser = optim.make(model, **fields, weight_decay=0.1, clip=1.0, eps=1e-2)
    step = make_step(
        optimiser,
        optim.lr_schedule(**fields),
        max_scale=100.0,
        label_smoothing=0.1,
        num_frozen=0,
        ema_decay=0.0,
    )
    state = State(jnp.zeros((), jnp.int32), model, optimiser.init(model))
    state = jax.device_put(state, sharding.everywhere(mesh))
    step = jax.jit(step, compiler_options=FAST)
    watched = []
    for seed in range(2):
        one = batch(b=16, seed=seed)
        one['ok'][5 + seed] = False
        one['text_key'][[1, 12]] = 3  # equal captions on different devices
        state, watch = step(state, sharding.place(mesh, one, 16))
        watched.append(jax.device_get(watch))
    return watched, state


@pytest.fixture(scope='module')
def runs():
    return [two_steps(sharding.make_mesh(devices=jax.devices()[:n])) for n in (1, 8)]


def test_the_same_losses_and_parameters(runs):
    (alone, one_state), (together, eight_state) = runs
    for one, eight in zip(alone, together, strict=True):
        for key, value in one.items():
            np.testing.assert_allclose(eight[key], value, rtol=1e-5, atol=1e-5, err_msg=key)
    assert abs(alone[0]['loss'] - alone[1]['loss']) > 1e-2
    eight_leaves = flatten(eight_state)
    for name, leaf in flatten(one_state).items():
        np.testing.assert_allclose(eight_leaves[name], leaf, rtol=0, atol=1e-5, err_msg=name)


def test_steps_move_parameters_further_than_that(runs):
    """Else the test above could pass without any step."""
    before = flatten(dual(video={'attention': 'blockwise'}))
    after = flatten(runs[0][1].model)
    moved = [name for name in before if np.abs(after[name] - before[name]).max() > 1e-3]
    assert len(moved) > 0.7 * len(before)


def test_the_state_stays_whole_on_every_device(runs):
    mesh = sharding.make_mesh()
    for name, leaf in flatten(runs[1][1]).items():
        assert leaf.sharding.is_equivalent_to(sharding.everywhere(mesh), leaf.ndim), name
        assert len(leaf.addressable_shards) == 8


def test_a_batch_is_split_by_rows():
    mesh = sharding.make_mesh()
    one = batch(b=16)
    for key, placed in sharding.place(mesh, one, 16).items():
        assert placed.shape == one[key].shape
        for i, shard in enumerate(sorted(placed.addressable_shards, key=lambda s: s.device.id)):
            np.testing.assert_array_equal(shard.data, one[key][2 * i : 2 * i + 2])


def test_a_mesh_has_all_axes_and_the_compiler_handles():
    mesh = sharding.make_mesh()
    assert mesh.axis_names == sharding.AXES and mesh.shape['data'] == 8
    assert mesh.axis_types == (jax.sharding.AxisType.Auto,) * 5
    assert sharding.make_mesh(devices=jax.devices()[:3]).size == 3
