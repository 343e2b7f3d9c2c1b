"""How sure a score is: bootstrap intervals over queries, and paired ones between two systems."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with its percentile bootstrap interval, all three in the unit of the hits."""

    value: float
    low: float
    high: float
    level: float = 0.95


def recall_interval(
    hits: np.ndarray, video: np.ndarray | None = None, *,
    level: float = 0.95, draws: int = 2000, seed: int = 0,
) -> Interval:  # fmt: skip
    """Returns mean(hits) with its bootstrap interval; whole videos are resampled, not captions.

    `hits` float [q] and `video` int [q] are `Retrieval.hits` and `Retrieval.video`; without `video`
    each query is its own unit. The same seed gives the same interval. When all hits are equal the
    interval has no width, which says nothing about certainty: mind the number of queries.
    """
    hits = np.asarray(hits, np.float64)
    if hits.ndim != 1 or not len(hits) or not np.isfinite(hits).all():
        raise ValueError(f'hits must be finite, float [queries], not empty; got {hits.shape}.')
    unit = np.arange(len(hits)) if video is None else np.asarray(video)
    if unit.shape != hits.shape:
        raise ValueError(f'hits {hits.shape} and video {unit.shape} must have equal shapes.')
    _, unit = np.unique(unit, return_inverse=True)
    total, count = np.bincount(unit, hits), np.bincount(unit)
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for d in range(draws):
        drawn = rng.integers(0, len(total), len(total))
        means[d] = total[drawn].sum() / count[drawn].sum()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(math.fsum(hits) / len(hits), float(low), float(high), level)


def paired_difference(
    hits_a: np.ndarray, hits_b: np.ndarray, video: np.ndarray | None = None, **kwargs
) -> Interval:
    """Returns mean(hits_a) - mean(hits_b) with a *paired* interval: same queries, same draws.

    An interval that excludes 0 means that the two systems differ on this set. Arguments as in
    `recall_interval`; both arrays float [q], query by query.
    """
    a, b = np.asarray(hits_a, np.float64), np.asarray(hits_b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f'Two systems must answer the same queries; got {a.shape} and {b.shape}.')
    return recall_interval(a - b, video, **kwargs)
