"""The train state and the names of its leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from long_vivit.state import State, below, flatten, names, unflatten


class Block(nnx.Module):
    def __init__(self, width, *, rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.value = nnx.Linear(width, width, rngs=rngs)  # a part that is itself called value


class Tiny(nnx.Module):
    def __init__(self, *, rngs, depth=3):
        self.blocks = jax.vmap(lambda r: Block(4, rngs=r))(rngs.split(depth))
        self.heads = nnx.List([nnx.Linear(4, 2, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
        self.log_scale = nnx.Param(jnp.zeros(()))


MODEL_NAMES = [
    'blocks/norm/bias',
    'blocks/norm/scale',
    'blocks/value/bias',
    'blocks/value/kernel',
    'heads/0/bias',
    'heads/0/kernel',
    'heads/1/bias',
    'heads/1/kernel',
    'log_scale',
]


def make_state(seed=0, ema=True):
    model = Tiny(rngs=nnx.Rngs(seed))
    opt = optax.adamw(1e-3).init(model)
    return State(jnp.int32(7), model, opt, jax.tree.map(jnp.copy, model) if ema else None)


def test_names_are_fixed():
    """These strings are in every checkpoint ever written: a change here breaks all of them."""
    opt = ['opt/0/count', *(f'opt/0/{m}/{name}' for m in ('mu', 'nu') for name in MODEL_NAMES)]
    model, ema = ([f'{part}/{name}' for name in MODEL_NAMES] for part in ('model', 'ema'))
    assert names(make_state()) == ['step', *model, *opt, *ema]
    assert names(make_state(ema=False)) == ['step', *model, *opt]


def test_flatten_and_back_is_the_same_state():
    state = make_state()
    again = unflatten(state, flatten(state))
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert isinstance(again, State) and isinstance(again.model, Tiny)
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_unflatten_into_shapes_only():
    shapes = jax.eval_shape(make_state)
    state = make_state(1)
    again = unflatten(shapes, {k: np.asarray(v) for k, v in flatten(state).items()})
    x = jnp.ones((2, 4))
    np.testing.assert_array_equal(again.model.heads[0](x), state.model.heads[0](x))


def test_unflatten_lists_every_fault():
    state = make_state(ema=False)
    flat = flatten(state)
    del flat['step'], flat['model/log_scale']
    flat['model/odd'] = jnp.ones(3)
    flat['model/heads/0/bias'] = jnp.ones(5)
    with pytest.raises(ValueError) as error:
        unflatten(state, flat)
    for part in ('step: missing', 'model/log_scale: missing', 'model/odd: has no place'):
        assert part in str(error.value)
    assert 'model/heads/0/bias: shape (5,) given, (2,) wanted' in str(error.value)


def test_below_cuts_the_prefix():
    state = make_state()
    assert list(below(flatten(state), 'model')) == MODEL_NAMES
    assert below(flatten(state), 'mod') == {}


def test_state_passes_through_jit_and_grad():
    """Tree style: a module is a pytree, so the plain transforms of JAX apply to the state."""

    @jax.jit
    def step(state):
        grads = jax.grad(lambda model: jnp.sum(model.heads[0](jnp.ones((1, 4))) ** 2))(state.model)
        model = jax.tree.map(lambda p, g: p - 0.1 * g, state.model, grads)
        return state._replace(step=state.step + 1, model=model)

    state = make_state()
    after = step(state)
    assert int(after.step) == 8
    assert names(after) == names(state)
    assert not np.array_equal(after.model.heads[0].kernel, state.model.heads[0].kernel)
    np.testing.assert_array_equal(after.model.heads[1].kernel, state.model.heads[1].kernel)


def test_two_leaves_with_one_name_are_refused():
    with pytest.raises(AssertionError, match='a/b'):
        names({'a': {'b': 1.0}, 'a/b': 2.0})
