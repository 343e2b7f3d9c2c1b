"""Adapters on flat dicts: what may change between two models, and what must not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from long_vivit.warm_start import CannotAdapt, inflate, resize, stretch, warm_start

KERNEL, BIAS = 'video/{}_embed/kernel', 'video/{}_embed/bias'
few = settings(max_examples=25)


def table(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def like(shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def shapes(flat):
    return {name: like(value.shape, value.dtype) for name, value in flat.items()}


def image_model():
    return {
        KERNEL.format('image'): table(2 * 2 * 3, 8),
        BIAS.format('image'): table(8),
        'video/positions/space': table(4, 4, 8),
        'video/positions/time': table(1, 8),
        'video/blocks/attention/query/kernel': table(3, 8, 8),
        'text/positions': table(16, 8),
    }


def test_the_same_names_and_shapes_pass_untouched():
    source = image_model()
    params, lines = warm_start(source, shapes(source))
    assert lines == []
    assert list(params) == list(source)
    assert all(params[name] is source[name] for name in source)


def test_image_to_long_video_at_once():
    source = image_model()
    target = shapes(source) | {
        KERNEL.format('tubelet'): like((2 * 2 * 2 * 3, 8)),
        BIAS.format('tubelet'): like((8,)),
        'video/positions/space': like((6, 8, 8)),
        'video/positions/time': like((5, 8)),
        'text/positions': like((40, 8)),
    }
    params, lines = warm_start(source, target)
    assert {name: value.shape for name, value in params.items()} == {
        name: value.shape for name, value in target.items()
    }
    assert sorted(line.split(': ')[1].split(' of ')[0] for line in lines) == sorted(
        ['inflate', 'copy', 'resize', 'resize', 'stretch']
    )
    assert (
        f'{KERNEL.format("tubelet")}: inflate of {KERNEL.format("image")} [12, 8] -> [24, 8]'
        in lines
    )
    np.testing.assert_array_equal(params[BIAS.format('tubelet')], source[BIAS.format('image')])
    np.testing.assert_array_equal(
        params['video/positions/time'], np.repeat(source['video/positions/time'], 5, 0)
    )


def test_a_target_without_the_image_stem_uses_it_up():
    source = {KERNEL.format('image'): table(12, 8), BIAS.format('image'): table(8)}
    target = {KERNEL.format('tubelet'): like((48, 8)), BIAS.format('tubelet'): like((8,))}
    assert list(warm_start(source, target).params) == list(target)


@few
@given(
    r=st.integers(1, 5), pixels=st.integers(1, 12), width=st.integers(1, 6), seed=st.integers(0, 9)
)
def test_a_still_clip_embeds_as_its_image(r, pixels, width, seed):
    kernel, patch = table(pixels, width, seed=seed), table(7, pixels, seed=seed + 1)
    clip = np.tile(patch, (1, r))  # (r p q c): the same pixels r times, r slowest
    made = inflate(kernel, (r * pixels, width))
    np.testing.assert_allclose(clip @ made, patch @ kernel, rtol=1e-5, atol=1e-5)


def test_inflation_knows_the_layout():
    """Each frame of the tubelet meets the kernel row of its own pixel, not of its neighbour."""
    made = inflate(table(12, 8), (36, 8)).reshape(3, 12, 8)
    np.testing.assert_array_equal(made[0], made[2])
    np.testing.assert_allclose(made.sum(0), table(12, 8), rtol=1e-6)


@few
@given(t=st.integers(1, 9), new=st.integers(1, 17), value=st.floats(-9, 9, width=32))
def test_a_constant_table_stays_constant(t, new, value):
    for old, shape in (((t, 3), (new, 3)), ((t, t, 3), (new, t + 1, 3))):
        made = resize(np.full(old, value, np.float32), shape)
        np.testing.assert_allclose(made, np.full(shape, value), rtol=1e-6, atol=1e-7)
    made = stretch(np.full((t + 1, 3), value, np.float32), (t + 1 + new, 3), keep=0)
    np.testing.assert_allclose(made, np.full((t + 1 + new, 3), value), rtol=1e-6, atol=1e-7)


@few
@given(t=st.integers(1, 9), w=st.integers(1, 5))
def test_to_the_same_shape_is_the_identity(t, w):
    for old in (table(t, 4), table(t, w, 4)):
        np.testing.assert_allclose(resize(old, old.shape), old, rtol=1e-6)
    np.testing.assert_array_equal(stretch(table(t, 4), (t, 4)), table(t, 4))


def test_resize_keeps_rows_and_columns_apart():
    rows = np.broadcast_to(np.arange(4, dtype=np.float32)[:, None, None], (4, 2, 1))
    made = resize(rows, (8, 6, 1))
    assert (np.ptp(made, axis=1) == 0).all()
    assert (np.diff(made[:, 0, 0]) >= 0).all()
    assert made[0, 0, 0] == 0 and made[-1, 0, 0] == 3


def test_resize_does_not_blur_when_it_shrinks():
    """Antialiasing would average the neighbours: 8 -> 4 rows must read between two rows only."""
    old = np.zeros((8, 1), np.float32)
    old[2] = 1.0
    np.testing.assert_allclose(resize(old, (4, 1))[:, 0], [0, 0.5, 0, 0])


def long_clip(pe, keep=20, ratio=4):
    """The loop of the released code on a table [l, d], each product rounded to float32.

    Its three branches are written for a ratio of 4; here for any whole one.
    """
    length = len(pe)
    new = np.zeros((ratio * length - (ratio - 1) * keep, pe.shape[1]), np.float32)
    for i in range(keep):
        new[i] = pe[i]
    for i in range(length - 1 - keep):
        new[ratio * i + keep] = pe[i + keep]
        for j in range(1, ratio):
            far, near = np.float32(j), np.float32(ratio - j)
            one, two = near * pe[i + keep] / np.float32(ratio), far * pe[i + 1 + keep]
            new[ratio * i + j + keep] = one + two / np.float32(ratio)
    slope = pe[length - 1] - pe[length - 2]
    for j in range(ratio):
        last = pe[length - 1] + np.float32(j) * slope / np.float32(ratio)
        new[ratio * (length - 1) - (ratio - 1) * keep + j] = last
    return new


@pytest.mark.parametrize('keep', [None, 20])
def test_stretch_is_long_clip_on_clip_s_table(keep):
    """77 -> 248 rows, 20 kept: every bit, the last rows included."""
    pe = table(77, 64) * np.float32(0.013)
    made = stretch(pe, (248, 64), keep=keep)
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made, long_clip(pe))
    np.testing.assert_array_equal(made[:20], pe[:20])
    np.testing.assert_array_equal(made[20::4], pe[20:])
    assert (made[245:] != pe[76]).all()  # goes on where pe ends


@pytest.mark.parametrize(
    ('rows', 'keep', 'ratio'), [(77, 30, 4), (77, 20, 3), (64, 7, 5), (9, 0, 7), (5, 3, 2)]
)
def test_stretch_by_any_whole_ratio_is_the_same_loop(rows, keep, ratio):
    pe = table(rows, 16, seed=rows)
    want = long_clip(pe, keep, ratio)
    np.testing.assert_array_equal(stretch(pe, want.shape, keep=keep), want)


@few
@given(rows=st.integers(4, 40), more=st.integers(1, 90), keep=st.integers(0, 2))
def test_stretch_by_any_ratio_reads_a_line_along_its_line(rows, more, keep):
    """A table whose rows are their numbers shows where each row was read: past its end as well."""
    pe = np.repeat(np.arange(rows, dtype=np.float32)[:, None], 3, axis=1)
    long = rows + more
    row = np.arange(long)
    want = np.where(row < keep, row, keep + (row - keep) * (rows - keep) / (long - keep))
    made = stretch(pe, (long, 3), keep=keep)
    np.testing.assert_allclose(made, np.repeat(want[:, None], 3, axis=1), rtol=3e-7, atol=1e-6)


def test_stretch_to_a_shorter_text_takes_the_first_rows():
    np.testing.assert_array_equal(stretch(table(16, 4), (6, 4)), table(16, 4)[:6])


def test_rows_that_a_shorter_text_leaves_out_are_said_to_be_lost():
    source = {'text/positions': table(248, 4)}
    params, lines = warm_start(source, {'text/positions': like((77, 4))})
    np.testing.assert_array_equal(params['text/positions'], source['text/positions'][:77])
    assert lines == ['text/positions: the first 77 of 248 rows; the others are lost']


def test_stretch_needs_rows_to_read_between():
    with pytest.raises(CannotAdapt, match='keep is 15'):
        stretch(table(16, 4), (20, 4), keep=15)
    with pytest.raises(ValueError, match='keep is 0'):
        warm_start({'text/positions': table(1, 4)}, {'text/positions': like((3, 4))})


def test_keep_reaches_stretch():
    source, target = {'text/positions': table(16, 4)}, {'text/positions': like((40, 4))}
    made = warm_start(source, target, keep=9).params['text/positions']
    np.testing.assert_array_equal(made[:9], source['text/positions'][:9])
    assert not np.array_equal(made[9 + 1], source['text/positions'][9 + 1])


def test_every_fault_in_one_error():
    source = image_model() | {'video/blocks/norm/scale': table(3, 8), 'video/old': table(2)}
    target = shapes(image_model()) | {
        'video/blocks/attention/query/kernel': like((3, 8, 16)),
        'video/blocks/norms/scale': like((3, 8)),
        'video/positions/time': like((2, 9)),
        KERNEL.format('tubelet'): like((25, 8)),
        KERNEL.format('image'): like((27, 8)),
    }
    with pytest.raises(ValueError) as error:
        warm_start(source, target, drop=['video/typo'])
    faults = str(error.value).splitlines()
    assert 'cannot start from these weights, 8 fault(s):' in faults[0]
    for text in (
        "drop 'video/typo' matches no name",
        'video/blocks/attention/query/kernel: [3, 8, 8] in the source, [3, 8, 16] in the',
        'video/blocks/norms/scale [3, 8]: the target has it, the source lacks it',
        'nearest there: video/blocks/norm/scale [3, 8]',
        'video/blocks/norm/scale [3, 8]: only the source has it',
        'nearest there: video/blocks/norms/scale [3, 8]',
        'video/old [2]: only the source has it',
        'video/positions/time: [1, 8] in the source, [2, 9] in the target; resize changes the grid',
        f'{KERNEL.format("tubelet")}: [12, 8] in the source, [25, 8] in the target; inflate',
        f'{KERNEL.format("image")}: [12, 8] in the source, [27, 8] in the target; no adapter',
    ):
        assert sum(text in line for line in faults) == 1, text
    assert len(faults) == 9


def test_a_tubelet_of_another_length_is_not_inflated_twice():
    source = {KERNEL.format('tubelet'): table(24, 8)}
    with pytest.raises(ValueError, match='no adapter changes this shape'):
        warm_start(source, {KERNEL.format('tubelet'): like((48, 8))})


def test_only_what_is_named_is_dropped():
    video = image_model() | {
        KERNEL.format('tubelet'): table(24, 8),
        BIAS.format('tubelet'): table(8),
    }
    image = shapes(image_model())
    with pytest.raises(ValueError, match='drop it by name'):
        warm_start(video, image)
    params, lines = warm_start(video, image, drop=['video/tubelet_embed/.*'])
    assert list(params) == list(image)
    assert len(lines) == 2 and all('dropped, as asked' in line for line in lines)


def test_dropping_the_tubelet_inflates_anew():
    source = image_model() | {KERNEL.format('tubelet'): table(24, 8)}
    drop = [KERNEL.format('tubelet')]
    made = warm_start(source, shapes(source), drop=drop).params[KERNEL.format('tubelet')]
    np.testing.assert_array_equal(made, inflate(source[KERNEL.format('image')], (24, 8)))


def test_dtypes_are_the_target_s_and_said():
    source = {'text/positions': jnp.ones((4, 2), jnp.bfloat16), 'text/bias': np.ones(2, np.float32)}
    target = {'text/positions': like((9, 2)), 'text/bias': like((2,), jnp.bfloat16)}
    params, lines = warm_start(source, target)
    assert {name: value.dtype for name, value in params.items()} == {
        name: value.dtype for name, value in target.items()
    }
    assert lines == [
        'text/positions: stretch of text/positions [4, 2] -> [9, 2] bfloat16 -> float32',
        'text/bias: float32 -> bfloat16',
    ]
    with pytest.raises(ValueError, match='int32 in the source, float32 in the target'):
        warm_start({'x': np.ones(2, np.int32)}, {'x': like((2,))})
