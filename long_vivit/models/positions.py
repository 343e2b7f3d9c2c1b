"""Where a patch came from, as a vector: one table for space, one for time, added up.

Separate tables are resized by one interpolation each when the grid or the length changes
(`long_vivit.warm_start`); a merged (t h w) table could not be.
"""

import jax
import jax.numpy as jnp
from flax import nnx


class Positions(nnx.Module):
    """space [h, w, d] and time [t, d].

    Time starts at zero, so that a model that has only seen images embeds a still video as its
    image until it learns otherwise.
    """

    def __init__(self, grid, width, *, rngs):
        t, h, w = grid
        self.space = nnx.Param(0.02 * jax.random.normal(rngs.params(), (h, w, width)))
        self.time = nnx.Param(jnp.zeros((t, width)))

    def __call__(self, where, *, still):
        """where int32 [b, k, 3] (t, h, w) -> float32 [b, k, d]. A still image has no time."""
        t, h, w = (where[..., i] for i in range(3))
        space = self.space[...].at[h, w].get(mode='promise_in_bounds')
        if still:
            return space
        return space + self.time[...].at[t].get(mode='promise_in_bounds')
