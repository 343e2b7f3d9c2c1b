"""The symmetric in-batch NCE loss of a dual encoder, and what to watch beside it."""

import math

import jax
import jax.numpy as jnp

MASKED = -1e30  # the logit of a pair that does not count; finite, so its gradient is 0, not NaN


def logit_scale(log_scale, max_scale):
    """exp(log_scale), at most `max_scale` (CLIP: 100); the gradient is 0 above the clamp."""
    return jnp.exp(jnp.minimum(log_scale, math.log(max_scale)))


def candidates(ok, text_key):
    """Which pairs count: bool [b, b], True on the diagonal of real pairs and for real negatives.

    A clip that failed to decode (`ok` False) leaves its row and its column. Two examples with
    equal captions (`text_key`) are not each other's negatives.
    """
    own = jnp.eye(len(ok), dtype=bool)
    differ = text_key[:, None] != text_key[None]
    return ok[:, None] & ok[None] & (own | differ)


def _one_way(logits, counts, ok, label_smoothing):
    """Mean over real rows of the cross-entropy between a row's softmax and its (soft) target."""
    logits = jnp.where(counts, logits, MASKED)
    log_p = jax.nn.log_softmax(logits, axis=1)
    own = jnp.diagonal(log_p)
    evenly = jnp.where(counts, log_p, 0).sum(1) / jnp.maximum(counts.sum(1), 1)
    loss = -(1 - label_smoothing) * own - label_smoothing * evenly
    return jnp.where(ok, loss, 0).sum() / jnp.maximum(ok.sum(), 1)


def nce(z_video, z_text, log_scale, ok, text_key, *, max_scale=100.0, label_smoothing=0.0):
    """Symmetric InfoNCE (CLIP, arXiv 2103.00020, figure 3; LongViViT section 3.1), in float32.

    Args:
      z_video, z_text: unit vectors [b, e], row i of one belongs to row i of the other.
      log_scale: float32 scalar, log(1 / temperature), clamped at log(max_scale).
      ok: bool [b], False leaves the example out. text_key: int32 [b], equal for equal captions.
      label_smoothing: this share of the target is spread evenly over the row's candidates.

    Returns:
      loss float32 scalar (0 if no example is ok), and a dict of float32 scalars: `recall` in the
      batch (mean of both ways, ties lost), `temperature`, `gap` between the mean cosine of
      positives and of negatives.
    """
    cosine = jnp.einsum(
        'ae,be->ab', z_video.astype(jnp.float32), z_text.astype(jnp.float32),
        precision='highest',
    )  # fmt: skip
    scale = logit_scale(log_scale, max_scale)
    counts = candidates(ok, text_key)
    losses = [
        _one_way(logits, counts, ok, label_smoothing)
        for logits in (scale * cosine, scale * cosine.T)
    ]
    return sum(losses) / 2, _watch(cosine, counts, ok) | {'temperature': 1 / scale}


def _watch(cosine, counts, ok):
    own = jnp.diagonal(cosine)
    negative = counts & ~jnp.eye(len(ok), dtype=bool)
    num_ok, num_negative = jnp.maximum(ok.sum(), 1), jnp.maximum(negative.sum(), 1)
    best = [jnp.where(negative, x, -jnp.inf).max(1) for x in (cosine, cosine.T)]
    hits = sum(jnp.where(ok, own > x, False).sum() for x in best) / (2 * num_ok)
    positives = jnp.where(ok, own, 0).sum() / num_ok
    negatives = jnp.where(negative, cosine, 0).sum() / num_negative
    return {'recall': hits, 'gap': positives - negatives}
