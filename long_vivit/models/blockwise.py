"""Attention in blocks of queries and keys, with a backward pass of its own.

No [n, n] array ever exists: the forward pass keeps a running maximum and sum for each query, and
the backward pass computes the weights again from the log-sum-exp of each row, which is all that is
stored (Dao et al., FlashAttention, arXiv 2205.14135, section 3.1).

`forward` and `backward` work on a piece: some queries against some keys of a longer sequence, which
is how a ring over devices uses them (`long_vivit.models.sequence`). Arrays here are [b, m, n, f],
queries scaled already.
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange

from long_vivit.models import parts

# Logits of ROWS x COLUMNS are held at once, for each head. Forward, the rows are queries; backward,
# they are keys: then no product sums over the first dim of both factors, which XLA's CPU does at a
# third of its speed. As much as fits in COLUMNS is done in one go, without a running maximum.
ROWS, COLUMNS = 128, 4096
MASKED = -1e30  # finite: an infinity less itself would be NaN


def attend(query, key, value, lengths, causal):
    """[b, m, n, f] of each, lengths int32 [b] or None -> [b, m, n, f] in the queries' dtype."""
    return _attend(query, key, value, lengths, causal)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(query, key, value, lengths, causal):
    return _attend_forward(query, key, value, lengths, causal)[0]


def _attend_forward(query, key, value, lengths, causal):
    out, lse = forward(query, key, value, lengths, causal)
    out, lse = (parts.kept(x, parts.ATTENTION) for x in (out.astype(query.dtype), lse))
    return out, (query, key, value, lengths, out, lse)


def _attend_backward(causal, residuals, d_out):
    query, key, value, lengths, out, lse = residuals
    delta = row_products(out, d_out)
    grads = backward(query, key, value, d_out, lse, delta, lengths, causal)
    return *(grad.astype(x.dtype) for grad, x in zip(grads, residuals[:3], strict=True)), None


_attend.defvjp(_attend_forward, _attend_backward)


