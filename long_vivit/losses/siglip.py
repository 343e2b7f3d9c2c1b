"""The sigmoid loss of a dual encoder (SigLIP, arXiv 2303.15343, algorithm 1), dense and by tiles.

Each pair is a question by itself: do they belong together? With s the logits, y_ij = 1 on
positives and -1 on negatives, and N ok pairs:

    loss = 1/N sum_ij -log sigmoid(y_ij s_ij)
    d loss / d s_ij = -1/N y_ij sigmoid(-y_ij s_ij)
"""

import jax
import jax.numpy as jnp

from long_vivit.losses import pairs, ring
from long_vivit.losses.form import plan_of
from long_vivit.losses.tiles import Formula


def sigmoid(
    z_video, z_text, log_scale, logit_bias, ok, text_key, video_key=None, *,
    max_scale=pairs.MAX_SCALE, form='dense', tile=1024,
):  # fmt: skip
    """The sum over all pairs that count, divided by the number of ok examples, in float32.

    Args:
      z_video, z_text: unit vectors [b, e], row i of one belongs to row i of the other.
      log_scale: float32 scalar, log(1 / temperature), clamped at log(max_scale).
      logit_bias: float32 scalar, added to scale * cosine.
      ok: bool [b], False leaves the example out. text_key: int32 [b], equal for equal captions;
      video_key: int32 [b], equal for the same video, None: all differ. Pairs of which either is
        equal are neither positives nor negatives of each other.
      form, tile: how it is computed, see form.py; the result is the same.

    Returns:
      loss float32 scalar (0 if no example is ok), and what `nce` returns beside it, and `bias`.
    """
    scale = pairs.logit_scale(log_scale, max_scale)
    plan = plan_of(form, tile, len(ok))
    if plan is None:
        loss, watch = _dense(z_video, z_text, scale, logit_bias, ok, text_key, video_key)
    else:
        loss, watch = ring.streamed(
            FORMULA, plan, z_video, z_text, scale, logit_bias, ok, text_key, video_key
        )
    return loss, watch | {'temperature': 1 / scale, 'bias': logit_bias}


def _dense(z_video, z_text, scale, logit_bias, ok, text_key, video_key):
    cosine = pairs.cosines(z_video, z_text)
    counts, own = pairs.candidates(*pairs.sides(z_video, z_text, ok, text_key, video_key))
    losses = _of_pairs(scale * cosine + logit_bias, counts, own)
    return losses.sum() / jnp.maximum(ok.sum(), 1), pairs.watch(cosine, counts, ok)


def _of_pairs(logits, counts, own):
    """-log sigmoid(y s) of each pair that counts, 0 elsewhere."""
    return jnp.where(counts, jax.nn.softplus(jnp.where(own, -logits, logits)), 0)


# Tile by tile: of a video is known the sum of its losses; of a text nothing needs to be.


def _fold(known, tile, dim):
    return known + _of_pairs(tile.logits, tile.counts, tile.own).sum(1) if dim else known


def _finish(videos, texts, scale, bias):
    return videos[0], (), ()


def _slope(tile, videos, texts):
    wrong = jax.nn.sigmoid(jnp.where(tile.own, -tile.logits, tile.logits))
    return jnp.where(tile.counts, jnp.where(tile.own, -wrong, wrong), 0)


FORMULA = Formula(jnp.zeros, _fold, _finish, _slope)
