"""Patch kernels for patches of another size: between stages that cut their videos otherwise.

The new kernel embeds a patch as the old one embeds that patch shrunk, or stretched, to the old size
(by areas, each new pixel or frame the mean of what it covers). So a wider patch starts as its small
picture, a longer tubelet as the means of its frames; from an image this is filter inflation.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from einops import einsum, rearrange

STEM = r'video/(image_embed|tubelet_embed|tubes/(\d+x\d+x\d+))'
IMAGE, TUBELET = 'video/image_embed', 'video/tubelet_embed'


def areas(num_from: int, num_to: int) -> np.ndarray:
    """How `num_to` pixels in a row are made of `num_from`: float64 [num_to, num_from], rows sum to
    1. Each is the mean over the part of the row that it covers."""
    edges = np.arange(num_to + 1) * num_from / num_to
    pixel = np.arange(num_from)
    covered = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return np.maximum(covered, 0) * num_to / num_from


def recut(kernel: Any, old: tuple, new: tuple) -> np.ndarray:
    """A kernel [r*p*q*c, d] of patches of `old` (r, p, q) -> float32, of patches of `new`."""
    r, p, q = old
    kernel = rearrange(np.asarray(kernel, np.float64), '(r p q c) d -> r p q c d', r=r, p=p, q=q)
    to_old = [areas(size, was) for size, was in zip(new, old, strict=True)]
    made = einsum(*to_old, kernel, 'r R, p P, q Q, r p q c d -> R P Q c d')
    return rearrange(made, 'R P Q c d -> (R P Q c) d').astype(np.float32)


def sizes(flat: Mapping[str, Any]) -> dict[str, tuple]:
    """{stem: (r, p, q)} of the stems among the parameters; {} where they are not of squares."""
    if f'{IMAGE}/kernel' not in flat:
        return {}
    pixels = flat[f'{IMAGE}/kernel'].shape[0]
    side = math.isqrt(pixels // 3)
    found = {}
    for name in flat:
        match = re.fullmatch(f'{STEM}/kernel', name)
        if match and match[2]:
            found[match[0].removesuffix('/kernel')] = tuple(map(int, match[2].split('x')))
        elif match:
            rows = flat[name].shape[0]
            if 3 * side * side != pixels or rows % pixels:
                return {}
            found[f'video/{match[1]}'] = rows // pixels, side, side
    return found


def stems(flat: Mapping[str, Any], like: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The parameters `flat` with the stems that `like` has, and a line for each that was made.

    A stem of another size is recut from its own; one that is not there from the tubelets, else from
    the images; a stem of videos that `like` has not is left out where it has others. What needs no
    recutting is left to `warm_start`.
    """
    have, wanted = sizes(flat), sizes(like)
    found, lines = dict(flat), []
    for stem, size in wanted.items():
        origin = next((one for one in (stem, TUBELET, IMAGE) if one in have), None)
        as_it_is = have.get(stem) == size or (
            stem == TUBELET and origin == IMAGE and have[IMAGE][1:] == size[1:]
        )
        if origin is None or as_it_is:
            continue
        found[f'{stem}/kernel'] = recut(flat[f'{origin}/kernel'], have[origin], size)
        found[f'{stem}/bias'] = flat[f'{origin}/bias']
        was, now = ('x'.join(map(str, one)) for one in (have[origin], size))
        lines.append(f'{stem}: recut of {origin} {was} -> {now}')
    videos = wanted.keys() - {IMAGE}
    for stem in sorted(have.keys() - wanted.keys()) if videos else ():
        for name in [name for name in found if name.startswith(f'{stem}/')]:
            del found[name]
        lines.append(f'{stem}: left out, this stage cuts its videos otherwise')
    return found, lines
