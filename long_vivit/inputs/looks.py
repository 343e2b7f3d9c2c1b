"""What a stage sees of a clip: which moments, which patches of them, and where those came from.

A clip is decoded once. Frames that no chosen patch shows are not decoded, but where the choice
itself goes by what the frames show (mask_kind motion).
"""

from dataclasses import dataclass, replace

import numpy as np

from long_vivit.inputs import motion, patches, samplers, tubes, video

FRAME_ORDERS = ('ordered', 'shuffled', 'one_frame')
NOT_THERE = -1  # where a patch is that only fills up a budget


@dataclass(frozen=True)
class View:
    """How a stage looks at an example: which frames, which patches, which text.

    Units: pixels, frames, seconds, tokens, as in configs/base.py, which explains each field.
    `tubelet` is 1 for images. `tubes` are `tubes.Tube`s, () for a grid of tubelets.
    """

    frames: int
    pixels: int
    patch: int
    tubelet: int
    sampler: str
    fps: float
    mask_kind: str
    mask_rate: float
    text: str
    text_length: int
    scaling: str = 'bilinear'
    time_limit_s: float = 20.0
    max_missing: float = 0.1
    short_text: str = ''
    short_length: int = 0
    sentences: str = 'all'
    motion_uniform: float = 0.0
    token_budget: int = 0
    tubes: tuple = ()

    @property
    def grid(self):
        """(t, h, w) in tubelets, patch rows and patch columns."""
        side = self.pixels // self.patch
        return self.frames // self.tubelet, side, side

    @property
    def shapes(self):
        """(k, values) of each kernel's patches of an example; one pair without tubes."""
        if self.tubes:
            kept = tubes.num_kept(self.tubes, self.frames, self.pixels, self.mask_rate)
            return tuple((k, tube.num_values) for k, tube in zip(kept, self.tubes, strict=True))
        k = self.token_budget or patches.num_kept(self.mask_kind, self.grid, self.mask_rate)
        return ((k, self.tubelet * self.patch**2 * 3),)

    @property
    def by_motion(self):
        """Whether the patches to keep are told by the frames."""
        return self.mask_kind == patches.MOTION and bool(self.mask_rate or self.token_budget)

    def evaluation(self, sampler):
        """The same view of all patches (or as many as the budget allows) and sentences, with a
        sampler that does not draw."""
        return replace(self, sampler=sampler, mask_rate=0.0, sentences='all')

    def seen(self, start_s, end_s):
        """How many frames of a clip are looked at, and the end of what they show, in seconds.

        With a budget that is as much as there is at `fps`, in whole tubelets: at most `frames`, and
        at least one tubelet, however short the clip is.
        """
        if not self.token_budget:
            return self.frames, end_s
        num = min(self.frames, int((end_s - start_s) * self.fps + 1e-6)) // self.tubelet
        num = max(1, num) * self.tubelet
        return num, min(end_s, start_s + num / self.fps)


