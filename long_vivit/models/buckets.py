"""Short texts cost no more than they must: the rows of a batch in groups of like length.

Every batch has the static shape [b, l]. Inside the compiled program its rows are sorted by length,
each device's by themselves, and cut into equal groups; one group after the other goes through the
encoder, only as far as the smallest bucket that holds its longest row on any device. So there is
one program, with an encoder for each bucket, whatever the lengths in a batch are; the data know
nothing of it, and the vectors are those of the whole length, since padding is never looked at.

The backward pass computes each group again instead of storing it: the memory is that of one group.
That costs a forward pass, a third more. So scoring is always faster, but a step only where the
buckets follow the texts, a little above the quarters of their lengths: with others it may be slower
than the whole length (scripts/bench/RESULTS.md). With `remat` the whole length computes its blocks
again as well, so buckets make a step faster, but save no memory: it holds little to begin with. To
leave it to `remat` alone gives the same values for hardly less time and for more memory, since what
the branch of each bucket keeps is held for all of them.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from long_vivit.sharding import BATCH, axis_size, batch_axes, constrain

GROUPS = 4  # more would follow the lengths closer, in smaller matrix products


def num_groups(b, parts):
    """Into how many groups `b` rows in `parts` equal parts are cut: the most that divide a part."""
    return next(groups for groups in (GROUPS, 2, 1) if b // parts % groups == 0)


def ends(buckets, longest):
    """The lengths that a group may have, ascending: the buckets below `longest`, and that."""
    return (*sorted(length for length in set(buckets) if length < longest), longest)


def in_buckets(look_up, encode, tokens, lengths, buckets):
    """encode(look_up(tokens), lengths), [b, d], at less cost where many rows are short.

    Args:
      look_up: int32 [..., l] -> [..., l, w]: of all rows at once, since the gradient of its table
        is too large to be added up group by group.
      encode: ([n, l', w], lengths [n]) -> [n, d], row by row; padding changes nothing in it.
      tokens: int32 [b, l]. lengths: int32 [b], the real tokens of each row.
      buckets: lengths l' < l that encode may be given.
    """
    parts, lasts = axis_size(batch_axes()), ends(buckets, tokens.shape[1])
    groups = num_groups(len(tokens), parts)
    by_part = rearrange(lengths, '(s n) -> s n', s=parts)
    order = jnp.argsort(by_part, axis=1)
    rows = rearrange(tokens, '(s n) l -> s n l', s=parts)
    rows = jnp.take_along_axis(rows, order[..., None], axis=1)
    rows = rearrange(rows, 's (g n) l -> g (s n) l', g=groups)
    sizes = jnp.take_along_axis(by_part, order, axis=1)
    sizes = rearrange(sizes, 's (g n) -> g (s n)', g=groups)
    x = look_up(constrain(rows, None, BATCH, None))

    def to(last):
        return jax.checkpoint(lambda x, sizes: encode(x[:, :last], sizes), prevent_cse=False)

    def one(_, group):
        bucket = jnp.searchsorted(jnp.array(lasts[:-1], jnp.int32), group[1].max())
        return (), jax.lax.switch(bucket, [to(last) for last in lasts], *group)

    _, z = jax.lax.scan(one, (), (x, constrain(sizes, None, BATCH)))
    z = rearrange(z, 'g (s n) d -> s (g n) d', s=parts)
    z = jnp.take_along_axis(z, jnp.argsort(order, axis=1)[..., None], axis=1)
    return constrain(rearrange(z, 's n d -> (s n) d'), BATCH, None)
