"""How a frame is scaled: as an exact resampling does, the same way everywhere it is said."""

import dataclasses
import io

import av
import numpy as np
import pytest

from long_vivit import recipe, rules
from long_vivit.inputs import looks, pixels
from long_vivit.inputs.sources import open_source
from tests import tiny_run


def triangle(x):
    return np.maximum(1 - np.abs(x), 0)


def catmull_rom(x):
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def resampled(picture, side, kernel):
    """[h, h, 3] -> [side, side, 3], the kernel as wide as what it shrinks: as PIL scales."""
    scale = len(picture) / side
    centres = (np.arange(side)[:, None] + 0.5) * scale
    weights = kernel((np.arange(len(picture)) + 0.5 - centres) / max(scale, 1))
    weights /= weights.sum(1, keepdims=True)
    rows = np.einsum('ih,hwc->iwc', weights, picture)
    return np.clip(np.round(np.einsum('jw,iwc->ijc', weights, rows)), 0, 255)


def picture(side):
    """Edges, fine and coarse, and a slope, in greys: FFmpeg rounds strong colours on its way."""
    y, x = np.mgrid[:side, :side] / side
    waves = (np.sin(40 * x * y) > 0) + 1.0 * (np.hypot(x - 0.5, y - 0.5) < 0.3) + x
    return np.repeat((40 + 55 * waves).astype(np.uint8)[..., None], 3, axis=-1)


@pytest.mark.parametrize('side', [32, 50, 96, 150])
@pytest.mark.parametrize(('name', 'kernel'), [('bilinear', triangle), ('bicubic', catmull_rom)])
def test_scaling_is_that_of_the_kernel(name, kernel, side):
    given = picture(100)
    found = pixels.shrink(given, side, name).astype(int)
    far = {k: np.abs(found - resampled(given, side, k)).mean() for k in (triangle, catmull_rom)}
    assert far[kernel] < 0.35
    assert max(far.values()) > 5 * far[kernel]  # and not that of the other


def test_a_configuration_may_name_what_there_is():
    for name in pixels.SCALINGS:
        assert rules.RULES['data.scaling'].passes(name)
    assert not rules.RULES['data.scaling'].passes('lanczos')


def test_a_look_at_a_video_scales_as_its_view_says(tiny_stories):
    source = open_source('shape_stories/short:test', data_dir=tiny_stories)
    view = looks.View(
        frames=2, pixels=40, patch=40, tubelet=1, sampler='mid', fps=1.0, mask_kind='random',
        mask_rate=0.0, text='caption', text_length=8,
    )  # fmt: skip
    with av.open(io.BytesIO(source[0].video)) as film:
        first = next(film.decode(video=0))
    shown = {}
    for name in pixels.SCALINGS:
        patches, _, error = looks.load_video(
            source[0], dataclasses.replace(view, scaling=name, sampler='first_fps', fps=2.0), None
        )
        assert error is None
        shown[name] = patches[0][0].reshape(40, 40, 3)
        np.testing.assert_array_equal(shown[name], pixels.to_rgb(first, 40, scaling=name))
    assert (shown['bilinear'] != shown['bicubic']).any()


def test_a_run_says_how(tiny_stories, tmp_path):
    run = tiny_run.resolved(tiny_stories, tmp_path, data__scaling='bicubic')
    assert recipe.eval_view(run, run.stages[0]).scaling == 'bicubic'
