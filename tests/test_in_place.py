"""A long video encoded in place: the encoder's own numbers, in the memory that is promised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from long_vivit import layout, retrieval
from long_vivit.models import blockwise, parts
from long_vivit.models.attention import attend_to
from tests import tiny_models
from tests.test_sequence import mesh_of
from tests.tiny_models import FAST, dual

pytestmark = pytest.mark.usefixtures('quick_compilation')

GRID, B, K = (6, 2, 4), 2, 37


@pytest.fixture
def short_parts(monkeypatch):
    """Parts of at most 10 tokens, keys in blocks of at most 16: the last of both is shorter."""
    monkeypatch.setattr(parts, 'TOKENS', 10)
    monkeypatch.setattr(blockwise, 'COLUMNS', 16)


def model_and_video(**fields):
    one = tiny_models.batch(B, k=K, grid=GRID)
    return dual(video={'grid': GRID, **fields}), one['patches'], one['where']


def encode(*given, as_it_is=False):
    """What scoring and notebooks call, or the encoder as it is. Traced anew: parts may differ."""

    def plain(model, *video):
        return model.video(*video)

    function = plain if as_it_is else retrieval.encode_patches.__wrapped__
    compiled = jax.jit(lambda *given: function(*given), compiler_options=FAST)
    return np.asarray(compiled(*given))


@pytest.mark.parametrize(
    'fields',
    [
        {'attention': 'blockwise', 'remat': 'full'},
        {'attention': 'dense', 'pool': 'cls'},
        {'attention': 'blockwise', 'heads': 4, 'depth': 3, 'pool': 'cls'},
    ],
)
def test_it_changes_no_number(fields, short_parts):
    given = model_and_video(**fields)
    np.testing.assert_allclose(encode(*given), encode(*given, as_it_is=True), atol=2e-6)


def test_bfloat16_is_no_coarser(short_parts):
    """Against float32: as near as the encoder itself is, since both round the same values."""
    exact = encode(*model_and_video(attention='blockwise'), as_it_is=True)
    given = model_and_video(attention='blockwise', dtype=jnp.bfloat16)
    error, own = (np.abs(z - exact).max() for z in (encode(*given), encode(*given, as_it_is=True)))
    assert error < 1.5 * own < 0.05, (error, own)


@pytest.mark.parametrize('mesh', [{'fsdp': 2, 'tensor': 2}, {'fsdp': 2, 'seq': 2}])
def test_over_devices(mesh, short_parts):
    """A video on each device and heads over two; where the mesh splits tokens, none in place."""
    model, patches, where = model_and_video(attention='blockwise')
    patches, where = patches[:, :36], where[:, :36]
    wanted = encode(model, patches, where, as_it_is=True)
    mesh = mesh_of(**mesh)
    spread = layout.spread(model, layout.shardings(model, mesh)[0])
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(encode(spread, patches, where), wanted, atol=2e-6)


@pytest.mark.parametrize('n', [32, 37, 5])
def test_some_queries_against_all_keys(n, short_parts):
    rng = np.random.default_rng(n)
    query, key, value = (rng.standard_normal((2, size, 3, 8), np.float32) for size in (5, n, n))
    wanted = attend_to(query, key, value, implementation='dense')
    got = attend_to(query, key, value, implementation='blockwise')
    np.testing.assert_allclose(got, wanted, atol=2e-6)


def test_whole_are_the_video_its_tokens_once_and_keys_and_values():
    """From the compiled program, in bfloat16: three arrays of all tokens, and one part's work."""
    n, width = 64 * parts.TOKENS, 32
    fields = {'grid': (n // 8, 2, 4), 'width': width, 'attention': 'blockwise'}
    model = tiny_models.like(fields | {'dtype': jnp.bfloat16})
    values = model.video.tubelet_embed.kernel.shape[0]
    patches = jax.ShapeDtypeStruct((1, n, values), jnp.uint8)
    where = jax.ShapeDtypeStruct((1, n, 3), jnp.int32)
    compiled = retrieval.encode_patches.lower(model, patches, where).compile(compiler_options=FAST)
    copies = compiled.memory_analysis().temp_size_in_bytes / (n * width * 2)
    assert 3 < copies < 3.5
