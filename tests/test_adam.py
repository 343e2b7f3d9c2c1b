"""Adam that can leave a step out: optax's numbers, and no second copy of its moments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from long_vivit.adam import scale_by_adam

SHAPE = (256, 1024)  # a megabyte


@pytest.fixture
def params():
    return {name: jnp.ones(SHAPE) * k for k, name in enumerate('abc')}


def grads(step):
    return {
        name: jax.random.normal(jax.random.key(step + k), SHAPE) for k, name in enumerate('abc')
    }


@pytest.mark.parametrize('dtype', [None, jnp.bfloat16])
def test_the_numbers_are_those_of_optax_to_the_bit(dtype, params):
    ours, theirs = (make(0.9, 0.98, 1e-8, mu_dtype=dtype) for make in (
        scale_by_adam, optax.scale_by_adam))  # fmt: skip
    one, two = ours.init(params), theirs.init(params)
    for step in range(3):
        mine, one = ours.update(grads(step), one, params)
        other, two = theirs.update(grads(step), two, params)
        jax.tree.map(np.testing.assert_array_equal, (mine, one), (other, two))


def test_a_step_that_is_left_out_changes_nothing(params):
    adam = scale_by_adam(0.9, 0.98, 1e-8)
    _, state = adam.update(grads(0), adam.init(params), params)
    lost = {name: leaf.at[0, 0].set(jnp.nan) for name, leaf in grads(1).items()}
    _, after = adam.update(lost, state, params, good=jnp.array(False))
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_the_moments_stay_where_they_lie(params):
    """The compiled step needs room of its own for its gradients, and for no copy of a moment."""
    adam = scale_by_adam(0.9, 0.98, 1e-8)

    def step(state, params, x):
        grads = jax.tree.map(lambda p: jnp.sin(p) * x, params)
        good = jnp.isfinite(optax.tree.norm(grads))
        updates, state = adam.update(grads, state, params, good=good)
        return state, jax.tree.map(lambda p, u: jnp.where(good, p - u, p), params, updates)

    step = jax.jit(step, donate_argnums=(0, 1))
    compiled = step.lower(adam.init(params), params, jnp.float32(2)).compile()
    needed = compiled.memory_analysis().temp_size_in_bytes
    assert needed < 1.1 * sum(leaf.nbytes for leaf in params.values())
