"""Decodes chosen frames of a demuxed file: only the groups that hold one, each frame once."""

from collections.abc import Callable

import av
import numpy as np

from .packets import OpenFile, Packets

# Where skipping pictures that nothing refers to leaves the wanted ones bit-equal. Not AV1 (loses
# wanted frames); elsewhere it gains nothing.
SKIPPABLE = ('h264', 'hevc')


class _OutOfOrder(Exception):
    """Frames came out with times that do not rise: the packet times cannot be trusted."""


class Decoder:
    """Feeds packets to one decoder and keeps what comes out of it that was asked for.

    `images` maps ticks of the axis to what `take(frame)` made of the frame; `damaged` holds the
    ticks that came out, or should have, behind an error; `num_errors` counts packets that failed.
    """

    def __init__(self, opened: OpenFile, packets: Packets, feed: Callable, take: Callable):
        self.opened, self.packets, self.take = opened, packets, take
        self.codec = opened.stream.codec_context
        self.feed = feed  # () -> (file index -> packet), the indices asked for rising
        self.images: dict[int, object] = {}
        self.damaged: set[int] = set()
        self.num_errors = 0
        self.skipping = 'DEFAULT'

    def decode(self, wanted: list[int]) -> None:
        """Decodes the frames at `wanted` (ticks of the axis, rising)."""
        if not self.packets.lies:
            try:
                self._by_group(wanted, self.codec.name in SKIPPABLE, whole=False)
                lost = [pts for pts in wanted if pts not in self.images]
                if lost and not self.num_errors and not self.damaged:
                    # No error, yet no frame: a key frame that does not start afresh. Once more
                    # from the start, with nothing skipped.
                    self._by_group(lost, False, whole=True)
                return
            except _OutOfOrder:
                self.images.clear()
                self.damaged.clear()
                self.num_errors = 0
        self._in_sequence(wanted)

    def _by_group(self, wanted: list[int], skip: bool, *, whole: bool) -> None:
        pts = self.times = self.packets.pts.tolist()
        self.corrupt = self.packets.corrupt.tolist()
        self.get, self.left, self.bad = self._start(), set(wanted), []
        self.index_of = dict(zip(reversed(pts), range(len(pts) - 1, -1, -1), strict=True))
        self.position, self.latest = 0, None  # the next packet; the time of the last frame out
        for start, goals in self._groups(wanted, whole):
            if self.left.isdisjoint(goals):
                continue  # came out behind an earlier group
            if start > self.position:
                self.codec.flush_buffers()
                self.position, self.latest = start, None
            # Frames come out in order of time: once one at or after the last packet that the goals
            # may depend on is out, no goal is still to come, and its marks of corruption are known.
            last = max(start, max(self.index_of[goal] for goal in goals))
            barrier = max(pts[start : last + 1])
            while self.position <= len(pts) and (self.latest is None or self.latest < barrier):
                self._step(skip)
        self._condemn(self.bad)

    def _step(self, skip: bool) -> None:
        """Feeds one packet, or the end of the file, and keeps the wanted frames that come out."""
        position = self.position
        inside = position < len(self.times)
        if inside and skip:
            self._skip('DEFAULT' if self.times[position] in self.left else 'NONREF')
        frames, failed = self._push(self.get(position) if inside else None)
        if inside and (failed or self.corrupt[position]):
            self.bad.append(position)
        self.position += 1
        for frame in frames:
            time = frame.pts
            if time is None or (self.latest is not None and time <= self.latest):
                raise _OutOfOrder
            self.latest = time
            if frame.is_corrupt and time in self.index_of:
                self.bad.append(self.index_of[time])
            if time in self.left:
                self.left.remove(time)
                self.images[time] = self.take(frame)

    def _in_sequence(self, wanted: list[int]) -> None:
        """Counts frames: the n-th to come out is shown at the n-th time of the axis."""
        axis, get, count = self.packets.axis, self._start(), 0
        left, first_bad = set(wanted), len(axis)
        for position in range(len(self.packets.pts) + 1):
            inside = position < len(self.packets.pts)
            frames, failed = self._push(get(position) if inside else None)
            if failed or (inside and self.packets.corrupt[position]):
                first_bad = min(first_bad, count)
            for frame in frames:
                if count >= len(axis):
                    break
                if frame.is_corrupt:
                    first_bad = min(first_bad, count)
                time = int(axis[count])
                count += 1
                if time in left:
                    left.remove(time)
                    self.images[time] = self.take(frame)
            if not left:
                break
        self.damaged.update(int(p) for p in axis[first_bad:])

    def _groups(self, wanted: list[int], whole: bool) -> list[tuple[int, list[int]]]:
        """(file index of the key packet, wanted ticks of its group), in file order."""
        if whole:
            return [(0, wanted)]
        is_key = self.packets.is_key.copy()
        is_key[0] = True
        keys = np.flatnonzero(is_key)
        keys = keys[np.argsort(self.packets.pts[keys], kind='stable')]
        places = np.searchsorted(self.packets.pts[keys], wanted, side='right') - 1
        groups: dict[int, list[int]] = {}
        for goal, place in zip(wanted, places, strict=True):
            groups.setdefault(int(keys[max(0, place)]), []).append(goal)
        return sorted(groups.items())

    def _condemn(self, bad: list[int]) -> None:
        """From the first error on, the rest of its group is damaged.

        And of the next group those shown before its key frame: they refer back to this one.
        """
        pts, count = self.packets.pts, len(self.packets.pts)
        keys = np.append(np.flatnonzero(self.packets.is_key), [count, count])
        for first in bad:
            ahead = np.searchsorted(keys, first, side='right')
            end, after = keys[min(ahead, len(keys) - 2)], keys[min(ahead + 1, len(keys) - 1)]
            self.damaged.update(int(p) for p in pts[first:end])
            if end < count:
                self.damaged.update(int(p) for p in pts[end:after] if p < pts[end])

    def _start(self) -> Callable:
        self.codec.flush_buffers()
        self._skip('DEFAULT')
        return self.feed()

    def _skip(self, what: str) -> None:
        if what != self.skipping:
            self.codec.skip_frame = self.skipping = what

    def _push(self, packet: av.Packet | None) -> tuple[list[av.VideoFrame], bool]:
        """Frames that come out, and whether the decoder complained."""
        self.opened.deadline.check()
        try:
            return self.codec.decode(packet), False
        except av.EOFError:
            return [], False
        except av.FFmpegError:
            self.num_errors += 1
            return [], True
