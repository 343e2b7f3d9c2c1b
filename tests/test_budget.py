"""A token budget: the same number of patches of long and short clips, and what is not there."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from long_vivit.inputs import looks
from long_vivit.inputs.sources import open_source
from tests import tiny_models

VIEW = looks.View(
    frames=64, pixels=32, patch=16, tubelet=2, sampler='rand_seg', fps=1.0, mask_kind='random',
    mask_rate=0.0, text='caption', text_length=24, token_budget=24,
)  # fmt: skip


def look(view, duration_s, seed=0, start_s=0.0):
    """(times, where) of a clip that shows nothing."""
    one = looks.Look(view, np.random.default_rng(seed))
    times = one.times(start_s, start_s + duration_s)
    size = one.num_frames, view.pixels, view.pixels, 3
    _, where = one.cut(np.zeros(size, np.uint8), ('ordered',))
    return times, where, one


@given(st.floats(0.2, 200), st.sampled_from([0.5, 1.0, 3.0]), st.integers(0, 99))
def test_times_mean_seconds(duration_s, fps, seed):
    """A patch of slice t shows what is seen from t * tubelet / fps seconds on, in every clip."""
    view = dataclasses.replace(VIEW, fps=fps)
    times, where, one = look(view, duration_s, seed, start_s=5.0)
    real = where[where[:, 0] >= 0]
    available = max(1, min(32, int(duration_s * fps + 1e-6) // 2)) * 4
    assert one.num_frames * 2 == available
    assert where.shape == (24, 3) and len(real) == min(24, available)
    assert (where[len(real) :] == -1).all()
    assert len({tuple(row) for row in real.tolist()}) == len(real)
    assert (times >= 5.0).all() and (times < 5.0 + duration_s).all()
    if duration_s * fps >= 2:
        frame = one.needed  # the number of each frame that is decoded
        assert (np.floor((times - 5.0) * fps + 1e-9) == frame).all()
    assert set(real[:, 0].tolist()) == set((one.needed // 2).tolist())


def test_long_and_short_clips_have_as_many_patches(tiny_stories):
    """The built-in long and short films, in one batch; all of the long one's time may be seen."""
    clips = [
        (open_source(f'shape_stories/{name}:train', data_dir=tiny_stories)[0], name)
        for name in ('short', 'long')
    ]
    last = {'short': 0, 'long': 0}
    for seed in range(8):
        for example, name in clips:
            (shown,), where, error = looks.load_video(example, VIEW, np.random.default_rng(seed))
            assert error is None and shown.shape == (24, 2 * 16 * 16 * 3)
            assert where.shape == (24, 3)
            real = where[:, 0] >= 0
            assert shown[real].any(1).all() and not shown[~real].any()
            last[name] = max(last[name], where[:, 0].max())
    durations = {name: looks.video.probe(example.video).duration_s for example, name in clips}
    for name, duration in durations.items():
        assert last[name] <= duration / 2 and last[name] > 0.6 * min(duration, 64) / 2
    assert durations['short'] < durations['long']


def test_scoring_draws_the_same_each_time(tiny_stories):
    from long_vivit.inputs.pipeline import Clips

    source = open_source('shape_stories/long:test', data_dir=tiny_stories)
    view = VIEW.evaluation('mid')
    assert view.token_budget == 24
    one, two = (Clips(source, view, 4)[1] for _ in range(2))
    np.testing.assert_array_equal(one['where'], two['where'])
    np.testing.assert_array_equal(one['patches'], two['patches'])
    assert len({where.tobytes() for where in one['where']}) == 4  # by the number of the clip


def test_motion_may_choose_within_a_budget(tiny_stories):
    source = open_source('shape_stories/short:train', data_dir=tiny_stories)
    view = dataclasses.replace(VIEW, mask_kind='motion', motion_uniform=0.1, token_budget=6)
    (shown,), where, _ = looks.load_video(source[0], view, np.random.default_rng(0))
    assert shown.shape[0] == 6 and (where >= 0).all()


@pytest.mark.parametrize('pool', ['mean', 'map', 'cls'])
def test_what_is_not_there_changes_nothing(pool):
    """Patches from -1, whatever they hold: the vector is that of the video without them."""
    fields = {'pool': pool, 'cls_repeat': False, 'attention': 'blockwise', 'padded': True}
    model = tiny_models.dual(fields).video
    batch = tiny_models.batch(b=2, k=6)
    cut, where = batch['patches'], batch['where']
    encode = jax.jit(lambda m, *a: m(*a), compiler_options=tiny_models.FAST)
    alone = encode(model, cut, where)
    noise = np.random.default_rng(1).integers(0, 256, (2, 3, cut.shape[2]), np.uint8)
    longer = np.concatenate([cut, noise], 1)
    behind = np.concatenate([where, np.full((2, 3, 3), -1, np.int32)], 1)
    np.testing.assert_allclose(encode(model, longer, behind), alone, atol=1e-5)
    one = encode(model, longer, np.concatenate([where, where[:, :3]], 1))
    assert np.abs(one - alone).max() > 1e-3
