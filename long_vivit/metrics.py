"""Retrieval scores that can be believed: tie-safe, exact, the same for every chunk size.

Everything here is numpy on the host. Recall, chance and accuracy are shares in [0, 1]; ranks are
1-based. A tie counts by its expected value over random orders of the tied items, so an encoder that
gives every input the same embedding scores exactly chance, not 100%.

Scores of embeddings are exact: unit vectors are rounded to multiples of 2^-26, so each product is a
multiple of 2^-52, each partial sum stays below 2, and float64 holds all of them without rounding.
The order in which a BLAS library adds up then cannot matter; equal embeddings have equal scores.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

KS = (1, 5, 10)
_STEP = 2.0**26
_CHUNK_ENTRIES = 2**23  # scores held at once: 64 MiB in float64


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Scores of one direction of retrieval. `to_dict()` leaves out the arrays.

    Recall and chance are shares in [0, 1], ranks are 1-based and expected over ties (with one true
    item: the mid rank); `chance_rank` is a constant encoder's median rank. `collapsed` is True when
    the scores tell no two items apart or all embeddings of one side are equal; `num_flat` counts
    queries whose scores are all equal.
    """

    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    median_rank: float
    mean_rank: float
    chance_at_1: float
    chance_at_5: float
    chance_at_10: float
    chance_rank: float
    num_queries: int
    num_items: int
    num_flat: int
    collapsed: bool
    hits: np.ndarray = dataclasses.field(repr=False, compare=False)  # float64 [q]: expected R@1
    ranks: np.ndarray = dataclasses.field(repr=False, compare=False)  # float64 [q], 1-based
    video: np.ndarray = dataclasses.field(repr=False, compare=False)  # int64 [q]: bootstrap unit

    def to_dict(self) -> dict[str, float | int | bool]:
        """Returns the plain numbers (for results.json)."""
        arrays = ('hits', 'ranks', 'video')
        names = [field.name for field in dataclasses.fields(self) if field.name not in arrays]
        return {name: getattr(self, name) for name in names}


