"""Frames of a video by time: a file that FFmpeg reads, as a path or bytes -> small RGB squares.

A wanted time shows the last frame that appears at or before it, seconds counting from the first
frame shown. The times come from the packets, never from the header's frame count or rate. One pass
lists the packets, and only the groups of pictures that hold a wanted frame are decoded.

What is not as it should be is said: a broken file raises `VideoError` with a named reason, a frame
that had to be replaced is counted. Two things no reader can tell: bytes so changed that the decoder
raises no complaint, and the lost end of a file whose format states no length (TS, GIF).
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable

import av
import numpy as np

from . import pixels as _pixels
from . import samplers
from .decode import Decoder
from .packets import (
    REASONS,
    Deadline,
    OpenFile,
    Packets,
    VideoError,
    again,
    demux,
    open_file,
    spread,
)

__all__ = [
    'REASONS', 'Frames', 'VideoError', 'VideoInfo', 'check_video', 'clip_range', 'probe',
    'read_frames',
]  # fmt: skip

# How far, in seconds, an `end` may lie beyond the last frame and still mean the end of the video:
# annotations are rounded, and made on other copies of the file.
END_SLACK_S = 1.0


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What a file holds, measured from its packets."""

    duration_s: float  # first frame shown to the end of the last one
    num_frames: int  # frames shown
    fps: float | None  # frames per second; None where the rate varies or there is one frame
    variable_rate: bool
    codec: str
    container: str
    width: int  # as displayed: square pixels, rotated
    height: int
    rotation: int  # degrees counter-clockwise, already applied to width, height and frames
    pixel_format: str
    start_s: float  # the first frame's own time in the file; it counts as 0 everywhere else
    num_keys: int  # groups of pictures: the fewer, the more must be decoded for one frame
    declared_s: float | None  # duration that the header claims
    fault: str  # 'truncated' or 'damaged' where the packets alone show it, else ''
    detail: str


@dataclasses.dataclass(frozen=True)
class Frames:
    """Frames in the order of the times asked for."""

    frames: np.ndarray  # uint8 [n, pixels, pixels, 3] RGB
    times_s: np.ndarray  # float64 [n]: when the frames shown appear, of replacements too
    num_missing: int  # how many of the n are replaced by the nearest good frame
    info: VideoInfo


def probe(
    file: str | os.PathLike | bytes, *, name: str | None = None, time_limit_s: float = 20.0
) -> VideoInfo:
    """Reads the packets, and decodes one frame for the rotation; see `check_video` for more.

    A truncated or damaged file does not raise here: `fault` and `detail` say it. Raises VideoError:
    not-found, cannot-open, no-video-stream, no-decoder, no-times, no-frames, too-slow.
    """
    name = _name(file, name)
    deadline = Deadline(time_limit_s, name)
    with open_file(file, name, deadline) as opened:
        packets = demux(opened, hold=False)
        turns = []

        def take(frame):
            turns.append(_pixels.turn_of(frame))

        feed = functools.partial(_feed, packets, file, name, deadline)
        Decoder(opened, packets, feed, take).decode([int(packets.axis[0])])
        return _info(opened, packets, turns[0] if turns else 0)


def check_video(
    file: str | os.PathLike | bytes,
    *,
    num_frames: int = 8,
    name: str | None = None,
    time_limit_s: float = 20.0,
) -> VideoInfo:
    """Decodes `num_frames` frames from the middles of equal parts; returns what `probe` does.

    Raises VideoError for everything that `read_frames` does, and where any of them is missing.
    """

    def choose(start_s, end_s):
        return samplers.mid(start_s, end_s, num_frames)

    shown = read_frames(
        file, choose, pixels=16, time_limit_s=time_limit_s, max_missing=0.0, name=name
    )
    return shown.info


def read_frames(
    file: str | os.PathLike | bytes,
    choose: Callable[[float, float], np.ndarray],
    *,
    pixels: int,
    scaling: str = 'bilinear',
    start: float | None = None,
    end: float | None = None,
    time_limit_s: float = 20.0,
    max_missing: float = 0.1,
    name: str | None = None,
) -> Frames:
    """The frames at the times that `choose(start_s, end_s)` returns, centre-cropped and scaled.

    `scaling` is a key of `pixels.SCALINGS`.
    `start` and `end` are seconds from the first frame (None: the whole video); `choose` is called
    once with the range that they make, and returns float64 [n] seconds inside it, in any order,
    repeats allowed. A frame that is damaged or never comes out is replaced by the nearest good one
    among those chosen and counted; above the share `max_missing` (0 .. 1) of n it is an error.
    A truncated file is an error too, unless `end` is given and lies in the part that is there.
    Raises VideoError with one of `REASONS`, and ValueError where `choose` returns no times, or
    times outside the range.
    """
    if pixels < 1 or not 0 <= max_missing <= 1:
        wanted = 'pixels must be 1 or more and max_missing a share from 0 to 1'
        raise ValueError(f'{wanted}, got pixels {pixels}, max_missing {max_missing}')
    name = _name(file, name)
    deadline = Deadline(time_limit_s, name)
    with open_file(file, name, deadline) as opened:
        packets = demux(opened, hold=True)
        start_s, end_s = clip_range(packets, start, end, name)
        seconds = packets.seconds
        # A microsecond of grace: times come rounded from annotation files.
        places = np.searchsorted(seconds, _times(choose, start_s, end_s) + 1e-6, side='right') - 1
        aspect, turns = _aspect(opened), []

        def take(frame):
            turns or turns.append(_pixels.turn_of(frame))
            try:
                return _pixels.to_rgb(frame, pixels, aspect, scaling)
            except (av.FFmpegError, ValueError, RuntimeError) as error:
                raise VideoError('cannot-convert', str(error), name) from error

        feed = functools.partial(_feed, packets, file, name, deadline)
        decoder = Decoder(opened, packets, feed, take)
        decoder.decode(packets.axis[np.unique(places)].tolist())
        used, num_missing = _replace(decoder, packets, places, max_missing, name)
        frames = np.stack([decoder.images[p] for p in packets.axis[used].tolist()])
        info = _info(opened, packets, turns[0])
    return Frames(frames, seconds[used], num_missing, info)


