"""How fast a run is, what it waits for and how much memory it takes."""

import ctypes
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import NamedTuple, TypeVar

from long_vivit.progress import duration

T = TypeVar('T')


class Memory(NamedTuple):
    """Peak memory; `of` says whose: 'device' (the fullest one) or 'process' (its resident set)."""

    num_bytes: int
    of: str


class Meter:
    """Rates over the steps since the last `read`, and the time left.

    A step's time runs from the end of the one before, so it holds everything: waiting for data,
    computing, writing curves. What should not count (scoring, saving) goes into `pause`. Times are
    the host's: let the step's result arrive (`block_until_ready`) before `step` is called, at least
    before each `read`.

    Args:
      total: steps of the stage.
      start: steps done before, when resumed.
      peak_flops: FLOP/s of all devices together; None where the chip is not known: no `mfu`.
      clock: seconds from a monotonic clock.
    """

    def __init__(
        self, total: int, start: int = 0, peak_flops: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self._clock = clock
        self._total, self._done, self._peak = total, start, peak_flops
        self._counts, self._all_counts = _Counts(), _Counts()
        self._steps = 0
        self._begun = self._all_begun = clock()
        self._waited = self._all_waited = 0.0
        self._recent = None  # seconds per step, a running mean
        self._ended = None  # future of the time when the last step given to the device ended

    def step(self, clips: int, tokens: int = 0, flops: float = 0.0) -> None:
        """Counts a step that took `clips` examples, `tokens` video tokens and `flops`, all devices.

        flops: what the step's mathematics needs (`long_vivit.flops`), not what is computed twice.
        """
        self._steps += 1
        self._done += 1
        self._counts = self._counts.plus(clips, tokens, flops)
        self._all_counts = self._all_counts.plus(clips, tokens, flops)

    def batches(self, batches: Iterable[T]) -> Iterator[T]:
        """Passes the batches on; where none is there, measures how long nothing could be done.

        That is not while the device is still at a step (see `at_work`).
        """
        iterator = iter(batches)
        while True:
            begun = self._clock()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            arrived = self._clock()
            idle_since = begun
            if self._ended is not None:
                idle_since = max(begun, self._ended.result()) if self._ended.done() else arrived
            self._waited += arrived - idle_since
            yield batch

    def at_work(self, ended: Future) -> None:
        """Says that the device is at a step; `ended` will hold the time, on `clock`, of its end."""
        self._ended = ended

    def pause(self) -> '_Pause':
        """Returns a context whose time counts for nothing: `with meter.pause(): score()`."""
        return _Pause(self)

    def read(self) -> dict[str, float]:
        """Returns clips_per_s, tokens_per_s, data_wait_share [0, 1] and eta_s; starts anew.

        Also `mfu`, model FLOPs utilisation [0, 1], where the devices' peak is known. The time left
        is by a running mean of the time per step, in which half of the weight is on the newest
        interval. All are NaN if no step was counted.
        """
        now = self._clock()
        seconds = now - self._begun
        if not self._steps or seconds <= 0:
            names = ('clips_per_s', 'tokens_per_s', 'data_wait_share', 'eta_s')
            return dict.fromkeys(names, float('nan'))
        pace = seconds / self._steps
        self._recent = pace if self._recent is None else (self._recent + pace) / 2
        found = self._counts.rates(seconds, self._waited, self._peak) | {
            'eta_s': max(0, self._total - self._done) * self._recent
        }
        self._all_waited += self._waited
        self._counts, self._steps = _Counts(), 0
        self._waited, self._begun = 0.0, now
        return found

    def skip_start(self) -> None:
        """Forgets all time up to now: call it once the first step has been compiled and run."""
        self._begun = self._all_begun = self._clock()
        self._waited = self._all_waited = 0.0
        self._counts, self._all_counts, self._steps = _Counts(), _Counts(), 0

    def totals(self) -> dict[str, float]:
        """Returns the same rates without the time left, since the start (or `skip_start`).

        Also `seconds`, the time they are over. Fields are named as in results.json.
        """
        seconds = max(self._clock() - self._all_begun, 1e-9)
        waited = self._all_waited + self._waited
        return {'seconds': seconds} | self._all_counts.rates(seconds, waited, self._peak)


class _Counts(NamedTuple):
    """What some steps took."""

    clips: int = 0
    tokens: int = 0
    flops: float = 0.0

    def plus(self, clips, tokens, flops):
        return _Counts(self.clips + clips, self.tokens + tokens, self.flops + flops)

    def rates(self, seconds, waited, peak_flops):
        found = {
            'clips_per_s': self.clips / seconds,
            'tokens_per_s': self.tokens / seconds,
            'data_wait_share': min(1.0, waited / seconds),
        }
        return found if peak_flops is None else found | {'mfu': self.flops / seconds / peak_flops}


def joined(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """Returns the `totals` of two parts of a stage as one; `before` may be empty."""
    if not before:
        return dict(now)
    seconds = before['seconds'] + now['seconds']
    found = {'seconds': seconds}
    for rate in now.keys() & before.keys() - {'seconds'}:
        found[rate] = (before[rate] * before['seconds'] + now[rate] * now['seconds']) / seconds
    return found


class _Pause:
    def __init__(self, meter: Meter):
        self._meter = meter

    def __enter__(self) -> None:
        self._begun = self._meter._clock()
        self._waited = self._meter._waited

    def __exit__(self, *_) -> None:
        lost = self._meter._clock() - self._begun
        self._meter._begun += lost
        self._meter._all_begun += lost
        self._meter._waited = self._waited


class StartUp:
    """Where the time before the second step goes: `mark` ends a part and names it.

    Args:
      begun: when the program started, on `clock`; now if not given. A command that wants its
        imports counted reads the clock on its first line.
    """

    def __init__(self, begun: float | None = None, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._last = clock() if begun is None else begun
        self.seconds: dict[str, float] = {}

    def begin(self) -> None:
        """Starts anew for the next stage, unless some part is already marked for it."""
        if not self.seconds:
            self._last = self._clock()

    def mark(self, name: str) -> None:
        """Counts the time since the last mark as `name`: imports, data, compile, first step."""
        now = self._clock()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def summary(self) -> str:
        """Returns one line, such as 'ready after 12.3 s: imports 2.1 s, compile 10.2 s'."""
        parts = ', '.join(f'{name} {_seconds(value)}' for name, value in self.seconds.items())
        return f'ready after {_seconds(sum(self.seconds.values()))}: {parts}'

    def end(self) -> str:
        """Returns the `summary` and forgets the parts."""
        line = self.summary()
        self.seconds = {}
        return line


def peak_memory() -> Memory:
    """Returns the most memory that was in use at once.

    Of the fullest local device where JAX's backend counts it (GPU, TPU), else of this process as
    the operating system counts it; JAX is not imported for this.
    """
    peaks = []
    if 'jax' in sys.modules:
        stats = [device.memory_stats() for device in sys.modules['jax'].local_devices()]
        peaks = [stat['peak_bytes_in_use'] for stat in stats if _counts(stat)]
    if peaks:
        return Memory(max(peaks), 'device')
    import resource  # not on Windows

    unit = 1 if sys.platform == 'darwin' else 1024
    return Memory(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, 'process')


def device_peak() -> dict[str, int]:
    """Returns {'device_peak_bytes': the most that the fullest device held}; {} where JAX's backend
    does not count it.
    """
    memory = peak_memory()
    return {'device_peak_bytes': memory.num_bytes} if memory.of == 'device' else {}


def keep_freed_memory() -> bool:
    """Asks the C library to reuse freed memory instead of giving it back to the system.

    A compiled step takes its scratch memory anew each time; given back, every page of it is faulted
    in again at the next step. On two CPU cores that was most of the time of element-wise work
    (35 against 4 ms for 32 MiB of GELU). Costs nothing but a resident set that does not shrink.
    Returns whether it could be done (glibc only).
    """
    mmap_max, trim_threshold, arena_max = -4, -1, -8  # names of mallopt(3), as numbers
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    # One arena: that of a thread cannot hold large blocks and would map them all the same.
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, -1) and mallopt(arena_max, 1))


def give_back_freed_memory() -> bool:
    """Gives freed memory back to the system once: call it after compiling, whose needs are over.

    The step's scratch memory is one block, larger than the holes that the compiler leaves, so it
    would come on top of them. Returns whether it could be done (glibc only).
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return False
    return True


def _counts(stat: Mapping | None) -> bool:
    return bool(stat) and 'peak_bytes_in_use' in stat


def _seconds(value: float) -> str:
    return f'{value:.1f} s' if value < 60 else duration(value)
