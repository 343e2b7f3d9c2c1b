"""Primary components: what is kept of a batch, and the gradient, where it is awkward too."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from long_vivit.losses import components
from tests.tiny_models import FAST

pytestmark = pytest.mark.usefixtures('quick_compilation')

TALL, WIDE = (14, 6), (7, 12)  # by the covariance, by the Gram matrix
K = 3
needs_eight = pytest.mark.usefixtures('eight_devices')


def rows(b, e, seed=0, scales=None):
    """Unit vectors with a common direction, as encoders make them: float32 [b, e]."""
    rng = np.random.default_rng(seed)
    scales = np.linspace(1.5, 0.3, e) if scales is None else scales
    z = rng.standard_normal((b, e)) * scales + rng.standard_normal(e)
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def slopes(shape, seed=9):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@lru_cache(None)
def jitted(**options):
    """(z, ok, slope) -> coarse rows, share removed, gradient of sum(slope * coarse) in z."""

    def run(z, ok, slope):
        found, pull, removed = jax.vjp(
            lambda z: components.coarse(z, ok, **options), z, has_aux=True
        )
        return found, removed, pull(slope)[0]

    return jax.jit(run, compiler_options=FAST)


def run(z, ok=None, slope=None, **options):
    ok = np.ones(len(z), bool) if ok is None else ok
    slope = slopes(z.shape) if slope is None else slope
    return jax.device_get(jitted(**{'components': K} | options)(z, ok, slope))


def on_paper(z, k=K):
    """Coarse rows in float64, by the singular vectors."""
    z = np.asarray(z, np.float64)
    mean = z.mean(0)
    main = np.linalg.svd(z - mean, full_matrices=False)[2][:k]
    return (z - mean) @ main.T @ main + mean


def differences(z, slope, k=K, step=1e-6):
    """The gradient in float64 by central differences of `on_paper`."""
    z, found = np.asarray(z, np.float64), np.zeros(z.shape)
    for place in np.ndindex(*z.shape):
        ahead, behind = z.copy(), z.copy()
        ahead[place] += step
        behind[place] -= step
        found[place] = ((on_paper(ahead, k) - on_paper(behind, k)) * slope).sum() / (2 * step)
    return found


def of_spectrum(strengths, b=14, e=6, seed=0):
    """Centred rows [b, e] with these singular values."""
    rng = np.random.default_rng(seed)
    left = rng.standard_normal((b, len(strengths)))
    left = np.linalg.qr(left - left.mean(0))[0]
    right = np.linalg.qr(rng.standard_normal((e, len(strengths))))[0]
    return (left * strengths) @ right.T + rng.standard_normal(e)


@pytest.mark.parametrize('shape', [TALL, WIDE])
def test_rows_and_gradient_are_those_on_paper(shape):
    """One row is broken: the others are as if it were not there, and it gets no gradient."""
    z, ok, slope = rows(*shape), np.arange(shape[0]) != 2, slopes(shape)
    slope[2] = 0  # as the losses have it
    found, removed, grad = run(z, ok, slope)
    wanted = on_paper(z[ok])
    np.testing.assert_allclose(found[ok], wanted, atol=2e-6)
    np.testing.assert_allclose(grad[ok], differences(z[ok], slope[ok]), atol=2e-5)
    np.testing.assert_array_equal(grad[2], 0)
    centred = z[ok] - z[ok].mean(0)
    assert removed == pytest.approx(np.square(z[ok] - wanted).sum() / np.square(centred).sum())
    assert 0.01 < removed < 0.6
    other = z.copy()
    other[2] = rows(1, shape[1], seed=3)
    for x, y in zip(run(other, ok, slope), (found, removed, grad), strict=True):
        np.testing.assert_array_equal(x[ok] if np.ndim(x) else x, y[ok] if np.ndim(y) else y)


@pytest.mark.parametrize('shape', [TALL, WIDE])
def test_the_same_as_through_a_singular_value_decomposition(shape):
    """What the released code does, where its gradient is well behaved."""
    z, slope = rows(*shape), slopes(shape)

    def by_svd(z):
        mean = z.mean(0)
        main = jnp.linalg.svd(z - mean, full_matrices=False)[2][:K]
        with jax.default_matmul_precision('highest'):
            return (((z - mean) @ main.T @ main + mean) * slope).sum()

    wanted = jax.jit(jax.grad(by_svd), compiler_options=FAST)(z)
    np.testing.assert_allclose(run(z, slope=slope)[2], wanted, atol=2e-5)


@pytest.mark.parametrize('basis_gradient', ['full', 'stop'])
@pytest.mark.parametrize('num_ok', [7, 6])
def test_covariance_and_gram_matrix_agree(basis_gradient, num_ok):
    """Zeros beside the features, or broken rows below them, change which of the two is smaller."""
    z, slope, ok = rows(7, 5), slopes((7, 5)), np.arange(7) < num_ok
    slope[~ok] = 0
    tall = run(z, ok, slope, basis_gradient=basis_gradient)
    beside = [np.pad(x, ((0, 0), (0, 6))) for x in (z, slope)]
    wide = run(beside[0], ok, beside[1], basis_gradient=basis_gradient)
    np.testing.assert_allclose(wide[0][ok, :5], tall[0][ok], atol=2e-6)
    np.testing.assert_allclose(wide[2][:, :5], tall[2], atol=2e-5)
    np.testing.assert_allclose(wide[1], tall[1], atol=1e-6)


@pytest.mark.parametrize('shape', [TALL, WIDE])
def test_a_stopped_basis_is_a_constant(shape):
    """And its gradient is not the full one."""
    z, slope = rows(*shape), slopes(shape)
    main = np.linalg.svd(z - z.mean(0), full_matrices=False)[2][:K]
    kept = slope @ main.T @ main
    wanted = kept - kept.mean(0) + slope.mean(0)
    found, _, grad = run(z, slope=slope, basis_gradient='stop')
    np.testing.assert_allclose(grad, wanted, atol=1e-5)
    np.testing.assert_allclose(found, on_paper(z), atol=2e-6)
    assert np.abs(run(z, slope=slope)[2] - wanted).max() > 0.05


TIES = {
    'kept': (5.0, 5.0, 5.0, 2.0, 1.0),
    'dropped': (5.0, 4.0, 3.0, 1.0, 1.0, 1.0),
    'kept and dropped': (4.0, 4.0, 3.0, 1.0, 1.0),
    'nearly both': (3.0, 2.0, 1.0, 0.99, 0.5),
}


@pytest.mark.parametrize('shape', [TALL, (7, 12)])
@pytest.mark.parametrize('strengths', TIES.values(), ids=TIES)
def test_equal_eigenvalues_on_one_side_do_no_harm(strengths, shape):
    z, slope = of_spectrum(np.array(strengths), *shape), slopes(shape)
    grad = run(z.astype(np.float32), slope=slope)[2]
    wanted = differences(z, slope)
    np.testing.assert_allclose(grad, wanted, atol=1e-4 * np.abs(wanted).max())
    assert np.abs(wanted).max() > (20 if strengths == TIES['nearly both'] else 1)


@pytest.mark.parametrize('shape', [TALL, (7, 12)])
def test_a_tie_across_the_cut_has_the_gradient_that_there_is(shape):
    """Where the third and fourth direction are equally strong no movement that mixes them has a
    derivative; growing as a whole, and turning everything but the one into the other, does not."""
    z, slope = of_spectrum(np.array([3.0, 2.0, 1.0, 1.0, 0.5]), *shape), slopes(shape)
    z = (z - z.mean(0)).astype(np.float32)
    found, _, grad = run(z, slope=slope)
    assert 1 < np.abs(grad).max() < 20
    assert (grad * z).sum() == pytest.approx((slope * found).sum(), abs=1e-4)
    turn = np.random.default_rng(4).standard_normal((shape[1], shape[1]))
    turn -= turn.T
    tied = np.linalg.svd(z)[2][2:4]
    turn -= tied.T @ tied @ turn @ tied.T @ tied
    by_hand = (slope * (found @ turn)).sum()
    assert (grad * (z @ turn)).sum() == pytest.approx(by_hand, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize('distinct', [4, 5, 9])
@pytest.mark.parametrize('e', [6, 24])
def test_repeated_rows(distinct, e):
    """Of four and five kinds there are three and four components, of nine more: finite, and
    moved as they are repeated, together, rows have the gradient on paper."""
    which = np.arange(14) % distinct
    few, slope = rows(distinct, e), slopes((14, e))
    grad = run(few[which], slope=slope)[2]
    assert np.isfinite(grad).all()
    together = np.stack([grad[which == i].sum(0) for i in range(distinct)])
    wanted = np.zeros_like(few, np.float64)
    for place in np.ndindex(*few.shape):
        way = np.zeros_like(wanted)
        way[place] = 1e-6
        ends = [on_paper((few + sign * way)[which]) for sign in (1, -1)]
        wanted[place] = ((ends[0] - ends[1]) * slope).sum() / 2e-6
    np.testing.assert_allclose(together, wanted, atol=1e-4)


@pytest.mark.parametrize('e', [96, 200])
def test_more_components_than_kinds_of_rows(e):
    """160 rows of 10 kinds, of whose 9 components 16 are to be kept: nothing is taken out, and
    moved together the rows have the gradient that they came with."""
    z, slope = np.tile(rows(10, e), (16, 1)), slopes((160, e))
    found, removed, grad = run(z, slope=slope, components=16)
    np.testing.assert_allclose(found, z, atol=1e-5)
    assert np.isfinite(grad).all() and removed < 1e-8
    together = [x.reshape(16, 10, e).sum(0) for x in (grad, slope)]
    np.testing.assert_allclose(*together, atol=1e-3)


@pytest.mark.parametrize('basis_gradient', ['full', 'stop'])
def test_too_few_rows_pass_by(basis_gradient):
    """Four rows less their mean have three components: the rows come back, duplicates or not, with
    the gradient that they came with; so do four that are left of seven."""
    z, slope = rows(4, 9)[[0, 1, 1, 3]], slopes((4, 9))
    found, removed, grad = run(z, slope=slope, basis_gradient=basis_gradient)
    np.testing.assert_array_equal(found, z)
    np.testing.assert_array_equal(grad, slope)
    assert removed == 0
    z, slope, ok = rows(7, 9)[[0, 1, 2, 1, 4, 5, 6]], slopes((7, 9)), np.arange(7) < 4
    slope[~ok] = 0
    found, removed, grad = run(z, ok, slope, basis_gradient=basis_gradient)
    np.testing.assert_array_equal(found[ok], z[ok])
    np.testing.assert_array_equal(grad, slope)
    assert removed == 0
    assert run(rows(7, 9), components=5)[1] > 0 == run(rows(7, 9), components=6)[1]


@pytest.mark.parametrize('shape', [TALL, WIDE])
@pytest.mark.parametrize('basis_gradient', ['full', 'stop'])
def test_nothing_to_go_by_gives_zeros_not_nan(shape, basis_gradient):
    """No row is ok, or all are the same."""
    for z, ok in ((rows(*shape), False), (rows(1, shape[1]), True)):
        z, ok = np.broadcast_to(z, shape), np.full(shape[0], ok)
        for x in run(z, ok, slopes(shape) * ok[:, None], basis_gradient=basis_gradient):
            assert np.isfinite(x).all()


def test_renormalised_rows_are_unit_vectors():
    z = rows(*TALL)
    norms = np.linalg.norm(run(z)[0], axis=1)
    assert 0.3 < norms.min() < 0.99
    found = run(z, renormalise=True)[0]
    np.testing.assert_allclose(found, on_paper(z) / norms[:, None], atol=2e-6)


# On several devices -------------------------------------------------------------------------


def mesh_of(**sizes):
    devices = np.array(jax.devices()).reshape(tuple(sizes.values()))
    return Mesh(devices, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def spread(mesh, *arrays):
    """Rows of each split over the axes of the batch."""
    axes = tuple(name for name in mesh.axis_names if name in ('data', 'fsdp'))
    return [jax.device_put(x, NamedSharding(mesh, PartitionSpec(axes))) for x in arrays]


@needs_eight
@pytest.mark.parametrize('e', [6, 40])
@pytest.mark.parametrize('basis_gradient', ['full', 'stop'])
def test_global_components_are_those_of_one_device(e, basis_gradient):
    # Eigenvalues well apart: the gradient divides rounding by their gaps.
    z = rows(32, e, scales=1.5 * 0.7 ** np.arange(e))
    slope, ok = slopes((32, e)), np.arange(32) % 5 != 4
    slope[~ok] = 0
    wanted = run(z, ok, slope, basis_gradient=basis_gradient)
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        program = jitted.__wrapped__(components=K, basis_gradient=basis_gradient)
        got = jax.device_get(program(*spread(mesh, z, ok, slope)))
    for x, y in zip(got, wanted, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


@needs_eight
@pytest.mark.parametrize('e', [6, 40])
@pytest.mark.parametrize('basis_gradient', ['full', 'stop'])
def test_local_components_are_those_of_each_device(e, basis_gradient):
    """Under jit, on a mesh with an axis that does not split the batch: eight rows on each of four,
    of which the last has too few that can be read."""
    z, slope, ok = rows(32, e), slopes((32, e)), np.arange(32) % 5 != 4
    ok[28:] = False
    slope[~ok] = 0
    each = [
        run(z[part], ok[part], slope[part], basis_gradient=basis_gradient)
        for part in (slice(i, i + 8) for i in range(0, 32, 8))
    ]
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        program = jitted.__wrapped__(
            components=K, basis_gradient=basis_gradient, components_scope='local'
        )
        given = spread(mesh, z, ok, slope)
        got, removed, grad = jax.device_get(program(*given))
        text = program.lower(*given).compile().as_text()
    np.testing.assert_allclose(got, np.concatenate([one[0] for one in each]), atol=2e-6)
    np.testing.assert_allclose(grad, np.concatenate([one[2] for one in each]), atol=2e-5)
    assert np.abs(got - run(z, ok)[0]).max() > 0.05  # other components than the global ones
    assert 'all-gather' not in text and 'all-to-all' not in text
    of_one = [np.square(z - got)[ok].sum()]
    for part in np.split(np.arange(32), 4):
        used = z[part][ok[part]]
        of_one.append(np.square(used - used.mean(0)).sum())
    assert removed == pytest.approx(of_one[0] / sum(of_one[1:]), rel=1e-4)


@needs_eight
def test_no_device_holds_the_rows_of_all():
    """Of a batch larger than it is wide: sums of covariances travel, not features."""
    mesh = mesh_of(data=8)
    with jax.set_mesh(mesh):
        given = spread(mesh, rows(256, 8), np.ones(256, bool), slopes((256, 8)))
        text = jitted.__wrapped__(components=K).lower(*given).compile().as_text()
    assert 'all-reduce' in text and 'all-gather' not in text
    assert 'f32[256,8]' not in text.split('ENTRY')[1]
