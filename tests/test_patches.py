"""Patches: which are kept, how many, and that cutting them out keeps every pixel in its place."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from long_vivit.inputs.patches import KINDS, MAX_RATE, choose, frames_needed, num_kept, patchify

few = settings(max_examples=40)
kinds = st.sampled_from(KINDS)
grids = st.tuples(st.integers(1, 8), st.integers(1, 6), st.integers(1, 6))
rates = st.floats(0, MAX_RATE)
seeds = st.integers(0, 2**32 - 1)


def drawn(kind, grid, rate, seed):
    return choose(kind, grid, rate, np.random.default_rng(seed))


def by_slice(where, grid):
    """[{(h, w), ...} of each time slice]."""
    return [{(h, w) for t, h, w in where.tolist() if t == one} for one in range(grid[0])]


@few
@given(kinds, grids, rates, seeds)
def test_as_many_as_promised_distinct_in_order_and_inside(kind, grid, rate, seed):
    where = drawn(kind, grid, rate, seed)
    assert where.dtype == np.int32
    assert where.shape == (num_kept(kind, grid, rate), 3)
    assert (where >= 0).all() and (where < grid).all()
    rows = [tuple(row) for row in where.tolist()]
    assert rows == sorted(set(rows))


@few
@given(grids, rates, seeds)
def test_tube_keeps_the_same_places_in_every_slice(grid, rate, seed):
    slices = by_slice(drawn('tube', grid, rate, seed), grid)
    assert slices[0] and all(places == slices[0] for places in slices)


@few
@given(grids, rates, seeds)
def test_slice_keeps_the_same_number_in_every_slice(grid, rate, seed):
    slices = by_slice(drawn('slice', grid, rate, seed), grid)
    assert slices[0] and {len(places) for places in slices} == {len(slices[0])}


@few
@given(grids, rates, seeds)
def test_frame_keeps_whole_slices(grid, rate, seed):
    sizes = {len(places) for places in by_slice(drawn('frame', grid, rate, seed), grid)}
    assert grid[1] * grid[2] in sizes and sizes <= {0, grid[1] * grid[2]}


@few
@given(kinds, grids, rates)
def test_the_rate_is_met_as_nearly_as_the_kind_allows(kind, grid, rate):
    """Half a unit of the kind at most: a patch, a patch in every slice, a slice."""
    t, places = grid[0], grid[1] * grid[2]
    unit = {'random': 1, 'frame': places}.get(kind, t)
    off = abs(num_kept(kind, grid, rate) - (1 - Fraction(rate)) * t * places)
    assert off <= Fraction(unit, 2) + Fraction(1, 10**9) or num_kept(kind, grid, rate) == unit


@pytest.mark.parametrize('kind', KINDS)
def test_nothing_is_left_out_at_rate_zero(kind):
    every = [(t, h, w) for t in range(4) for h in range(3) for w in range(5)]
    assert [tuple(row) for row in drawn(kind, (4, 3, 5), 0.0, 0).tolist()] == every


@pytest.mark.parametrize('kind', KINDS)
def test_every_place_gets_its_turn(kind):
    """Over many draws each patch is kept about as often as the rate says, and draws differ."""
    grid, num_draws = (4, 4, 4), 400
    count = np.zeros(grid)
    for seed in range(num_draws):
        np.add.at(count, tuple(drawn(kind, grid, 0.75, seed).T), 1)
    assert count.sum() == num_draws * 16
    spread = 5 * np.sqrt(num_draws * 0.25 * 0.75)  # standard deviations of a binomial count
    assert np.abs(count - num_draws / 4).max() < spread
    assert np.array_equal(drawn(kind, grid, 0.75, 1), drawn(kind, grid, 0.75, 1))
    assert len({drawn(kind, grid, 0.75, seed).tobytes() for seed in range(20)}) > 3


def test_random_slice_and_tube_are_not_each_other():
    """Random counts vary from slice to slice; slice places vary; only tube repeats them."""
    grid = (8, 4, 4)
    slices = {kind: by_slice(drawn(kind, grid, 0.5, 3), grid) for kind in KINDS}
    assert len({len(places) for places in slices['random']}) > 1
    assert len({frozenset(places) for places in slices['slice']}) > 1


@pytest.mark.parametrize(
    'frames,pixels,tokens', [(16, 256, 2048), (128, 256, 16_384), (256, 224, 25_088)]
)
@pytest.mark.parametrize('kind', KINDS)
def test_three_quarters_masked_is_a_quarter_of_the_paper_s_tokens(frames, pixels, tokens, kind):
    grid = (frames // 2, pixels // 16, pixels // 16)
    assert num_kept(kind, grid, 0.0) == tokens
    assert num_kept(kind, grid, 0.75) == tokens // 4


# Cutting ------------------------------------------------------------------------------------


def frames_of(grid, tubelet, patch, seed=0):
    t, h, w = grid
    size = (t * tubelet, h * patch, w * patch, 3)
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def patchify_slowly(frames, where, tubelet, patch):
    rows = []
    for t, h, w in where:
        row = []
        for frame in range(t * tubelet, (t + 1) * tubelet):
            for y in range(h * patch, (h + 1) * patch):
                for x in range(w * patch, (w + 1) * patch):
                    row.extend(frames[frame, y, x].tolist())
        rows.append(row)
    return np.array(rows, np.uint8)


@few
@given(
    kinds,
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    rates,
    st.integers(1, 3),
    st.integers(1, 4),
    seeds,
)
def test_patches_are_the_pixels_of_their_places(kind, grid, rate, tubelet, patch, seed):
    frames = frames_of(grid, tubelet, patch, seed)
    where = drawn(kind, grid, rate, seed)
    got = patchify(frames, where, tubelet, patch)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, patchify_slowly(frames, where, tubelet, patch))


def test_all_patches_put_back_are_the_frames():
    grid, tubelet, patch = (3, 2, 4), 2, 4
    frames = frames_of(grid, tubelet, patch)
    where = drawn('tube', grid, 0.0, 0)
    put_back = np.zeros_like(frames)
    for (t, h, w), row in zip(where, patchify(frames, where, tubelet, patch), strict=True):
        put_back[
            t * tubelet : (t + 1) * tubelet,
            h * patch : (h + 1) * patch,
            w * patch : (w + 1) * patch,
        ] = row.reshape(tubelet, patch, patch, 3)
    np.testing.assert_array_equal(put_back, frames)


def test_a_quarter_of_the_patches_is_a_quarter_of_the_bytes():
    grid = (4, 4, 4)
    frames = frames_of(grid, 2, 8)
    where = drawn('random', grid, 0.75, 0)
    cut = patchify(frames, where, 2, 8)
    assert cut.nbytes * 4 == frames.nbytes
    assert cut.base is None or cut.base.nbytes == cut.nbytes  # nor does it hold the frames


@few
@given(kinds, grids, rates, st.integers(1, 4), seeds)
def test_the_frames_needed_are_those_of_the_chosen_slices(kind, grid, rate, tubelet, seed):
    where = drawn(kind, grid, rate, seed)
    wanted = sorted({int(t) * tubelet + r for t in where[:, 0] for r in range(tubelet)})
    assert frames_needed(where, tubelet).tolist() == wanted


def test_frames_that_are_not_needed_may_hold_anything():
    grid, tubelet, patch = (6, 2, 2), 2, 2
    frames = frames_of(grid, tubelet, patch)
    where = drawn('frame', grid, 0.5, 0)
    needed = frames_needed(where, tubelet)
    assert len(needed) == 6
    other = frames_of(grid, tubelet, patch, seed=1)
    other[needed] = frames[needed]
    np.testing.assert_array_equal(
        patchify(other, where, tubelet, patch), patchify(frames, where, tubelet, patch)
    )


# What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize('rate', [-0.1, 0.96, 1.0, float('nan')])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match=r'mask_rate is .*from 0 to 0\.95'):
        num_kept('random', (2, 2, 2), rate)


def test_an_unknown_kind_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="mask_kind is 'block'.*random, slice, tube, frame"):
        choose('block', (2, 2, 2), 0.5, np.random.default_rng(0))
