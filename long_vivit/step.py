"""One training step, as one compiled function from (state, batch) to (state, what to watch)."""

import jax
import jax.numpy as jnp
import optax

from long_vivit import grad_cache, losses, optim
from long_vivit.state import State


def keep_if(good, new, old):
    """`new` where the scalar `good` is True, else `old`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)


def make_step(optimiser, schedule, *, num_frozen, ema_decay, micro_batch=0, **loss):
    """Returns step(state, batch) -> (state, watch), to be jitted with the state donated.

    A step whose loss or gradient is not finite changes no parameter, no moment and no count of the
    optimiser; `watch['skipped']` is then 1. `state.step` counts it all the same, since it is the
    place in the data.

    micro_batch: pairs that the encoders take at once (grad_cache.py); 0: all.
    loss: the kind of the loss and its options, see `loss_of`.
    batch: patches uint8 [b, k, r*p*q*c], where int32 [b, k, 3], tokens int32 [b, l],
      lengths int32 [b], ok bool [b], text_key int32 [b].
    watch: float32 scalars loss, recall, gap, temperature, grad_norm, lr, ok (share), skipped; and
      bias with the sigmoid loss.
    """

    def embed(model, batch):
        return model(batch, num_frozen=num_frozen)

    def contrast(model, z_video, z_text, batch):
        return loss_of(model, z_video, z_text, batch, **loss)

    def value_and_grad(model, batch):
        if micro_batch:
            return grad_cache.value_and_grad(embed, contrast, model, batch, micro_batch)
        whole = jax.value_and_grad(lambda m: contrast(m, *embed(m, batch), batch), has_aux=True)
        return whole(model)

    def step(state, batch):
        (loss, watch), grads = value_and_grad(state.model, batch)
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


def loss_of(model, z_video, z_text, batch, *, kind='nce', label_smoothing=0.0, **options):
    """(loss, watch) of a batch's embeddings: `losses.nce` or `losses.sigmoid` with their options.

    Raises ValueError for label smoothing with the sigmoid loss, which has none.
    """
    pairs = batch['ok'], batch['text_key']
    if kind == 'nce':
        return losses.nce(
            z_video, z_text, model.log_scale[...], *pairs, label_smoothing=label_smoothing,
            **options,
        )  # fmt: skip
    if label_smoothing:
        raise ValueError(f'loss.label_smoothing: {label_smoothing} is of loss.kind nce only')
    return losses.sigmoid(
        z_video, z_text, model.log_scale[...], model.logit_bias[...], *pairs, **options
    )
