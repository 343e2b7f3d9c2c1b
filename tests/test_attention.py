"""Attention: both forms against loops in float64, gradients too, and what they cost in memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from long_vivit.models import blockwise
from long_vivit.models.attention import attend
from tests.tiny_models import FAST

pytestmark = pytest.mark.usefixtures('quick_compilation')

M, F = 2, 4
IMPLEMENTATIONS = ('blockwise', 'dense')  # those that run on any backend
QUERY_BLOCK = blockwise.ROWS


def inputs(n, b=2, seed=0, dtype=np.float32):
    """query, key, value and a cotangent [b, n, m, f]; large enough for peaked weights."""
    rng = np.random.default_rng(seed)
    return tuple((2 * rng.standard_normal((b, n, M, F))).astype(dtype) for _ in range(4))


def slow_attend(query, key, value, d_out, lengths, causal):
    """Output and gradients in float64, one row of weights at a time, by the plain formula.

    A row without a real key gives zeros and no gradient.
    """
    query, key, value, d_out = (np.asarray(x, np.float64) for x in (query, key, value, d_out))
    out, d_query, d_key, d_value = (np.zeros_like(query) for _ in range(4))
    scale = query.shape[-1] ** -0.5
    for b, i, m in np.ndindex(query.shape[:3]):
        num_keys = lengths[b] if not causal else min(lengths[b], i + 1)
        if num_keys == 0:
            continue
        keys, values = key[b, :num_keys, m], value[b, :num_keys, m]
        logits = scale * keys @ query[b, i, m]
        weights = np.exp(logits - logits.max())
        weights /= weights.sum()
        out[b, i, m] = weights @ values
        d_weights = values @ d_out[b, i, m]
        d_logits = weights * (d_weights - weights @ d_weights)
        d_query[b, i, m] = scale * d_logits @ keys
        d_key[b, :num_keys, m] += scale * np.outer(d_logits, query[b, i, m])
        d_value[b, :num_keys, m] += np.outer(weights, d_out[b, i, m])
    return out, d_query, d_key, d_value


def all_of_plain(query, key, value, d_out, lengths=None, *, implementation, causal=False):
    """Output and the three gradients."""
    call = partial(attend, implementation=implementation, lengths=lengths, causal=causal)
    out, back = jax.vjp(call, query, key, value)
    return out, *back(d_out)


all_of = jax.jit(all_of_plain, static_argnames=('implementation', 'causal'), compiler_options=FAST)


def assert_all_near(got, wanted, tolerance=1e-5):
    """Largest errors beside the largest values: a small one may be a difference of large ones."""
    for name, one, other in zip(('out', 'query', 'key', 'value'), got, wanted, strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        largest = np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * largest, err_msg=name)


# n: one token, fewer than a block, odd, exactly a block, one more, several and not a multiple
SIZES = (1, 2, 37, QUERY_BLOCK, QUERY_BLOCK + 1, 2 * QUERY_BLOCK + 45)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('n', SIZES)
def test_output_and_gradients_are_those_of_loops(n, implementation):
    arrays = inputs(n)
    got = all_of(*arrays, implementation=implementation)
    assert_all_near(got, slow_attend(*arrays, [n, n], False))


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('n', (37, QUERY_BLOCK + 21))
def test_lengths_and_causal(n, causal, implementation):
    arrays = inputs(n, b=4)
    lengths = np.array([n, 1, n // 2, n - 1], np.int32)
    got = all_of(*arrays, lengths, implementation=implementation, causal=causal)
    assert_all_near(got, slow_attend(*arrays, lengths, causal))


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_causal_without_lengths(implementation):
    n = QUERY_BLOCK + 5
    arrays = inputs(n)
    got = all_of(*arrays, implementation=implementation, causal=True)
    assert_all_near(got, slow_attend(*arrays, [n, n], True))


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('causal', [False, True])
def test_a_row_without_keys_gives_zeros_and_no_gradient(causal, implementation):
    n = QUERY_BLOCK + 3
    arrays = inputs(n)
    lengths = np.array([0, 20], np.int32)
    got = all_of(*arrays, lengths, implementation=implementation, causal=causal)
    for one in got:
        np.testing.assert_array_equal(one[0], 0)
    assert_all_near(got, slow_attend(*arrays, lengths, causal))


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_padding_may_hold_anything(implementation):
    """Not a bit of the real rows depends on what stands in the padding, however large it is."""
    n, real = QUERY_BLOCK + 9, 20
    lengths = np.array([real, real], np.int32)
    one = inputs(n)
    other = [x.copy() for x in one]
    for i in (1, 2):
        other[i][:, real:] = 1e6 * inputs(n, seed=1)[i][:, real:]
    for x, y in zip(
        all_of(*one, lengths, implementation=implementation),
        all_of(*other, lengths, implementation=implementation),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_large_logits_do_not_overflow(implementation):
    query, key, value, d_out = inputs(QUERY_BLOCK + 9)
    arrays = 30 * query, 30 * key, value, d_out
    lengths = [query.shape[1]] * 2
    got = all_of(*arrays, implementation=implementation)
    wanted = slow_attend(*arrays, lengths, False)
    np.testing.assert_allclose(got[0], wanted[0], atol=2e-3)  # logits of 1e4 have 1e-3 of error
    assert all(np.isfinite(x).all() for x in got)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('causal', [False, True])
def test_half_precision(causal, implementation):
    """bfloat16 in, bfloat16 out, within its rounding (8 bits) of the float64 result."""
    n = QUERY_BLOCK + 21
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in inputs(n)]
    lengths = np.array([n, 50], np.int32)
    got = all_of(*arrays, lengths, implementation=implementation, causal=causal)
    wanted = slow_attend(*arrays, lengths, causal)
    assert {x.dtype for x in got} == {jnp.dtype(jnp.bfloat16)}
    assert_all_near(got, wanted, 0.015)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_the_softmax_of_half_precision_adds_up_in_float32(implementation):
    """Summed in bfloat16, 1,000 equal weights of 1 would stick at 256 and the mean be fourfold."""
    n = 1000
    zeros, ones = jnp.zeros((1, n, M, F), jnp.bfloat16), jnp.ones((1, n, M, F), jnp.bfloat16)
    out = attend(zeros, zeros, ones, implementation=implementation)
    np.testing.assert_allclose(np.asarray(out, np.float32), 1, rtol=2**-7)


# What it lives in ---------------------------------------------------------------------------


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_under_vmap(implementation):
    """Over a batch of batches, each with its own lengths: as one by one."""
    n = QUERY_BLOCK + 2
    arrays = [np.stack(pair) for pair in zip(inputs(n), inputs(n, seed=1), strict=True)]
    lengths = np.array([[n, 3], [7, n - 1]], np.int32)
    form = {'implementation': implementation, 'causal': True}
    many = jax.jit(jax.vmap(partial(all_of_plain, **form)), compiler_options=FAST)
    got = many(*arrays, lengths)
    for i in range(2):
        one = all_of(*(x[i] for x in arrays), lengths[i], **form)
        assert_all_near([x[i] for x in got], one)


def test_under_scan_and_remat():
    """Layers on layers, activations computed again: both forms have the same gradient."""
    n, depth = QUERY_BLOCK + 2, 3
    rng = np.random.default_rng(0)
    layers = rng.standard_normal((depth, 3, F, F)).astype(np.float32) / 2
    x = inputs(n)[0]
    lengths = np.array([n, 40], np.int32)

    @partial(jax.jit, static_argnums=2, compiler_options=FAST)
    def grads(layers, x, implementation):
        def step(x, layer):
            qkv = jnp.einsum('bnmf,sfg->sbnmg', x, layer)
            return x + attend(*qkv, implementation=implementation, lengths=lengths), None

        def loss(layers, x):
            x, _ = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), x, layers)
            return (x**2).mean()

        return jax.value_and_grad(loss, (0, 1))(layers, x)

    for one, other in zip(
        *(jax.tree.leaves(grads(layers, x, name)) for name in IMPLEMENTATIONS), strict=True
    ):
        assert np.abs(other).max() > 1e-4
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


def temporary_bytes(n, implementation, *, backward):
    """What the compiled function needs beside its arguments and results; nothing is run."""

    def loss(query, key, value):
        return attend(query, key, value, implementation=implementation).sum()

    like = jax.ShapeDtypeStruct((1, n, M, F), jnp.float32)
    function = jax.grad(loss, (0, 1, 2)) if backward else loss
    compiled = jax.jit(function).lower(like, like, like).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize('backward', [False, True])
def test_blockwise_memory_grows_with_n(backward):
    small, large = (temporary_bytes(n, 'blockwise', backward=backward) for n in (2048, 8192))
    assert large < 4.4 * small
    assert large < M * 8192**2 * 4 / 16  # a sixteenth of the weights


def test_dense_memory_grows_with_the_square_of_n():
    """What blockwise is for. (Forward alone a compiler may find a way around the weights.)"""
    small, large = (temporary_bytes(n, 'dense', backward=True) for n in (2048, 8192))
    assert large > 15 * small
    assert large >= M * 8192**2 * 4


def test_an_unknown_implementation_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="model.attention is 'flash'.*blockwise, dense"):
        attend(*inputs(3)[:3], implementation='flash')
