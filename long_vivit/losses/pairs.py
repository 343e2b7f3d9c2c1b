"""What the contrastive losses share: which pairs count, the scale, what to watch beside a loss."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

MAX_SCALE = 100.0  # CLIP's clamp


class Side(NamedTuple):
    """The videos, or the texts, of some pairs."""

    z: jax.Array  # [n, e] unit vectors
    ok: jax.Array  # bool [n], False leaves the example out
    text_key: jax.Array  # int32 [n], equal for equal captions
    video_key: jax.Array  # int32 [n], equal for the same video
    place: jax.Array  # int32 [n], the row in the batch: equal for a video and its own text


def logit_scale(log_scale, max_scale):
    """exp(log_scale), at most `max_scale` (CLIP: 100).

    The gradient is that of exp at the clamp too: were it 0, a scale that is there, as CLIP's is,
    could never come down again. `held` keeps the parameter itself at or below the clamp.
    """
    over = jnp.maximum(log_scale - math.log(max_scale), 0)
    return jnp.exp(log_scale - jax.lax.stop_gradient(over))


def held(log_scale, max_scale):
    """The parameter of `logit_scale` behind an update: at or below the clamp, as CLIP has it."""
    return jnp.minimum(log_scale, math.log(max_scale))


def sides(z_video, z_text, ok, text_key, video_key):
    """The two sides of a batch: z [b, e], ok and the keys [b]; video_key None: all differ."""
    place = jnp.arange(len(ok), dtype=jnp.int32)
    about = ok, text_key, place if video_key is None else video_key, place
    return Side(z_video, *about), Side(z_text, *about)


def cosines(z_video, z_text):
    """[a, e], [b, e] -> float32 [a, b], the products in float32 whatever comes in."""
    return jnp.einsum(
        'ae,be->ab', z_video.astype(jnp.float32), z_text.astype(jnp.float32),
        precision='highest',
    )  # fmt: skip


def candidates(videos, texts):
    """Which pairs of two sides count, and which of those are positives: two bool [a, b].

    A clip that failed to decode (`ok` False) leaves its row and its column. Two examples with
    equal captions (`text_key`), or two captions of the same video (`video_key`), are not each
    other's negatives.
    """
    own = videos.place[:, None] == texts.place
    differ = videos.text_key[:, None] != texts.text_key
    differ &= videos.video_key[:, None] != texts.video_key
    counts = videos.ok[:, None] & texts.ok & (own | differ)
    return counts, counts & own


def watch(cosine, counts, ok):
    """float32 scalars of a whole batch: `recall` in the batch (mean of both ways, ties lost) and
    `gap`, the mean cosine of positives less that of negatives. `tiles.watch` is the same, streamed.
    """
    own = jnp.diagonal(cosine)
    negative = counts & ~jnp.eye(len(ok), dtype=bool)
    num_ok = jnp.maximum(ok.sum(), 1)
    num_negative = jnp.maximum(negative.sum(dtype=jnp.float32), 1)  # int32 ends at 46,341 squared
    best = [jnp.where(negative, x, -jnp.inf).max(1) for x in (cosine, cosine.T)]
    hits = sum(jnp.where(ok, own > x, False).sum() for x in best) / (2 * num_ok)
    positives = jnp.where(ok, own, 0).sum() / num_ok
    negatives = jnp.where(negative, cosine, 0).sum() / num_negative
    return {'recall': hits, 'gap': positives - negatives}
