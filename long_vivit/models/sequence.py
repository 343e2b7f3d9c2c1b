"""Attention whose tokens are split over devices: the mesh axis `seq` of the ambient mesh.

    ulysses  each device gets all tokens of some heads by an all-to-all, runs any implementation
             on them, and a second all-to-all gives the tokens back (Jacobs et al., arXiv
             2309.14509). The heads must divide.
    ring     each device keeps its queries; keys and values travel from device to device (Liu et
             al., arXiv 2310.01889). Pieces are those of `blockwise`, joined by their log-sum-exp.

The backward pass of the ring is written out: it computes each piece again from the log-sum-exp over
*all* keys, while the gradients of keys and values travel along with them. A gradient taken through
the joining of pieces would be wrong wherever a kernel gives none to its log-sum-exp.
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import AxisType, PartitionSpec

from long_vivit.models import blockwise, parts
from long_vivit.sharding import BATCH, SEQ, TENSOR

SPLITS = ('ulysses', 'ring')


def resolve(split, heads, seq, tensor=1):
    """How the tokens are split, by name, and why: ('ring', '6 heads do not divide by ...').

    Args:
      split: `model.sequence`: 'ulysses', 'ring' or 'auto', which is ulysses where heads divide.
      heads: m. seq, tensor: sizes of these mesh axes; the heads are split over both.

    Raises:
      ValueError: unknown, or ulysses is named and the heads do not divide.
    """
    if split not in ('auto', *SPLITS):
        raise ValueError(
            f'model.sequence is {split!r}; it must be one of auto, {", ".join(SPLITS)}'
        )
    if heads % tensor:
        raise ValueError(
            f'mesh: {heads} heads (model.video.heads) do not divide by tensor={tensor}; choose '
            'another tensor'
        )
    parts = f'seq={seq}' if tensor == 1 else f'seq={seq} times tensor={tensor}'
    divides = heads % (seq * tensor) == 0
    if split == 'ring':
        return 'ring', 'model.sequence names it'
    if split == 'ulysses' and not divides:
        raise ValueError(
            f"model.sequence is 'ulysses', but {heads} heads do not divide by {parts}; set it to "
            "'ring' or choose another mesh"
        )
    if divides:
        return 'ulysses', f'{heads} heads divide by {parts}'
    return 'ring', f'{heads} heads do not divide by {parts}'


def over_devices(inner, query, key, value, lengths, causal, *, implementation, split):
    """`inner(query, key, value, lengths, causal)` of [b, n, m, f], its work split over the mesh.

    Batch and heads stay split over their axes, the tokens over `seq`; if n does not divide, they
    are padded, and the padding is hidden by its length. Without an axis to split over, or inside a
    shard_map that has taken the axes over, `inner` is called as it is; 'blockwise' also where only
    `seq` is missing, since the compiler can split it.

    Raises:
      ValueError: the batch or the heads do not divide, or a ring is wanted of a kernel.
    """
    sizes = _free_axes()
    seq = sizes.get(SEQ, 1)
    if not sizes or (seq == 1 and implementation == 'blockwise'):
        return inner(query, key, value, lengths, causal)
    b, n, m, _ = query.shape
    batch = tuple(name for name in BATCH if name in sizes)
    _check_batch(b, {name: sizes[name] for name in batch})
    name, reason = resolve(split, m, seq, sizes.get(TENSOR, 1))
    if seq > 1 and name == 'ring':
        if implementation != 'blockwise':
            raise ValueError(
                f'model.attention is {implementation!r}, but the tokens go round a ring over '
                f"seq={seq} ({reason}), which has blocks of its own; set it to 'blockwise'"
            )
        inner = partial(_ring, size=seq)
    elif seq > 1:
        inner = partial(_ulysses, inner)
    pad = -n % seq
    if pad:
        lengths = jnp.full((b,), n, jnp.int32) if lengths is None else lengths
        query, key, value = (
            jnp.pad(x, [(0, 0), (0, pad), (0, 0), (0, 0)]) for x in (query, key, value)
        )
    arrays = PartitionSpec(batch, SEQ if seq > 1 else None, TENSOR if TENSOR in sizes else None)
    out = jax.shard_map(
        partial(_call, inner, causal),
        in_specs=(arrays, arrays, arrays, None if lengths is None else PartitionSpec(batch)),
        out_specs=arrays,
        check_vma=False,
    )(query, key, value, lengths)
    return out[:, :n]


def _call(inner, causal, query, key, value, lengths):
    return inner(query, key, value, lengths, causal)


def _free_axes():
    """{name: size} of the ambient mesh's axes that split something and that are ours to use."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    used = (*BATCH, SEQ, TENSOR)
    return {
        name: size
        for name, size, kind in axes
        if name in used and size > 1 and kind != AxisType.Manual
    }


