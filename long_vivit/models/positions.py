"""Where a patch came from, as a vector: one table for space, one for time, added up.

Separate tables know every time at every place; a joint one of [t, h, w] rows, which ViViT has, must
see them all. When the grid or the length changes each table is resized by one interpolation
(`long_vivit.warm_start`).
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

# Of a fresh time table. A patch starts with a norm of about 5 at width 128, and when it was must be
# as loud as what it is, or order is learnt hundreds of steps later: of the twins of the built-in
# stories, 74% were told apart after 100 steps at 1.0 and 52% after 200 at 0.3; after 450 steps it
# was 93% at 1.0 and 95% at 2.0.
TIME_SCALE = 2.0
ROTARY_BASE = 10_000.0  # RoFormer's
KINDS = ('split', 'joint')


def waves(num_rows, width):
    """Smooth positions float32 [num_rows, width]: sines and cosines from half a turn over the whole
    length to one of two rows.

    Neighbours start alike, and early and late are directions.
    """
    place = np.arange(num_rows)[:, None] / num_rows
    turns = np.pi * np.geomspace(0.5, max(num_rows / 2, 1), width // 2)
    table = np.concatenate([np.sin(place * turns), np.cos(place * turns)], axis=1)
    return jnp.asarray(np.pad(table, [(0, 0), (0, width % 2)]), jnp.float32)


def turned(x):
    """x [b, n, m, f], queries or keys: each pair of values (i, i + f/2) is turned by an angle that
    grows with the place.

    The product of a query and a key so turned depends on how far they are apart, not on where they
    are (RoFormer, arXiv 2104.09864). It is done in float32, at 1 to 1 / ROTARY_BASE radians a
    place; f is even.
    """
    half = x.shape[-1] // 2
    frequency = ROTARY_BASE ** -(np.arange(half) / half)
    angle = np.arange(x.shape[1])[:, None, None] * frequency
    cos, sin = (jnp.asarray(wave(angle), jnp.float32) for wave in (np.cos, np.sin))
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    both = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(both, axis=-1).astype(x.dtype)


def between(table, where):
    """A table [*grid, d] read at places float32 [..., len(grid)] between its rows: [..., d].

    Linear along each dim, so that whole numbers give the rows themselves; beyond the first and the
    last row it is that row.
    """
    grid = table.shape[:-1]
    where = jnp.clip(where, 0, jnp.array(grid) - 1)
    low = jnp.clip(jnp.floor(where).astype(jnp.int32), 0, jnp.maximum(jnp.array(grid) - 2, 0))
    high = jnp.minimum(low + 1, jnp.array(grid) - 1)
    share, found = where - low, 0.0
    for corner in itertools.product((False, True), repeat=len(grid)):
        at = jnp.where(jnp.array(corner), high, low)
        weight = jnp.where(jnp.array(corner), share, 1 - share).prod(-1)
        rows = table.at[tuple(at[..., i] for i in range(len(grid)))].get(mode='promise_in_bounds')
        found += weight[..., None] * rows
    return found


class Positions(nnx.Module):
    """space [h, w, d] and time [t, d], or of kind 'joint' one table [t, h, w, d] of both."""

    def __init__(self, grid, width, *, kind='split', rngs):
        if kind not in KINDS:
            raise ValueError(
                f'model.video.positions is {kind!r}; it must be one of {", ".join(KINDS)}'
            )
        t, h, w = grid
        space = 0.02 * jax.random.normal(rngs.params(), (h, w, width))
        time = TIME_SCALE * waves(t, width)
        split = kind == 'split'
        self.space = nnx.Param(space) if split else None
        self.time = nnx.Param(time) if split else None
        self.joint = None if split else nnx.Param(space + time[:, None, None])

    @property
    def grid(self):
        """(t, h, w), how many of each there are."""
        if self.joint is not None:
            return self.joint.shape[:3]
        return *self.time.shape[:1], *self.space.shape[:2]

    def __call__(self, where, *, still):
        """where int32 [b, k, 3] (t, h, w) -> float32 [b, k, d].

        A still image has no time: of a joint table it takes the mean over the times. Of where
        float32, places between rows, the tables are read in between (`between`).
        """
        if jnp.issubdtype(where.dtype, jnp.floating):
            if self.joint is not None:
                return between(self.joint[...], where)
            return between(self.space[...], where[..., 1:]) + between(
                self.time[...], where[..., :1]
            )
        t, h, w = (where[..., i] for i in range(3))
        if self.joint is not None:
            table = self.joint[...]
            if still:
                return table.mean(0).at[h, w].get(mode='promise_in_bounds')
            return table.at[t, h, w].get(mode='promise_in_bounds')
        space = self.space[...].at[h, w].get(mode='promise_in_bounds')
        if still:
            return space
        return space + self.times(t)

    def times(self, t):
        """The rows of a split table's times: int32 [...] -> float32 [..., d]."""
        return self.time[...].at[t].get(mode='promise_in_bounds')
