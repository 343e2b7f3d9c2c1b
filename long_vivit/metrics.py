"""Retrieval scores that can be believed: tie-safe, exact, the same for every chunk size.

Everything here is numpy on the host. Recall, chance and accuracy are shares in [0, 1]; ranks are
1-based. A tie counts by its expected value over random orders of the tied items, so an encoder that
gives every input the same embedding scores exactly chance, not 100%.

Scores of embeddings are exact: unit vectors are rounded to multiples of 2^-26, so each product is a
multiple of 2^-52, each partial sum stays below 2, and float64 holds all of them without rounding.
The order in which a BLAS library adds up then cannot matter; equal embeddings have equal scores.
"""

import numpy as np

from long_vivit.ranking import CHUNK_ENTRIES, Retrieval, ragged, retrieval, score_rows

__all__ = ['Retrieval', 'both_ways', 'retrieval', 'twin_accuracy']

_STEP = 2.0**26


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

    t2v = score_rows(
        lambda a, b: _dot(text[a:b], video), len(text), len(video),
        *ragged(true_videos, len(text), len(video)), owner, collapsed, chunk,
    )  # fmt: skip
    v2t = score_rows(
        caption_sets, len(named), len(named),
        *ragged(true_sets, len(named), len(named)), named, collapsed,
        chunk or max(1, CHUNK_ENTRIES // len(text)),
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
