"""A video encoder without gradients: the tokens of a long video are worked on in parts, in place.

What is held whole is the video as it came, its tokens once, and the keys and values of one block:
of four hours in ViT-B, 1.8 million tokens, 2.8 GB each. All else is of one part. Differentiation
would keep every part: for training there is `Trunk`.
"""

from functools import partial

import jax
import jax.numpy as jnp

from long_vivit.models import blockwise, parts
from long_vivit.models.attention import attend_to
from long_vivit.sharding import SEQ, axis_size


def encode(encoder, patches, where):
    """`encoder(patches, where)`: the same numbers, in less memory, and no gradient.

    A video that is no longer than a part, or whose tokens are split over the mesh axis `seq` (then
    a device has its share only), goes through the encoder as it is; and so do tubes and budgets,
    whose point is that there are few patches.
    """
    b, n = where.shape[:2]
    plain = encoder.tubes is None and not encoder.padded
    if n <= parts.TOKENS or axis_size(SEQ) > 1 or not plain:
        return encoder(patches, where)
    num_parts = parts.num_batch_parts(b, n)  # a video of each device at once
    if num_parts == 1:
        return _encode(encoder, patches, where)
    each = parts.split(patches, num_parts), parts.split(where, num_parts)
    return parts.merge(jax.lax.map(lambda one: _encode(encoder, *one), each))


def _encode(encoder, patches, where):
    dtype, (b, n) = encoder.dtype, where.shape[:2]
    trunk, ahead = encoder.trunk, encoder.num_cls(n)
    x = parts.bits(jnp.zeros((b, ahead + n, *trunk.norm.scale.shape), dtype))
    if ahead:
        x = x.at[:, :ahead].set(parts.bits(encoder.cls[...].astype(dtype)))

    def embed(x, first, size):
        part = encoder.tokens(*(_part(given, first, size) for given in (patches, where)))
        return _put(x, part, ahead + first)

    def norm(by):
        return lambda x, first, size: _put(x, by(_part(x, first, size, dtype)), first)

    x = _over_parts(embed, x, n)
    if encoder.norm_input is not None:
        x = _over_parts(norm(encoder.norm_input), x, ahead + n)
    x = jax.lax.scan(lambda x, block: (_through(block, x, dtype), None), x, trunk.blocks)[0]
    x = _over_parts(norm(trunk.norm), x, ahead + n)
    return encoder.pooled(parts.of_bits(x, dtype))


def _through(block, x, dtype):
    """The block, x [b, n, d] -> [b, n, d], both of them as `parts.bits`."""
    attention, (b, n, _) = block.attention, x.shape
    look_up = partial(attend_to, implementation=attention.implementation)
    none = jnp.zeros((b, n, *attention.qkv.shape[-2:]), attention.dtype)
    if attention.implementation == 'blockwise':
        none = parts.bits(none)

    def keep(kept, first, size):
        new = attention.project(block.norm_1(_part(x, first, size, dtype)), slice(1, 3))
        return tuple(_put(whole, part, first) for whole, part in zip(kept, new, strict=True))

    key, value = _over_parts(keep, (none, none), n)

    def renew(x, first, size):
        part = _part(x, first, size, dtype)
        (query,) = attention.project(block.norm_1(part), slice(1))
        part += attention.join(look_up(query, key, value))
        return _put(x, part + block.mlp(part), first)

    return _over_parts(renew, x, n)


def _over_parts(step, state, n):
    """step(state, first, size) for each part of n tokens, in order -> the last state.

    Parts are equally long, but for the last, which may be shorter.
    """
    size = blockwise.block_size(n, parts.TOKENS)
    state = jax.lax.fori_loop(0, n // size, lambda i, state: step(state, i * size, size), state)
    return step(state, n - n % size, n % size) if n % size else state


def _part(x, first, size, dtype=None):
    """Tokens `first` to `first + size` of x [b, n, ...]; dtype: of what lies there as bits."""
    part = jax.lax.dynamic_slice_in_dim(x, first, size, 1)
    return part if dtype is None else parts.of_bits(part, dtype)


def _put(x, part, first):
    """x [b, n, ...] with `part` in the place of its tokens from `first` on, as bits if x is."""
    part = part if part.dtype == x.dtype else parts.bits(part)
    return jax.lax.dynamic_update_slice_in_dim(x, part, first, 1)
