"""Vendors' kernels as far as a CPU can tell: the arguments they get, and Pallas interpreted."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from long_vivit.models import kernels
from long_vivit.models.attention import attend, attend_to, resolve
from tests import tiny_models
from tests.test_attention import all_of, assert_all_near

B, M, F = 3, 2, 8


def inputs(n, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal((B, n, M, F)), dtype) for _ in range(4)]


def output_and_gradients(function, query, key, value, d_out):
    out, back = jax.vjp(function, query, key, value)
    return out, *back(d_out)


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('lengths', [None, [130, 40, 0]])
def test_splash_interpreted(causal, lengths):
    """130 tokens of head width 8 are padded to two blocks of 128 x 128; one example is empty."""
    values = inputs(130)
    lengths = None if lengths is None else np.array(lengths, np.int32)
    splash = partial(kernels.splash, lengths=lengths, causal=causal, interpret=True)
    got = jax.jit(partial(output_and_gradients, splash))(*values)
    assert_all_near(got, all_of(*values, lengths, implementation='dense', causal=causal))


def test_splash_interpreted_of_some_queries():
    """10 queries and 130 keys: blocks of two sizes."""
    query, key, value, _ = inputs(130)
    got = kernels.splash(query[:, :10], key, value, None, False, interpret=True)
    wanted = attend_to(query[:, :10], key, value, implementation='dense')
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize(('remat', 'calls'), [('attention', 3), ('full', 4)])
def test_remat_attention_keeps_what_splash_found(remat, calls):
    """Kernels in the step: forward, for queries, for keys; and forward again where nothing is kept.

    The program is lowered for a TPU, not compiled: nothing is merged.
    """
    video = tiny_models.like({'attention': 'splash', 'remat': remat, 'depth': 6}).video
    one = tiny_models.batch()
    arrays = [jax.ShapeDtypeStruct(one[key].shape, one[key].dtype) for key in ('patches', 'where')]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, 'default_backend', lambda: 'tpu')
        step = jax.jit(jax.grad(lambda video, *given: video(*given).sum()))
        text = jax.export.export(step, platforms=['tpu'])(video, *arrays).mlir_module()
    assert text.count('tpu_custom_call') == calls


def test_splash_compiles_for_a_tpu():
    """Forward and backward down to the TPU's dialect, in bfloat16, without a TPU."""

    def loss(query, key, value):
        lengths = jnp.array([300, 20], jnp.int32)
        out = kernels.splash(query, key, value, lengths, False)
        return out.astype(jnp.float32).sum()

    like = [jax.ShapeDtypeStruct((2, 300, M, 64), jnp.bfloat16)] * 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, 'default_backend', lambda: 'tpu')
        exported = jax.export.export(jax.jit(jax.grad(loss, (0, 1, 2))), platforms=['tpu'])(*like)
    text = exported.mlir_module()
    assert text.count('tpu_custom_call') == 3  # forward, and one each for queries and for keys


@pytest.fixture
def nvidia(monkeypatch):
    """A GPU that is none: cuDNN's attention is computed by XLA. -> the calls it got."""
    calls, true = [], jax.nn.dot_product_attention

    class Device:
        compute_capability = '8.0'
        platform_version = 'cuda 13'

    def instead(*args, implementation, **more):
        assert implementation == 'cudnn'
        assert not {'mask', 'bias'} & more.keys()
        calls.append(more)
        return true(*args, implementation='xla', **more)

    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    monkeypatch.setattr(jax, 'local_devices', lambda: [Device])
    monkeypatch.setattr(kernels, 'get_backend', lambda: Device)
    monkeypatch.setattr(jax.nn, 'dot_product_attention', instead)
    return calls


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('lengths', [None, [21, 7, 0]])
def test_what_cudnn_is_given(nvidia, causal, lengths):
    """Lengths and no mask; padding that holds NaN does not spread; an empty example gives zeros."""
    values = inputs(21, jnp.bfloat16)
    exact = [x.astype(jnp.float32) for x in values]
    if lengths is not None:
        lengths = np.array(lengths, np.int32)
        values[1:3] = [x.at[1, 7:].set(jnp.nan).at[2].set(jnp.inf) for x in values[1:3]]
    wanted = all_of(*exact, lengths, implementation='dense', causal=causal)
    call = partial(attend, implementation='cudnn', lengths=lengths, causal=causal)
    got = jax.jit(partial(output_and_gradients, call))(*values)
    assert_all_near(got, wanted, 0.02)
    assert nvidia[-1]['is_causal'] is causal
    if lengths is None:
        assert 'key_value_seq_lengths' not in nvidia[-1]


def test_cudnn_under_an_all_to_all(nvidia):
    """Each of four devices gives it all tokens of one head of two, and one of two examples."""
    from tests.test_sequence import mesh_of

    values = [x[:2] for x in inputs(21, jnp.bfloat16)]
    wanted = all_of(*(x.astype(jnp.float32) for x in values), implementation='dense')
    call = partial(attend, implementation='cudnn')
    with jax.set_mesh(mesh_of(data=2, seq=2)):
        got = jax.jit(partial(output_and_gradients, call))(*values)
    assert_all_near(got, wanted, 0.02)


# What runs, and why ---------------------------------------------------------------------------


def test_auto_on_each_backend(nvidia):
    assert resolve('auto', 'cpu', jnp.float32, 64) == ('blockwise', 'the backend is cpu')
    assert resolve('auto', 'tpu', jnp.float32, 64) == ('splash', 'the backend is tpu')
    assert resolve('auto', 'gpu', jnp.bfloat16, 64) == ('cudnn', 'the backend is gpu')
    assert resolve('auto', 'gpu', jnp.bfloat16, 64, ring=True)[0] == 'blockwise'
    name, why = resolve('auto', 'gpu', jnp.float32, 64)
    assert name == 'blockwise' and 'not cudnn: ' in why and 'model.dtype is float32' in why


@pytest.mark.parametrize(
    ('name', 'backend', 'dtype', 'head_width', 'words'),
    [
        ('cudnn', 'cpu', jnp.bfloat16, 64, 'needs an NVIDIA GPU, and the backend is cpu'),
        ('cudnn', 'gpu', jnp.float32, 64, 'takes bfloat16 or float16, and model.dtype is float32'),
        ('cudnn', 'gpu', jnp.bfloat16, 60, 'multiples of 8 up to 128, and this one is 60'),
        ('cudnn', 'gpu', jnp.bfloat16, 192, 'multiples of 8 up to 128, and this one is 192'),
        ('splash', 'gpu', jnp.bfloat16, 64, 'needs a TPU, and the backend is gpu'),
    ],
)
def test_a_named_kernel_that_cannot_run_is_refused(nvidia, name, backend, dtype, head_width, words):
    with pytest.raises(ValueError, match=f'model.attention is {name!r}, but .*{words}.*blockwise'):
        resolve(name, backend, dtype, head_width)


def test_a_jax_without_cudnn_says_so():
    """The compiler's own words, of this jax, which has none."""
    words = kernels._refusal(jnp.dtype(jnp.bfloat16), 64)
    assert words.startswith('this jax cannot use cuDNN: ') and 'cuDNN is not detected' in words


@pytest.mark.parametrize('name', ['cudnn', 'splash'])
def test_nothing_runs_in_place_of_a_kernel(name):
    with pytest.raises(ValueError, match=f"model.attention is '{name}', but .*backend is cpu"):
        attend(*inputs(4)[:3], implementation=name)
