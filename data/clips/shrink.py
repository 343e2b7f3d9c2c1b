"""One video -> the same at a steady, low rate as a small file that is quick to read.

The range of D seconds is cut into steps of 1 / fps seconds, the last one cut off at D. Each step
keeps one frame, the one that the original shows at the step's centre, from the step's start on. So
the samplers `fps` and `first_fps` at the same rate find the very frames they find in the original,
and every other time finds one that the original shows at most half a step away.
"""

import dataclasses
import fractions
import io
import time
from collections.abc import Iterator

import av
import numpy as np

from long_vivit.inputs import pixels, video
from long_vivit.inputs.packets import Deadline

WINDOW_BYTES = 64 << 20  # of frames that are decoded at once; each time takes all packets anew
LOST = ('damaged', 'missing-frames')  # why a window may have nothing to show
MAX_BYTES = 1 << 30  # of one stored video; a record must stay below 2 GiB
QUALITY = {'qmin': '2', 'qmax': '2'}  # the finest of FFmpeg's JPEG encoder


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides how a video is stored. `fps` is a number as text, such as '2' or '30/7'."""

    pixels: int
    fps: str
    codec: str  # raw | jpeg
    time_limit_s: float
    max_missing: float
    scaling: str = 'bilinear'

    @property
    def rate(self) -> fractions.Fraction:
        """Steps per second."""
        return fractions.Fraction(self.fps)

    def check(self) -> None:
        """Raises ValueError naming the option that is wrong."""
        try:
            good = self.rate > 0
        except (ValueError, ZeroDivisionError):
            good = False
        if not good:
            raise ValueError(f'--fps is {self.fps}; it must be frames per second above 0')
        if self.pixels < 2 or self.pixels % 2:  # mov pads odd rows, and readers differ about it
            raise ValueError(f'--pixels is {self.pixels}; it must be an even number, 2 or more')
        if self.codec not in ('raw', 'jpeg'):
            raise ValueError(f'--codec is {self.codec}; it must be raw or jpeg')
        if self.scaling not in pixels.SCALINGS:
            raise ValueError(f'--scaling is {self.scaling}; it must be bilinear or bicubic')
        if not self.time_limit_s > 0:
            raise ValueError(f'--time_limit_s is {self.time_limit_s}; it must be above 0 seconds')
        if not 0 <= self.max_missing < 1:
            raise ValueError(f'--max_missing is {self.max_missing}; it must be from 0 to below 1')


class TooLarge(ValueError):
    """The stored video would not fit a record."""


@dataclasses.dataclass(frozen=True)
class Shrunk:
    """A stored video: a mov file, the seconds that it stands for, and counts of its frames."""

    file: bytes
    seconds: float
    num_frames: int
    num_missing: int  # steps whose frame a good one near by stands in for


def shrink(path: str, start: float | None, end: float | None, settings: Settings) -> Shrunk:
    """Decodes `path` from `start` to `end` seconds (None: all) and stores it as said above.

    Raises VideoError as `video.read_frames` does, for the video as a whole, and TooLarge.
    """
    out, count = io.BytesIO(), {'frames': 0, 'missing': 0}
    with _writer(out, settings) as put:
        for step, frame in _distinct(_steps(path, start, end, settings, count)):
            put(step, frame)
            count['frames'] += 1
            if out.tell() > MAX_BYTES:
                raise TooLarge(
                    f'more than {MAX_BYTES >> 20} MiB after {step + 1} steps; lower --fps or '
                    '--pixels, take --codec=jpeg, or cut the video with start and end'
                )
    return Shrunk(out.getvalue(), count['seconds'], count['frames'], count['missing'])


def centres(start_s: float, end_s: float, rate: fractions.Fraction) -> np.ndarray:
    """float64 [n]: the centre of each step of 1 / rate seconds, the last one cut off at the end."""
    rate, seconds = float(rate), end_s - start_s
    steps = np.arange(max(1, int(np.ceil(seconds * rate - 1e-6))))
    return start_s + (steps / rate + np.minimum((steps + 1) / rate, seconds)) / 2


def _steps(path, start, end, settings, count) -> Iterator[tuple[int, np.ndarray, float, bool]]:
    """(step, frame uint8 [pixels, pixels, 3], when it appears, is it the last step).

    A window without a good frame shows the last one before it, the first windows the next one.
    Raises VideoError where more than `max_missing` of all steps have no frame of their own.
    """
    step, waiting, last = 0, 0, None
    for num, frames in _windows(path, start, end, settings, count):
        if not frames and last is None:
            waiting += num
            continue
        frames = [frames[0]] * waiting + frames if frames else [last] * num
        waiting, last = 0, frames[-1]
        for frame, time_s in frames:
            yield step, frame, time_s, step == count['steps'] - 1
            step += 1
    if count['missing'] > settings.max_missing * count['steps']:
        detail = f'{count["missing"]} of {count["steps"]} frames could not be shown'
        raise video.VideoError(count['reason'], detail, path)


def _windows(path, start, end, settings, count) -> Iterator[tuple[int, list]]:
    """How many steps each window has, and their (frame, when it appears); [] where none is good."""
    deadline, first = Deadline(settings.time_limit_s, path), 0
    size = max(1, WINDOW_BYTES // (3 * settings.pixels**2))
    count |= {'steps': 1, 'reason': LOST[0]}
    while first < count['steps']:

        def choose(start_s, end_s, first=first):
            times = centres(start_s, end_s, settings.rate)
            count['steps'], count['seconds'] = len(times), end_s - start_s
            return times[first : first + size]

        frames = _read(path, choose, start, end, settings, deadline, count)
        num = min(size, count['steps'] - first)
        count['missing'] += 0 if frames else num
        yield num, frames
        first += size


def _read(path, choose, start, end, settings, deadline, count) -> list:
    """The frames of a window as `_windows` gives them, whatever is missing of them; it is counted.

    The time that is left is that of the whole video.
    """
    deadline.check()
    left = max(1e-3, deadline.end - time.monotonic())
    try:
        shown = video.read_frames(
            path, choose, pixels=settings.pixels, scaling=settings.scaling, start=start, end=end,
            time_limit_s=left, max_missing=1.0,
        )  # fmt: skip
    except video.VideoError as error:
        if error.reason == 'too-slow':
            deadline.check()  # says the limit that was given, not what was left of it
        if error.reason not in LOST:
            raise
        count['reason'] = error.reason
        return []
    count['missing'] += shown.num_missing
    return list(zip(shown.frames, shown.times_s, strict=True))


def _distinct(frames) -> Iterator[tuple[int, np.ndarray]]:
    """Leaves out steps that show what the step before them shows, but for the last.

    The last one stays so that the file lasts as long as the original.
    """
    before = None
    for step, frame, time_s, last in frames:
        if last or time_s != before:
            yield step, frame
        before = time_s


class _writer:
    """Writes a mov file of frames: `put(step, frame)`, steps rising."""

    def __init__(self, out: io.BytesIO, settings: Settings):
        self.tick = 1 / settings.rate
        self.kind = 'rgb24' if settings.codec == 'raw' else 'yuvj420p'
        options = {} if settings.codec == 'raw' else QUALITY
        self.container = av.open(out, 'w', format='mov')
        codec = 'rawvideo' if settings.codec == 'raw' else 'mjpeg'
        self.stream = self.container.add_stream(codec, rate=settings.rate, options=options)
        self.stream.width = self.stream.height = settings.pixels
        self.stream.pix_fmt = self.kind
        self.stream.codec_context.time_base = self.tick
        self.stream.codec_context.thread_count = 1

    def __enter__(self):
        return self.put

    def __exit__(self, kind, *_):
        if kind is None:
            self.container.mux(self.stream.encode())
        self.container.close()

    def put(self, step: int, frame: np.ndarray) -> None:
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), 'rgb24')
        if self.kind != 'rgb24':
            picture = picture.reformat(format=self.kind, interpolation='BICUBIC', threads=1)
        picture.pts, picture.time_base = step, self.tick
        self.container.mux(self.stream.encode(picture))
