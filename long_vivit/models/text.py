"""The text encoder: the paper's (bidirectional, mean pooling), CLIP's (causal, end of text) or
SigLIP's (padding is read as well, the last place)."""

import jax
import jax.numpy as jnp
from flax import nnx

from long_vivit.models.layers import Linear, Trunk
from long_vivit.models.positions import waves
from long_vivit.models.video import unit

WORD_SCALE = 0.05  # of a fresh table of words
KINDS = ('bidirectional', 'causal', 'padded')


class TextEncoder(nnx.Module):
    """tokens int32 [b, l], lengths int32 [b] -> z_text float32 [b, e], unit length.

    Args:
      vocab: number of token ids.
      length: rows of the position table, the longest text. position_scale: of a fresh table.
      kind: 'bidirectional' looks both ways and averages the real tokens (LongViViT section 3.1);
        'causal' looks back only and takes the last real token, the end of text (CLIP); 'padded'
        looks both ways, at the padding as well, and takes the last place of the table, so that
        every text must be as long as it (SigLIP, arXiv 2303.15343).
      head_bias: whether the projection has one.
      block: activation, norm_epsilon and mlp_width of the blocks, see `layers.Block`.
    """

    def __init__(
        self, *, vocab, length, position_scale, width, depth, heads, embed, kind, remat, dtype,
        rngs, head_bias=False, **block,
    ):  # fmt: skip
        if kind not in KINDS:
            raise ValueError(f'model.text.kind is {kind!r}; it must be one of {", ".join(KINDS)}')
        self.embed = nnx.Param(WORD_SCALE * jax.random.normal(rngs.params(), (vocab, width)))
        self.positions = nnx.Param(position_scale * waves(length, width))
        self.trunk = Trunk(
            width, depth, heads, implementation='dense', causal=kind == 'causal', remat=remat,
            dtype=dtype, rngs=rngs, **block,
        )  # fmt: skip
        self.head = Linear(width, embed, bias=head_bias, rngs=rngs)
        self.kind, self.dtype = kind, dtype

    def __call__(self, tokens, lengths):
        num_tokens, longest = tokens.shape[1], self.positions.shape[0]
        if num_tokens > longest:
            raise ValueError(f'text of {num_tokens} tokens, but the position table has {longest}')
        if self.kind == 'padded' and num_tokens < longest:
            raise ValueError(
                f"text of {num_tokens} tokens, but model.text.kind 'padded' reads all {longest} "
                'places of the position table; pad every text to them'
            )
        x = self.embed[...][tokens] + self.positions[...][:num_tokens]
        real = None if self.kind == 'padded' else lengths
        x = self.trunk(x.astype(self.dtype), real).astype(jnp.float32)
        if self.kind == 'padded':
            x = x[:, -1]
        elif self.kind == 'causal':
            x = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
        else:
            real = jnp.arange(num_tokens) < lengths[:, None]
            x = (x * real[..., None]).sum(1) / lengths[:, None]
        return unit(self.head(x))
