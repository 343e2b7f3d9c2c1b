"""Dense, tiled and ring forms of both losses: the same loss, gradients and watch values in all, in
the memory that each promises."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from long_vivit.losses import nce, sigmoid
from long_vivit.losses.form import chosen, in_words, plan_of
from long_vivit.sharding import BATCH, batch_axes
from tests.tiny_models import FAST

pytestmark = pytest.mark.usefixtures('quick_compilation')

KINDS = ('nce', 'sigmoid')
SMOOTHING = 0.1
B = 11  # pairs of most examples: three tiles of 4, the last one not full
TILED = {'form': 'tiled', 'tile': 4}
needs_eight = pytest.mark.usefixtures('eight_devices')


def mesh_of(**sizes):
    devices = np.array(jax.devices()[: int(np.prod(list(sizes.values())))])
    return jax.sharding.Mesh(
        devices.reshape(tuple(sizes.values())),
        tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes),
    )  # fmt: skip


def example(b, e=6, seed=0, noise=1.5):
    """z_video, z_text, ok, text_key: some broken, some captions equal, pairs somewhat alike."""
    rng = np.random.default_rng(seed)
    z_video = rng.standard_normal((b, e))
    z_text = z_video + noise * rng.standard_normal((b, e))
    z = [
        (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32) for z in (z_video, z_text)
    ]
    return *z, rng.random(b) > 0.2, rng.integers(0, b // 2, b).astype(np.int32)


def value(kind, z_video, z_text, log_scale, bias, ok, text_key, video_key=None, **options):
    pairs = ok, text_key, video_key
    if kind == 'nce':
        return nce(z_video, z_text, log_scale, *pairs, label_smoothing=SMOOTHING, **options)
    return sigmoid(z_video, z_text, log_scale, bias, *pairs, **options)


def graded(kind, **options):
    """(z_video, z_text, log_scale, bias, ok, text_key) -> ((loss, watch), gradients), compiled."""

    def loss(*arguments):
        return value(kind, *arguments, **options)

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True), compiler_options=FAST)


cached = lru_cache(None)(graded)  # not under a mesh: it is no part of the key


def arguments(given, scale=5.0, bias=-2.0):
    z_video, z_text, *about = given  # ok and the keys
    return z_video, z_text, jnp.log(jnp.float32(scale)), jnp.float32(bias), *about


def assert_equal(got, wanted, tolerance=1e-5):
    """Each array to `tolerance` of its largest value, or of 1 where that is less."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        within = tolerance * max(1, np.abs(y).max())
        np.testing.assert_allclose(x, y, rtol=0, atol=within)


def on_paper(kind, z_video, z_text, ok, keys, scale, bias, videos=None):
    """Loss, recall and gap by plain loops in float64."""
    cosine = z_video.astype(np.float64) @ z_text.astype(np.float64).T
    real, videos = np.flatnonzero(ok), range(len(ok)) if videos is None else videos
    total, hits, negatives = 0.0, 0, []
    for way in (cosine, cosine.T):
        for i in real:
            others = [j for j in real if keys[j] != keys[i] and videos[j] != videos[i]]
            hits += all(way[i, i] > way[i, j] for j in others)
            negatives += [way[i, j] for j in others]
            logits = scale * way[i, [i, *others]]
            if kind == 'nce':
                log_p = logits - np.logaddexp.reduce(logits)
                total -= (1 - SMOOTHING) * log_p[0] + SMOOTHING * log_p.mean()
            else:
                signs = np.array([1] + [-1] * len(others))
                total += np.logaddexp(0, -signs * (logits + bias)).sum()
    n = max(len(real), 1)
    own = np.mean([cosine[i, i] for i in real] or [0])
    return total / (2 * n), hits / (2 * n), own - np.mean(negatives or [0])


# The losses themselves ----------------------------------------------------------------------


