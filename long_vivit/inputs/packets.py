"""A video file as a list of compressed packets and the moments they show; nothing is decoded.

`open_file` -> `demux` -> `Packets`. Every fault is a `VideoError` with a reason from `REASONS`.
"""

import contextlib
import dataclasses
import io
import os
import time
from collections.abc import Iterator

import av
import numpy as np
from av.stream import Disposition

# Compressed bytes of one file that are kept in memory; of a larger file only the times are kept,
# and the packets are read a second time while decoding.
MAX_HELD_BYTES = 512 * 2**20

# Before PyAV 19 a title in an old encoding was an error.
_LENIENT = {} if int(av.__version__.split('.')[0]) >= 19 else {'metadata_errors': 'replace'}

REASONS = {
    'not-found': 'no such file',
    'cannot-open': 'not a video file, or its index is lost',
    'no-video-stream': 'sound only',
    'no-decoder': 'a codec that this build of FFmpeg does not know',
    'no-times': 'packets without time stamps (a raw stream)',
    'no-frames': 'a video stream that holds nothing to show',
    'truncated': 'the file ends before its header says',
    'damaged': 'wanted frames were lost, or spoilt, by errors in the data',
    'missing-frames': 'wanted frames never came out, though no error was seen',
    'cannot-convert': 'a picture that cannot be turned into RGB',
    'bad-range': 'start and end do not lie in the video',
    'too-slow': 'the time limit was reached',
}


class VideoError(ValueError):
    """A video that cannot be shown as asked: `reason` is a key of `REASONS`, `name` the file."""

    def __init__(self, reason: str, detail: str, name: str):
        assert reason in REASONS, reason
        super().__init__(reason, detail, name)
        self.reason, self.detail, self.name = reason, detail, name

    def __str__(self) -> str:
        return f'{self.name}: {self.reason}: {self.detail}'


class Deadline:
    """Wall-clock seconds that one file may take; `check` raises VideoError too-slow after them."""

    def __init__(self, seconds: float, name: str):
        if not seconds > 0:
            raise ValueError(f'time_limit_s must be above 0 seconds, got {seconds}')
        self.seconds, self.name = seconds, name
        self.end = time.monotonic() + seconds

    def check(self) -> None:
        if time.monotonic() > self.end:
            detail = f'not done after time_limit_s = {self.seconds:g} seconds'
            raise VideoError('too-slow', detail, self.name)


@dataclasses.dataclass
class OpenFile:
    """An opened container and the video stream that is read, with one decoder thread."""

    container: av.container.InputContainer
    stream: av.video.stream.VideoStream
    name: str
    deadline: Deadline


@contextlib.contextmanager
def open_file(file, name: str, deadline: Deadline) -> Iterator[OpenFile]:
    """Opens a path or the bytes of a file; the first video stream that is not a cover picture.

    Raises VideoError: not-found, cannot-open, no-video-stream, no-decoder, too-slow.
    """
    # Only local files: a play list that names an address must not make a reader of clips go there.
    options = {'protocol_whitelist': 'file'}
    if isinstance(file, (bytes, bytearray, memoryview)):
        source = io.BytesIO(file)
    else:
        path = os.fspath(file)
        if not os.path.isfile(path):
            raise VideoError('not-found', 'no such file', name)
        source = 'file:' + os.fsdecode(path)  # so that a colon in the name is no protocol
    try:
        container = av.open(source, options=options, timeout=deadline.seconds, **_LENIENT)
    except (av.FFmpegError, OSError, ValueError) as error:
        deadline.check()
        raise VideoError('cannot-open', _words(error), name) from error
    with container:
        cover = Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & cover]
        if not streams:
            raise VideoError('no-video-stream', 'the file has no video stream', name)
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError('no-decoder', 'FFmpeg has no decoder for this stream', name)
        stream.codec_context.thread_count = 1
        yield OpenFile(container, stream, name, deadline)


@dataclasses.dataclass(frozen=True)
class Packets:
    """The packets of one stream in file order ([m] arrays), and the moments it shows.

    Times are whole ticks of `tick` seconds. `shown` is False for packets that are decoded but no
    frame of the video (edit lists). `held` is None where the file was too large to keep.
    """

    pts: np.ndarray  # int64 [m]
    is_key: np.ndarray  # bool [m]
    shown: np.ndarray  # bool [m]
    corrupt: np.ndarray  # bool [m]
    held: list[av.Packet] | None
    tick: float  # seconds
    axis: np.ndarray  # int64 [num_frames], ticks, rising: when each frame appears
    end: int  # ticks: when the last frame ends
    declared_s: float | None  # the duration that the header claims
    fault: str  # 'truncated', 'damaged' or ''
    detail: str
    lies: bool  # packet times follow decoding order: frames must be counted, not looked up

    @property
    def seconds(self) -> np.ndarray:
        """float64 [num_frames]: when each frame appears, counted from the first one."""
        return (self.axis - self.axis[0]) * self.tick

    @property
    def duration_s(self) -> float:
        return float(self.end - self.axis[0]) * self.tick


