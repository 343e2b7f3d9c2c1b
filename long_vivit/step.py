"""One training step, as one compiled function from (state, batch) to (state, what to watch)."""

import jax
import jax.numpy as jnp
import optax

from long_vivit import grad_cache, losses, optim
from long_vivit.adam import keep_if
from long_vivit.losses import components, pairs
from long_vivit.state import State


def make_step(
    optimiser, schedule, *, ema_decay, num_frozen=0, num_still=0, micro_batch=0, short=None, **loss
):
    """Returns step(state, batch) -> (state, watch), to be jitted with the state donated.

    Differentiated is what the optimiser trains and nothing else: `grad_norm` is of that.

    A step whose loss or gradient is not finite changes no parameter, no moment and no count of the
    optimiser; `watch['skipped']` is then 1. `state.step` counts it all the same, since it is the
    place in the data.

    num_frozen, num_still: see `layers.Trunk`; the optimiser must train nothing in these blocks.
    micro_batch: pairs that the encoders take at once (grad_cache.py); 0: all.
    short: what `two_branches` takes of it; None: there are no second, short texts.
    loss: the kind of the loss and its options, see `loss_of`.
    batch: patches uint8 [b, k, r*p*q*c], where int32 [b, k, 3], tokens int32 [b, l],
      lengths int32 [b], ok bool [b], text_key int32 [b], video_key int32 [b] (absent: all
      differ); with `short` also short_tokens, its own l, short_lengths and short_key.
    watch: float32 scalars loss, recall, gap, temperature, grad_norm, lr, ok (share), skipped; and
      bias with the sigmoid loss; with `short` what `two_branches` says.
    """

    cuts = {'num_frozen': num_frozen, 'num_still': num_still}
    max_scale = loss.get('max_scale', pairs.MAX_SCALE)

    def embed(model, batch):
        z = model(batch, **cuts)
        return z if short is None else (*z, short_text(model, batch))

    def contrast(model, z, batch):
        if short is None:
            return loss_of(model, *z, batch, **loss)
        return two_branches(model, *z, batch, short, **loss)

    def step(state, batch):
        (loss, watch), grads = value_and_grad(
            embed, contrast, optimiser, state.model, batch, micro_batch
        )
        norm = optax.tree.norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        live = optimiser.take(state.model)
        updates, opt = optimiser.update(grads, state.opt, live, good=good)
        new = optax.apply_updates(live, updates)
        if 'log_scale' in new:
            new['log_scale'] = pairs.held(new['log_scale'], max_scale)
        live = keep_if(good, new, live)
        model = optimiser.put(state.model, live)
        ema = state.ema
        if ema is not None:
            ema = keep_if(good, optim.ema_update(ema, model, ema_decay), ema)
        watch = watch | {
            'loss': loss,
            'grad_norm': norm,
            'lr': schedule(optimiser.num_updates(state.opt)),
            'ok': batch['ok'].mean(dtype=jnp.float32),
            'skipped': 1 - good.astype(jnp.float32),
        }
        return State(state.step + 1, model, opt, ema), watch

    return step


def value_and_grad(embed, contrast, optimiser, model, batch, micro_batch):
    """-> ((loss, watch), {name: gradient}) of what the optimiser trains, and of nothing else.

    embed, contrast: the two functions of (model, ..., batch) that `grad_cache` takes; micro_batch
    0: the whole batch at once.
    """

    def embedded(live, batch):
        return embed(optimiser.put(model, live), batch)

    def contrasted(live, z, batch):
        return contrast(optimiser.put(model, live), z, batch)

    live = optimiser.take(model)
    if micro_batch:
        return grad_cache.value_and_grad(embedded, contrasted, live, batch, micro_batch)
    whole = jax.value_and_grad(lambda x: contrasted(x, embedded(x, batch), batch), has_aux=True)
    return whole(live)


def short_text(model, batch):
    """z_short float32 [b, e]: the second, short texts of a batch through the text tower."""
    return model.text(batch['short_tokens'], batch['short_lengths'])


def two_branches(model, z_video, z_text, z_short, batch, short, **loss):
    """(loss, watch): each text against the videos, plus short texts against their coarse part.

    loss = loss_of(texts) + weight * loss_of(short texts), Long-CLIP's (arXiv 2403.15378) with
    weight 1. Examples with equal short texts are not each other's negatives in the second.

    Args:
      z_video, z_text, z_short: float32 [b, e].
      short: `weight`, and the options of `components.coarse`.
      loss: the kind and the options of both losses, see `loss_of`.

    `watch` is that of the first loss, and float32 scalars loss_short, recall_short; and with
    components `removed`, the share of the variance of the videos that they leave out.
    """
    options = {key: value for key, value in short.items() if key != 'weight'}
    first, watch = loss_of(model, z_video, z_text, batch, **loss)
    if options['components']:
        z_video, watch['removed'] = components.coarse(z_video, batch['ok'], **options)
    of_short = batch | {'text_key': batch['short_key']}
    second, seen = loss_of(model, z_video, z_short, of_short, **loss)
    watch |= {'loss_short': second, 'recall_short': seen['recall']}
    return first + short['weight'] * second, watch


def loss_of(model, z_video, z_text, batch, *, kind='nce', label_smoothing=0.0, **options):
    """(loss, watch) of a batch's embeddings: `losses.nce` or `losses.sigmoid` with their options.

    Raises ValueError for label smoothing with the sigmoid loss, which has none.
    """
    about = batch['ok'], batch['text_key'], batch.get('video_key')
    if kind == 'nce':
        return losses.nce(
            z_video, z_text, model.log_scale[...], *about, label_smoothing=label_smoothing,
            **options,
        )  # fmt: skip
    if label_smoothing:
        raise ValueError(f'loss.label_smoothing: {label_smoothing} is of loss.kind nce only')
    return losses.sigmoid(
        z_video, z_text, model.log_scale[...], model.logit_bias[...], *about, **options
    )
