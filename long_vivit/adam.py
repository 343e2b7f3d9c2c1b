"""Adam that can leave a step out without a second copy of its moments."""

import jax
import jax.numpy as jnp
import optax


def keep_if(good, new, old):
    """`new` where the scalar `good` is True, else `old`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)


def scale_by_adam(b1, b2, eps, mu_dtype=None):
    """optax.scale_by_adam, whose update takes `good` as well: False changes nothing of the state.

    The choice is made before the moments are used. Made of the finished state, it would read the
    old moments after the new ones exist, and the compiler would copy both.
    """
    adam = optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)

    def update(grads, state, params=None, *, good=True, **_):
        del params
        mu = keep_if(good, optax.tree.update_moment(grads, state.mu, b1, 1), state.mu)
        nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, b2, 2)
        nu = keep_if(good, nu, state.nu)
        count = keep_if(good, optax.safe_increment(state.count), state.count)
        first = optax.tree.bias_correction(mu, b1, count)
        second = optax.tree.bias_correction(nu, b2, count)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), first, second)
        stored = optax.tree.cast(mu, mu_dtype)
        return updates, optax.ScaleByAdamState(count, stored, nu)

    return optax.GradientTransformationExtraArgs(adam.init, update)
