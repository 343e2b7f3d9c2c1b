"""Which moments of a video are shown: named samplers over a range of seconds. Pure numpy.

Every sampler has the signature `f(start, end, num_frames, *, rng=None, fps=None)` and returns
float64 [num_frames] seconds, never falling, each in [start, end). A time shows the last frame at
or before it, so a time that is asked for twice, or two times between the same two frames, show the
same frame twice. `start < end` are seconds; `rng` (numpy Generator) is needed by `rand_seg` only,
`fps` (frames per second wanted, > 0) by `fps` and `first_fps` only.
"""

from collections.abc import Callable

import numpy as np


def mid(start: float, end: float, num_frames: int, *, rng=None, fps=None) -> np.ndarray:
    """The centres of `num_frames` equal segments of the range: float64 [num_frames] seconds."""
    _check(start, end, num_frames)
    return _inside(start, end, (np.arange(num_frames) + 0.5) / num_frames)


def rand_seg(start: float, end: float, num_frames: int, *, rng=None, fps=None) -> np.ndarray:
    """One uniformly random time in each of `num_frames` equal segments: float64 [num_frames]."""
    _check(start, end, num_frames)
    if rng is None:
        raise ValueError('the sampler rand_seg needs rng, a numpy Generator; mid needs none')
    return _inside(start, end, (np.arange(num_frames) + rng.random(num_frames)) / num_frames)


def fps(start: float, end: float, num_frames: int, *, rng=None, fps=None) -> np.ndarray:
    """`fps` frames per second over the whole range, capped: float64 [num_frames] seconds.

    The candidates are the centres of the steps of 1 / fps seconds that fit in the range. Where more
    than `num_frames` fit, the middle one of each of `num_frames` equal runs of them is taken; where
    fewer fit there are not enough, and the centres of `num_frames` equal segments are taken instead
    (`mid`: the rate is then higher than `fps`, and frames repeat where the video has too few).
    """
    num_steps = _num_steps(start, end, num_frames, fps)
    if num_steps < num_frames:
        return mid(start, end, num_frames)
    steps = mid_indices(num_steps, num_frames)
    return _inside(start, end, (steps + 0.5) / fps / (end - start))


def first_fps(start: float, end: float, num_frames: int, *, rng=None, fps=None) -> np.ndarray:
    """The first `num_frames` centres of steps of 1 / fps seconds; the rest of the range is unseen.

    Where fewer fit, the centres of `num_frames` equal segments of the range, as in `fps`.
    """
    if _num_steps(start, end, num_frames, fps) < num_frames:
        return mid(start, end, num_frames)
    return _inside(start, end, (np.arange(num_frames) + 0.5) / fps / (end - start))


def linspace_incl(start: float, end: float, num_frames: int, *, rng=None, fps=None) -> np.ndarray:
    """Equal steps that include the first frame and, as the last time, the very end of the range."""
    _check(start, end, num_frames)
    return _inside(start, end, np.linspace(0.0, 1.0, num_frames))


def linspace_excl(start: float, end: float, num_frames: int, *, rng=None, fps=None) -> np.ndarray:
    """The starts of `num_frames` equal segments: equal steps, the end left out."""
    _check(start, end, num_frames)
    return _inside(start, end, np.arange(num_frames) / num_frames)


SAMPLERS: dict[str, Callable[..., np.ndarray]] = {
    'mid': mid,
    'rand_seg': rand_seg,
    'fps': fps,
    'first_fps': first_fps,
    'linspace_incl': linspace_incl,
    'linspace_excl': linspace_excl,
}


def mid_indices(num_total: int, num_frames: int) -> np.ndarray:
    """The middle of each of `num_frames` equal runs of 0 .. num_total - 1: int64 [num_frames].

    floor((i + 0.5) num_total / num_frames), in whole numbers, so that no rounding enters.
    """
    if num_total < 1 or num_frames < 1:
        raise ValueError(f'mid_indices of {num_frames} out of {num_total}: both must be 1 or more')
    return (2 * np.arange(num_frames, dtype=np.int64) + 1) * num_total // (2 * num_frames)


def linspace_incl_indices(num_total: int, num_frames: int) -> np.ndarray:
    """int(i (num_total - 1) / (num_frames - 1)), both ends included: int64 [num_frames]."""
    if num_total < 1 or num_frames < 1:
        raise ValueError(f'{num_frames} frames out of {num_total}: both must be 1 or more')
    return np.arange(num_frames, dtype=np.int64) * (num_total - 1) // max(1, num_frames - 1)


def linspace_excl_indices(num_total: int, num_frames: int) -> np.ndarray:
    """floor(i num_total / num_frames), the end left out: int64 [num_frames]."""
    if num_total < 1 or num_frames < 1:
        raise ValueError(f'{num_frames} frames out of {num_total}: both must be 1 or more')
    return np.arange(num_frames, dtype=np.int64) * num_total // num_frames


def _check(start: float, end: float, num_frames: int) -> None:
    if not (np.isfinite(start) and np.isfinite(end) and start < end):
        raise ValueError(f'a range of seconds must have start < end, got start {start}, end {end}')
    if num_frames < 1:
        raise ValueError(f'num_frames must be 1 or more, got {num_frames}')


def _num_steps(start: float, end: float, num_frames: int, rate: float | None) -> int:
    """How many whole steps of 1 / rate seconds fit; a range a hair too short still counts."""
    _check(start, end, num_frames)
    if rate is None or not (np.isfinite(rate) and rate > 0):
        raise ValueError(f'this sampler needs fps, frames per second above 0, got {rate}')
    return int(np.floor((end - start) * rate + 1e-6))


def _inside(start: float, end: float, share: np.ndarray) -> np.ndarray:
    """Seconds at `share` (0 .. 1) of the range, the end itself moved to just before it."""
    times = start + share * (float(end) - float(start))
    return np.clip(times, start, np.nextafter(end, start))
