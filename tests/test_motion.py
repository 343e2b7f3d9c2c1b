"""Motion-weighted masking: how change is measured, with which chances patches are drawn."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from long_vivit.inputs import looks, motion
from long_vivit.inputs.patches import num_kept
from long_vivit.inputs.sources import open_source

few = settings(max_examples=30)
seeds = st.integers(0, 2**32 - 1)
VIEW = looks.View(
    frames=8, pixels=32, patch=8, tubelet=2, sampler='mid', fps=1.0, mask_kind='motion',
    mask_rate=0.75, text='caption', text_length=24, motion_uniform=0.1,
)  # fmt: skip


def frames_of(seed, t=6, side=16):
    return np.random.default_rng(seed).integers(0, 256, (t, side, side, 3), np.uint8)


@few
@given(st.sampled_from([(1, 4), (2, 8), (3, 16)]), seeds)
def test_change_is_the_mean_difference_to_the_frame_before(sizes, seed):
    """Against the plain formula in whole numbers, which uint8 would overflow."""
    tubelet, patch = sizes
    frames = frames_of(seed)
    wide = frames.astype(int)
    before = np.concatenate([wide[1:2], wide[:-1]])
    before[0], wide[0] = frames[0], frames[1]
    differ = np.abs(wide - before)
    t, n = len(frames) // tubelet, 16 // patch
    wanted = differ.reshape(t, tubelet, n, patch, n, patch, 3).mean((1, 3, 5, 6))
    np.testing.assert_allclose(motion.change(frames, tubelet, patch), wanted, rtol=1e-12)


@few
@given(st.lists(st.floats(0, 255), min_size=1, max_size=40), st.floats(0, 1), seeds)
def test_as_many_as_asked_for_different_in_order_and_the_same_again(changes, uniform, seed):
    chance = motion.chances(np.array(changes), uniform)
    assert chance.sum() == pytest.approx(1) and (chance > 0).all()
    for k in {1, len(changes) // 2 or 1, len(changes)}:
        found = motion.draw(chance, k, np.random.default_rng(seed))
        assert len(found) == k and (np.diff(found) > 0).all()
        np.testing.assert_array_equal(found, motion.draw(chance, k, np.random.default_rng(seed)))


def test_chances_are_a_mixture():
    """A share is uniform, the rest in proportion; nothing moves: uniform, by the same formula."""
    np.testing.assert_allclose(motion.chances(np.array([1.0, 3.0]), 0.0), [0.25, 0.75], atol=1e-3)
    np.testing.assert_allclose(motion.chances(np.array([1.0, 3.0]), 0.5), [0.375, 0.625], atol=1e-3)
    assert motion.chances(np.array([0.0, 9.0, 1.0]), 1.0).tolist() == [1 / 3] * 3
    assert motion.chances(np.zeros(4), 0.0).tolist() == [0.25] * 4


def test_patches_are_drawn_by_their_chances():
    """One patch: as often as its chance says. Two: as two draws one after the other would."""
    chance = np.array([0.1, 0.2, 0.3, 0.4])
    rng, num = np.random.default_rng(0), 20_000
    one = np.bincount([motion.draw(chance, 1, rng)[0] for _ in range(num)], minlength=4) / num
    assert np.abs(one - chance).max() < 5 * np.sqrt(0.25 / num)
    pairs = np.zeros((4, 4))
    for _ in range(num):
        pairs[tuple(motion.draw(chance, 2, rng))] += 1 / num
    for i in range(4):
        for j in range(i + 1, 4):
            a, b = chance[i], chance[j]
            wanted = a * b / (1 - a) + b * a / (1 - b)
            assert abs(pairs[i, j] - wanted) < 5 * np.sqrt(wanted / num)


def test_what_moves_is_kept_and_what_stands_gets_its_share():
    """One square of four moves: without a uniform share nearly all that is kept shows it."""
    frames = np.full((8, 16, 16, 3), 90, np.uint8)
    frames[:, 8:, 8:] = frames_of(3, 8, 8)
    counts = {}
    for uniform in (0.0, 1.0):
        rng = np.random.default_rng(1)
        kept = [motion.choose(frames, 2, 8, 4, uniform, rng) for _ in range(200)]
        assert all(where.shape == (4, 3) and where.dtype == np.int32 for where in kept)
        counts[uniform] = np.mean([(where[:, 1:] == 1).all(1).sum() for where in kept])
    assert counts[0.0] > 3.98  # of four kept
    assert abs(counts[1.0] - 1) < 0.3


def test_a_view_by_motion_looks_at_all_frames_first(tiny_stories, monkeypatch):
    """It keeps as many as random would, the same again, and cuts what it says."""
    source, decoded = open_source('shape_stories/short:train', data_dir=tiny_stories), []
    read = looks.video.read_frames

    def counting(*args, **kwargs):
        found = read(*args, **kwargs)
        decoded.append(found.frames)
        return found

    monkeypatch.setattr(looks.video, 'read_frames', counting)
    (shown,), where, error = looks.load_video(source[3], VIEW, np.random.default_rng(2))
    (again,), same, _ = looks.load_video(source[3], VIEW, np.random.default_rng(2))
    assert error is None and len(decoded[0]) == VIEW.frames
    assert len(where) == num_kept('random', VIEW.grid, 0.75)
    np.testing.assert_array_equal(where, same)
    np.testing.assert_array_equal(shown, again)
    np.testing.assert_array_equal(shown, looks.patches.patchify(decoded[0], where, 2, 8))
    everything = VIEW.evaluation('mid')
    assert not everything.by_motion
    (shown,), where, _ = looks.load_video(source[3], everything, np.random.default_rng(2))
    assert len(where) == np.prod(VIEW.grid)
    still = dataclasses.replace(VIEW, frames=1, tubelet=1)
    (shown,), where, _ = looks.load_video(source[3], still, np.random.default_rng(2))
    assert shown.shape == (4, 8 * 8 * 3)
