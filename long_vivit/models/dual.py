"""The dual encoder: a video tower, a text tower, and the temperature between them."""

import jax.numpy as jnp
from flax import nnx

from long_vivit.models.text import TextEncoder
from long_vivit.models.video import VideoEncoder


class DualEncoder(nnx.Module):
    """Videos and texts as unit vectors in one space.

    Beside the encoders it holds what turns cosines into logits: `log_scale`, log(1 / temperature),
    and `logit_bias`, which is added to them and which only the sigmoid loss has (None without).
    """

    def __init__(self, *, video, text, embed, temperature, logit_bias=None, rngs):
        """video, text: keyword arguments of the two encoders. temperature, logit_bias: the initial
        ones."""
        self.video = VideoEncoder(**video, embed=embed, rngs=rngs)
        self.text = TextEncoder(**text, embed=embed, rngs=rngs)
        self.log_scale = nnx.Param(jnp.log(1.0 / jnp.float32(temperature)))
        self.logit_bias = None if logit_bias is None else nnx.Param(jnp.float32(logit_bias))

    def __call__(self, batch, **cuts):
        """-> z_video, z_text, each float32 [b, e]. cuts: see `VideoEncoder.__call__`."""
        z_video = self.video(batch['patches'], batch['where'], **cuts)
        return z_video, self.text(batch['tokens'], batch['lengths'])
