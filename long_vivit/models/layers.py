"""The transformer that both towers share: pre-norm blocks, stacked and scanned.

Parameters are float32; matrix products run in `dtype`, LayerNorm in float32. The blocks are one
module whose leaves carry a leading depth dim: deep trunks are a loop, so that compile time does not
grow with depth.
"""

from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
from flax import nnx

from long_vivit.models import lora, parts
from long_vivit.models.adapters import Adapter
from long_vivit.models.attention import attend
from long_vivit.models.positions import turned
from long_vivit.sharding import BATCH, constrain

# What the backward pass of a block finds stored instead of computing it again, by name.
policies = jax.checkpoint_policies
CUDNN = 'dot_product_attention_fwd_wrapper'  # JAX's primitive, which names nothing itself


def _keep_attention(primitive, *others, **params):
    """True for what a block was given, and for the output and log-sum-exp of attention."""
    named = policies.save_only_these_names(parts.BLOCK_INPUT, parts.ATTENTION)
    return primitive.name == CUDNN or named(primitive, *others, **params)


REMAT = {
    'none': None,
    'dots': policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable,
        policies.save_only_these_names(parts.BLOCK_INPUT),
    ),
    'attention': _keep_attention,
    'full': policies.save_only_these_names(parts.BLOCK_INPUT),
    'offload': policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=[parts.BLOCK_INPUT],
        offload_src='device', offload_dst='pinned_host',
    ),
}  # fmt: skip
ACTIVATIONS = {
    'gelu': jax.nn.gelu,  # its tanh form
    'gelu_erf': partial(jax.nn.gelu, approximate=False),
    'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),
}
EPSILON = 1e-6  # of LayerNorm
UNROLL = 4  # blocks: as shallow a trunk is written out, a fifth faster on CPU than a loop over it


class Linear(nnx.Module):
    """x [..., i] -> [..., o], computed in `dtype`; `lora_rank`: see `long_vivit.models.lora`."""

    def __init__(
        self, num_in, num_out, *, bias=True, std=None, lora_rank=0, dtype=jnp.float32, rngs
    ):
        std, key = num_in**-0.5 if std is None else std, rngs.params()
        self.kernel = nnx.Param(std * jax.random.normal(key, (num_in, num_out)))
        self.bias = nnx.Param(jnp.zeros((num_out,))) if bias else None
        self.lora = lora.of_linear(num_in, num_out, lora_rank, dtype=dtype, key=key)
        self.dtype = dtype

    def __call__(self, x):
        y = x.astype(self.dtype) @ self.kernel[...].astype(self.dtype)
        y = y if self.lora is None else y + self.lora(x)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class LayerNorm(nnx.Module):
    """x [..., d] -> [..., d], statistics in float32, the result in x's dtype."""

    def __init__(self, width, *, epsilon=EPSILON):
        self.scale = nnx.Param(jnp.ones((width,)))
        self.bias = nnx.Param(jnp.zeros((width,)))
        self.epsilon = epsilon

    def __call__(self, x):
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=0)
def activated(activation, linear, x):
    """linear(activation(x)); for the backward pass only x is kept, where plain gelu keeps six."""
    return linear(ACTIVATIONS[activation](x))


class Attention(nnx.Module):
    """Multi-head self-attention [b, n, d] -> [b, n, d]; the kernels show heads and head width.

    rotary: queries and keys are turned by their places, see `positions.turned`. lora_rank: see
    `long_vivit.models.lora`.
    """

    def __init__(
        self, width, heads, *, implementation='dense', split='auto', causal=False, rotary=False,
        lora_rank=0, dtype, rngs,
    ):  # fmt: skip
        f = width // heads
        std, keys = width**-0.5, (rngs.params(), rngs.params())
        self.qkv = nnx.Param(std * jax.random.normal(keys[0], (width, 3, heads, f)))
        self.qkv_bias = nnx.Param(jnp.zeros((3, heads, f)))
        self.out = nnx.Param(std * jax.random.normal(keys[1], (heads, f, width)))
        self.out_bias = nnx.Param(jnp.zeros((width,)))
        pairs = lora.of_attention(width, heads, lora_rank, dtype=dtype, keys=keys)
        self.qkv_lora, self.out_lora = pairs
        self.implementation, self.split = implementation, split
        self.causal, self.rotary, self.dtype = causal, rotary, dtype

    def __call__(self, x, lengths=None):
        query, key, value = self.project(x)
        if self.rotary:
            query, key = turned(query), turned(key)
        y = attend(
            query, key, value, implementation=self.implementation, split=self.split,
            lengths=lengths, causal=self.causal,
        )  # fmt: skip
        return self.join(y)

    def project(self, x, which=slice(None)):
        """x [b, n, d] -> [s, b, n, m, f]: queries, keys and values, or `which` of the three."""
        x = x.astype(self.dtype)
        qkv = jnp.einsum('bnd,dsmf->sbnmf', x, self.qkv[:, which].astype(self.dtype))
        if self.qkv_lora is not None:
            qkv = qkv + self.qkv_lora(x, ((slice(None), which), which))
        return qkv + self.qkv_bias[which].astype(self.dtype)[:, None, None]

    def join(self, y):
        """What the heads found, [b, n, m, f] -> [b, n, d]."""
        x = jnp.einsum('bnmf,mfd->bnd', y, self.out[...].astype(self.dtype))
        x = x if self.out_lora is None else x + self.out_lora(y)
        return x + self.out_bias[...].astype(self.dtype)


