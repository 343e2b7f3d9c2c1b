"""Patches kept with a probability by how much they change: motion-weighted masking (ours).

It looks at the uint8 frames, before any patch is cut: all frames of the clip must be decoded, where
the other kinds of masks leave out those that no patch needs.
"""

import numpy as np

# Grey levels (of 255) that are added to every patch's mean change: far below the noise of a codec,
# so that it counts only where nothing moves at all, and then all patches are equally likely.
STILL = 1e-3


def change(frames, tubelet, patch):
    """How much each tubelet differs from the frames before it.

    frames: uint8 [t*r, h*p, w*q, c], of which the first differs as the second does from it.

    Returns:
      float64 [t, h, w], 0 to 255: the mean over its values of the absolute difference between a
      frame and the one before.
    """
    n, height, width, c = frames.shape
    h, w = height // patch, width // patch
    found = np.zeros((n, h, w))
    rows = frames.reshape(n, h, patch, width * c)
    for i in range(1, n):  # a frame at a time stays in the cache
        one, two = rows[i - 1], rows[i]
        differ = np.maximum(one, two) - np.minimum(one, two)
        columns = differ.sum(1, dtype=np.uint32)  # [h, w*q*c]
        found[i] = columns.reshape(h, w, patch * c).sum(2)
    found[0] = found[min(1, n - 1)]
    return found.reshape(n // tubelet, tubelet, h, w).mean(1) / (patch * patch * c)


def chances(changes, uniform):
    """changes [...] >= 0 -> of each its probability to be drawn first, float64 [n], sum 1.

    uniform: the share that is the same for all, 0 to 1; the rest is in proportion to the change. Of
    a still clip all are equally likely.
    """
    moving = changes.ravel().astype(np.float64) + STILL
    return uniform / moving.size + (1 - uniform) * moving / moving.sum()


def draw(chance, k, rng):
    """k different places, one after the other by their chances: int64 [k], ascending.

    As if each were drawn in proportion to the chances of those that are left, by one exponential
    number each (Efraimidis and Spirakis, 2006).
    """
    late = rng.standard_exponential(chance.size) / chance
    return np.sort(np.argpartition(late, k - 1)[:k])


def choose(frames, tubelet, patch, k, uniform, rng):
    """Which k tubelets of a clip are kept: int32 [k, 3], (t, h, w) of each, in that order."""
    changes = change(frames, tubelet, patch)
    flat = draw(chances(changes, uniform), k, rng)
    return np.stack(np.unravel_index(flat, changes.shape), -1).astype(np.int32)
