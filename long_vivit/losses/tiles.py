"""A contrastive loss over the matrix of all pairs, one tile of it in memory at a time.

The forward pass streams tiles and keeps a few numbers of each row and of each column, such as their
log-sum-exp. The backward pass computes each tile again and, from the slope of the loss in its
logits, adds to the gradients of its videos and texts (InfoNCE by tiles: Inf-CLIP, arXiv 2410.17243;
the slopes are on paper in infonce.py and siglip.py).

A loss is a `Formula`; here is all that does not depend on it. Arrays come cut into tiles: [i, p, e]
are i tiles of p videos, [j, q, e] are j tiles of q texts.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from long_vivit.losses.pairs import Side, candidates, cosines

highest = partial(jnp.einsum, precision='highest', preferred_element_type=jnp.float32)


class Tile(NamedTuple):
    """The pairs of p videos and q texts; all [p, q]."""

    cosine: jax.Array  # float32
    logits: jax.Array  # float32, scale * cosine + bias
    counts: jax.Array  # bool, the pair has a say
    own: jax.Array  # bool, it does and is a positive


class Formula(NamedTuple):
    """What makes a loss this loss. `dim` is 1 for rows (videos), 0 for columns (texts).

    start(shape): what is known of rows before any tile, a pytree of arrays of this shape.
    fold(known, tile, dim): what is known with one more tile.
    finish(videos, texts, scale, bias): -> loss of each pair float32, to be averaged over ok pairs,
      and what the backward pass needs of the videos and of the texts. `videos` and `texts` are
      pairs (known, Seen) of the same examples, their rows and their columns.
    slope(tile, videos, texts): -> float32 [p, q], d (sum of losses) / d logits, from two such.
    """

    start: Callable
    fold: Callable
    finish: Callable
    slope: Callable


class Seen(NamedTuple):
    """What the watch values need of each row or column; float32."""

    own: jax.Array  # cosine of the positive
    best: jax.Array  # highest cosine of a negative, -inf without any
    negatives: jax.Array  # sum of the cosines of the negatives
    num: jax.Array  # pairs that count, the positive among them


def cut(side, size):
    """A Side of n examples -> the fewest tiles of at most `size`, [i, p, ...], p as even as can be.

    What is left of the last tile is filled with examples that are not ok.
    """
    n = len(side.ok)
    count = -(-n // size)
    each = -(-n // count)

    def split(x):
        x = jnp.pad(x, [(0, count * each - n)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(count, each, *x.shape[1:])

    return Side(*map(split, side))


def uncut(x, n):
    """[i, p, ...] -> [n, ...], without the filling."""
    return x.reshape(-1, *x.shape[2:])[:n]


def start(formula, shape):
    """What is known of rows of which no tile has gone by."""
    zeros = jnp.zeros(shape)
    return formula.start(shape), Seen(zeros, jnp.full(shape, -jnp.inf), zeros, zeros)


def look(videos, texts, scale, bias):
    """The Tile of a Side [p] and a Side [q]."""
    cosine = cosines(videos.z, texts.z)
    return Tile(cosine, scale * cosine + bias, *candidates(videos, texts))


def see(seen, tile, dim):
    """`seen` with one more tile."""
    negative = tile.counts & ~tile.own
    return Seen(
        seen.own + jnp.where(tile.own, tile.cosine, 0).sum(dim),
        jnp.maximum(seen.best, jnp.where(negative, tile.cosine, -jnp.inf).max(dim)),
        seen.negatives + jnp.where(negative, tile.cosine, 0).sum(dim),
        seen.num + tile.counts.sum(dim, dtype=jnp.float32),
    )


def forward(formula, videos, texts, of_videos, of_texts, scale, bias):
    """What is known of all rows and columns, with the tiles of these videos and texts added."""

    def fold(known, tile, dim):
        return formula.fold(known[0], tile, dim), see(known[1], tile, dim)

    def row(of_texts, of_row):
        def one(of_row, column):
            tile = look(of_row[0], column[0], scale, bias)
            return (of_row[0], fold(of_row[1], tile, 1)), fold(column[1], tile, 0)

        (_, known), of_texts = jax.lax.scan(one, of_row, (texts, of_texts))
        return of_texts, known

    of_texts, of_videos = jax.lax.scan(row, of_texts, (videos, of_videos))
    return of_videos, of_texts


class Grads(NamedTuple):
    """Gradients of a sum of losses; float32."""

    videos: jax.Array  # [i, p, e], before the scale
    texts: jax.Array  # [j, q, e], before the scale
    bias: jax.Array  # []


def backward(formula, videos, texts, kept_videos, kept_texts, grads, scale, bias):
    """`grads` with what the tiles of these videos and texts add."""

    def row(grads, of_row):
        i, video, kept_video = of_row

        def one(carry, column):
            (j, text, kept_text), (z_grad, texts_grad, bias_grad) = column, carry
            slope = formula.slope(look(video, text, scale, bias), kept_video, kept_text)
            z_grad += highest('pq,qe->pe', slope, text.z.astype(jnp.float32))
            z_text_grad = highest('pq,pe->qe', slope, video.z.astype(jnp.float32))
            return (z_grad, texts_grad.at[j].add(z_text_grad), bias_grad + slope.sum()), None

        first = grads.videos[i], grads.texts, grads.bias
        columns = jnp.arange(len(texts.ok)), texts, kept_texts
        (z_grad, texts_grad, bias_grad), _ = jax.lax.scan(one, first, columns)
        return Grads(grads.videos.at[i].set(z_grad), texts_grad, bias_grad), None

    return jax.lax.scan(row, grads, (jnp.arange(len(videos.ok)), videos, kept_videos))[0]


def watch(videos, texts, ok, total):
    """`pairs.watch` from the Seen of the rows and of the columns; `total` sums over devices."""
    num_ok = total(ok.sum(dtype=jnp.float32))
    num_negative = total(jnp.where(ok, videos.num - 1, 0).sum())
    hits = sum(jnp.where(ok, seen.own > seen.best, False).sum() for seen in (videos, texts))
    positives = total(jnp.where(ok, videos.own, 0).sum()) / jnp.maximum(num_ok, 1)
    negatives = total(jnp.where(ok, videos.negatives, 0).sum()) / jnp.maximum(num_negative, 1)
    return {
        'recall': total(hits.astype(jnp.float32)) / jnp.maximum(2 * num_ok, 1),
        'gap': positives - negatives,
    }
