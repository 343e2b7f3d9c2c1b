"""One training step, as one compiled function from (state, batch) to (state, what to watch)."""

import jax
import jax.numpy as jnp
import optax

from long_vivit import losses, optim
from long_vivit.state import State


def keep_if(good, new, old):
    """`new` where the scalar `good` is True, else `old`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)


def make_step(optimiser, schedule, *, max_scale, label_smoothing, num_frozen, ema_decay):
    """Returns step(state, batch) -> (state, watch), to be jitted with the state donated.

    A step whose loss or gradient is not finite changes no parameter, no moment and no count of the
    optimiser; `watch['skipped']` is then 1. `state.step` counts it all the same, since it is the
    place in the data.

    batch: patches uint8 [b, k, r*p*q*c], where int32 [b, k, 3], tokens int32 [b, l],
      lengths int32 [b], ok bool [b], text_key int32 [b].
    watch: float32 scalars loss, recall, gap, temperature, grad_norm, lr, ok (share), skipped.
    """

    def loss_of(model, batch):
        z_video, z_text = model(batch, num_frozen=num_frozen)
        return losses.nce(
            z_video, z_text, model.log_scale[...], batch['ok'], batch['text_key'],
            max_scale=max_scale, label_smoothing=label_smoothing,
        )  # fmt: skip

    def step(state, batch):
        (loss, watch), grads = jax.value_and_grad(loss_of, has_aux=True)(state.model, batch)
        norm = optax.tree.norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt = optimiser.update(grads, state.opt, state.model)
        model = keep_if(good, optax.apply_updates(state.model, updates), state.model)
        ema = state.ema
        if ema is not None:
            ema = keep_if(good, optim.ema_update(ema, model, ema_decay), ema)
        watch = watch | {
            'loss': loss,
            'grad_norm': norm,
            'lr': schedule(state.step),
            'ok': batch['ok'].mean(dtype=jnp.float32),
            'skipped': 1 - good.astype(jnp.float32),
        }
        return State(state.step + 1, model, keep_if(good, opt, state.opt), ema), watch

    return step
