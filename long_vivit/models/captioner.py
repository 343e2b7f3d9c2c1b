"""Video-to-text: a language model that looks at a video at every layer (LongViViT, section 3.2).

The encoder and the language model stay as they are. New, and trained, are a Perceiver resampler,
which turns what the encoder saw into a few latents, and in every layer of the language model an
attention to them. Of the new parts the paper says no more. Resampler and gates are after Flamingo
(arXiv 2204.14198, sections 2.1 and 2.2), without its feed-forward layers between those of the model
and with GELU in place of squared ReLU. Dims: s tokens of a video, j latents.

No command teaches it yet: the sweep compiles its training step (`long_vivit.sweeps.captioning`),
since what a way of saving memory costs here is half of what the paper chooses by (Figure 5).
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from long_vivit.models.attention import attend
from long_vivit.models.layers import Attention, Block, LayerNorm, Linear, Trunk
from long_vivit.models.positions import waves
from long_vivit.models.text import WORD_SCALE

TRAINED = r'(resampler/.*|trunk/blocks/(look/.*|gate))'  # whole names, of what is new


def look(attention, x, seen):
    """The attention of x to what is given: x [b, n, d], seen [b, s, d] -> [b, n, d]."""
    (query,), (key, value) = attention.project(x, slice(1)), attention.project(seen, slice(1, 3))
    return attention.join(attend(query, key, value, implementation='dense'))


class Look(nnx.Module):
    """`look` of a normalised copy of x."""

    def __init__(self, width, heads, *, dtype, rngs):
        self.norm = LayerNorm(width)
        self.attention = Attention(width, heads, dtype=dtype, rngs=rngs)

    def __call__(self, x, seen):
        return look(self.attention, self.norm(x), seen)


class ResamplerBlock(Block):
    """Latents x [b, j, d] look at a video's tokens [b, s, d] and at each other, then an MLP."""

    def __call__(self, x, seen, *, in_parts=False):
        y = self.norm_1(x)
        x = x + look(self.attention, y, jnp.concatenate([seen, y], axis=1))
        return self.then_mlp(x, in_parts)


class LookingBlock(Block):
    """A layer of a language model behind a look at latents [b, j, d]: x [b, l, d] -> [b, l, d].

    What the look adds is gated by tanh of a number that starts at 0: then a layer is what it was.
    """

    def __init__(self, width, heads, *, dtype, rngs, **block):
        super().__init__(width, heads, dtype=dtype, rngs=rngs, **block)
        self.look = Look(width, heads, dtype=dtype, rngs=rngs)
        self.gate = nnx.Param(jnp.zeros(()))

    def __call__(self, x, latents, *, in_parts=False):
        gate = jnp.tanh(self.gate[...]).astype(x.dtype)
        return super().__call__(x + gate * self.look(x, latents), in_parts=in_parts)


class Resampler(nnx.Module):
    """Tokens of a video [b, s, d'] -> `latents` of the language model's width, [b, j, d]."""

    def __init__(self, seen_width, width, heads, *, latents, depth, remat, dtype, rngs):
        self.enter = Linear(seen_width, width, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(width)
        self.latents = nnx.Param(jax.random.normal(rngs.params(), (latents, width)))
        self.trunk = Trunk(
            width, depth, heads, make=ResamplerBlock, remat=remat, dtype=dtype, rngs=rngs
        )
        self.dtype = dtype

    def __call__(self, seen):
        x = jnp.broadcast_to(self.latents[...], (len(seen), *self.latents.shape))
        return self.trunk(x.astype(self.dtype), self.norm(self.enter(seen)))


class Captioner(nnx.Module):
    """seen [b, s, d'], tokens int32 [b, l] -> logits of each next word, float32 [b, l, v].

    Args:
      seen_width: d', the encoder's. vocab, length: v, and the longest text.
      width, depth, heads: of the language model. latents, resampler_depth: of the resampler.
      remat: of both, see `layers.Trunk`.
    """

    def __init__(
        self, seen_width, *, vocab, length, width, depth, heads, latents, resampler_depth, remat,
        dtype, rngs,
    ):  # fmt: skip
        how = {'remat': remat, 'dtype': dtype, 'rngs': rngs}
        self.embed = nnx.Param(WORD_SCALE * jax.random.normal(rngs.params(), (vocab, width)))
        self.positions = nnx.Param(WORD_SCALE * waves(length, width))
        self.resampler = Resampler(
            seen_width, width, heads, latents=latents, depth=resampler_depth, **how
        )
        self.trunk = Trunk(width, depth, heads, make=LookingBlock, causal=True, **how)
        self.dtype = dtype

    def __call__(self, seen, tokens):
        x = self.embed[...][tokens] + self.positions[...][: tokens.shape[1]]
        x = self.trunk(x.astype(self.dtype), self.resampler(seen))
        words = self.embed[...].astype(self.dtype)
        return jnp.einsum('bld,vd->blv', x, words, preferred_element_type=jnp.float32)


def seen_by(encoder, patches, where):
    """What a `VideoEncoder` saw, as a language model is told: float32 [b, s, d].

    The tokens of each place averaged over time, in the order of places, as many however long the
    video is: the paper found training on longer videos unstable without. Where layers over time see
    a slice as one vector, the slices as they leave these, s = t.

    Raises:
      ValueError: not all patches of the video are given; the encoder takes tubes or a token budget,
        whose patches lie at no places of a grid.
    """
    if encoder.tubes is not None or encoder.padded:
        raise ValueError(
            'video-to-text averages the patches of each place over time, but tubes and a token '
            "budget lie on no grid of places: set the stage's tubes = '' and token_budget = 0"
        )
    t, h, w = encoder.positions.grid
    t, k = 1 if encoder.is_still(patches) else t, patches.shape[1]
    if k != t * h * w:
        raise ValueError(
            f'video-to-text takes all {t} x {h} x {w} patches of a video, and {k} are given: '
            "set the stage's mask_rate = 0"
        )
    x = None if encoder.backbone == 'joint' else encoder.tokens(patches, where)
    if encoder.over_time is not None and encoder.over_time.trunk is not None:
        return encoder.over_time.layers(encoder.timed(encoder.slices(x, t), patches, where))
    if encoder.backbone == 'joint':
        x, _ = encoder.joint(patches, where)
        x = x[:, (num_cls := encoder.num_cls(k)) : num_cls + k]
    elif encoder.backbone == 'factorised':
        x = encoder.trunk(encoder.entered(x, t), num_slices=t)
    else:
        x = rearrange(encoder.each_slice(x, t), '(b t) s d -> b (t s) d', t=t)
    x = rearrange(x.astype(jnp.float32), 'b (t s) d -> b t s d', t=t)
    return x[:, :, -h * w :].mean(1)  # without the learnt token of each slice


def next_word_loss(logits, tokens, lengths):
    """Mean of -log p(word | the words before it, the video) over the real words but the first.

    logits float32 [b, l, v], tokens int32 [b, l], lengths int32 [b]: real tokens -> float32 [].
    """
    logp = jax.nn.log_softmax(logits[:, :-1])
    found = jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0]
    real = jnp.arange(1, tokens.shape[1]) < lengths[:, None]
    return -(found * real).sum() / jnp.maximum(real.sum(), 1)
