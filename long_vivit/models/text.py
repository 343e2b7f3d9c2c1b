"""The text encoder: the paper's (bidirectional, mean pooling), CLIP's (causal, end of text) or
SigLIP's (padding is read as well, the last place)."""

import jax
import jax.numpy as jnp
from flax import nnx

from long_vivit.models.buckets import in_buckets
from long_vivit.models.layers import Linear, Trunk
from long_vivit.models.positions import waves
from long_vivit.models.video import unit

WORD_SCALE = 0.05  # of a fresh table of words
KINDS = ('bidirectional', 'causal', 'padded')
POSITIONS = ('learned', 'rotary')


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
      positions: 'learned', a table, or 'rotary': attention sees how far words are apart (see
        `positions.turned`), there is no table, and `length` does not limit the text.
      buckets: lengths at which groups of short texts may end (see `buckets.in_buckets`); (): none.
      block: activation, norm_epsilon and mlp_width of the blocks, see `layers.Block`.
    """

    def __init__(
        self, *, vocab, length, position_scale, width, depth, heads, embed, kind, remat, dtype,
        rngs, head_bias=False, positions='learned', buckets=(), **block,
    ):  # fmt: skip
        for field, value, allowed in (('kind', kind, KINDS), ('positions', positions, POSITIONS)):
            if value not in allowed:
                raise ValueError(
                    f'model.text.{field} is {value!r}; it must be one of {", ".join(allowed)}'
                )
        if kind == 'padded' and (buckets or positions == 'rotary'):
            raise ValueError(
                "model.text.kind 'padded' reads every place of a table: it takes neither buckets "
                'nor rotary positions'
            )
        self.embed = nnx.Param(WORD_SCALE * jax.random.normal(rngs.params(), (vocab, width)))
        rotary = positions == 'rotary'
        self.positions = None if rotary else nnx.Param(position_scale * waves(length, width))
        self.trunk = Trunk(
            width, depth, heads, implementation='dense', causal=kind == 'causal', remat=remat,
            rotary=rotary, dtype=dtype, rngs=rngs, **block,
        )  # fmt: skip
        self.head = Linear(width, embed, bias=head_bias, rngs=rngs)
        self.kind, self.buckets, self.dtype = kind, tuple(buckets), dtype

    def __call__(self, tokens, lengths):
        num_tokens = tokens.shape[1]
        longest = num_tokens if self.positions is None else self.positions.shape[0]
        if num_tokens > longest:
            raise ValueError(f'text of {num_tokens} tokens, but the position table has {longest}')
        if self.kind == 'padded' and num_tokens < longest:
            raise ValueError(
                f"text of {num_tokens} tokens, but model.text.kind 'padded' reads all {longest} "
                'places of the position table; pad every text to them'
            )
        if any(length < num_tokens for length in self.buckets):
            x = in_buckets(self._look_up, self._pooled, tokens, lengths, self.buckets)
        else:
            x = self._pooled(self._look_up(tokens), lengths)
        return unit(self.head(x))

    def _look_up(self, tokens):
        """int32 [..., l] -> [..., l, d]: words at their positions."""
        x = self.embed[...][tokens]
        if self.positions is not None:
            x = x + self.positions[...][: tokens.shape[-1]]
        return x.astype(self.dtype)

    def _pooled(self, x, lengths):
        """[b, l, d] -> float32 [b, d]: the trunk, and one vector of its tokens."""
        x = self.trunk(x, None if self.kind == 'padded' else lengths).astype(jnp.float32)
        if self.kind == 'padded':
            return x[:, -1]
        if self.kind == 'causal':
            return jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
        real = jnp.arange(x.shape[1]) < lengths[:, None]
        return (x * real[..., None]).sum(1) / lengths[:, None]