@settings(max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    options=st.sampled_from([{}, TILED]),
    ok=st.lists(st.booleans(), min_size=B, max_size=B),
    keys=st.lists(st.integers(-2, 4), min_size=B, max_size=B),
    videos=st.lists(st.integers(0, 9), min_size=B, max_size=B),
    scale=st.floats(0.1, 100),
    bias=st.floats(-12, 3),
    seed=st.integers(0, 99),
)
def test_any_form_is_the_loss_on_paper(kind, options, ok, keys, videos, scale, bias, seed):
    """Whatever is broken, whichever captions are equal and whichever videos the same."""
    z_video, z_text, *_ = example(B, seed=seed)
    given = z_video, z_text, np.array(ok), np.array(keys, np.int32)
    same = np.array(videos, np.int32)
    (loss, watch), grads = cached(kind, **options)(*arguments((*given, same), scale, bias))
    want, recall, gap = on_paper(kind, *given, scale, bias, videos)
    assert loss.dtype == jnp.float32 and loss.shape == ()
    assert float(loss) == pytest.approx(want, rel=1e-5, abs=1e-5)
    assert float(watch['recall']) == pytest.approx(recall, abs=1e-6)
    assert float(watch['gap']) == pytest.approx(gap, abs=1e-5)
    assert float(watch['temperature']) == pytest.approx(1 / scale, rel=1e-5)
    assert all(np.isfinite(grad).all() for grad in grads)
    for grad in grads[:2]:
        np.testing.assert_array_equal(grad[~np.array(ok)], 0)


def test_known_values_of_the_sigmoid_loss():
    """Perfect pairs: each row has a positive with logit 4 and, of ten negatives, logits of -1."""
    perfect = np.eye(B, dtype=np.float32)
    given = perfect, perfect, np.ones(B, bool), np.arange(B, dtype=np.int32)
    (loss, watch), _ = cached('sigmoid')(*arguments(given, 5.0, -1.0))
    assert float(loss) == pytest.approx(np.log1p(np.exp(-4)) + 10 * np.log1p(np.exp(-1)), rel=1e-5)
    assert float(watch['bias']) == -1 and float(watch['recall']) == 1


def test_the_slopes_of_the_sigmoid_loss_are_those_on_paper():
    """G = -y sigmoid(-y s) / N; dL/dz = t G w, dL/dw = t G' z, dL/dlog t = G t cos, dL/db = G."""
    z_video, z_text, _, _ = example(B)
    given = z_video, z_text, np.ones(B, bool), np.arange(B, dtype=np.int32)
    _, grads = cached('sigmoid')(*arguments(given, 5.0, -2.0))
    cosine = z_video.astype(np.float64) @ z_text.T
    y = 2 * np.eye(B) - 1
    g = -y / (1 + np.exp(y * (5 * cosine - 2))) / B
    wanted = 5 * g @ z_text, 5 * g.T @ z_video, (g * 5 * cosine).sum(), g.sum()
    for grad, want in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-6)


# The forms against each other ---------------------------------------------------------------

MESHES = {
    'data=8': {'data': 8},
    'data=2 fsdp=4': {'data': 2, 'fsdp': 4},
    'data=4 seq=2': {'data': 4, 'seq': 2},
    'all names': {'dcn': 2, 'data': 2, 'fsdp': 2, 'seq': 1, 'tensor': 1},
}


@needs_eight
@pytest.mark.parametrize('sizes', MESHES.values(), ids=MESHES)
@pytest.mark.parametrize('kind', KINDS)
def test_the_ring_agrees_with_dense(kind, sizes):
    """56 pairs, 7 or 14 on a device, in tiles of at most 3: the last tile is not full."""
    given = arguments((*example(56), (np.arange(56) * 5 % 48).astype(np.int32)))
    wanted, mesh = cached(kind)(*given), mesh_of(**sizes)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec(batch_axes()))
        given = [jax.device_put(x, rows) if np.ndim(x) else x for x in given]
        got = graded(kind, form='ring', tile=3)(*given)
        assert_equal(got, wanted)
        assert all(grad.sharding.is_equivalent_to(rows, 2) for grad in got[1][:2])


