"""Tubes: a video cut with several kernels at once, set wide apart (TubeViT, arXiv 2212.03229).

Long thin tubes see much time of a small place, short wide ones much space for a moment, and single
frames how things look; together they are fewer than the tubelets of a dense grid. To the encoder
they are patches like others: a vector of pixels each, and where its centre lies.
"""

import re
from typing import NamedTuple

import numpy as np
from einops import rearrange

# Kernels, strides and offsets as in the open re-implementation daniel-code/TubeViT, for 32 frames
# of 224 pixels.
TUBEVIT = '8x8x8/16x32x32+12x4x4/6x32x32@4x8x8+4x12x12/16x32x32@0x16x16+1x16x16/16x16x16'
SIZE = r'(\d+)x(\d+)x(\d+)'


class Tube(NamedTuple):
    """A kernel and where it is laid; each (t, h, w) in frames, pixels, pixels."""

    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    offset: tuple[int, int, int] = (0, 0, 0)

    @property
    def name(self):
        """The size of the kernel: '8x8x8'."""
        return 'x'.join(map(str, self.kernel))

    @property
    def num_values(self):
        """Numbers in a tube, r * p * q * c."""
        return int(np.prod(self.kernel)) * 3

    def grid(self, frames, pixels):
        """(t, h, w), how many fit into a clip along each; may be 0 or less."""
        sizes = zip((frames, pixels, pixels), self.kernel, self.stride, self.offset, strict=True)
        return tuple((size - offset - k) // step + 1 for size, k, step, offset in sizes)


def parse(spec):
    """The field `tubes` of a stage -> a tuple of Tube, () of ''.

    Raises ValueError: no such words, a size of 0, a kernel that comes twice (each has weights of
    its own, by its size), pixels that the number behind tubevit/ does not divide.
    """
    word, slash, number = spec.partition('/')
    if word == 'tubevit':
        if slash and not (number.isdecimal() and int(number)):
            raise ValueError(
                f'{spec!r}: behind tubevit/ must stand a whole number, as in tubevit/2'
            )
        return scaled(parse(TUBEVIT), int(number or 1), spec)
    found = []
    for part in filter(None, (part.strip() for part in spec.split('+'))):
        match = re.fullmatch(f'{SIZE}/{SIZE}(?:@{SIZE})?', part)
        if not match:
            raise ValueError(
                f'{part!r} in {spec!r} must be KERNEL/STRIDE or KERNEL/STRIDE@OFFSET, each TxHxW '
                'in frames and pixels, as in 4x12x12/16x32x32@0x16x16'
            )
        numbers = [int(n or 0) for n in match.groups()]
        tube = Tube(*(tuple(numbers[i : i + 3]) for i in (0, 3, 6)))
        if 0 in tube.kernel + tube.stride:
            raise ValueError(f'{part!r} in {spec!r}: kernels and strides must be at least 1')
        found.append(tube)
    names = [tube.name for tube in found]
    for name in {name for name in names if names.count(name) > 1}:
        raise ValueError(f'{name} comes twice in {spec!r}; a kernel has one stem, name each once')
    return tuple(found)


def scaled(found, divisor, spec):
    """Tubes with all that is in pixels divided; frames stay. Raises ValueError: not divisible."""

    def smaller(size):
        t, h, w = size
        if h % divisor or w % divisor:
            raise ValueError(f'{spec!r}: {h} pixels are not divisible by {divisor}; use 1, 2 or 4')
        return t, h // divisor, w // divisor

    return tuple(Tube(*map(smaller, tube)) for tube in found)


def num_kept(tubes, frames, pixels, rate):
    """How many of each tube are kept at masking rate `rate`: a tuple, each at least one.

    Of each kernel the same share: the number of each is a shape on the device, and must not be
    drawn.
    """
    totals = (np.prod(tube.grid(frames, pixels)) for tube in tubes)
    return tuple(max(1, round((1 - rate) * int(n))) for n in totals)


def choose(tubes, frames, pixels, rate, rng):
    """Which tubes are kept, drawn at random: of each kernel int32 [k, 3], its first frame, row and
    column, in that order."""
    kept, found = num_kept(tubes, frames, pixels, rate), []
    for tube, k in zip(tubes, kept, strict=True):
        grid = tube.grid(frames, pixels)
        total = int(np.prod(grid))
        flat = np.arange(total) if k == total else np.sort(rng.permutation(total)[:k])
        places = np.stack(np.unravel_index(flat, grid), -1)
        found.append((places * tube.stride + tube.offset).astype(np.int32))
    return found


def frames_needed(tubes, corners):
    """Indices of the frames that the chosen tubes show, int64, rising."""
    shown = [
        (corner[:, 0, None] + np.arange(tube.kernel[0])).ravel()
        for tube, corner in zip(tubes, corners, strict=True)
    ]
    return np.unique(np.concatenate(shown)).astype(np.int64)


def cut(frames, tubes, corners):
    """frames uint8 [f, y, x, c] -> of each kernel uint8 [k, r*p*q*c], laid out as `patchify`'s."""
    found = []
    for tube, corner in zip(tubes, corners, strict=True):
        view = np.lib.stride_tricks.sliding_window_view(frames, tube.kernel, axis=(0, 1, 2))
        t, h, w = corner.T
        found.append(rearrange(view[t, h, w], 'k c r p q -> k (r p q c)'))
    return tuple(found)


def centres(tubes, corners, tubelet, patch):
    """Where the centres of the tubes lie in a grid of tubelets: float32 [n, 3], (t, h, w).

    Whole numbers are the centres of tubelets, so that a tube as large as one, in its place, has
    the place of that tubelet.
    """
    unit = np.array([tubelet, patch, patch])
    found = [
        (corner + np.array(tube.kernel) / 2) / unit - 0.5
        for tube, corner in zip(tubes, corners, strict=True)
    ]
    return np.concatenate(found).astype(np.float32)
