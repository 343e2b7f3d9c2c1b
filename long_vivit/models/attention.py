"""Attention over a set of tokens: one function, an implementation chosen by name.

`blockwise` never holds the [n, n] weights: queries go by in blocks, the backward pass keeps only
the log-sum-exp of each row and computes the weights again. `dense` is the plain formula: the
reference in tests, and the cheaper form for short text.
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange

from long_vivit.models import parts

IMPLEMENTATIONS = ('blockwise', 'dense')
QUERY_BLOCK = 128  # rows of weights held at once; 64 to 256 measured alike on CPU
MASKED = -1e30  # finite: an infinity less itself would be NaN


def attend(query, key, value, *, implementation='blockwise', lengths=None, causal=False):
    """Scaled dot-product attention, softmax in float32.

    Args:
      query, key, value: [b, n, m, f], one dtype.
      implementation: 'blockwise' or 'dense'.
      lengths: int32 [b], how many leading keys are real; None: all of them.
      causal: True lets token i see tokens 0..i only.

    Returns:
      [b, n, m, f] in the dtype of `query`; zeros, with no gradient, for a query that sees no key.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f'model.attention is {implementation!r}; it must be one of {", ".join(IMPLEMENTATIONS)}'
        )
    if lengths is None:
        lengths = jnp.full(query.shape[:1], key.shape[1], jnp.int32)
    query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    query, key, value = (rearrange(x, 'b n m f -> b m n f') for x in (query, key, value))
    if implementation == 'dense':
        out, _ = _block_forward(query, key, value, lengths, 0, causal)
    else:
        out = _blockwise(query, key, value, lengths, causal)
    return rearrange(out, 'b m n f -> b n m f')


def _bias(lengths, first_query, num_queries, num_keys, causal):
    """0 where a query may look, MASKED elsewhere: float32 [b, 1, num_queries, num_keys]."""
    keys = jnp.arange(num_keys)
    allowed = keys < lengths[:, None, None, None]
    if causal:
        queries = first_query + jnp.arange(num_queries)
        allowed = allowed & (keys <= queries[:, None])
    return jnp.where(allowed, 0.0, MASKED)


def _block_logits(query, key, lengths, first_query, causal):
    """Logits [b, m, q, n] in float32 of a block of (scaled) queries against all keys."""
    logits = jnp.einsum('bmqf,bmkf->bmqk', query, key, preferred_element_type=jnp.float32)
    return logits + _bias(lengths, first_query, query.shape[2], key.shape[2], causal)


def _block_forward(query, key, value, lengths, first_query, causal):
    """Output [b, m, q, f] and log-sum-exp float32 [b, m, q] of a block of queries."""
    logits = _block_logits(query, key, lengths, first_query, causal)
    # Where every logit is MASKED, half of it as the top makes each weight 0, not 1.
    top = jax.lax.stop_gradient(jnp.maximum(logits.max(-1, keepdims=True), MASKED / 2))
    weights = jnp.exp(logits - top)
    total = weights.sum(-1, keepdims=True)
    total = jnp.where(total > 0, total, 1)
    out = jnp.einsum('bmqk,bmkf->bmqf', weights.astype(value.dtype), value)
    return (out / total).astype(query.dtype), (jnp.log(total) + top)[..., 0]


def _block_size(n):
    """Rows in each of the fewest blocks that hold `n` queries, so that little is padding."""
    return -(-n // -(-n // QUERY_BLOCK))


def _blocks(x, block):
    """[b, m, n, ...] -> [num_blocks, b, m, block, ...], the tail padded with zeros."""
    pad = -x.shape[2] % block
    x = jnp.pad(x, [(0, 0), (0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 3))
    return rearrange(x, 'b m (j q) ... -> j b m q ...', q=block)


def _unblocks(x, n):
    return rearrange(x, 'j b m q ... -> b m (j q) ...')[:, :, :n]


def _first_queries(num_blocks, block):
    return jnp.arange(num_blocks) * block


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blockwise(query, key, value, lengths, causal):
    return _blockwise_forward(query, key, value, lengths, causal)[0]


def _blockwise_forward(query, key, value, lengths, causal):
    n = query.shape[2]
    block = _block_size(n)
    queries = _blocks(query, block)

    def body(_, inputs):
        first, query = inputs
        return None, _block_forward(query, key, value, lengths, first, causal)

    firsts = _first_queries(len(queries), block)
    _, (out, lse) = jax.lax.scan(body, None, (firsts, queries))
    found = _unblocks(out, n), _unblocks(lse, n)
    out, lse = map(parts.kept, found, parts.ATTENTION)
    return out, (query, key, value, lengths, out, lse)


def _blockwise_backward(causal, residuals, d_out):
    query, key, value, lengths, out, lse = residuals
    n = query.shape[2]
    block = _block_size(n)
    # sum_k w_k dw_k of each row, in closed form: the product of the output and its cotangent
    delta = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(-1)

    def body(carry, inputs):
        d_key, d_value = carry
        first, query, d_out, lse, delta = inputs
        logits = _block_logits(query, key, lengths, first, causal)
        weights = jnp.exp(logits - lse[..., None])
        d_weights = jnp.einsum('bmqf,bmkf->bmqk', d_out, value, preferred_element_type=jnp.float32)
        d_logits = (weights * (d_weights - delta[..., None])).astype(query.dtype)
        weights = weights.astype(query.dtype)
        d_query = jnp.einsum('bmqk,bmkf->bmqf', d_logits, key)
        d_key += jnp.einsum('bmqk,bmqf->bmkf', d_logits, query, preferred_element_type=jnp.float32)
        d_value += jnp.einsum('bmqk,bmqf->bmkf', weights, d_out, preferred_element_type=jnp.float32)
        return (d_key, d_value), d_query

    zeros = jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32)
    blocks = [_blocks(x, block) for x in (query, d_out, lse, delta)]
    firsts = _first_queries(len(blocks[0]), block)
    (d_key, d_value), d_query = jax.lax.scan(body, zeros, (firsts, *blocks))
    d_query = _unblocks(d_query, n).astype(query.dtype)
    return d_query, d_key.astype(key.dtype), d_value.astype(value.dtype), None


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)
