"""Each rule against values worked out by hand, and the whole against slow, plain Python loops."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from long_vivit import bootstrap, metrics


def unit(*shape, seed=0):
    z = np.random.default_rng(seed).normal(size=shape)
    return (z / np.linalg.norm(z, axis=-1, keepdims=True)).astype(np.float32)


def repeated(z, n):
    return np.repeat(z[:1], n, axis=0)


# ---- one direction, by hand


def test_one_hot_scores_are_perfect():
    got = metrics.retrieval(np.eye(20), np.arange(20))
    assert (got.recall_at_1, got.recall_at_5, got.recall_at_10) == (1, 1, 1)
    assert (got.median_rank, got.mean_rank) == (1, 1)
    assert (got.num_queries, got.num_items, got.chance_at_1) == (20, 20, 0.05)
    assert not got.collapsed and got.num_flat == 0


@pytest.mark.parametrize('n', [1, 2, 7, 1000])
def test_constant_scores_are_exactly_chance(n):
    got = metrics.retrieval(np.full((n, n), 0.3), np.arange(n))
    assert got.recall_at_1 == got.chance_at_1 == pytest.approx(1 / n, rel=1e-14)
    assert got.recall_at_5 == got.chance_at_5 == pytest.approx(min(5 / n, 1), rel=1e-14)
    assert got.recall_at_10 == got.chance_at_10 == pytest.approx(min(10 / n, 1), rel=1e-14)
    assert got.median_rank == got.mean_rank == got.chance_rank == (n + 1) / 2
    assert got.collapsed == (n > 1) and got.num_flat == (n if n > 1 else 0)


def test_half_tied():
    # Query 0: one item above, the true one tied with one other: places 2 and 3, rank 2.5.
    # Query 1: the true item is tied with one other for the first place: rank 1.5, R@1 1/2.
    # Query 2: alone at the bottom of 4.
    scores = np.array([[0.5, 0.9, 0.5, 0.1], [0.7, 0.7, 0.2, 0.1], [0.4, 0.3, 0.2, 0.9]])
    got = metrics.retrieval(scores, np.array([0, 1, 2]))
    assert got.ranks.tolist() == [2.5, 1.5, 4]
    assert got.hits.tolist() == [0, 0.5, 0]
    assert got.recall_at_1 == pytest.approx(1 / 6)
    assert got.median_rank == 2.5 and got.mean_rank == pytest.approx(8 / 3)


def test_reversed_is_the_worst():
    got = metrics.retrieval(-np.eye(12), np.arange(12))
    assert (got.recall_at_1, got.recall_at_10, got.median_rank) == (0, 0, 12)


def test_several_true_items_the_best_counts():
    scores = np.array([[0.1, 0.9, 0.5, 0.4]])
    for positives in ([[0, 2]], [[2, 0, 2]], np.array([[True, False, True, False]])):
        assert metrics.retrieval(scores, positives).ranks.tolist() == [2]


def test_several_true_items_tied():
    # 2 true of 4 tied: the first place is a true one in 1/2 of the orders; the first true one is at
    # place (4 + 1) / (2 + 1) on average.
    got = metrics.retrieval(np.zeros((1, 4)), [[1, 3]])
    assert got.recall_at_1 == got.chance_at_1 == pytest.approx(0.5)
    assert got.mean_rank == pytest.approx(5 / 3) and got.recall_at_5 == 1


def test_ragged_positives():
    scores = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1]])
    assert metrics.retrieval(scores, [[1], [0, 2]]).ranks.tolist() == [2, 1]


def test_half_precision_is_ranked():
    assert metrics.retrieval(np.eye(3, dtype=np.float16), np.arange(3)).recall_at_1 == 1


# ---- refusals


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_non_finite_scores_are_refused_and_counted(bad):
    scores = np.eye(5)
    scores[0, 1] = scores[3, 3] = bad
    with pytest.raises(ValueError, match='2 of 25 scores are NaN or infinite'):
        metrics.retrieval(scores, np.arange(5))


@pytest.mark.parametrize(
    ('positives', 'message'),
    [
        ([[0], []], '1 of 2 queries have no true item'),
        ([[0], [3]], r'0\.\.2: 0\.\.3'),
        ([[0], [-1]], r'0\.\.2: -1\.\.0'),
        ([[0]], '1 rows for 2 queries'),
        ([[0.5], [1.0]], 'must be bool'),
        (np.ones((2, 2), bool), r'\(2, 3\): \(2, 2\)'),
    ],
)
def test_bad_positives_are_refused(positives, message):
    with pytest.raises(ValueError, match=message):
        metrics.retrieval(np.zeros((2, 3)), positives)


def test_bad_embeddings_are_refused():
    z = unit(4, 8)
    with pytest.raises(ValueError, match='z_text must be unit vectors'):
        metrics.both_ways(z, 2 * z, np.arange(4))
    broken = z.copy()
    broken[1, 2] = np.nan
    with pytest.raises(ValueError, match='1 of 32 values of z_video'):
        metrics.both_ways(broken, z, np.arange(4))
    with pytest.raises(ValueError, match='embedding size'):
        metrics.both_ways(z, unit(4, 9), np.arange(4))
    with pytest.raises(ValueError, match=r'0\.\.3; got 1\.\.4'):
        metrics.both_ways(z, z, np.arange(4) + 1)
    with pytest.raises(ValueError, match='owner must be int'):
        metrics.both_ways(z, z, np.arange(4.0))
    with pytest.raises(ValueError, match='text_key'):
        metrics.both_ways(z, z, np.arange(4), merge_equal_captions=True)


# ---- both directions


def test_perfect_embeddings():
    z = unit(30, 16)
    for got in metrics.both_ways(z, z, np.arange(30)).values():
        assert got.recall_at_1 == 1 and not got.collapsed


@pytest.mark.parametrize('which', ['video', 'text', 'both'])
def test_a_constant_encoder_scores_exactly_chance_and_is_flagged(which):
    # 37 entries: BLAS kernels treat the ragged edge of a matrix otherwise than its middle, which
    # tells equal vectors apart when scores are not exact.
    n = 37
    z_video, z_text = unit(n, 19, seed=1), unit(n, 19, seed=2)
    z_video = repeated(z_video, n) if which != 'text' else z_video
    z_text = repeated(z_text, n) if which != 'video' else z_text
    for got in metrics.both_ways(z_video, z_text, np.arange(n)).values():
        assert got.recall_at_1 == pytest.approx(1 / n, rel=1e-12)
        assert got.recall_at_10 == pytest.approx(10 / n, rel=1e-12)
        assert got.mean_rank == pytest.approx((n + 1) / 2)
        assert got.collapsed


def test_several_captions_by_hand():
    z_video = np.eye(3, dtype=np.float32)
    c, s = np.cos(0.3), np.sin(0.3)  # video 0's second caption is nearer to video 1
    z_text = np.array([[1, 0, 0], [s, c, 0], [0, 0.6, 0.8]], np.float32)
    got = metrics.both_ways(z_video, z_text, np.array([0, 0, 2]))
    t2v, v2t = got['text_to_video'], got['video_to_text']
    assert t2v.ranks.tolist() == [1, 2, 1] and t2v.num_items == 3
    # Video 1 has no caption: an item of text-to-video, no query of video-to-text.
    assert v2t.ranks.tolist() == [1, 1] and v2t.num_items == v2t.num_queries == 2
    assert v2t.video.tolist() == [0, 2] and t2v.video.tolist() == [0, 0, 2]


def test_equal_captions_of_two_videos():
    z_video = unit(3, 8)
    z_text = z_video[[0, 0, 2]]  # videos 0 and 1 have the same caption
    plain = metrics.both_ways(z_video, z_text, np.arange(3))
    merged = metrics.both_ways(
        z_video, z_text, np.arange(3), text_key=np.array([7, 7, 9]), merge_equal_captions=True
    )
    assert plain['text_to_video'].hits.tolist() == [1, 0, 1]
    assert merged['text_to_video'].hits.tolist() == [1, 1, 1]
    assert plain['video_to_text'].hits[0] == 0.5 and merged['video_to_text'].hits[0] == 1
    assert merged['text_to_video'].chance_at_1 == pytest.approx((2 / 3 + 2 / 3 + 1 / 3) / 3)


@pytest.mark.parametrize('chunk', [1, 3, 64, None])
def test_chunked_equals_dense(chunk):
    z_video, z_text = unit(50, 24, seed=3), unit(120, 24, seed=4)
    z_video[10:20] = z_video[10]  # ties
    owner = np.random.default_rng(5).integers(0, 50, 120)
    dense = metrics.both_ways(z_video, z_text, owner, chunk=1000)
    got = metrics.both_ways(z_video, z_text, owner, chunk=chunk)
    for name in dense:
        assert got[name].to_dict() == dense[name].to_dict()
        np.testing.assert_array_equal(got[name].ranks, dense[name].ranks)


def test_to_dict_is_plain():
    z = unit(4, 8)
    values = metrics.both_ways(z, z, np.arange(4))['text_to_video'].to_dict()
    assert all(type(v) in (int, float, bool) for v in values.values()), values
    assert 'hits' not in values


# ---- properties, and a slow reference


def slow_row(row, true, k):
    """Rank and hit of one query, by going through every order of the items tied with the best."""
    best = max(row[t] for t in true)
    above = [i for i, x in enumerate(row) if x > best]
    tied = [i for i, x in enumerate(row) if x == best]
    ranks, hits = [], []
    for order in itertools.permutations(tied):
        first = next(place for place, i in enumerate(order) if i in true)
        ranks.append(len(above) + first + 1)
        hits.append(ranks[-1] <= k)
    return sum(ranks) / len(ranks), sum(hits) / len(hits)


@st.composite
def problems(draw):
    q, n = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    row = st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5]), min_size=n, max_size=n)
    true = st.lists(st.integers(0, n - 1), min_size=1, max_size=n)
    return [draw(row) for _ in range(q)], [draw(true) for _ in range(q)]


@settings(max_examples=150)
@given(problems())
def test_equals_the_mean_over_all_orders_of_tied_items(problem):
    scores, positives = problem
    got = metrics.retrieval(np.array(scores), positives)
    for k, recall in ((1, got.recall_at_1), (5, got.recall_at_5), (10, got.recall_at_10)):
        slow = [slow_row(row, true, k) for row, true in zip(scores, positives, strict=True)]
        assert recall == pytest.approx(sum(hit for _, hit in slow) / len(slow))
        np.testing.assert_allclose(got.ranks, [rank for rank, _ in slow])


@settings(max_examples=50)
@given(problems(), st.randoms(use_true_random=False))
def test_order_of_items_does_not_matter(problem, random):
    scores, positives = np.array(problem[0]), problem[1]
    order = list(range(scores.shape[1]))
    random.shuffle(order)
    place = np.argsort(order)
    moved = metrics.retrieval(scores[:, order], [place[true] for true in positives])
    assert moved.to_dict() == metrics.retrieval(scores, positives).to_dict()


def slow_both_ways(z_video, z_text, owner, key):
    """Hits at 1 and ranks (strict inequalities: random embeddings do not tie), merged by `key`."""
    n, m = len(z_video), len(z_text)
    s = [[float(np.dot(z_video[v], z_text[c])) for c in range(m)] for v in range(n)]
    t2v, v2t = [], []
    for c in range(m):
        true = {owner[d] for d in range(m) if key[d] == key[c]}
        best = max(s[v][c] for v in true)
        t2v.append(1 + sum(s[v][c] > best for v in range(n)))
    for v in sorted(set(owner)):
        mine = {key[c] for c in range(m) if owner[c] == v}
        sets = {u: max(s[v][c] for c in range(m) if owner[c] == u) for u in set(owner)}
        true = {owner[c] for c in range(m) if key[c] in mine}
        best = max(sets[u] for u in true)
        v2t.append(1 + sum(x > best for x in sets.values()))
    return t2v, v2t


@pytest.mark.parametrize('merge', [False, True])
def test_both_ways_equals_plain_loops(merge):
    rng = np.random.default_rng(8)
    z_video, z_text = unit(13, 6, seed=6), unit(31, 6, seed=7)
    owner = rng.permutation(np.concatenate([np.arange(9), rng.integers(0, 9, 22)]))
    key = rng.integers(0, 25, 31) if merge else np.arange(31)
    t2v, v2t = slow_both_ways(z_video, z_text, owner, key)
    got = metrics.both_ways(z_video, z_text, owner, text_key=key, merge_equal_captions=merge)
    assert got['text_to_video'].ranks.tolist() == t2v
    assert got['video_to_text'].ranks.tolist() == v2t
    assert got['video_to_text'].recall_at_1 == pytest.approx(np.mean(np.array(v2t) == 1))


# ---- twins


def test_twins_perfect_and_swapped():
    z, group = unit(20, 16), np.arange(20) // 2
    assert metrics.twin_accuracy(z, z, group) == 1
    assert metrics.twin_accuracy(z, z[np.arange(20) ^ 1], group) == 0


def test_an_order_blind_encoder_scores_exactly_half():
    group = np.arange(20) // 2
    video, text = unit(20, 16), unit(20, 16, seed=9)
    blind = video[np.arange(20) // 2 * 2]  # twins' videos look the same
    assert metrics.twin_accuracy(blind, text, group) == 0.5
    assert metrics.twin_accuracy(video, text[np.arange(20) // 2 * 2], group) == 0.5
    assert metrics.twin_accuracy(repeated(video, 20), repeated(text, 20), group) == 0.5


def test_twins_by_hand():
    # v0 is nearer to c0 (1 > 0), v1 to c0 as well (0.8 > 0.6): 1/2 by captions.
    # c0 is nearer to v0 (1 > 0.8), c1 to v1 (0.6 > 0): 1 by videos. The third is alone.
    video = np.array([[1, 0], [0.8, 0.6], [0, 1]])
    text = np.array([[1, 0], [0, 1], [0, 1]])
    assert metrics.twin_accuracy(video, text, np.array([4, 4, 5])) == 0.75


def test_twins_equal_plain_loops_in_any_order():
    video, text = unit(24, 5, seed=10), unit(24, 5, seed=11)
    group = np.random.default_rng(12).integers(0, 9, 24)  # groups of 1, 2, 3 ...
    wins = []
    for i, j in itertools.permutations(range(24), 2):
        if group[i] == group[j]:
            own = float(video[i] @ text[i])
            wins += [own > float(video[i] @ text[j]), own > float(video[j] @ text[i])]
    assert metrics.twin_accuracy(video, text, group) == pytest.approx(np.mean(wins))


def test_twins_need_a_pair():
    with pytest.raises(ValueError, match='share a group'):
        metrics.twin_accuracy(unit(3, 4), unit(3, 4), np.arange(3))
    with pytest.raises(ValueError, match='one row per example'):
        metrics.twin_accuracy(unit(3, 4), unit(2, 4), np.arange(3))


# ---- intervals


def test_interval_is_deterministic_and_as_wide_as_the_binomial():
    hits = (np.arange(1000) % 2).astype(float)
    first, second = bootstrap.recall_interval(hits), bootstrap.recall_interval(hits)
    assert first == second and first.value == 0.5
    half = 1.96 * math.sqrt(0.25 / 1000)
    assert first.high - first.value == pytest.approx(half, rel=0.1)
    assert first.value - first.low == pytest.approx(half, rel=0.1)


def test_interval_resamples_videos():
    # 20 equal captions per video tell no more than one: the interval is that of 50 videos.
    hits = np.repeat((np.arange(50) % 2).astype(float), 20)
    naive = bootstrap.recall_interval(hits)
    whole = bootstrap.recall_interval(hits, np.repeat(np.arange(50), 20))
    assert whole.high - whole.low > 3.5 * (naive.high - naive.low)


def test_paired_difference():
    rng = np.random.default_rng(13)
    b = (rng.random(400) < 0.5).astype(float)
    a = np.where(rng.random(400) < 0.06, 1.0, b)  # the same but for a few that got better
    got = bootstrap.paired_difference(a, b)
    assert got.value == pytest.approx(a.mean() - b.mean()) and got.low > 0
    alone_a, alone_b = bootstrap.recall_interval(a), bootstrap.recall_interval(b)
    assert alone_a.low < alone_b.high  # unpaired intervals overlap
    same = bootstrap.paired_difference(a, a)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_bad_hits_are_refused():
    with pytest.raises(ValueError, match='same queries'):
        bootstrap.paired_difference(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match='finite'):
        bootstrap.recall_interval(np.array([1, np.nan]))
    with pytest.raises(ValueError, match='equal shapes'):
        bootstrap.recall_interval(np.ones(3), np.ones(4))
