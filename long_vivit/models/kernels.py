"""Attention kernels of accelerator vendors, behind the same arguments as the other forms.

Both take [b, n, m, f], of queries as many as there are or fewer, and refuse with a ValueError that
says why they cannot run.
"""

import jax
import jax.numpy as jnp
from jax.extend.backend import get_backend

from long_vivit.models import parts

LANES = 128  # of a TPU's vector unit: blocks and head widths of the splash kernel are multiples
LARGEST_BLOCK = 512


def cudnn(query, key, value, lengths, causal):
    """cuDNN's flash attention (NVIDIA): bfloat16 or float16.

    Lengths go in as arguments: a mask would have to be a whole [n, n] array.
    """
    why_not = why_not_cudnn(jax.default_backend(), query.dtype, query.shape[-1])
    if why_not:
        raise ValueError(f"model.attention is 'cudnn', but {why_not}")
    ends = {}
    if lengths is not None:
        b, n = query.shape[:2]
        # What stands in the padding gets no gradient, and none can come from it. A row without
        # keys would be undefined: it looks at the first, and its output is dropped below.
        real = (jnp.arange(n) < lengths[:, None])[..., None, None]
        key, value = jnp.where(real, key, 0), jnp.where(real, value, 0)
        ends = {
            'query_seq_lengths': jnp.full((b,), n, jnp.int32),
            'key_value_seq_lengths': jnp.maximum(lengths, 1).astype(jnp.int32),
        }
    out = jax.nn.dot_product_attention(
        query, key, value, is_causal=causal, implementation='cudnn', **ends
    )
    return _without_empty(out, lengths)


def why_not_cudnn(backend, dtype, head_width):
    """Why cuDNN's attention cannot run here, in words; None where it can.

    The limits are those of JAX's binding; the last word has the compiler, asked with a tiny case.
    """
    dtype = jnp.dtype(dtype)
    if backend != 'gpu' or 'cuda' not in get_backend().platform_version.lower():
        return f'cuDNN needs an NVIDIA GPU, and the backend is {backend}'
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f'cuDNN takes bfloat16 or float16, and model.dtype is {dtype}'
    capability = float(jax.local_devices()[0].compute_capability)
    most = 256 if capability >= 9 else 128
    if head_width % 8 or head_width > most:
        return (
            f'cuDNN takes head widths (model.video.width / heads) that are multiples of 8 up to '
            f'{most}, and this one is {head_width}'
        )
    return _refusal(dtype, head_width)


def _refusal(dtype, head_width):
    """What the compiler says against a tiny training case of cuDNN's attention, or None."""
    like = jax.ShapeDtypeStruct((1, LANES, 1, head_width), dtype)

    def loss(x):
        out = jax.nn.dot_product_attention(x, x, x, implementation='cudnn')
        return out.astype(jnp.float32).sum()

    try:
        jax.jit(jax.grad(loss)).lower(like).compile()
    except (RuntimeError, ValueError) as error:
        return f'this jax cannot use cuDNN: {str(error).splitlines()[0]}'
    return None


def splash(query, key, value, lengths, causal, *, interpret=False):
    """The splash attention kernel (Pallas, TPU); `interpret` runs it on any backend, slowly.

    Tokens and head width are padded to what its blocks ask for; padding is in a segment of its own.
    """
    if not interpret and (why_not := why_not_splash(jax.default_backend())):
        raise ValueError(f"model.attention is 'splash', but {why_not}")
    # Not at the top: half a second of import, for TPUs only.
    from jax.experimental.pallas.ops.tpu import splash_attention as lib

    (b, num_queries, m, f), num_keys = query.shape, key.shape[1]
    blocks = [min(LARGEST_BLOCK, n + -n % LANES) for n in (num_queries, num_keys)]
    pad_queries, pad_keys = -num_queries % blocks[0], -num_keys % blocks[1]
    query = query * jnp.asarray(f**-0.5, query.dtype)
    query, key, value = (
        jnp.pad(x.swapaxes(1, 2), [(0, 0), (0, 0), (0, pad), (0, -f % LANES)])
        for x, pad in ((query, pad_queries), (key, pad_keys), (value, pad_keys))
    )
    mask = (lib.CausalMask if causal else lib.FullMask)((query.shape[2], key.shape[2]))
    kernel = lib.make_splash_mha(
        lib.MultiHeadMask([mask] * m), head_shards=1, q_seq_shards=1,
        block_sizes=_splash_blocks(lib, *blocks), interpret=interpret,
        residual_checkpoint_name=parts.ATTENTION,
    )  # fmt: skip
    if lengths is None and not pad_keys:
        out = jax.vmap(lambda q, k, v: kernel(q, k, v))(query, key, value)
    else:
        ends = jnp.full((b,), num_keys) if lengths is None else lengths
        real = (jnp.arange(key.shape[2]) < ends[:, None]).astype(jnp.int32)
        everyone = jnp.ones(query.shape[2], jnp.int32)  # every query looks at the real keys
        out = jax.vmap(
            lambda q, k, v, real: kernel(q, k, v, segment_ids=lib.SegmentIds(everyone, real))
        )(query, key, value, real)
    return _without_empty(out[:, :, :num_queries, :f].swapaxes(1, 2), lengths)


def _splash_blocks(lib, queries, keys):
    return lib.BlockSizes(
        block_q=queries, block_kv=keys, block_kv_compute=keys,
        block_q_dkv=queries, block_kv_dkv=keys, block_kv_dkv_compute=keys,
        block_q_dq=queries, block_kv_dq=keys,
    )  # fmt: skip


def why_not_splash(backend):
    """Why the splash kernel cannot run here, in words; None where it can."""
    return None if backend == 'tpu' else f'splash needs a TPU, and the backend is {backend}'


def _without_empty(out, lengths):
    """Zeros, and no gradient, for examples without a real key."""
    return out if lengths is None else jnp.where((lengths > 0)[:, None, None, None], out, 0)