class Block(nnx.Module):
    """x [b, n, d] -> [b, n, d]: attention, then an MLP, each on a normalised copy.

    Args:
      activation: of the MLP, by its name in ACTIVATIONS. mlp_width: its hidden values; 0: 4 d.
      adapter_width: hidden values of an `Adapter` behind the MLP; 0: none. lora_rank: 0: none.
      attention: what `Attention` takes besides.
    """

    def __init__(
        self, width, heads, *, activation='gelu', norm_epsilon=EPSILON, mlp_width=0,
        adapter_width=0, lora_rank=0, dtype, rngs, **attention,
    ):  # fmt: skip
        if activation not in ACTIVATIONS:
            raise ValueError(
                f'activation is {activation!r}; it must be one of {", ".join(ACTIVATIONS)}'
            )
        mlp_width, how = mlp_width or 4 * width, {'dtype': dtype, 'rngs': rngs}
        self.norm_1 = LayerNorm(width, epsilon=norm_epsilon)
        self.attention = Attention(width, heads, lora_rank=lora_rank, **how, **attention)
        self.norm_2 = LayerNorm(width, epsilon=norm_epsilon)
        self.up = Linear(width, mlp_width, lora_rank=lora_rank, **how)
        self.down = Linear(mlp_width, width, lora_rank=lora_rank, **how)
        self.activation = activation
        # Last, so that the other parameters are drawn as without it.
        self.adapter = (
            Adapter(width, adapter_width, ACTIVATIONS[activation], linear=Linear, **how)
            if adapter_width else None
        )  # fmt: skip

    def __call__(self, x, lengths=None, *, in_parts=False):
        """`in_parts`: the MLP takes the tokens in parts; see `parts.over_tokens`."""
        return self.then_mlp(x + self.attention(self.norm_1(x), lengths), in_parts)

    def then_mlp(self, x, in_parts):
        """The second half of the block."""
        return x + (parts.over_tokens(self.mlp, x) if in_parts else self.mlp(x))

    def mlp(self, x):
        """What the second half of the block adds to x."""
        y = activated(self.activation, self.down, self.up(self.norm_2(x)))
        return y if self.adapter is None else self.adapter(y)


class Trunk(nnx.Module):
    """`depth` blocks and a last LayerNorm, x [b, n, d] -> [b, n, d].

    Args:
      remat: a name in REMAT. make: the kind of block, `Block` or one that is called like it.
      block: what it takes besides.
    """

    def __init__(
        self, width, depth, heads, *, remat, make=Block, norm_epsilon=EPSILON, rngs, **block
    ):
        if remat not in REMAT:
            raise ValueError(
                f'model.video.remat is {remat!r}; it must be one of {", ".join(REMAT)}'
            )

        def one(key):
            rngs = nnx.Rngs(params=key)
            return make(width, heads, norm_epsilon=norm_epsilon, rngs=rngs, **block)

        self.blocks = jax.vmap(one)(jax.random.split(rngs.params(), depth))
        self.norm = LayerNorm(width, epsilon=norm_epsilon)
        self.remat, self.depth = remat, depth

    def __call__(self, x, lengths=None, *, num_frozen=0, num_still=0, axis=None, **laid):
        """`lengths`: int32 [b], or what else this kind of block is given for each example.

        num_frozen: through so many first blocks, and all before them, no gradient flows. num_still:
        the parameters of so many last blocks get none; it flows through them. axis: of the mesh,
        that the tokens are split over; None: every device has them all. laid: static words on how
        the tokens lie, that this kind of block asks for.
        """
        x, above = constrain(x, BATCH, axis, None), self.depth - num_still
        for first, last in ((0, num_frozen), (num_frozen, above), (above, self.depth)):
            if last - first == self.depth:
                x = self._through(self.blocks, x, lengths, axis, laid)
            elif last > first:
                blocks = jax.tree.map(itemgetter(slice(first, last)), self.blocks)
                if first != num_frozen:
                    blocks = jax.lax.stop_gradient(blocks)
                x = self._through(blocks, x, lengths, axis, laid)
                x = jax.lax.stop_gradient(x) if last == num_frozen else x
        return self.norm(x)

    def _through(self, blocks, x, lengths, axis, laid):
        def through(block, x, lengths, **how):
            return constrain(block(x, lengths, **how, **laid), BATCH, axis, None)

        policy = REMAT[self.remat]
        if policy is None:
            return jax.lax.scan(
                lambda x, block: (through(block, x, lengths), None), x, blocks,
                unroll=self.depth <= UNROLL,
            )[0]  # fmt: skip
        # Never written out: XLA would merge the second computation with the first, saving nothing.
        again = jax.checkpoint(
            lambda block, x, lengths: through(block, parts.block_input(x), lengths, in_parts=True),
            prevent_cse=False, policy=policy,
        )  # fmt: skip
        num_parts = parts.num_batch_parts(*x.shape[:2])
        if num_parts == 1:
            return jax.lax.scan(lambda x, block: (again(block, x, lengths), None), x, blocks)[0]
        x, lengths = jax.tree.map(lambda leaf: parts.split(leaf, num_parts), (x, lengths))

        def step(x, block):
            return jax.lax.map(lambda part: again(block, *part), (x, lengths)), None

        return parts.merge(jax.lax.scan(step, x, blocks)[0])
