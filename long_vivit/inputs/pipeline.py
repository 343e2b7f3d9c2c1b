"""Batches as a pure function of the step: `batches[s]` is step s's batch, on any number of hosts.

An example's place in the global stream decides its frames, its patches and its caption, and each
host reads the places that its devices need (`rows`). So a run resumed at step s, or on another
number of hosts, or on another mesh, sees what the unbroken run would have seen, in the same order.
Grain only brings the threads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import grain
import numpy as np

from long_vivit.inputs import sentences, short_text
from long_vivit.inputs.looks import FRAME_ORDERS, View, blank, load_video
from long_vivit.inputs.text import text_key

__all__ = ['FRAME_ORDERS', 'View']


PIECES = 2  # of a batch for each thread that reads: some videos take longer than others


class Order:
    """Which record stands at place i of an endless stream of shuffled epochs.

    Records that share a group stay together, so that order twins meet in one batch. `seed` is a
    sequence of integers.
    """

    def __init__(self, num_records, group_size, seed):
        if num_records < 1 or num_records % group_size:
            raise ValueError(f'{num_records} records do not make groups of {group_size}')
        self.num_records, self.group_size, self.seed = num_records, group_size, seed
        self._permutation = lru_cache(maxsize=4)(self._shuffle)

    def _shuffle(self, epoch):
        rng = np.random.default_rng([*self.seed, epoch])
        return rng.permutation(self.num_records // self.group_size)

    def __getitem__(self, place):
        epoch, place = divmod(place, self.num_records)
        group, member = divmod(place, self.group_size)
        return int(self._permutation(epoch)[group]) * self.group_size + member


def pick_text(example, kind, rng):
    """The text of an example to train on; one of several captions is drawn.

    kind: 'caption', 'long_caption' (falls back on nothing: an example without one is an error),
    or 'any': a long caption where there is one, else a caption.
    """
    texts = example.captions if kind == 'caption' else example.long_captions
    if not texts and kind == 'any':
        texts = example.captions
    if not texts:
        raise ValueError(
            f'{example.id}: has no {"caption" if kind == "caption" else "long_caption"}; '
            "give it one, or set the stage's text to 'any' or to the kind of text that it has"
        )
    return texts[0] if len(texts) == 1 else texts[rng.integers(len(texts))]


def read_text(example, view, rng):
    """`pick_text`; of a long caption, where the view says 'sample', some sentences are drawn."""
    text = pick_text(example, view.text, rng)
    is_long = view.text != 'caption' and example.long_captions
    return sentences.sample(text, rng) if is_long and view.sentences == 'sample' else text


@dataclass(frozen=True)
class Examples:
    """Training examples by their place in the global stream: dicts of arrays without a batch dim.

    `video_key` is the record's number in the source; `error` (VideoError or None) stays on the
    host.
    """

    source: object
    order: Order
    view: View
    tokenizer: object
    seed: tuple  # of integers

    def masked(self, rate):
        """The same examples at another masking rate."""
        return replace(self, view=replace(self.view, mask_rate=rate))

    def __getitem__(self, place):
        index = self.order[place]
        rng = np.random.default_rng([*self.seed, 1, place])
        example = self.source[index]
        shown, where, error = load_video(example, self.view, rng)
        text = read_text(example, self.view, rng)
        tokens = self.tokenizer.encode([text], self.view.text_length)
        return {
            'patches': in_order(shown, 0),
            'where': where,
            'tokens': tokens.ids[0],
            'lengths': tokens.lengths[0],
            'ok': np.bool_(error is None),
            'text_key': text_key(text),
            'video_key': np.int32(index),
            'cut': np.bool_(tokens.num_tokens[0] > self.view.text_length),
            'id': example.id,
            'error': error,
            'source': 'images' if self.view.frames == 1 else 'videos',
            **short_text.read(example, text, self.view, self.tokenizer, rng),
        }


# Keys of a batch that never go to a device.
HOST_ONLY = ('cut', 'short_cut', 'id', 'error', 'source')


def stack(examples):
    """List of example dicts -> one dict of arrays [b, ...]; id, error and source become lists.

    The patches of several kernels, a tuple of arrays, become a tuple.
    """

    def one(key, values):
        if key in ('id', 'error', 'source'):
            return values
        if isinstance(values[0], tuple):
            return tuple(map(np.stack, zip(*values, strict=True)))
        return np.stack(values)

    return {key: one(key, [e[key] for e in examples]) for key in examples[0]}


def in_order(shown, o):
    """The patches of one frame order of what `load_video` shows."""
    return tuple(x[o] for x in shown) if isinstance(shown, tuple) else shown[o]


def here(batches):
    """The rows of a batch that this host makes: `batches.rows`, or all."""
    return range(batches.batch) if batches.rows is None else batches.rows


@dataclass(frozen=True)
class Batches:
    """`batches[s]`: the `rows` of the global batch of step s, in the order of `rows`.

    rates: (steps before it, masking rate) in order, the first with 0; it stands until the next one.
    None: that of the views.

    With `images`, a share `image_ratio` of the steps takes an image batch instead of a video one,
    evenly spread; each stream goes on where it stopped.
    """

    videos: Examples
    batch: int  # of all hosts together
    steps: int
    images: Examples | None = None
    image_ratio: float = 0.0
    rows: Sequence[int] | None = None  # of the global batch, that this host needs; None: all
    rates: Sequence[tuple[int, float]] | None = None

    def __len__(self):
        return self.steps

    def num_images_before(self, step):
        """How many of the first `step` steps took images."""
        return int(step * self.image_ratio) if self.images else 0

    def __getitem__(self, step):
        return stack(self.some(step, here(self)))

    def some(self, step, rows):
        """The examples in these rows of the global batch of a step, not stacked."""
        count = self.num_images_before(step)
        is_image = self.num_images_before(step + 1) > count
        examples = self.images if is_image else self.videos
        first = (count if is_image else step - count) * self.batch
        if self.rates is not None:
            examples = examples.masked([rate for begin, rate in self.rates if begin <= step][-1])
        return [examples[first + int(row)] for row in rows]


@dataclass(frozen=True)
class Clips:
    """The videos of a source in order, for scoring: `clips[j]` is batch j, the last one shorter.

    Each video is decoded once and shown in each of `frame_orders` (o of FRAME_ORDERS): patches
    uint8 [b, o, k, r*p*q*c], where int32 [b, k, 3], id, error. With `rows`, it has those places of
    the batch instead; places past its end are zeros without id.
    """

    source: object
    view: View
    batch: int
    frame_orders: tuple = ('ordered',)
    seed: int = 0
    rows: Sequence[int] | None = None

    def __len__(self):
        return -(-len(self.source) // self.batch)

    def __getitem__(self, j):
        return stack(self.some(j, here(self)))

    def some(self, j, rows):
        """The videos in these places of batch j, not stacked."""
        first = j * self.batch
        end = min(first + self.batch, len(self.source))
        places = [first + int(row) for row in rows]
        if self.rows is None:
            places = [place for place in places if place < end]
        return [self._clip(place) if place < end else self._blank() for place in places]

    def _clip(self, index):
        example = self.source[index]
        rng = np.random.default_rng([self.seed, 2, index])
        shown, where, error = load_video(example, self.view, rng, self.frame_orders)
        return {'patches': shown, 'where': where, 'id': example.id, 'error': error}

    def _blank(self):
        shown, where = blank(self.view, len(self.frame_orders))
        return {'patches': shown, 'where': where, 'id': '', 'error': None}


@dataclass(frozen=True)
class Pieces:
    """Batches in pieces, for threads to share: piece i is part of batch i // each, not stacked."""

    batches: Batches | Clips
    each: int  # pieces of a batch

    def __len__(self):
        return len(self.batches) * self.each

    def __getitem__(self, i):
        j, piece = divmod(i, self.each)
        rows = here(self.batches)
        ends = [len(rows) * p // self.each for p in (piece, piece + 1)]
        return self.batches.some(j, rows[slice(*ends)])


def read_ahead(batches, *, start=0, threads=1) -> Iterator[dict]:
    """Iterate from batch `start`; all `threads` threads work on the same one or two batches.

    So however many threads there are, the host holds few batches beside the one that is given: one
    that waits, one that waits to be stacked, and the pieces that are being made.
    """
    if start >= len(batches):
        return iter(())
    pieces = Pieces(batches, min(len(here(batches)), PIECES * threads))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=pieces.each)
    read = grain.MapDataset.source(pieces)[start * pieces.each :].to_iter_dataset(options)
    whole = read.batch(pieces.each, batch_fn=lambda parts: stack([e for p in parts for e in p]))
    # A thread of its own puts batches together, since whoever iterates has steps to start.
    return iter(grain.experimental.ThreadPrefetchIterDataset(whole, prefetch_buffer_size=1))
