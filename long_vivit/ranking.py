"""Ranks and recall of one matrix of scores, tie-safe, whatever the scores are of.

A tie counts by its expected value over random orders of the tied items. Recall and chance are
shares in [0, 1]; ranks are 1-based.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

KS = (1, 5, 10)
CHUNK_ENTRIES = 2**23  # scores held at once: 64 MiB in float64


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
    items, starts = ragged(positives, num_queries, num_items)
    return score_rows(lambda a, b: scores[a:b], num_queries, num_items, items, starts)


def score_rows(
    rows: Callable[[int, int], np.ndarray], num_queries: int, num_items: int,
    items: np.ndarray, starts: np.ndarray,
    video: np.ndarray | None = None, collapsed: bool = False, chunk: int | None = None,
) -> Retrieval:  # fmt: skip
    """Ranks `rows(a, b)` [b - a, n] by chunks; query i's true items lie from starts[i] on."""
    chunk = chunk or max(1, CHUNK_ENTRIES // num_items)
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


def ragged(
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


def _mean(values: np.ndarray) -> float:
    return math.fsum(values) / len(values)
