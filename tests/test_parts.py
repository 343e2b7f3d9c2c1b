"""Layers in parts: the same numbers, less memory, on one device and on several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from long_vivit.models import parts
from long_vivit.models.layers import Trunk
from long_vivit.names import flatten
from tests.tiny_models import FAST

B, N, WIDTH = 8, 10, 8
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((B, N, WIDTH)), jnp.float32)
LENGTHS = jnp.asarray(RNG.integers(1, N + 1, B), jnp.int32)


def trunk(remat, *, width=WIDTH, depth=2, dtype=jnp.float32):
    return Trunk(
        width, depth, 2, implementation='blockwise', causal=False, remat=remat, dtype=dtype,
        rngs=nnx.Rngs(0),
    )  # fmt: skip


def gradients(remat, x=X):
    """Loss, and its gradients by the parameters and by x.

    A function of its own each time: how a layer is split is settled when it is traced.
    """

    def loss(trunk, x):
        return (trunk(x, LENGTHS)[:, 0] * x[:, 1]).sum()

    step = jax.jit(jax.value_and_grad(loss, (0, 1)), compiler_options=FAST)
    return step(jax.jit(trunk, static_argnums=0, compiler_options=FAST)(remat), x)


@pytest.fixture(scope='module')
def wanted():
    """With nothing split and nothing computed again."""
    return gradients('none')


def assert_close(one, other):
    for (name, x), y in zip(flatten(one).items(), jax.tree.leaves(other), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        np.testing.assert_allclose(x, y, atol=5e-6 * max(1, np.abs(y).max()), err_msg=name)


@pytest.mark.parametrize(('remat', 'tokens'), [('full', 21), ('attention', 3)])
def test_parts_change_no_number(remat, tokens, wanted, monkeypatch):
    """Two examples at once; one, with the MLP in four parts that need padding."""
    monkeypatch.setattr(parts, 'TOKENS', tokens)
    assert parts.num_batch_parts(B, N) == (4 if tokens == 21 else 8)
    assert_close(gradients(remat), wanted)


def test_parts_over_devices_change_no_number(wanted, monkeypatch):
    """Batch over four devices, tokens over two: each has its share of each part."""
    monkeypatch.setattr(parts, 'TOKENS', 3)
    devices = np.asarray(jax.devices()).reshape(4, 2)
    mesh = jax.sharding.Mesh(devices, ('data', 'seq'), axis_types=(AxisType.Auto,) * 2)
    x = jax.device_put(X, NamedSharding(mesh, PartitionSpec('data', 'seq')))
    with jax.set_mesh(mesh):
        assert parts.num_batch_parts(B, N) == 2  # a device has two examples, five tokens of each
        assert_close(gradients('full', x), wanted)


@pytest.mark.parametrize('b', [1, 6, 8])
@pytest.mark.parametrize('n', [1, 100, 16_384, 16_385, 10**6])
def test_a_batch_is_split_no_further_than_needed(b, n):
    j = parts.num_batch_parts(b, n)
    assert b % j == 0
    assert b // j * n <= parts.TOKENS or j == b
    fewer = [k for k in range(1, j) if b % k == 0]
    assert all(b // k * n > parts.TOKENS for k in fewer)


def compiled(function, *shapes):
    lowered = jax.jit(jax.grad(lambda *x: function(*x).astype(jnp.float32).sum())).lower(*shapes)
    return lowered.compile(compiler_options=FAST)


def test_parts_save_memory(monkeypatch):
    """Of a wide function of tokens: about an eighth in eight parts."""
    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 512, 16), (16, 4096)))

    def temporary_bytes():
        def wide(kernel, x):
            return parts.over_tokens(lambda x: jnp.sin(jnp.sin(x @ kernel)) @ kernel.T, x)

        return compiled(wide, kernel, x).memory_analysis().temp_size_in_bytes

    whole = temporary_bytes()
    monkeypatch.setattr(parts, 'TOKENS', 128)
    assert temporary_bytes() < 0.2 * whole


def test_block_inputs_are_kept_in_their_own_width():
    """XLA's CPU compiler would hold the bfloat16 inputs of all layers as float32 besides."""
    like = jax.eval_shape(lambda: trunk('full', depth=6, dtype=jnp.bfloat16))
    x = jax.ShapeDtypeStruct((4, 64, WIDTH), jnp.bfloat16)
    text = compiled(lambda trunk, x: trunk(x), like, x).as_text()
    assert 'u16[6,4,64,8]' in text
    assert 'f32[6,4,64,8]' not in text
    assert 'bf16[6,4,64,8]' not in text