def _check_batch(b, sizes):
    parts = 1
    for size in sizes.values():
        parts *= size
    if b % parts:
        over = ', '.join(f'{name}={size}' for name, size in sizes.items())
        raise ValueError(
            f'a batch of {b} does not divide by the mesh axes {over}; it must be a multiple of '
            f'{parts}'
        )


def _ulysses(inner, query, key, value, lengths, causal):
    """[b, n / seq, m, f] of each, on each device -> the same, `inner` seeing all n of m / seq."""
    query, key, value = (
        jax.lax.all_to_all(x, SEQ, split_axis=2, concat_axis=1, tiled=True)
        for x in (query, key, value)
    )
    out = inner(query, key, value, lengths, causal)
    return jax.lax.all_to_all(out, SEQ, split_axis=1, concat_axis=2, tiled=True)


def _ring(query, key, value, lengths, causal, *, size):
    """[b, n / seq, m, f] of each, on each device -> the same."""
    query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    query, key, value = (rearrange(x, 'b n m f -> b m n f') for x in (query, key, value))
    return rearrange(_ring_of(query, key, value, lengths, causal, size), 'b m n f -> b n m f')


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _ring_of(query, key, value, lengths, causal, size):
    return _ring_forward(query, key, value, lengths, causal, size)[0]


def _ring_forward(query, key, value, lengths, causal, size):
    first_query, first_key = _places(query.shape[2], size)

    def look(state, turn):
        (out, lse), keys = state
        more = blockwise.forward(query, *keys, lengths, causal, first_query, first_key(turn))
        return _join(out, lse, *more), keys

    def step(state, turn):
        joined, keys = look(state, turn)
        return (joined, _pass_on(keys, size)), None

    nothing = jnp.zeros(query.shape, jnp.float32), jnp.full(query.shape[:3], blockwise.MASKED / 2)
    state, _ = jax.lax.scan(step, (nothing, (key, value)), jnp.arange(size - 1))
    (out, lse), _ = look(state, size - 1)
    out, lse = (parts.kept(x, parts.ATTENTION) for x in (out.astype(query.dtype), lse))
    return out, (query, key, value, lengths, out, lse)


def _ring_backward(causal, size, residuals, d_out):
    query, key, value, lengths, out, lse = residuals
    delta = blockwise.row_products(out, d_out)
    first_query, first_key = _places(query.shape[2], size)

    def look(state, turn):
        d_query, keys, d_keys = state
        more, *d_more = blockwise.backward(
            query, *keys, d_out, lse, delta, lengths, causal, first_query, first_key(turn)
        )
        return d_query + more, keys, jax.tree.map(jnp.add, d_keys, tuple(d_more))

    def step(state, turn):
        d_query, keys, d_keys = look(state, turn)
        return (d_query, _pass_on(keys, size), _pass_on(d_keys, size)), None

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (query, key, value)]
    state = zeros[0], (key, value), (zeros[1], zeros[2])
    state, _ = jax.lax.scan(step, state, jnp.arange(size - 1))
    d_query, _, d_keys = look(state, size - 1)
    d_key, d_value = _pass_on(d_keys, size)  # the last of `size` steps: they are home again
    return d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype), None


_ring_of.defvjp(_ring_forward, _ring_backward)


def _places(piece, size):
    """The place of this device's first query, and turn -> that of the first key it then holds."""
    here = jax.lax.axis_index(SEQ)
    return here * piece, lambda turn: (here - turn) % size * piece


def _pass_on(arrays, size):
    """Each device's arrays, now on the next one."""
    ring = [(i, (i + 1) % size) for i in range(size)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, SEQ, ring), arrays)


def _join(out, lse, more, more_lse):
    """The output and log-sum-exp of two pieces' keys together."""
    both = jnp.logaddexp(lse, more_lse)
    return sum(
        x * jnp.exp(one - both)[..., None] for x, one in ((out, lse), (more, more_lse))
    ), both
