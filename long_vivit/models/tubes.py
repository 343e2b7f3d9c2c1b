"""Stems for tubes: a video cut with several kernels, each with weights of its own (TubeViT)."""

import jax.numpy as jnp
from flax import nnx

from long_vivit.models.layers import Linear


class Tubes(nnx.Module):
    """A tuple of patches uint8 [b, k, r*p*q*c], one for each kernel -> [b, n, d], one after the
    other.

    The stems are named by their kernels, '8x8x8', so that a checkpoint says what they are.

    Args:
      kernels: (r, p, q) of each, frames and pixels.
    """

    def __init__(self, kernels, width, *, dtype, rngs):
        self.names = tuple('x'.join(map(str, kernel)) for kernel in kernels)
        for name, (r, p, q) in zip(self.names, kernels, strict=True):
            setattr(self, name, Linear(r * p * q * 3, width, dtype=dtype, rngs=rngs))

    def __call__(self, patches):
        stems = [getattr(self, name) for name in self.names]
        found = [
            stem(x.astype(stem.dtype) / 127.5 - 1) for stem, x in zip(stems, patches, strict=True)
        ]
        return jnp.concatenate(found, axis=1)
