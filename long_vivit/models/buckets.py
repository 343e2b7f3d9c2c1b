"""Short texts cost no more than they must: the rows of a batch in groups of like length.

Every batch has the static shape [b, l]. Inside the compiled program its rows are sorted by length,
each device's by themselves, and cut into equal groups; each group goes through the encoder only as
far as the smallest bucket that holds its longest row, on any device. So there is one program with
an encoder for each bucket, whatever the lengths in a batch are, the data know nothing of it, and
the vectors are those of the whole length: padding is never looked at.
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange

from long_vivit.sharding import BATCH, axis_size, batch_axes, constrain

GROUPS = 4  # more would follow the lengths closer, in smaller matrix products


def num_groups(b):
    """Into how many groups `b` rows are cut: GROUPS, or the most of 2 and 1 that divides a part.

    b: over all devices; the ambient mesh says how many parts it has.
    """
    rows = b // axis_size(batch_axes())
    return next(groups for groups in (GROUPS, 2, 1) if rows % groups == 0)


def lengths_of(buckets, longest):
    """The lengths that a group may have: buckets below `longest`, ascending, and that itself."""
    return (*(length for length in sorted(buckets) if length < longest), longest)


def in_buckets(encode, tokens, lengths, buckets):
    """encode(tokens, lengths), [b, d], at less cost where many rows are short.

    Args:
      encode: (tokens [n, l], lengths [n]) -> [n, d], row by row, which padding does not change.
      tokens: [b, l]. lengths: int32 [b], the real tokens of each row.
      buckets: lengths that encode may be given instead of l.

    For the backward pass the longer half of the groups keeps its activations where it has the whole
    length; all else is computed again, which costs little where rows are short. So a batch takes
    about half of the memory, and one of long texts only a sixth more time.
    """
    parts, groups = axis_size(batch_axes()), num_groups(len(tokens))
    buckets = lengths_of(buckets, tokens.shape[1])
    by_part = rearrange(lengths, '(s n) -> s n', s=parts)
    order = jnp.argsort(by_part, axis=1)
    rows = rearrange(tokens, '(s n) l -> s n l', s=parts)
    rows = jnp.take_along_axis(rows, order[..., None], axis=1)
    rows = rearrange(rows, 's (g n) l -> g (s n) l', g=groups)
    sizes = jnp.take_along_axis(by_part, order, axis=1)
    sizes = rearrange(sizes, 's (g n) -> g (s n)', g=groups)
    rows, sizes = constrain(rows, None, BATCH, None), constrain(sizes, None, BATCH)
    bucket = jnp.searchsorted(jnp.array(buckets[:-1]), sizes.max(1)).astype(jnp.int32)
    half = groups // 2
    again = [partial(_again, encode, length) for length in buckets]
    kept = [*again[:-1], encode]
    found = [
        _each(branches, rows[part], sizes[part], bucket[part])
        for branches, part in ((again, slice(half)), (kept, slice(half, None)))
        if rows[part].shape[0]
    ]
    z = rearrange(jnp.concatenate(found), 'g (s n) d -> s (g n) d', s=parts)
    z = jnp.take_along_axis(z, jnp.argsort(order, axis=1)[..., None], axis=1)
    return constrain(rearrange(z, 's n d -> (s n) d'), BATCH, None)


def _each(branches, rows, sizes, bucket):
    """[g, n, d]: each group through the branch of its bucket."""

    def one(_, group):
        rows, sizes, bucket = group
        return (), jax.lax.switch(bucket, branches, rows, sizes)

    return jax.lax.scan(one, (), (rows, sizes, bucket))[1]


def _again(encode, length, rows, sizes):
    """The first `length` tokens through the encoder, computed again in the backward pass."""
    whole = jax.checkpoint(lambda rows, sizes: encode(rows[:, :length], sizes), prevent_cse=False)
    return whole(rows, sizes)