@needs_eight
@pytest.mark.parametrize('kind', KINDS)
def test_tiled_agrees_with_dense(kind):
    """Alone, with tiles that divide the batch and one larger than it; and on a mesh, where each
    device does all of it, from rows that are split."""
    given = arguments(example(56))
    wanted, mesh = cached(kind)(*given), mesh_of(data=4, seq=2)
    for tile in (14, 100):
        assert_equal(cached(kind, form='tiled', tile=tile)(*given), wanted)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec('data'))
        given = [jax.device_put(x, rows) if np.ndim(x) else x for x in given]
        assert_equal(graded(kind, form='tiled', tile=10)(*given), wanted)


def test_the_example_above_tells_wrong_losses_apart():
    """Broken pairs, equal captions and smoothing each have their say in it."""
    z_video, z_text, ok, keys = example(56)
    everything, differ = np.ones(56, bool), np.arange(56, dtype=np.int32)
    found = [
        float(cached('nce')(*arguments((z_video, z_text, o, k)))[0][0])
        for o in (ok, everything) for k in (keys, differ)
    ]  # fmt: skip
    assert min(abs(a - b) for i, a in enumerate(found) for b in found[:i]) > 1e-3


@pytest.mark.parametrize('kind', KINDS)
def test_half_precision_embeddings_are_taken_in_float32(kind):
    z_video, z_text, ok, keys = example(B)
    half = [jnp.asarray(z, jnp.bfloat16) for z in (z_video, z_text)]
    wide = [np.asarray(z, np.float32) for z in half]
    wanted, wide_grads = cached(kind)(*arguments((*wide, ok, keys)))
    got, grads = cached(kind, **TILED)(*arguments((*half, ok, keys)))
    assert_equal(got, wanted)
    for grad, want in zip(grads[:2], wide_grads[:2], strict=True):
        assert grad.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(grad, np.float32), want, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('noise', [0.0, 0.02])
def test_near_duplicates_at_the_highest_scale(kind, noise):
    """Pairs that are one point, or nearly: finite, the same in all forms, and nothing recalled by
    chance where all is one."""
    z_video, z_text, ok, keys = example(B)
    one = z_video[:1] + noise * z_video, z_video[:1] + noise * z_text
    z = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in one]
    given = arguments((*z, ok, keys), scale=100.0, bias=-10.0)
    wanted = cached(kind)(*given)
    got = cached(kind, **TILED)(*given)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
    assert_equal(got, wanted, 2e-5)  # a float32 logit of 100 is itself known to 8e-6
    if not noise:
        assert float(got[0][1]['recall']) == float(wanted[0][1]['recall']) == 0


def test_sure_pairs_keep_their_small_loss_and_slopes():
    """At a scale of 100 a log-sum-exp is known to 8e-6 only; a loss of 8e-6 and its slopes better.

    They would not be if the log-sum-exp of a row were kept as one number.
    """
    z = np.eye(B, dtype=np.float32)
    z[1, :2] = np.cos(0.45), np.sin(0.45)  # the one negative that counts
    pairs = np.ones(B, bool), np.arange(B, dtype=np.int32)
    exact = np.logaddexp(0, 100 * (np.float64(z[0] @ z[1]) - 1)) * 2 / B
    slopes = []
    for options in ({}, TILED):
        loss = jax.value_and_grad(lambda z_, o=options: nce(z_, z, jnp.log(100.0), *pairs, **o)[0])
        value, slope = jax.jit(loss, compiler_options=FAST)(z)
        assert float(value) == pytest.approx(exact, rel=3e-3)
        slopes.append(np.asarray(slope))
    np.testing.assert_allclose(*slopes, rtol=0, atol=3e-3 * np.abs(slopes[0]).max())


@pytest.mark.parametrize('kind', KINDS)
def test_a_batch_without_any_real_example_costs_nothing(kind):
    z_video, z_text, ok, keys = example(B)
    for options in ({}, TILED):
        given = arguments((0 * z_video, z_text, np.zeros_like(ok), keys))
        (loss, watch), grads = cached(kind, **options)(*given)
        assert float(loss) == 0 and float(watch['recall']) == 0 and float(watch['gap']) == 0
        for grad in grads:
            np.testing.assert_array_equal(grad, 0)


