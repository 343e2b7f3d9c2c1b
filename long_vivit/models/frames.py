"""From the vectors of a video's time slices to one: what stands above an encoder of slices.

Two backbones end so. Both send each slice by itself through the shared trunk and pool its tokens to
one vector. They differ in when a slice is told its time:

    factorised_encoder  its tokens are, as in joint attention, so the trunk sees when it looks
                        (ViViT's model 2, arXiv 2103.15691, section 3.3)
    frames              its vector is, and only where layers over slices read it (pool 'temporal').
                        The trunk is an encoder of images: it never knows of time

so 'frames' with layers over slices is a factorised encoder whose trunk does not know the time; with
the other pools it knows no order at all: with its slices in another order a video embeds the same.
"""

import jax.numpy as jnp
from flax import nnx

from long_vivit.models.layers import Trunk
from long_vivit.models.pool import MapPool
from long_vivit.models.slices import FRAME_POOLS


class OverTime(nnx.Module):
    """Vectors of slices [b, t, d], any t -> float32 [b, d].

    Args:
      pool: 'mean'; 'attention', of a learnt probe (`MapPool`); 'temporal', `depth` layers
        over slices, then the mean.
      remat, split, implementation: of the layers. block: what `Block` and `MapPool` take besides.
    """

    def __init__(self, pool, width, depth, heads, *, remat, split, implementation, rngs, **block):
        if pool not in FRAME_POOLS:
            raise ValueError(
                f'model.video.frame_pool is {pool!r}; it must be one of {", ".join(FRAME_POOLS)}'
            )
        self.map = MapPool(width, heads, rngs=rngs, **block) if pool == 'attention' else None
        mixing = {'remat': remat, 'split': split, 'implementation': implementation}
        layers = pool == 'temporal'
        self.trunk = Trunk(width, depth, heads, rngs=rngs, **mixing, **block) if layers else None

    def __call__(self, x):
        return self.layers(x).mean(1) if self.map is None else self.map(x)

    def layers(self, x):
        """The slices as they leave the layers over time, where there are any: float32 [b, t, d]."""
        if self.trunk is not None:
            x = self.trunk(x.astype(self.trunk.blocks.attention.dtype))
        return x.astype(jnp.float32)