def _replace(decoder, packets, places, max_missing, name) -> tuple[np.ndarray, int]:
    """Places on the axis to show for `places`, and how many of them are replacements."""
    times = packets.axis[places].tolist()
    good = np.array([t in decoder.images and t not in decoder.damaged for t in times])
    num_missing = int((~good).sum())
    if num_missing > max_missing * len(good) or not good.any():
        damaged = decoder.num_errors or decoder.damaged
        detail = f'{num_missing} of {len(good)} frames could not be shown'
        if decoder.num_errors:
            detail += f', {decoder.num_errors} packets failed to decode'
        raise VideoError('damaged' if damaged else 'missing-frames', detail, name)
    if not num_missing:
        return places, 0
    pool = np.unique(places[good])
    gaps = np.abs(packets.axis[pool][None, :] - packets.axis[places][:, None])
    return np.where(good, places, pool[gaps.argmin(axis=1)]), num_missing


def clip_range(
    found: Packets | VideoInfo, start: float | None, end: float | None, name: str
) -> tuple[float, float]:
    """(start, end) in seconds of what `read_frames` reads of a file.

    Raises VideoError: truncated, where the range is not in the part that is there; bad-range.
    """
    duration_s = found.duration_s
    if found.fault == 'truncated' and (end is None or end > duration_s + 1e-6):
        raise VideoError('truncated', found.detail, name)
    start_s = 0.0 if start is None else float(start)
    end_s = duration_s if end is None else float(end)
    asked = f'start {start_s:g} s, end {end_s:g} s; the video has {duration_s:.3f} s'
    if not (math.isfinite(start_s) and math.isfinite(end_s) and start_s >= 0):
        raise VideoError('bad-range', f'wanted 0 <= start < end, got {asked}', name)
    if start_s >= duration_s:
        raise VideoError('bad-range', f'start lies behind the end of the video: {asked}', name)
    if end_s <= start_s:
        raise VideoError('bad-range', f'wanted 0 <= start < end, got {asked}', name)
    if end_s > duration_s + END_SLACK_S:
        raise VideoError('bad-range', f'end lies behind the end of the video: {asked}', name)
    return start_s, min(end_s, duration_s)


def _times(choose, start_s: float, end_s: float) -> np.ndarray:
    times = np.asarray(choose(start_s, end_s), np.float64)
    if times.ndim != 1 or not len(times):
        raise ValueError(f'choose must return one or more times [n], got shape {times.shape}')
    if not (np.all(times >= start_s - 1e-6) and np.all(times <= end_s + 1e-6)):
        raise ValueError(
            f'choose({start_s:g}, {end_s:g}) must return seconds in that range, got times from '
            f'{times.min():g} to {times.max():g}'
        )
    return times


def _feed(packets: Packets, file, name: str, deadline: Deadline) -> Callable:
    """file index -> packet, for rising indices: from memory, or by reading the file once more."""
    if packets.held is not None:
        return packets.held.__getitem__
    numbered = enumerate(again(file, name, deadline))

    def get(index):
        for number, packet in numbered:
            if number == index:
                return packet
        raise VideoError('cannot-open', 'the file changed while it was read', name)

    return get


def _info(opened: OpenFile, packets: Packets, turn: int) -> VideoInfo:
    codec, num_steps = opened.stream.codec_context, len(packets.axis) - 1
    variable, fps = False, None
    if num_steps:  # containers round times to their own ticks, so one tick of difference is none
        least, usual, most = spread(np.diff(packets.axis))
        variable = bool(max(usual - least, most - usual) > max(1.5, 0.1 * usual))
    if num_steps and not variable:
        fps = float(num_steps / ((packets.axis[-1] - packets.axis[0]) * packets.tick))
    width, height = max(1, round(codec.width * _aspect(opened))), codec.height
    if turn in (90, 270):
        width, height = height, width
    return VideoInfo(
        duration_s=packets.duration_s,
        num_frames=len(packets.axis),
        fps=fps,
        variable_rate=variable,
        codec=codec.codec.canonical_name,
        container=opened.container.format.name,
        width=width,
        height=height,
        rotation=turn,
        pixel_format=codec.pix_fmt or 'unknown',
        start_s=float(packets.axis[0] * packets.tick),
        num_keys=max(1, int(packets.is_key.sum())),
        declared_s=packets.declared_s,
        fault=packets.fault,
        detail=packets.detail,
    )


def _aspect(opened: OpenFile) -> float:
    """Width over height of a stored pixel; nonsense (none, or beyond 4 to 1) counts as square."""
    aspect = float(opened.stream.sample_aspect_ratio or 1)
    return aspect if 0.25 <= aspect <= 4 else 1.0


def _name(file, name: str | None) -> str:
    if name:
        return name
    if isinstance(file, (bytes, bytearray, memoryview)):
        return f'<{len(file)} bytes>'
    return os.fspath(file)
