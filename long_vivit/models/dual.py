"""The dual encoder: a video tower, a text tower, and the temperature between them."""

import jax.numpy as jnp
from flax import nnx

from long_vivit.models.text import TextEncoder
from long_vivit.models.video import VideoEncoder


class DualEncoder(nnx.Module):
    """Videos and texts as unit vectors in one space; `log_scale` is log(1 / temperature)."""

    def __init__(self, *, video, text, embed, temperature, rngs):
        """video, text: keyword arguments of the two encoders. temperature: the initial one."""
        self.video = VideoEncoder(**video, embed=embed, rngs=rngs)
        self.text = TextEncoder(**text, embed=embed, rngs=rngs)
        self.log_scale = nnx.Param(jnp.log(1.0 / jnp.float32(temperature)))

    def __call__(self, batch, *, num_frozen=0):
        """-> z_video, z_text, each float32 [b, e]."""
        z_video = self.video(batch['patches'], batch['where'], num_frozen=num_frozen)
        return z_video, self.text(batch['tokens'], batch['lengths'])