def test_the_scale_is_held_in_every_form():
    given = arguments(example(B), scale=1000.0)
    for kind in KINDS:
        (_, watch), grads = cached(kind, **TILED)(*given)
        assert_equal(watch, cached(kind)(*given)[0][1])
        assert float(watch['temperature']) == pytest.approx(1 / 100)
        assert float(grads[2]) == pytest.approx(
            float(cached(kind, **TILED)(*arguments(example(B), scale=100.0))[1][2]), rel=1e-4
        )  # of the clamp: no dead end


# Memory -------------------------------------------------------------------------------------


def compiled(kind, mesh, b, e, **options):
    """The compiled gradients of a batch that is never made."""
    rows = NamedSharding(mesh, PartitionSpec(tuple(a for a in BATCH if a in mesh.shape)))
    z = jax.ShapeDtypeStruct((b, e), jnp.float32, sharding=rows)
    ok, keys = (jax.ShapeDtypeStruct((b,), dtype, sharding=rows) for dtype in (bool, jnp.int32))
    one = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))

    def loss(*arguments):
        return value(kind, *arguments, **options)

    with jax.set_mesh(mesh):
        grad = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))
        return grad.lower(z, z, one, one, ok, keys).compile()


@needs_eight
@pytest.mark.parametrize('kind', KINDS)
def test_a_batch_of_65536_on_eight_devices(kind):
    """At most 200 MB on each beside the embeddings (25 MB a side) and their gradients; the matrix
    of all pairs would be 17 GB. Only neighbours talk: nothing is gathered."""
    program = compiled(kind, mesh_of(data=8), 65536, 768, form='ring', tile=1024)
    assert program.memory_analysis().temp_size_in_bytes <= 200e6
    text = program.as_text()
    assert 'collective-permute' in text and 'all-gather' not in text and 'all-to-all' not in text


def test_tiles_need_the_memory_of_a_tile():
    """Four times the batch needs hardly more; dense holds the matrix."""
    mesh = mesh_of(data=1)
    sizes = {
        (form, b): compiled('nce', mesh, b, 16, form=form, tile=256)
        .memory_analysis().temp_size_in_bytes
        for form, b in [('dense', 2048), ('tiled', 2048), ('tiled', 8192)]
    }  # fmt: skip
    assert sizes['dense', 2048] > 4 * 2048**2
    assert sizes['tiled', 8192] < 8 * 4 * 256**2 + 16 * 4 * 16 * 8192
    assert sizes['tiled', 8192] < 3 * sizes['tiled', 2048]


# Which form ---------------------------------------------------------------------------------


@needs_eight
def test_auto_takes_the_form_that_fits():
    assert [chosen('auto', b) for b in (64, 4096, 4097)] == ['dense', 'dense', 'tiled']
    assert in_words('nce', 'auto', 64, 1024) == 'nce loss, dense'
    with jax.set_mesh(mesh_of(data=1, seq=8)):
        assert chosen('auto', 65536) == 'tiled'
    with jax.set_mesh(mesh_of(data=2, fsdp=2, seq=2)):
        assert [chosen('auto', b) for b in (64, 65536)] == ['dense', 'ring']
        assert plan_of('auto', 512, 65536) == (('data', 'fsdp'), 4, 512)
        assert in_words('sigmoid', 'auto', 65536, 512) == (
            'sigmoid loss, ring of 4 devices, tiles of at most 512 x 512 pairs'
        )
        assert [chosen(form, 8) for form in ('dense', 'tiled', 'ring')] == [
            'dense', 'tiled', 'ring',
        ]  # fmt: skip


@needs_eight
def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="loss.form is 'rings'; it must be one of auto, dense"):
        chosen('rings', 8)
    with (
        jax.set_mesh(mesh_of(data=2, fsdp=4)),
        pytest.raises(ValueError, match=r'12 pairs cannot be split over 8 devices \(data x fsdp\)'),
    ):
        plan_of('ring', 4, 12)