def demux(opened: OpenFile, *, hold: bool) -> Packets:
    """Reads every packet once. Raises VideoError: no-times, no-frames, too-slow."""
    stream, errors, rows, held = opened.stream, [], [], []
    num_bytes, num_timeless, borrowed, other_end_s = 0, 0, False, 0.0
    number, hides = stream.index, stream.codec_context.name in ('vp8', 'libvpx')
    # Without a duration of the stream's own, only the other streams tell where the file should end.
    for packet in _read(opened, [stream] if stream.duration else [], errors):
        pts = packet.dts if packet.pts is None else packet.pts
        if packet.stream_index != number:
            if pts is not None:
                end = (pts + (packet.duration or 0)) * packet.time_base
                other_end_s = max(other_end_s, float(end))
            continue
        if pts is None:
            num_timeless += 1
            continue
        borrowed |= packet.pts is None
        shown = not packet.is_discard and not (hides and _is_hidden(packet))
        rows.append((pts, packet.duration or 0, packet.is_keyframe, shown, packet.is_corrupt))
        num_bytes += packet.size
        if held is not None:
            held.append(packet)
        if not hold or num_bytes > MAX_HELD_BYTES:
            held = None
    error = ' '.join(errors)
    if not rows:
        reason = 'no-times' if num_timeless else 'no-frames'
        raise VideoError(reason, error or REASONS[reason], opened.name)
    lies = stream.codec_context.has_b_frames and (borrowed or opened.container.format.name == 'avi')
    return _table(opened, rows, held, other_end_s, error, bool(lies))


def again(file, name: str, deadline: Deadline) -> Iterator[av.Packet]:
    """The packets that `demux` listed, read once more from a newly opened file."""
    with open_file(file, name, deadline) as opened:
        for packet in _read(opened, [opened.stream], []):
            if not (packet.pts is None and packet.dts is None):
                yield packet


def _read(opened: OpenFile, streams: list, errors: list[str]) -> Iterator[av.Packet]:
    """Packets with data, of `streams` (empty: all), up to an error, whose words go to `errors`."""
    packets = opened.container.demux(*streams)
    while True:
        opened.deadline.check()
        try:
            packet = next(packets, None)
        except av.FFmpegError as fault:
            opened.deadline.check()
            errors.append(_words(fault))
            return
        except IndexError:
            return  # all is read: PyAV stumbles over streams that appeared on the way
        if packet is None:
            return
        if packet.size:
            yield packet


def _table(opened: OpenFile, rows: list[tuple], held, other_end_s: float, error: str, lies: bool):
    """Arrays, time axis and the verdict on where the file ends."""
    tick = float(opened.stream.time_base)
    pts, durations, *flags = np.array(rows, np.int64).T
    is_key, shown, corrupt = (flag.astype(bool) for flag in flags)
    axis = np.unique(pts[shown])
    if not len(axis):
        raise VideoError('no-frames', 'no packet of the stream is meant to be shown', opened.name)
    steps = np.diff(axis)
    last = int(steps[-1]) if len(steps) else int(durations[-1]) or round(0.04 / tick)
    usual_s = float(spread(steps)[1] if len(steps) else last) * tick
    reached = max(int((pts + durations).max()), int(axis[-1]) + last)
    declared_s, origin_s = _declared(opened, float(axis[0]) * tick)
    reached_s = max(reached * tick, other_end_s) - origin_s
    fault, detail = '', ''
    if declared_s and declared_s - reached_s > max(3 * usual_s, 0.1 + 0.005 * declared_s):
        fault = 'truncated'
        detail = f'the header says {declared_s:.2f} s, the data end at {reached_s:.2f} s'
    elif error:
        fault, detail = 'truncated', f'reading stopped after {reached_s:.2f} s: {error}'
    elif corrupt[-1]:
        fault, detail = 'truncated', f'the last packet, at {reached_s:.2f} s, is not whole'
    elif corrupt.any():
        fault, detail = 'damaged', f'{corrupt.sum()} of {len(pts)} packets are marked corrupt'
    if fault == 'truncated' and corrupt[-1] and shown[-1] and len(axis) > 1:
        axis = axis[axis != pts[-1]]  # half a picture is none
    end = int(axis[-1]) + last
    return Packets(
        pts, is_key, shown, corrupt, held, tick, axis, end, declared_s, fault, detail, lies
    )


def spread(steps: np.ndarray) -> tuple[float, float, float]:
    """The least, the median and the largest of one or more steps; quick where all are equal."""
    least, most = steps.min(), steps.max()
    return least, (least if least == most else np.median(steps)), most


def _declared(opened: OpenFile, first_s: float) -> tuple[float | None, float]:
    """Seconds of video that the header claims (None: nothing), and the time they count from."""
    stream, container = opened.stream, opened.container
    if stream.duration:
        return float(stream.duration * stream.time_base), first_s
    with contextlib.suppress(KeyError, ValueError):  # Matroska: '00:00:10.333000000', from 0
        hours, minutes, seconds = stream.metadata['DURATION'].split(':')
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds), 0.0
    return (container.duration / av.time_base if container.duration else None), 0.0


def _is_hidden(packet: av.Packet) -> bool:
    """VP8 keeps pictures that are only referred to in packets of their own (RFC 6386, 9.1)."""
    return not memoryview(packet)[0] & 0x10


def _words(error: Exception) -> str:
    """FFmpeg's words without the number and the path, which the VideoError names itself."""
    return getattr(error, 'strerror', None) or str(error) or type(error).__name__
