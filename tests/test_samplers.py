"""Samplers: how many, where, and in agreement with their forms in whole indices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from long_vivit.inputs import samplers
from long_vivit.inputs.samplers import SAMPLERS

ranges = st.tuples(
    st.floats(0, 1e4, allow_subnormal=False), st.floats(1e-3, 1e4, allow_subnormal=False)
).map(lambda pair: (pair[0], pair[0] + pair[1]))


@pytest.mark.parametrize('name', SAMPLERS)
@given(ends=ranges, num_frames=st.integers(1, 300), fps=st.floats(0.1, 60))
def test_always_as_many_as_asked_rising_and_inside(name, ends, num_frames, fps):
    start, end = ends
    rng = np.random.default_rng(0)
    times = SAMPLERS[name](start, end, num_frames, rng=rng, fps=fps)
    assert times.shape == (num_frames,)
    assert times.dtype == np.float64
    assert np.all(np.diff(times) >= 0)
    assert times[0] >= start
    assert times[-1] < end


def test_mid_is_the_centre_of_each_segment():
    np.testing.assert_allclose(samplers.mid(2.0, 6.0, 4), [2.5, 3.5, 4.5, 5.5])
    np.testing.assert_allclose(samplers.mid(0.0, 1.0, 1), [0.5])


def test_rand_seg_stays_in_its_segments_and_repeats_with_its_seed():
    def draw(seed):
        return samplers.rand_seg(1.0, 9.0, 16, rng=np.random.default_rng(seed))

    draws = np.stack([draw(seed) for seed in range(200)])
    assert np.all((draws - 1.0) // 0.5 == np.arange(16))
    np.testing.assert_array_equal(draw(3), draws[3])
    np.testing.assert_allclose(draws.mean(axis=0), samplers.mid(1.0, 9.0, 16), atol=0.05)


def test_fps_takes_the_steps_that_fit():
    np.testing.assert_allclose(samplers.fps(0.0, 4.0, 4, fps=1.0), [0.5, 1.5, 2.5, 3.5])
    # A range a rounding error short of four seconds holds four steps of one second.
    np.testing.assert_allclose(samplers.fps(1.0, 5.0 - 1e-9, 4, fps=1.0), [1.5, 2.5, 3.5, 4.5])
    # More fit than are wanted: the middle one of each equal run.
    np.testing.assert_allclose(samplers.fps(0.0, 12.0, 4, fps=1.0), [1.5, 4.5, 7.5, 10.5])
    # Fewer fit: the whole range, evenly.
    np.testing.assert_allclose(samplers.fps(0.0, 2.0, 4, fps=1.0), [0.25, 0.75, 1.25, 1.75])


def test_first_fps_takes_the_first_steps_alone():
    np.testing.assert_allclose(samplers.first_fps(3.0, 60.0, 3, fps=2.0), [3.25, 3.75, 4.25])
    np.testing.assert_allclose(samplers.first_fps(0.0, 2.0, 4, fps=1.0), [0.25, 0.75, 1.25, 1.75])


def test_linspace_with_and_without_the_end():
    times = samplers.linspace_incl(0.0, 3.0, 4)
    np.testing.assert_allclose(times, [0, 1, 2, 3])
    assert times[-1] < 3.0
    np.testing.assert_allclose(samplers.linspace_excl(0.0, 4.0, 4), [0, 1, 2, 3])
    np.testing.assert_allclose(samplers.linspace_incl(1.0, 3.0, 1), [1.0])


def test_indices_known_by_hand():
    np.testing.assert_array_equal(samplers.mid_indices(300, 4), [37, 112, 187, 262])
    np.testing.assert_array_equal(samplers.mid_indices(3, 6), [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(samplers.linspace_incl_indices(10, 4), [0, 3, 6, 9])
    np.testing.assert_array_equal(samplers.linspace_incl_indices(10, 1), [0])
    np.testing.assert_array_equal(samplers.linspace_excl_indices(10, 4), [0, 2, 5, 7])


@given(num_total=st.integers(1, 5000), num_frames=st.integers(1, 512))
def test_indices_are_the_floors_of_exact_fractions(num_total, num_frames):
    steps = range(num_frames)
    assert samplers.mid_indices(num_total, num_frames).tolist() == [
        (2 * i + 1) * num_total // (2 * num_frames) for i in steps
    ]
    for indices in (
        samplers.mid_indices(num_total, num_frames),
        samplers.linspace_incl_indices(num_total, num_frames),
        samplers.linspace_excl_indices(num_total, num_frames),
    ):
        assert indices.dtype == np.int64
        assert indices.min() >= 0 and indices.max() < num_total
        assert np.all(np.diff(indices) >= 0)


@given(num_total=st.integers(1, 2000), num_frames=st.integers(1, 128))
def test_times_show_the_frames_that_the_indices_name(num_total, num_frames):
    """At an even rate, a frame for 1 / 25 s each, both forms of `mid` choose the same frames."""
    starts = np.arange(num_total) / 25
    times = samplers.mid(0.0, num_total / 25, num_frames)
    shown = np.searchsorted(starts, times + 1e-6, side='right') - 1
    np.testing.assert_array_equal(shown, samplers.mid_indices(num_total, num_frames))


@pytest.mark.parametrize('name', SAMPLERS)
@pytest.mark.parametrize(
    ('start', 'end', 'num_frames'),
    [(1.0, 1.0, 4), (2.0, 1.0, 4), (0.0, float('inf'), 4), (0.0, 1.0, 0)],
)
def test_what_cannot_be_sampled_is_said(name, start, end, num_frames):
    with pytest.raises(ValueError, match='start < end|num_frames'):
        SAMPLERS[name](start, end, num_frames, rng=np.random.default_rng(0), fps=1.0)


def test_what_a_sampler_needs_is_said():
    with pytest.raises(ValueError, match='rand_seg needs rng'):
        samplers.rand_seg(0.0, 1.0, 4)
    for name in ('fps', 'first_fps'):
        for rate in (None, 0.0, -1.0, float('nan')):
            with pytest.raises(ValueError, match='needs fps'):
                SAMPLERS[name](0.0, 1.0, 4, fps=rate)
    with pytest.raises(ValueError, match='1 or more'):
        samplers.mid_indices(0, 4)
