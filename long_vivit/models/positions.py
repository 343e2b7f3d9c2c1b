"""Where a patch came from, as a vector: one table for space, one for time, added up.

Separate tables are resized by one interpolation each when the grid or the length changes
(`long_vivit.warm_start`); a merged (t h w) table could not be.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

# Of a fresh time table. A patch starts with a norm of about 5 at width 128, and when it was must be
# as loud as what it is, or order is learnt hundreds of steps later: of the twins of the built-in
# stories, 74% were told apart after 100 steps at 1.0 and 52% after 200 at 0.3; after 450 steps it
# was 93% at 1.0 and 95% at 2.0.
TIME_SCALE = 2.0


def waves(num_rows, width):
    """Smooth positions float32 [num_rows, width]: sines and cosines from half a turn over the whole
    length to one of two rows.

    Neighbours start alike, and early and late are directions.
    """
    place = np.arange(num_rows)[:, None] / num_rows
    turns = np.pi * np.geomspace(0.5, max(num_rows / 2, 1), width // 2)
    table = np.concatenate([np.sin(place * turns), np.cos(place * turns)], axis=1)
    return jnp.asarray(np.pad(table, [(0, 0), (0, width % 2)]), jnp.float32)


class Positions(nnx.Module):
    """space [h, w, d] and time [t, d]."""

    def __init__(self, grid, width, *, rngs):
        t, h, w = grid
        self.space = nnx.Param(0.02 * jax.random.normal(rngs.params(), (h, w, width)))
        self.time = nnx.Param(TIME_SCALE * waves(t, width))

    def __call__(self, where, *, still):
        """where int32 [b, k, 3] (t, h, w) -> float32 [b, k, d]. A still image has no time."""
        t, h, w = (where[..., i] for i in range(3))
        space = self.space[...].at[h, w].get(mode='promise_in_bounds')
        if still:
            return space
        return space + self.time[...].at[t].get(mode='promise_in_bounds')
