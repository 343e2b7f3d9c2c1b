"""A video encoder without gradients: the tokens of a long video are worked on in parts, in place.

What is held whole is the video as it came, its tokens once, and the keys and values of one block:
of four hours in ViT-B, 1.8 million tokens, 2.8 GB each. All else is of one part. Differentiation
would keep every part: for training there is `Trunk`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange

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
    if encoder.backbone == 'factorised':
        return _encode_factorised(encoder, patches, where)
    if encoder.over_time is not None:
        return _encode_slices(encoder, patches, where)
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


def _encode_slices(encoder, patches, where):
    """Some slices at once, each of which the trunk takes by itself."""
    b, n = where.shape[:2]
    t = encoder.num_slices(patches)
    s = n // t

    def some(vectors, first, size):
        part = (_part(given, first * s, size * s) for given in (patches, where))
        return _put(vectors, encoder.slices(encoder.tokens(*part), size), first)

    vectors = jnp.zeros((b, t, *encoder.trunk.norm.scale.shape), jnp.float32)
    vectors = _over_parts(some, vectors, t, max(1, parts.TOKENS // s))
    return encoder.projected(encoder.over_time(encoder.timed(vectors, patches, where)))


def _encode_factorised(encoder, patches, where):
    """Within slices some slices at once, over time some places at once."""
    dtype, (b, n), trunk = encoder.dtype, where.shape[:2], encoder.trunk
    t = encoder.num_slices(patches)
    given, s = n // t, n // t + (encoder.cls is not None)
    slices, places = (max(1, parts.TOKENS // size) for size in (s, t))

    def embed(x, first, size):
        part = (_part(each, first * given, size * given) for each in (patches, where))
        return _put(x, encoder.entered(encoder.tokens(*part), size), first * s)

    def through(block, x):
        def within(x, first, size):
            part = _part(x, first * s, size * s, dtype)
            return _put(x, block.within(part, size), first * s)

        def over_time(x, first, size):
            part = parts.of_bits(jax.lax.dynamic_slice_in_dim(x, first, size, 2), dtype)
            part = rearrange(part, 'b t s d -> b (t s) d')
            part = part + block.temporal(part, t)
            part = rearrange(part + block.mlp(part), 'b (t s) d -> b t s d', t=t)
            return jax.lax.dynamic_update_slice_in_dim(x, parts.bits(part), first, 2)

        x = rearrange(_over_parts(within, x, t, slices), 'b (t s) d -> b t s d', t=t)
        return rearrange(_over_parts(over_time, x, s, places), 'b t s d -> b (t s) d')

    x = parts.bits(jnp.zeros((b, t * s, *trunk.norm.scale.shape), dtype))
    x = _over_parts(embed, x, t, slices)
    x = jax.lax.scan(lambda x, block: (through(block, x), None), x, trunk.blocks)[0]
    x = _over_parts(lambda x, *at: _put(x, trunk.norm(_part(x, *at, dtype)), at[0]), x, t * s)
    return encoder.projected(encoder.pooled_slices(parts.of_bits(x, dtype), t))


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


def _over_parts(step, state, n, most=0):
    """step(state, first, size) for each part of n tokens, in order -> the last state.

    Parts are equally long, at most `most` (0: parts.TOKENS), but the last may be shorter.
    """
    size = blockwise.block_size(n, most or parts.TOKENS)
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