def row_products(out, d_out):
    """sum_k w_k dw_k of each row, in closed form: float32 [b, m, q]."""
    return (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(-1)


def allowed(queries, keys, end, causal):
    """Which keys a query may look at: bool, 4 dims that broadcast to [b, m, q, k];
    None: all.

    Args:
      queries, keys: int32 [q], [k], their places in the whole sequence.
      end: int32 [b], the first place that is no real key, or None where all are real.
    """
    seen = None if end is None else keys < end[:, None, None, None]
    if causal:
        before = (keys <= queries[:, None])[None, None]
        seen = before if seen is None else seen & before
    return seen


def product(pattern, x, y):
    """A matrix product of two arrays of any one dtype, summed up and returned in float32."""
    return jnp.einsum(pattern, x, y, preferred_element_type=jnp.float32)


def forward(query, key, value, lengths, causal, first_query=0, first_key=0):
    """A piece of attention: its output float32 [b, m, q, f] and log-sum-exp float32 [b, m, q].

    Args:
      query: [b, m, q, f]. key, value: [b, m, k, f].
      lengths: int32 [b], real keys of the whole sequence, or None: all.
      first_query, first_key: where in the whole sequence the piece begins.

    A row that sees no key of the piece gives zeros, and a log-sum-exp so low that the row has no
    weight beside a row that does.
    """
    num_queries, num_keys = query.shape[2], key.shape[2]
    rows, columns = block_size(num_queries, ROWS), block_size(num_keys, COLUMNS)
    end = _end(lengths, first_key, num_keys, columns)
    keys = _blocks(key, columns, first_key), _blocks(value, columns)

    def row(query):
        first_query, query = query
        queries = first_query + jnp.arange(rows)

        def look(state, keys):
            (first_key, key), value = keys
            seen = allowed(queries, first_key + jnp.arange(columns), end, causal)
            return _look(state, query, key, value, seen), None

        return _seen(_fold(look, _nothing(query), keys)[0])

    out, lse = _each(row, _blocks(query, rows, first_query))
    return _unblocks(out, num_queries), _unblocks(lse, num_queries)


def look_up(query, key, value, lengths, causal):
    """Attention of some queries [b, q, m, f] to all keys [b, n, m, f], without gradients.

    Keys and values are read block by block where they lie, and never copied into another order;
    they may come as `parts.bits`.
    """
    assert lengths is None and not causal
    b, num_queries, m, f = query.shape
    n = key.shape[1]
    columns = block_size(n, COLUMNS)
    query = rearrange(query * jnp.asarray(f**-0.5, query.dtype), 'b n m f -> b m n f')

    def row(query):
        def look(state, i):
            first = jnp.minimum(i * columns, n - columns)  # the last block reaches back
            block = (jax.lax.dynamic_slice_in_dim(x, first, columns, 1) for x in (key, value))
            block = (parts.of_bits(rearrange(x, 'b k m f -> b m k f'), query.dtype) for x in block)
            seen = (first + jnp.arange(columns) >= i * columns) if n % columns else None
            return _look(state, query, *block, seen), None

        return _seen(_fold(look, _nothing(query), jnp.arange(-(-n // columns)))[0])[0]

    out = _each(row, _blocks(query, block_size(num_queries, ROWS)))
    return rearrange(_unblocks(out, num_queries), 'b m n f -> b n m f').astype(query.dtype)


def _nothing(query):
    """The running (maximum, sum, output) of a block of queries that has looked at no key."""
    top = jnp.full(query.shape[:-1], MASKED / 2)  # above MASKED: a masked weight is 0, not 1
    return top, jnp.zeros_like(top), jnp.zeros(query.shape, jnp.float32)


def _seen(state):
    """The (output, log-sum-exp) of a block of queries that has looked at all its keys."""
    top, total, out = state
    total = jnp.where(total > 0, total, 1)
    return out / total[..., None], jnp.log(total) + top


def _look(state, query, key, value, seen):
    """The running (maximum, sum, output) of a block of queries after one more block of keys."""
    top, total, out = state
    logits = product('bmqf,bmkf->bmqk', query, key)
    if seen is not None:
        logits = jnp.where(seen, logits, MASKED)
    new_top = jnp.maximum(top, logits.max(-1))
    fade = jnp.exp(top - new_top)
    weights = jnp.exp(logits - new_top[..., None])
    total = total * fade + weights.sum(-1)
    out = out * fade[..., None] + product('bmqk,bmkf->bmqf', weights.astype(value.dtype), value)
    return new_top, total, out


def backward(query, key, value, d_out, lse, delta, lengths, causal, first_query=0, first_key=0):
    """Gradients of a piece, float32, for (query, key, value).

    Args:
      d_out: [b, m, q, f]. lse, delta (see `row_products`): float32 [b, m, q], of whole rows: over
        all keys, not those of the piece.
      The others: as in `forward`.
    """
    num_queries, num_keys = query.shape[2], key.shape[2]
    rows, columns = block_size(num_keys, ROWS), block_size(num_queries, COLUMNS)
    end = _end(lengths, first_key, num_keys, rows)
    queries = (
        _blocks(query, columns, first_query),
        *(_blocks(x, columns) for x in (d_out, lse, delta)),
    )

    def row(d_query, key):
        (first_key, key), value = key
        keys = first_key + jnp.arange(rows)

        def look(state, query):
            (first_query, query), d_out, lse, delta = query
            seen = allowed(first_query + jnp.arange(columns), keys, end, causal)
            if seen is not None:
                seen = rearrange(seen, 'b m q k -> b m k q')
            d_key, d_value, d_query = _look_back(key, value, query, d_out, lse, delta, seen)
            return (state[0] + d_key, state[1] + d_value), d_query

        zeros = jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32)
        gradients, more = _fold(look, zeros, queries)
        return d_query + more, gradients

    b, m, _, f = query.shape
    zeros = jnp.zeros((len(queries[1]), b, m, f, columns), jnp.float32)
    keys = _blocks(key, rows, first_key), _blocks(value, rows)
    d_query, (d_key, d_value) = _fold(row, zeros, keys)
    d_query = rearrange(d_query, 'j b m f q -> b m (j q) f')[:, :, :num_queries]
    return d_query, _unblocks(d_key, num_keys), _unblocks(d_value, num_keys)


def _look_back(key, value, query, d_out, lse, delta, seen):
    """What a block of queries adds to the gradients of a block of keys and their values [b, m, k,
    f], and they to the queries' [b, m, f, q]."""
    logits = product('bmkf,bmqf->bmkq', key, query)
    if seen is not None:
        logits = jnp.where(seen, logits, MASKED)
    weights = jnp.exp(logits - lse[:, :, None])
    d_weights = product('bmkf,bmqf->bmkq', value, d_out)
    d_logits = (weights * (d_weights - delta[:, :, None])).astype(query.dtype)
    d_key = product('bmkq,bmqf->bmkf', d_logits, query)
    d_value = product('bmkq,bmqf->bmkf', weights.astype(query.dtype), d_out)
    return d_key, d_value, product('bmkf,bmkq->bmfq', key, d_logits)


def block_size(n, most):
    """Size of each of the fewest blocks that hold `n`, none above `most`: little is padding."""
    return -(-n // -(-n // most))


def _end(lengths, first_key, num_keys, block):
    """int32 [b] or [1]: the first place that is no key of this piece; None where none is hidden."""
    if lengths is None and num_keys % block == 0:
        return None
    last = jnp.full((1,), first_key + num_keys, jnp.int32)
    return last if lengths is None else jnp.minimum(lengths, last)


def _blocks(x, block, first=None):
    """[b, m, n, ...] -> [j, b, m, block, ...], zeros behind; with `first` also each one's place."""
    pad = -x.shape[2] % block
    if pad:
        x = jnp.pad(x, [(0, 0), (0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 3))
    x = rearrange(x, 'b m (j q) ... -> j b m q ...', q=block)
    return x if first is None else (first + jnp.arange(len(x)) * block, x)


def _unblocks(x, n):
    return rearrange(x, 'j b m q ... -> b m (j q) ...')[:, :, :n]


def _fold(step, state, blocks):
    """jax.lax.scan; a single block is no loop."""
    if len(jax.tree.leaves(blocks)[0]) > 1:
        return jax.lax.scan(step, state, blocks)
    state, out = step(state, jax.tree.map(lambda x: x[0], blocks))
    return state, jax.tree.map(lambda x: x[None], out)


def _each(step, blocks):
    return _fold(lambda _, block: (None, step(block)), None, blocks)[1]