def retrieval(scores: np.ndarray, positives: np.ndarray | Sequence) -> Retrieval:
    """Scores a matrix of similarities.

    Args:
      scores: float [q, n], higher is nearer.
      positives: the true items of each query: bool [q, n], int [q], or q int sequences (ragged).
        With several true items the best one counts.

    Raises:
      ValueError: a score is NaN or infinite, a query has no true item, or an index is out of range.
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f'scores must be [queries, items], neither empty; got {scores.shape}.')
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float32)
    num_queries, num_items = scores.shape
    items, starts = _ragged(positives, num_queries, num_items)
    return _score(lambda a, b: scores[a:b], num_queries, num_items, items, starts)


def both_ways(
    z_video: np.ndarray,
    z_text: np.ndarray,
    owner: np.ndarray,
    *,
    text_key: np.ndarray | None = None,
    merge_equal_captions: bool = False,
    chunk: int | None = None,
) -> dict[str, Retrieval]:
    """Scores text-to-video and video-to-text retrieval of unit vectors by cosine.

    Text to video: every caption is a query, every video an item. Video to text: every video that
    has a caption is a query, and the items are the videos' caption sets, each scored by its best
    caption (CLIP4Clip's rule); with one caption per video these are the captions themselves.

    Args:
      z_video: float [n, e] unit vectors.
      z_text: float [m, e] unit vectors.
      owner: int [m], the video each caption belongs to.
      text_key: int [m], equal for equal captions; needed to merge.
      merge_equal_captions: captions of different videos with one key are joint positives (name it
        in the protocol: it raises recall). Default: only a caption's own video is right.
      chunk: queries scored at once; changes memory only, never a result.

    Returns:
      {'text_to_video': Retrieval, 'video_to_text': Retrieval}.

    Raises:
      ValueError: shapes that disagree, non-finite values, vectors that are not unit vectors.
    """
    video, text = _fixed_point(z_video, 'z_video'), _fixed_point(z_text, 'z_text')
    owner = np.asarray(owner)
    if video.shape[1] != text.shape[1]:
        raise ValueError(f'z_video {video.shape} and z_text {text.shape} differ in embedding size.')
    if owner.shape != (len(text),) or owner.dtype.kind not in 'iu':
        raise ValueError(f'owner must be int [{len(text)}]; got {owner.dtype} {owner.shape}.')
    if owner.min() < 0 or owner.max() >= len(video):
        raise ValueError(f'owner must lie in 0..{len(video) - 1}; got {owner.min()}..{owner.max()}')
    collapsed = any(len(z) > 1 and (z == z[0]).all() for z in (video, text))

    order = np.argsort(owner, kind='stable')
    named, first = np.unique(owner[order], return_index=True)  # the videos that have captions
    by_owner = text[order]
    true_videos, true_sets = owner, np.arange(len(named))
    if merge_equal_captions:
        true_videos, true_sets = _merged(owner, text_key, named)

    def caption_sets(a: int, b: int) -> np.ndarray:
        return np.maximum.reduceat(_dot(video[named[a:b]], by_owner), first, axis=1)

    t2v = _score(
        lambda a, b: _dot(text[a:b], video), len(text), len(video),
        *_ragged(true_videos, len(text), len(video)), owner, collapsed, chunk,
    )  # fmt: skip
    v2t = _score(
        caption_sets, len(named), len(named),
        *_ragged(true_sets, len(named), len(named)), named, collapsed,
        chunk or max(1, _CHUNK_ENTRIES // len(text)),
    )  # fmt: skip
    return {'text_to_video': t2v, 'video_to_text': v2t}


def twin_accuracy(z_video: np.ndarray, z_text: np.ndarray, group: np.ndarray) -> float:
    """Returns how often an example is nearer to its own partner than to its twin's, in [0, 1].

    For every two examples of one group: is the video's own caption scored above the twin's, and the
    caption's own video above the twin's? A tie counts half; the result is the mean of the two
    directions. An encoder blind to what tells twins apart scores exactly 0.5, a perfect one 1.

    Args:
      z_video, z_text: float [n, e] unit vectors, row i of both from example i.
      group: int [n].

    Raises:
      ValueError: no two examples share a group, or the shapes disagree.
    """
    video, text = _fixed_point(z_video, 'z_video'), _fixed_point(z_text, 'z_text')
    group = np.asarray(group)
    if video.shape != text.shape or group.shape != (len(video),):
        raise ValueError(
            'z_video, z_text and group must have one row per example; got '
            f'{video.shape}, {text.shape} and {group.shape}.'
        )
    order = np.argsort(group, kind='stable')
    members = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    pairs = [(i, j) for row in members for i in row for j in row if i != j]
    if not pairs:
        raise ValueError('Twin accuracy needs two examples that share a group; every group has 1.')
    i, j = np.array(pairs).T
    own, other_text, other_video = (
        (video[a] * text[b]).sum(axis=1).astype(np.float32) for a, b in ((i, i), (i, j), (j, i))
    )
    directions = (own - other_text, own - other_video)
    return sum(float(np.sign(d).mean(dtype=np.float64)) + 1 for d in directions) / 4


def _score(
    rows: Callable[[int, int], np.ndarray], num_queries: int, num_items: int,
    items: np.ndarray, starts: np.ndarray,
    video: np.ndarray | None = None, collapsed: bool = False, chunk: int | None = None,
) -> Retrieval:  # fmt: skip
    """Ranks `rows(a, b)` [b - a, n] by chunks; query i's true items lie from starts[i] on."""
    chunk = chunk or max(1, _CHUNK_ENTRIES // num_items)
    above, ties, true_ties, num_flat, num_bad = [], [], [], 0, 0
    for a in range(0, num_queries, chunk):
        b = min(a + chunk, num_queries)
        scores = rows(a, b)
        num_bad += scores.size - int(np.isfinite(scores).sum())
        num_flat += int((scores == scores[:, :1]).all(axis=1).sum()) if num_items > 1 else 0
        bounds, mine = starts[a : b + 1] - starts[a], items[starts[a] : starts[b]]
        true = scores[np.repeat(np.arange(b - a), np.diff(bounds)), mine]
        best = np.maximum.reduceat(true, bounds[:-1])
        equal_true = np.add.reduceat(
            true == np.repeat(best, np.diff(bounds)), bounds[:-1], dtype=int
        )
        above.append((scores > best[:, None]).sum(axis=1))
        ties.append((scores == best[:, None]).sum(axis=1) - equal_true)
        true_ties.append(equal_true)
    if num_bad:
        raise ValueError(
            f'{num_bad} of {num_queries * num_items} scores are NaN or infinite: nothing can be '
            'ranked. Look for non-finite embeddings (a diverged model?).'
        )
    above, ties, true_ties = map(np.concatenate, (above, ties, true_ties))
    ranks = above + (ties + true_ties + 1) / (true_ties + 1)
    hits = {k: _expected_hits(above, ties, true_ties, k) for k in KS}
    num_true = np.diff(starts)
    none, wrong = np.zeros_like(num_true), num_items - num_true
    chance = [_mean(_expected_hits(none, wrong, num_true, k)) for k in KS]
    chance_rank = float(np.median((num_items + 1) / (num_true + 1)))
    return Retrieval(
        *(_mean(hits[k]) for k in KS), float(np.median(ranks)), _mean(ranks),
        *chance, chance_rank, num_queries, num_items, num_flat,
        collapsed or num_flat == num_queries, hits[1], ranks,
        np.arange(num_queries) if video is None else video.astype(np.int64),
    )  # fmt: skip


def _expected_hits(above: np.ndarray, ties: np.ndarray, true: np.ndarray, k: int) -> np.ndarray:
    """Returns float64 [q]: the chance that a true item is among the first k, ties shuffled.

    `above` items are sure to come first; then `ties` wrong and `true` right ones in random order.
    With one right item this is clip((k - above) / (ties + 1), 0, 1).
    """
    places = np.clip(k - above, 0, ties + true)
    missed = np.ones(len(above))
    for i in range(k):  # each further place goes to a wrong item too
        missed *= np.where(i < places, np.maximum(ties - i, 0) / np.maximum(ties + true - i, 1), 1)
    return np.where(true == 1, places / (ties + 1), 1 - missed)


def _ragged(
    positives: np.ndarray | Sequence, num_queries: int, num_items: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (items int64 [all], starts int64 [q + 1]), without repeats, checked."""
    if len(positives) != num_queries:
        raise ValueError(f'positives has {len(positives)} rows for {num_queries} queries.')
    if getattr(positives, 'dtype', None) is np.dtype(bool):
        if positives.shape != (num_queries, num_items):
            raise ValueError(f'positives must be {(num_queries, num_items)}: {positives.shape}.')
        rows, items = np.nonzero(positives)
    else:
        lists = [np.unique(np.asarray(row)) for row in positives]
        if any(len(row) and row.dtype.kind not in 'iu' for row in lists):
            raise ValueError('positives must be bool [q, n], int [q] or q sequences of int.')
        rows = np.repeat(np.arange(num_queries), [len(row) for row in lists])
        items = np.concatenate(lists).astype(np.int64)
    count = np.bincount(rows, minlength=num_queries)
    if not count.all():
        raise ValueError(f'{(count == 0).sum()} of {num_queries} queries have no true item.')
    if items.min() < 0 or items.max() >= num_items:
        raise ValueError(f'True items must lie in 0..{num_items - 1}: {items.min()}..{items.max()}')
    return items, np.concatenate([[0], np.cumsum(count)])


def _merged(owner: np.ndarray, text_key: np.ndarray | None, named: np.ndarray):
    """Returns the true videos per caption, and the true caption sets per named video."""
    if text_key is None or np.shape(text_key) != owner.shape:
        raise ValueError('merge_equal_captions needs text_key, int with one entry per caption.')
    _, key = np.unique(text_key, return_inverse=True)
    order = np.argsort(key, kind='stable')
    sharing = np.split(owner[order], np.flatnonzero(np.diff(key[order])) + 1)
    true_videos = [sharing[k] for k in key]
    by_owner = np.argsort(owner, kind='stable')
    keys = np.split(key[by_owner], np.flatnonzero(np.diff(owner[by_owner])) + 1)
    joined = [np.concatenate([sharing[k] for k in row]) for row in keys]
    return true_videos, [np.searchsorted(named, row) for row in joined]


def _fixed_point(z: np.ndarray, name: str) -> np.ndarray:
    """Returns unit vectors [n, e] in float64, rounded to multiples of 2^-26."""
    z = np.asarray(z).astype(np.float64)
    if z.ndim != 2 or 0 in z.shape:
        raise ValueError(f'{name} must be [number, embed], neither empty; got {z.shape}.')
    if bad := z.size - int(np.isfinite(z).sum()):
        raise ValueError(f'{bad} of {z.size} values of {name} are NaN or infinite (diverged?).')
    norms = np.linalg.norm(z, axis=1)
    if abs(norms - 1).max() > 0.05:
        raise ValueError(f'{name} must be unit vectors; norms are {norms.min()}..{norms.max()}.')
    return np.rint(z * _STEP) / _STEP


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns float32 [a, b]; what is below float32's resolution was noise of the encoder."""
    return (a @ b.T).astype(np.float32)


def _mean(values: np.ndarray) -> float:
    return math.fsum(values) / len(values)
