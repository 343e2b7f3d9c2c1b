"""Attention over a set of tokens: one function, an implementation chosen by name.

    dense      the plain formula: all [n, n] weights at once; for short text, and the reference
    blockwise  blocks of rows, on every backend (`blockwise`)
    cudnn      cuDNN's flash attention, on NVIDIA GPUs (`kernels`)
    splash     the Pallas kernel of that name, on TPUs (`kernels`)

`resolve` turns 'auto' into one of them and says why. Nothing else ever runs in place of the one
that is named: what cannot run is refused.

Where a mesh is set (`jax.set_mesh`) that has an axis `seq`, the tokens are split over it
(`long_vivit.models.sequence`), but for `dense`.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from long_vivit.models import blockwise, kernels, sequence

IMPLEMENTATIONS = ('blockwise', 'dense', 'cudnn', 'splash')
GPU, TPU = 'gpu', 'tpu'


def attend(
    query, key, value, *, implementation='blockwise', split='auto', lengths=None, causal=False
):  # fmt: skip
    """Scaled dot-product attention, softmax in float32.

    Args:
      query, key, value: [b, n, m, f], one dtype; for 'dense' there may be other numbers of queries.
      implementation: one of IMPLEMENTATIONS.
      split: how the devices along `seq` share the work, see `sequence.resolve`; of no account
        where there is no such axis, and for 'dense'.
      lengths: int32 [b], how many leading keys are real; None: all of them.
      causal: True lets token i see tokens 0..i only.

    Returns:
      [b, n, m, f] in the dtype of `query`; zeros, with no gradient, for a query that sees no key.

    Raises:
      ValueError: the implementation is unknown, or cannot run here or on these arrays.
    """
    check_name(implementation)
    if implementation == 'dense':
        return _dense(query, key, value, lengths, causal)
    inner = {'blockwise': _blockwise, 'cudnn': kernels.cudnn, 'splash': kernels.splash}
    return sequence.over_devices(
        inner[implementation], query, key, value, lengths, causal,
        implementation=implementation, split=split,
    )  # fmt: skip


def attend_to(query, key, value, *, implementation):
    """`attend` for some queries of a longer sequence and all its keys; without gradients.

    query: [b, q, m, f]. key, value: [b, n, m, f]; 'blockwise' and 'cudnn' use them as they lie, the
    others copy them. Not for a mesh that splits the tokens.
    """
    check_name(implementation)
    if implementation == 'dense':
        return _dense(query, key, value, None, False)
    inner = {'blockwise': blockwise.look_up, 'cudnn': kernels.cudnn, 'splash': kernels.splash}
    return sequence.over_devices(
        inner[implementation], query, key, value, None, False, implementation=implementation,
        split='auto',
    )  # fmt: skip


def resolve(name, backend, dtype, head_width, *, ring=False):
    """The implementation to use, by name, and why: ('blockwise', 'the backend is cpu').

    Args:
      name: `model.attention`: one of IMPLEMENTATIONS, or 'auto'.
      backend: `jax.default_backend()`: 'cpu', 'gpu', 'tpu'.
      dtype: of the activations. head_width: f.
      ring: whether the tokens will be split in a ring over the mesh axis `seq`.

    Raises:
      ValueError: the implementation that is named cannot run here; the message says why.
    """
    if name != 'auto':
        check_name(name)
        why_not = _why_not(name, backend, dtype, head_width, ring)
        if why_not:
            raise ValueError(
                f"model.attention is {name!r}, but {why_not}; 'blockwise' runs everywhere, and "
                "'auto' picks what runs here"
            )
        return name, 'model.attention names it'
    best = {GPU: 'cudnn', TPU: 'splash'}.get(backend)
    if best is None:
        return 'blockwise', f'the backend is {backend}'
    why_not = _why_not(best, backend, dtype, head_width, ring)
    if why_not:
        return 'blockwise', f'not {best}: {why_not}'
    return best, f'the backend is {backend}'


def check_name(implementation):
    """Raises ValueError unless it is one of IMPLEMENTATIONS."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f'model.attention is {implementation!r}; it must be one of {", ".join(IMPLEMENTATIONS)}'
        )


def _why_not(name, backend, dtype, head_width, ring):
    if name not in ('cudnn', 'splash'):
        return None
    if ring:
        return 'a ring over the mesh axis seq computes in blocks of its own'
    if name == 'splash':
        return kernels.why_not_splash(backend)
    return kernels.why_not_cudnn(backend, dtype, head_width)


def _heads_first(function):
    """`function` of scaled queries and others [b, m, n, f] -> the same of [b, n, m, f]."""

    def attend(query, key, value, lengths, causal):
        query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
        query, key, value = (rearrange(x, 'b n m f -> b m n f') for x in (query, key, value))
        return rearrange(function(query, key, value, lengths, causal), 'b m n f -> b n m f')

    return attend


_blockwise = _heads_first(blockwise.attend)


@_heads_first
def _dense(query, key, value, lengths, causal):
    queries, keys = (jnp.arange(x.shape[2]) for x in (query, key))
    seen = blockwise.allowed(queries, keys, lengths, causal)
    logits = blockwise.product('bmqf,bmkf->bmqk', query, key)
    if seen is not None:
        logits = jnp.where(seen, logits, blockwise.MASKED)
    # Where every logit is MASKED, half of it as the top makes each weight 0, not 1.
    top = jnp.maximum(logits.max(-1, keepdims=True), blockwise.MASKED / 2)
    weights = jnp.exp(logits - jax.lax.stop_gradient(top))
    total = weights.sum(-1, keepdims=True)
    out = blockwise.product('bmqk,bmkf->bmqf', weights.astype(value.dtype), value)
    return (out / jnp.where(total > 0, total, 1)).astype(query.dtype)
