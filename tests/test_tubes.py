"""Tubes of several kernels: where they lie, what is cut, the same share of each, their stems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from long_vivit.inputs import looks, patches, tubes
from long_vivit.inputs.sources import open_source
from long_vivit.models.positions import Positions, between
from long_vivit.names import flatten
from long_vivit.weights import flat
from tests import tiny_models

few = settings(max_examples=30)
SPEC = '4x4x4/4x8x8+2x8x8/4x8x8@1x4x4+1x4x4/2x4x4'
TUBES = tubes.parse(SPEC)
VIEW = looks.View(
    frames=8, pixels=32, patch=8, tubelet=2, sampler='mid', fps=1.0, mask_kind='random',
    mask_rate=0.0, text='caption', text_length=24, tubes=TUBES,
)  # fmt: skip


def test_the_published_tubes():
    """Kernels, strides, offsets of TubeViT, and how many fit into 32 frames of 224 pixels."""
    found = tubes.parse('tubevit')
    assert [tube.kernel for tube in found] == [(8, 8, 8), (12, 4, 4), (4, 12, 12), (1, 16, 16)]
    assert [tube.stride for tube in found] == [
        (16, 32, 32), (6, 32, 32), (16, 32, 32), (16, 16, 16)
    ]  # fmt: skip
    assert [tube.offset for tube in found] == [(0, 0, 0), (4, 8, 8), (0, 16, 16), (0, 0, 0)]
    assert [tube.grid(32, 224) for tube in found] == [
        (2, 7, 7), (3, 7, 7), (2, 7, 7), (2, 14, 14)
    ]  # fmt: skip
    assert sum(tubes.num_kept(found, 32, 224, 0.0)) == 735
    half = tubes.parse('tubevit/2')
    assert half[1] == tubes.Tube((12, 2, 2), (6, 16, 16), (4, 4, 4))
    assert [tube.grid(32, 112) for tube in half] == [tube.grid(32, 224) for tube in found]


@pytest.mark.parametrize(
    ('spec', 'words'),
    [
        ('8x8', 'must be KERNEL/STRIDE'),
        ('8x8x8', 'must be KERNEL/STRIDE'),
        ('8x8x8/0x1x1', 'must be at least 1'),
        ('2x4x4/2x4x4+2x4x4/2x4x4@1x0x0', '2x4x4 comes twice'),
        ('tubevit/0', 'a whole number'),
        ('tubevit/3', 'not divisible by 3'),
    ],
)
def test_refused(spec, words):
    with pytest.raises(ValueError, match=words):
        tubes.parse(spec)


def test_tubes_are_cut_where_they_lie():
    """Each row is the pixels of its box, and its place is the middle of the box."""
    frames = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    corners = tubes.choose(TUBES, 8, 32, 0.0, None)
    where = tubes.centres(TUBES, corners, 2, 8)
    cut, row = tubes.cut(frames, TUBES, corners), 0
    for tube, corner, got in zip(TUBES, corners, cut, strict=True):
        assert got.shape == (np.prod(tube.grid(8, 32)), tube.num_values)
        assert got.dtype == np.uint8
        for (t, y, x), values in zip(corner, got, strict=True):
            r, p, q = tube.kernel
            box = frames[t : t + r, y : y + p, x : x + q]
            np.testing.assert_array_equal(values, box.ravel())
            middle = (t + r / 2) / 2, (y + p / 2) / 8, (x + q / 2) / 8
            np.testing.assert_allclose(where[row], np.array(middle) - 0.5)
            row += 1
    assert row == len(where)


@few
@given(st.floats(0, 0.95), st.integers(0, 2**32 - 1))
def test_of_each_kernel_the_same_share_is_kept(rate, seed):
    every = tubes.choose(TUBES, 8, 32, 0.0, None)
    kept = tubes.choose(TUBES, 8, 32, rate, np.random.default_rng(seed))
    for all_of, some, k in zip(every, kept, tubes.num_kept(TUBES, 8, 32, rate), strict=True):
        assert len(some) == k and abs(k - (1 - rate) * len(all_of)) <= max(0.5, 1 - k + 0.5)
        rows = [tuple(row) for row in some.tolist()]
        assert rows == sorted(set(rows)) and set(rows) <= {tuple(r) for r in all_of.tolist()}


def test_a_tube_as_large_as_a_tubelet_is_that_tubelet():
    grid = tubes.parse('2x8x8/2x8x8')
    frames = np.random.default_rng(1).integers(0, 256, (8, 32, 32, 3), np.uint8)
    corners = tubes.choose(grid, 8, 32, 0.0, None)
    where = patches.choose('random', (4, 4, 4), 0.0, None)
    np.testing.assert_array_equal(tubes.centres(grid, corners, 2, 8), where)
    (cut,) = tubes.cut(frames, grid, corners)
    np.testing.assert_array_equal(cut, patches.patchify(frames, where, 2, 8))


def test_what_is_not_decoded_makes_no_difference(tiny_stories):
    """Frames between the tubes are not asked for; masked or not, rows are those of the film."""
    source = open_source('shape_stories/short:train', data_dir=tiny_stories)
    sparse = looks.View(**(vars(VIEW) | {'tubes': tubes.parse('2x8x8/6x8x8'), 'mask_rate': 0.5}))
    shown, where, error = looks.load_video(source[1], sparse, np.random.default_rng(4))
    assert error is None and where.dtype == np.float32 and len(shown) == 1
    look = looks.Look(sparse, np.random.default_rng(4))
    assert set(look.times(0, 8).astype(int)) <= {0, 1, 6, 7}
    whole = looks.View(**(vars(VIEW) | {'tubes': ()}))
    (all_of,), _, _ = looks.load_video(source[1], whole, np.random.default_rng(4))
    film = all_of.reshape(4, 4, 4, 2, 8, 8, 3).transpose(0, 3, 1, 4, 2, 5, 6).reshape(8, 32, 32, 3)
    np.testing.assert_array_equal(shown[0][0], tubes.cut(film, sparse.tubes, look.chosen)[0])
    orders, _, _ = looks.load_video(source[1], VIEW, np.random.default_rng(4), looks.FRAME_ORDERS)
    assert [x.shape[:1] + x.shape[2:] for x in orders] == [(3, t.num_values) for t in TUBES]
    np.testing.assert_array_equal(orders[0][0], tubes.cut(film, TUBES, tubes.choose(
        TUBES, 8, 32, 0.0, None))[0])  # fmt: skip


# Places between the rows of the tables -------------------------------------------------------


@pytest.mark.parametrize('kind', ['split', 'joint'])
def test_whole_numbers_are_the_rows_and_halves_the_means(kind):
    positions = Positions((3, 2, 4), 6, kind=kind, rngs=nnx.Rngs(0))
    where = np.array([[[0, 0, 0], [2, 1, 3], [1, 0, 2]]], np.int32)
    rows = positions(where, still=False)
    np.testing.assert_allclose(positions(where.astype(np.float32), still=False), rows, atol=1e-6)
    half = positions(np.array([[[1.5, 0, 2], [1.5, 0.5, 2]]], np.float32), still=False)
    both = positions(np.array([[[1, 0, 2], [2, 0, 2], [1, 1, 2], [2, 1, 2]]]), still=False)
    np.testing.assert_allclose(half[0, 0], both[0, :2].mean(0), atol=1e-6)
    np.testing.assert_allclose(half[0, 1], both[0].mean(0), atol=1e-6)


def test_between_is_linear_and_ends_at_the_ends():
    table = jnp.arange(5.0)[:, None] * jnp.array([1.0, -2.0])
    where = jnp.array([[-0.5], [0.25], [3.9], [4.4]])
    wanted = np.array([0, 0.25, 3.9, 4])[:, None] * [1, -2]
    np.testing.assert_allclose(between(table, where), wanted, atol=1e-6)
    one = between(jnp.ones((1, 2)), jnp.array([[0.7]]))  # a table of one row
    np.testing.assert_allclose(one, np.ones((1, 2)))


# The encoder ---------------------------------------------------------------------------------


def test_the_encoder_takes_tubes_and_images():
    """Every stem is used by its own kernel; images keep theirs, which tubes do not touch."""
    kernels = ((2, 4, 4), (1, 2, 2))
    dual = tiny_models.dual({'tubes': kernels})
    model = dual.video
    assert model.tubelet_embed is None
    with pytest.raises(ValueError, match='a model with tubes .* cannot be exported yet'):
        flat.architecture(dual)
    named = {name for name in flatten(model) if name.startswith('tubes/')}
    assert named == {f'tubes/{size}/{leaf}' for size in ('2x4x4', '1x2x2')
                     for leaf in ('kernel', 'bias')}  # fmt: skip
    rng = np.random.default_rng(0)
    cut = tuple(rng.integers(0, 256, (2, k, v), np.uint8) for k, v in ((3, 96), (4, 12)))
    where = rng.uniform(0, 1.5, (2, 7, 3)).astype(np.float32)
    encode = jax.jit(lambda m, *a: m(*a), compiler_options=tiny_models.FAST)
    z = encode(model, cut, where)
    assert z.shape == (2, tiny_models.EMBED)
    image = (
        rng.integers(0, 256, (2, 8, 12), np.uint8),
        np.array([tiny_models.everywhere((1, 2, 4))] * 2, np.int32),
    )
    still = encode(model, *image)
    for size in ('2x4x4', '1x2x2'):
        other = tiny_models.changed(model, f'tubes/{size}')
        assert np.abs(encode(other, cut, where) - z).max() > 1e-3
        np.testing.assert_array_equal(encode(other, *image), still)
    tokens = model.tokens(cut, where)
    alone = model.tubes((cut[0][:, :0], cut[1]))
    np.testing.assert_allclose(
        tokens[:, 3:], alone + model.positions(where[:, 3:], still=False), atol=1e-5
    )
