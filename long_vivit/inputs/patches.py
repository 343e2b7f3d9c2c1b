"""From frames to patches, and the choice of which are kept: masking happens here, on the host.

The device receives only the chosen patches, so a quarter of the patches is a quarter of the bytes
on the bus, and attention needs no mask. The number kept is the same for every example of a stage.
"""

import numpy as np
from einops import rearrange

KINDS = ('random', 'slice', 'tube', 'frame')  # that go by the places alone
MOTION = 'motion'  # goes by what the frames show, see motion.py; it keeps as many as 'random'
MAX_RATE = 0.95


def num_kept(kind, grid, rate):
    """How many patches of a (t, h, w) grid are kept at masking rate `rate`, at least one."""
    t, places = grid[0], grid[1] * grid[2]
    if kind not in (*KINDS, MOTION):
        raise ValueError(f'mask_kind is {kind!r}; it must be one of {", ".join((*KINDS, MOTION))}')
    if not 0 <= rate <= MAX_RATE:
        raise ValueError(f'mask_rate is {rate}; it must be from 0 to {MAX_RATE}')
    keep = 1 - rate
    if kind in ('random', MOTION):
        return max(1, round(keep * t * places))
    if kind == 'frame':
        return max(1, round(keep * t)) * places
    return t * max(1, round(keep * places))


def choose(kind, grid, rate, rng):
    """Which patches of a (t, h, w) grid are kept, in order of time, row, column.

    Kinds: 'random', each patch by itself (the paper, section 4.3); 'slice', the same number in
    every time slice; 'tube', the same places in every slice (VideoMAE); 'frame', whole slices.

    Returns:
      int32 [k, 3], (t, h, w) of each, k = num_kept(kind, grid, rate).
    """
    t, h, w = grid
    places = h * w
    kept = num_kept(kind, grid, rate)
    if kept == t * places:
        flat = np.arange(kept)
    elif kind == 'random':
        return draw(grid, kept, rng)
    elif kind == 'slice':
        order = np.argsort(rng.random((t, places)), axis=1)[:, : kept // t]
        flat = (np.arange(t)[:, None] * places + order).ravel()
    elif kind == 'tube':
        order = rng.permutation(places)[: kept // t]
        flat = (np.arange(t)[:, None] * places + order).ravel()
    elif kind == MOTION:
        raise ValueError('mask_kind motion goes by the frames: see motion.choose')
    else:
        order = rng.permutation(t)[: kept // places]
        flat = (order[:, None] * places + np.arange(places)).ravel()
    return np.stack(np.unravel_index(np.sort(flat), grid), -1).astype(np.int32)


def draw(grid, k, rng):
    """k different patches of a (t, h, w) grid, each as likely: int32 [k, 3], in order."""
    flat = np.sort(rng.permutation(int(np.prod(grid)))[:k])
    return np.stack(np.unravel_index(flat, grid), -1).astype(np.int32)


def frames_needed(where, tubelet):
    """Indices of the frames that the chosen patches show, int64, rising; no other is decoded."""
    slices = np.unique(where[:, 0])
    return (slices[:, None] * tubelet + np.arange(tubelet)).ravel()


def patchify(frames, where, tubelet, patch):
    """Cut the chosen tubelets out of the frames.

    Args:
      frames: uint8 [t*r, h*p, w*q, c]; slices that `where` does not name may hold anything.
      where: int32 [k, 3]. tubelet: r, frames in a tubelet. patch: p = q, in pixels.

    Returns:
      uint8 [k, r*p*q*c], frame slowest, channel fastest.
    """
    grid = rearrange(frames, '(t r) (h p) (w q) c -> t h w r p q c', r=tubelet, p=patch, q=patch)
    t, h, w = where.T
    return rearrange(grid[t, h, w], 'k r p q c -> k (r p q c)')
