"""Attention in two steps: among the patches of a time slice, then among the slices of a place.

A block is the image's, with an attention over time between its two halves, behind a gate (the
factorised space-time encoder of LongViViT, arXiv 2312.07395). Space, then time, then
the MLP is the order of ViViT's model 3 (arXiv 2103.15691, section 3.3). With the gate shut, as it
is at the start, a block is what it was before: a model of images stays intact.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from long_vivit.models.layers import EPSILON, Attention, Block, LayerNorm


class Temporal(nnx.Module):
    """tanh(gate) * attention over time of a normalised copy: x [b, n, d] -> [b, n, d].

    The gate, one number, starts at 0. `attention`: what `Attention` takes besides.
    """

    def __init__(self, width, heads, *, norm_epsilon=EPSILON, dtype, rngs, **attention):
        self.norm = LayerNorm(width, epsilon=norm_epsilon)
        self.attention = Attention(width, heads, dtype=dtype, rngs=rngs, **attention)
        self.gate = nnx.Param(jnp.zeros(()))

    def __call__(self, x, num_slices):
        y = rearrange(self.norm(x), 'b (t s) d -> (b s) t d', t=num_slices)
        y = rearrange(self.attention(y), '(b s) t d -> b (t s) d', b=len(x))
        return jnp.tanh(self.gate[...]).astype(y.dtype) * y


class FactorisedBlock(Block):
    """x [b, n, d] -> [b, n, d]: attention within slices, over time, then an MLP.

    The n tokens are `num_slices` slices, one after the other, each with the same places in the same
    order. Takes what `Block` takes; low-rank pairs lie beside the weights of a `Block` only:
    attention over time is new itself, and is trained whole (`tune` temporal).
    """

    def __init__(
        self, width, heads, *, activation='gelu', norm_epsilon=EPSILON, mlp_width=0,
        adapter_width=0, lora_rank=0, dtype, rngs, **attention,
    ):  # fmt: skip
        both = {'norm_epsilon': norm_epsilon, 'dtype': dtype, 'rngs': rngs, **attention}
        beside = {'adapter_width': adapter_width, 'lora_rank': lora_rank}
        super().__init__(width, heads, activation=activation, mlp_width=mlp_width, **beside, **both)
        self.temporal = Temporal(width, heads, **both)

    def __call__(self, x, lengths=None, *, in_parts=False, num_slices):
        assert lengths is None, 'slices have no padding'
        x = self.within(x, num_slices)
        return self.then_mlp(x + self.temporal(x, num_slices), in_parts)

    def within(self, x, num_slices):
        """x with what attention within its slices adds."""
        x = rearrange(x, 'b (t s) d -> (b t) s d', t=num_slices)
        x = x + self.attention(self.norm_1(x))
        return rearrange(x, '(b t) s d -> b (t s) d', t=num_slices)