class Look:
    """One look at a clip: `times` is what `video.read_frames` asks for times; then `cut`."""

    def __init__(self, view, rng, ordered=True):
        """ordered: the frames will be shown in order only; else any may stand in a slice shown."""
        self.view, self.rng, self.ordered = view, rng, ordered
        self.chosen = self.needed = None

    def times(self, start_s, end_s):
        """The seconds of the frames that are needed, of a clip from start_s to end_s."""
        num, end_s = self.view.seen(start_s, end_s)
        self.choose(num)
        sampler = samplers.SAMPLERS[self.view.sampler]
        return sampler(start_s, end_s, num, rng=self.rng, fps=self.view.fps)[self.needed]

    def choose(self, num_frames):
        """Which patches of so many frames are shown; by motion that must wait for `cut`."""
        view, self.num_frames = self.view, num_frames
        self.needed = np.arange(num_frames)
        if view.by_motion:
            return
        if view.tubes:
            self.chosen = tubes.choose(
                view.tubes, num_frames, view.pixels, view.mask_rate, self.rng
            )
            needed = tubes.frames_needed(view.tubes, self.chosen)
        else:
            self.chosen = self._places()
            needed = patches.frames_needed(self.chosen, view.tubelet)
        if self.ordered:
            self.needed = needed

    def _places(self, frames=None):
        """int32 [k, 3] of a grid, of all `frames` where they tell; fewer where there are fewer."""
        view = self.view
        grid = (self.num_frames // view.tubelet, *view.grid[1:])
        total = int(np.prod(grid))
        k = min(total, view.token_budget) or patches.num_kept(view.mask_kind, grid, view.mask_rate)
        if frames is not None:
            sizes = view.tubelet, view.patch
            return motion.choose(frames, *sizes, k, view.motion_uniform, self.rng)
        if view.token_budget:
            return patches.draw(grid, k, self.rng)
        return patches.choose(view.mask_kind, grid, view.mask_rate, self.rng)

    def cut(self, frames, frame_orders):
        """The patches of all frames [num_frames, pixels, pixels, 3] in each order, and where."""
        view = self.view
        if view.by_motion:
            self.chosen = self._places(frames)
        each = [self._cut(reorder(frames, order, self.rng)) for order in frame_orders]
        if view.tubes:
            where = tubes.centres(view.tubes, self.chosen, view.tubelet, view.patch)
            return tuple(map(np.stack, zip(*each, strict=True))), where
        return np.stack(each), padded(self.chosen, view.token_budget, NOT_THERE)

    def _cut(self, frames):
        view = self.view
        if view.tubes:
            return tubes.cut(frames, view.tubes, self.chosen)
        return padded(
            patches.patchify(frames, self.chosen, view.tubelet, view.patch), view.token_budget, 0
        )


def padded(rows, size, value):
    """rows [k, ...] -> [size, ...] with rows of `value` behind them, where there are fewer."""
    if len(rows) >= size:
        return rows
    return np.pad(rows, [(0, size - len(rows)), (0, 0)], constant_values=value)


def load_video(example, view, rng, frame_orders=('ordered',)):
    """Decode, once, and cut what the view shows of an example, in each of `frame_orders`.

    Returns:
      patches uint8 [o, k, r*p*q*c], or with tubes a tuple of them, one for each kernel; where
      int32 [k, 3], float32 with tubes (all kernels one after the other); and the VideoError that
      made the patches zeros, or None. A clip with fewer patches than the budget has zeros behind
      them, from NOT_THERE.
    """
    look = Look(view, rng, tuple(frame_orders) == ('ordered',))
    error, shown = None, None
    try:
        shown = video.read_frames(
            example.video, look.times, pixels=view.pixels, scaling=view.scaling,
            start=example.start_s, end=example.end_s, time_limit_s=view.time_limit_s,
            max_missing=view.max_missing, name=example.id,
        ).frames  # fmt: skip
    except video.VideoError as caught:
        # Without its traceback, which would hold the whole file.
        error = caught.with_traceback(None)
        if look.needed is None:  # it could not even be opened
            look.choose(view.frames)
    frames = shown
    if shown is None or len(look.needed) < look.num_frames:
        frames = np.zeros((look.num_frames, view.pixels, view.pixels, 3), np.uint8)
        if shown is not None:
            frames[look.needed] = shown
    return *look.cut(frames, frame_orders), error


def show(frames, view, rng=None):
    """The patches of decoded frames uint8 [n, pixels, pixels, 3], and where: as `load_video`.

    n is what `View.seen` says. rng: for what is drawn; None where nothing is.
    """
    look = Look(view, rng)
    look.choose(len(frames))
    shown, where = look.cut(frames, ('ordered',))
    return (tuple(x[0] for x in shown) if view.tubes else shown[0]), where


def blank(view, num_orders):
    """Zeros in the shapes that `load_video` shows, in the places of some choice."""
    rng = np.random.default_rng(0)
    frames = np.zeros((view.frames, view.pixels, view.pixels, 3), np.uint8)
    look = Look(view, rng)
    look.choose(view.frames)
    return look.cut(frames, ('ordered',) * num_orders)


def patches_of(batch):
    """How many patches a video of a batch has, and how many numbers a patch: the means.

    Patches that only fill up a budget are not counted. batch: with `patches` and `where`, numpy
    arrays or shapes; of shapes all are counted.
    """
    where, patches = batch['where'], batch['patches']
    each = [x.shape[1:] for x in (patches if isinstance(patches, tuple) else (patches,))]
    k = where.shape[1]
    values = sum(n * v for n, v in each) / k
    if isinstance(where, np.ndarray) and (where == NOT_THERE).any():
        k = float((where[..., 0] != NOT_THERE).sum(1).mean())
    return k, values


def in_words(view):
    """How a view sees videos, in a line; '' where it is by all or some of a grid of tubelets."""
    if view.tubes:
        counts = zip(view.tubes, view.shapes, strict=True)
        return 'tubes of ' + ', '.join(f'{tube.name} ({k})' for tube, (k, _) in counts)
    if not view.token_budget:
        return ''
    by = ', drawn by how much they change' if view.by_motion else ''
    return (
        f'{view.token_budget} patches of each video{by}, at {view.fps:g} frames per second; of '
        f'longer ones the first {view.frames / view.fps:g} s'
    )


def reorder(frames, frame_order, rng):
    """frames [n, ...] in one of FRAME_ORDERS, to see what time is worth.

    'shuffled' shows the same frames in a random order, 'one_frame' the middle frame at all times.
    """
    assert frame_order in FRAME_ORDERS, frame_order
    if frame_order == 'shuffled':
        return frames[rng.permutation(len(frames))]
    if frame_order == 'one_frame':
        return np.broadcast_to(frames[len(frames) // 2], frames.shape)
    return frames
