"""Patch kernels for patches of another size: they embed a patch as its small or large picture."""

import numpy as np
import pytest
from einops import rearrange

from long_vivit import recut
from long_vivit.names import flatten
from tests import tiny_models

SIZES = [
    ((1, 2, 2), (2, 4, 4)),
    ((2, 4, 4), (4, 4, 4)),
    ((2, 4, 4), (2, 6, 6)),
    ((4, 4, 4), (2, 2, 2)),
]


def shrunk(patch, size):
    """A patch [r, p, q, c] in another size by cutting each pixel into equal bits and averaging."""
    for dim, num in enumerate(size):
        was = patch.shape[dim]
        fine = np.repeat(patch, num, axis=dim)  # was * num bits
        patch = fine.reshape(*fine.shape[:dim], num, was, *fine.shape[dim + 1 :]).mean(dim + 1)
    return patch


@pytest.mark.parametrize(('old', 'new'), SIZES)
def test_a_patch_is_embedded_as_that_patch_in_the_old_size(old, new):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((np.prod(old) * 3, 5)).astype(np.float32)
    patch = rng.uniform(-1, 1, (*new, 3))
    made = recut.recut(kernel, old, new)
    assert made.dtype == np.float32 and made.shape == (np.prod(new) * 3, 5)
    wanted = shrunk(patch, old).ravel() @ kernel
    np.testing.assert_allclose(patch.ravel() @ made, wanted, atol=1e-5)


def test_from_an_image_it_is_inflation():
    kernel = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
    made = rearrange(recut.recut(kernel, (1, 2, 2), (3, 2, 2)), '(r k) d -> r k d', r=3)
    np.testing.assert_allclose(made, np.stack([kernel / 3] * 3), rtol=1e-6)


def params(**video):
    like = tiny_models.like(video)
    rng = np.random.default_rng(0)
    flat = flatten(like)
    return {name: rng.standard_normal(leaf.shape).astype(np.float32) for name, leaf in flat.items()}


def test_a_model_that_cuts_otherwise_starts_from_one_that_does_not():
    """Coarse time, coarse space, tubes from tubelets, tubelets from tubes: names and lines."""
    base = params()
    for video, lines in (
        ({}, []),
        ({'tubelet': 4}, ['video/tubelet_embed: recut of video/tubelet_embed 2x2x2 -> 4x2x2']),
        ({'patch': 4, 'grid': (3, 1, 2)}, [
            'video/image_embed: recut of video/image_embed 1x2x2 -> 1x4x4',
            'video/tubelet_embed: recut of video/tubelet_embed 2x2x2 -> 2x4x4',
        ]),
        ({'tubes': ((4, 4, 4), (1, 2, 2))}, [
            'video/tubes/1x2x2: recut of video/tubelet_embed 2x2x2 -> 1x2x2',
            'video/tubes/4x4x4: recut of video/tubelet_embed 2x2x2 -> 4x4x4',
            'video/tubelet_embed: left out, this stage cuts its videos otherwise',
        ]),
    ):  # fmt: skip
        like = params(**video)
        found, said = recut.stems(base, like)
        assert sorted(said) == sorted(lines)
        shapes = {
            name: leaf.shape for name, leaf in found.items() if 'embed/' in name or 'tubes' in name
        }
        wanted = {name: like[name].shape for name in like if 'embed/' in name or 'tubes' in name}
        assert shapes == wanted
    tubed = params(tubes=((4, 4, 4), (1, 2, 2)))
    found, said = recut.stems(tubed, base)
    assert said == [
        f'video/tubes/{size}: left out, this stage cuts its videos otherwise'
        for size in ('1x2x2', '4x4x4')
    ]
    assert not [name for name in found if 'tubes' in name]


def test_an_image_is_left_to_be_inflated():
    image = params(tubelet=1)
    found, said = recut.stems(image, params())
    assert said == [] and found == image
