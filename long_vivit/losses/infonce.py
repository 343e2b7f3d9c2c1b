"""The symmetric in-batch NCE loss of a dual encoder (InfoNCE), dense and tile by tile.

On paper, with s the logits, N ok pairs, r_i and c_j the log-sum-exp of row i and column j over the
pairs that count, and y_ij the (smoothed) target of row i, y'_ij that of column j:

    loss = 1/2N sum_i [r_i - sum_j y_ij s_ij] + [c_i - sum_j y'_ji s_ji]
    d loss / d s_ij = 1/2N [exp(s_ij - r_i) - y_ij + exp(s_ij - c_j) - y'_ij]

With label smoothing a, y_ij = (1 - a) [i = j] + a / n_i, where n_i pairs of row i count; as many
count of column i, since pairs count both ways or not at all.
"""

import jax
import jax.numpy as jnp

from long_vivit.losses import pairs, ring
from long_vivit.losses.form import plan_of
from long_vivit.losses.tiles import Formula

MASKED = -1e30  # the logit of a pair that does not count; finite, so its gradient is 0, not NaN


def nce(
    z_video, z_text, log_scale, ok, text_key, video_key=None, *, max_scale=pairs.MAX_SCALE,
    label_smoothing=0.0, form='dense', tile=1024,
):  # fmt: skip
    """Symmetric InfoNCE (CLIP, arXiv 2103.00020, figure 3; LongViViT section 3.1), in float32.

    Args:
      z_video, z_text: unit vectors [b, e], row i of one belongs to row i of the other.
      log_scale: float32 scalar, log(1 / temperature), clamped at log(max_scale).
      ok: bool [b], False leaves the example out. text_key: int32 [b], equal for equal captions.
      video_key: int32 [b], equal for the same video; None: all differ.
      label_smoothing: this share of the target is spread evenly over the row's candidates.
      form, tile: how it is computed, see form.py; the result is the same.

    Returns:
      loss float32 scalar (0 if no example is ok), and a dict of float32 scalars: `recall` in the
      batch (mean of both ways, ties lost), `temperature`, `gap` between the mean cosine of
      positives and of negatives.
    """
    scale = pairs.logit_scale(log_scale, max_scale)
    plan = plan_of(form, tile, len(ok))
    if plan is None:
        loss, watch = _dense(z_video, z_text, scale, ok, text_key, video_key, label_smoothing)
    else:
        about = jnp.zeros(()), ok, text_key, video_key  # no bias
        loss, watch = ring.streamed(formula(label_smoothing), plan, z_video, z_text, scale, *about)
    return loss, watch | {'temperature': 1 / scale}


def _dense(z_video, z_text, scale, ok, text_key, video_key, label_smoothing):
    cosine = pairs.cosines(z_video, z_text)
    counts, _ = pairs.candidates(*pairs.sides(z_video, z_text, ok, text_key, video_key))
    losses = [
        _one_way(logits, counts, ok, label_smoothing)
        for logits in (scale * cosine, scale * cosine.T)
    ]
    return sum(losses) / 2, pairs.watch(cosine, counts, ok)


def _one_way(logits, counts, ok, label_smoothing):
    """Mean over real rows of the cross-entropy between a row's softmax and its (soft) target."""
    logits = jnp.where(counts, logits, MASKED)
    log_p = jax.nn.log_softmax(logits, axis=1)
    own = jnp.diagonal(log_p)
    evenly = jnp.where(counts, log_p, 0).sum(1) / jnp.maximum(counts.sum(1), 1)
    loss = -(1 - label_smoothing) * own - label_smoothing * evenly
    return jnp.where(ok, loss, 0).sum() / jnp.maximum(ok.sum(), 1)


# Tile by tile: of a row is known the highest logit and the sum of exp(logit - highest). Their
# log-sum-exp stays in two parts, since at a scale of 100 a float32 sum would lose five digits of
# the exp that it is wanted for.


def formula(label_smoothing):
    """The `tiles.Formula` of this loss."""

    def start(shape):
        return jnp.full(shape, MASKED), jnp.zeros(shape)

    def fold(known, tile, dim):
        highest, total = known
        logits = jnp.where(tile.counts, tile.logits, MASKED)
        new = jnp.maximum(highest, logits.max(dim))
        shifted = jnp.where(tile.counts, logits - jnp.expand_dims(new, dim), MASKED)
        return new, total * jnp.exp(highest - new) + jnp.exp(shifted).sum(dim)

    def finish(videos, texts, scale, bias):
        losses, kept = zip(*(one_way(*side, scale) for side in (videos, texts)), strict=True)
        return sum(losses) / 2, *kept

    def one_way(known, seen, scale):
        (highest, total), num = known, jnp.maximum(seen.num, 1)
        log_total = jnp.log(jnp.maximum(total, 1))  # at least one where anything counts
        own = scale * seen.own - highest - log_total
        evenly = scale * (seen.own + seen.negatives) / num - highest - log_total
        loss = -(1 - label_smoothing) * own - label_smoothing * evenly
        return loss, (highest, log_total, label_smoothing / num)

    def slope(tile, videos, texts):
        (high, log_total, evenly), (high_t, log_total_t, evenly_t) = videos, texts
        rows = jnp.exp(tile.logits - high[:, None] - log_total[:, None]) - evenly[:, None]
        columns = jnp.exp(tile.logits - high_t - log_total_t) - evenly_t
        own = jnp.where(tile.own, 1 - label_smoothing, 0)
        return jnp.where(tile.counts, (rows + columns) / 2 - own, 0)

    return Formula(start, fold, finish, slope)
