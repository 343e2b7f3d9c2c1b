"""The in-batch NCE loss against plain loops in float64: what counts, and every gradient."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from long_vivit.losses import logit_scale, nce

B, E = 7, 5
SCALE = 3.0  # low, so that every negative has a say


def units(seed, b=B):
    z = np.random.default_rng(seed).standard_normal((b, E)).astype(np.float32)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def pairs():
    """Videos and their texts: nearer to each other than to the rest, but not much."""
    z_video = units(0)
    z_text = z_video + 1.5 * units(1)
    return z_video, z_text / np.linalg.norm(z_text, axis=1, keepdims=True)


def slow_nce(z_video, z_text, scale, ok=None, keys=None, smoothing=0.0, videos=None):
    """The loss by its definition, one row at a time, of the pairs that are ok."""
    real = [i for i in range(len(z_video)) if ok is None or ok[i]]
    keys, videos = (range(len(z_video)) if x is None else x for x in (keys, videos))
    similarity = scale * z_video.astype(np.float64) @ z_text.astype(np.float64).T
    total = 0.0
    for logits in (similarity, similarity.T):
        for i in real:
            columns = [j for j in real if j == i or (keys[j] != keys[i] and videos[j] != videos[i])]
            log_total = math.log(sum(math.exp(logits[i, j]) for j in columns))
            evenly = sum(logits[i, j] - log_total for j in columns) / len(columns)
            total -= (1 - smoothing) * (logits[i, i] - log_total) + smoothing * evenly
    return total / (2 * len(real)) if real else 0.0


def call(z_video, z_text, *, scale=SCALE, ok=None, keys=None, videos=None, **options):
    b = len(z_video)
    ok = np.ones(b, bool) if ok is None else np.asarray(ok)
    keys = np.arange(b, dtype=np.int32) if keys is None else np.asarray(keys, np.int32)
    videos = None if videos is None else np.asarray(videos, np.int32)
    return nce(z_video, z_text, jnp.log(jnp.float32(scale)), ok, keys, videos, **options)


KEYS = [4, 1, 4, 9, 1, 4, -3]
OK = [True, False, True, True, True, False, True]
VIDEOS = [0, 1, 2, 0, 4, 5, 2]


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('keys', [None, KEYS], ids=['all differ', 'some captions equal'])
@pytest.mark.parametrize('ok', [None, OK], ids=['all ok', 'two broken'])
def test_loss_is_that_of_plain_loops(ok, keys, smoothing):
    z_video, z_text = pairs()
    loss, _ = call(z_video, z_text, ok=ok, keys=keys, label_smoothing=smoothing)
    assert loss.dtype == jnp.float32 and loss.shape == ()
    assert float(loss) == pytest.approx(slow_nce(z_video, z_text, SCALE, ok, keys, smoothing), 1e-5)


def test_the_cases_above_are_different_losses():
    """Else the test above could pass with a loss that takes no notice of its arguments."""
    z = pairs()
    cases = [(), (OK,), (None, KEYS), (OK, KEYS), (None, None, 0.1)]
    cases += [(None, None, 0.0, VIDEOS), (OK, KEYS, 0.0, VIDEOS)]
    losses = [slow_nce(*z, SCALE, *case) for case in cases]
    assert min(abs(a - b) for i, a in enumerate(losses) for b in losses[:i]) > 1e-3


@pytest.mark.parametrize('keys', [None, KEYS], ids=['all differ', 'some captions equal'])
def test_two_captions_of_a_video_are_not_each_others_negatives(keys):
    """A clip that a batch holds twice, with two of its captions."""
    z_video, z_text = pairs()
    loss, _ = call(z_video, z_text, ok=OK, keys=keys, videos=VIDEOS)
    assert float(loss) == pytest.approx(
        slow_nce(z_video, z_text, SCALE, OK, keys, videos=VIDEOS), 1e-5
    )


def test_known_values():
    """Indistinguishable pairs cost log b; perfect ones nearly nothing."""
    same = np.tile(units(0)[:1], (B, 1))
    assert float(call(same, same)[0]) == pytest.approx(math.log(B), 1e-6)
    perfect = np.eye(B, dtype=np.float32)
    cost = math.log(1 + (B - 1) * math.exp(-SCALE))
    assert float(call(perfect, perfect)[0]) == pytest.approx(cost, 1e-3)


def test_equal_captions_are_no_negatives():
    """Two copies of one perfect pair: told apart they cost log 2 each, with one key nothing."""
    perfect = np.eye(B, dtype=np.float32)
    perfect[3] = perfect[0]
    keys = np.arange(B, dtype=np.int32)
    apart, _ = call(perfect, perfect, keys=keys, scale=30.0)
    assert float(apart) == pytest.approx(2 / B * math.log(2), 1e-4)
    keys[3] = keys[0]
    together, _ = call(perfect, perfect, keys=keys, scale=30.0)
    assert float(together) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_a_broken_example_is_as_if_it_were_not_there(smoothing):
    """Loss, gradients and what is watched are those of the batch without it, up to rounding."""
    z_video, z_text = pairs()
    z_video[2] = 0  # what a broken video may give
    ok = np.arange(B) != 2
    keys = np.array([5, 5, 5, 0, 1, 2, 3], np.int32)

    def value(z_video, z_text, ok, keys):
        return call(z_video, z_text, ok=ok, keys=keys, label_smoothing=smoothing)

    grad = jax.value_and_grad(value, (0, 1), has_aux=True)
    (loss, watch), grads = grad(z_video, z_text, ok, keys)
    (want, want_watch), want_grads = grad(z_video[ok], z_text[ok], ok[ok], keys[ok])
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    for got, wanted in zip(grads, want_grads, strict=True):
        np.testing.assert_allclose(got[ok], wanted, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(got[2], 0)
    for key, wanted in want_watch.items():
        np.testing.assert_allclose(watch[key], wanted, rtol=1e-6, err_msg=key)


def test_a_batch_without_any_real_example_costs_nothing():
    def value(*arguments):
        return nce(*arguments, np.zeros(B, bool), np.arange(B, dtype=np.int32))

    z = np.zeros((B, E), np.float32), units(1)
    (loss, watch), grads = jax.value_and_grad(value, (0, 1, 2), has_aux=True)(*z, jnp.log(10.0))
    assert float(loss) == 0
    for grad in grads:
        np.testing.assert_array_equal(grad, 0)
    assert np.isfinite(jax.tree.leaves(watch)).all() and float(watch['recall']) == 0


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_gradients_are_those_on_paper(smoothing):
    """With s the logits, r and c the log-sum-exp of rows and columns and y the soft target:
    G = (exp(s - r) + exp(s - c) - 2 y) / 2b, and dL/dz = t G w, dL/dw = t G' z, dL/dlog t = G s.
    """
    (z_video, z_text), scale = pairs(), SCALE

    def value(z_video, z_text, log_scale):
        ok, keys = np.ones(B, bool), np.arange(B, dtype=np.int32)
        return nce(z_video, z_text, log_scale, ok, keys, label_smoothing=smoothing)[0]

    got = jax.grad(value, (0, 1, 2))(z_video, z_text, jnp.log(jnp.float32(scale)))
    s = scale * z_video.astype(np.float64) @ z_text.astype(np.float64).T
    rows = np.exp(s) / np.exp(s).sum(1, keepdims=True)
    columns = np.exp(s) / np.exp(s).sum(0, keepdims=True)
    target = (1 - smoothing) * np.eye(B) + smoothing / B
    g = (rows + columns - 2 * target) / (2 * B)
    on_paper = scale * g @ z_text, scale * g.T @ z_video, (g * s).sum()
    for grad, wanted in zip(got, on_paper, strict=True):
        np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_gradients_with_broken_and_equal_ones_are_the_slopes_of_the_loops(smoothing):
    z_video, z_text = (z.astype(np.float64) for z in pairs())

    def value(z_video, z_text):
        return call(z_video, z_text, ok=OK, keys=KEYS, label_smoothing=smoothing)[0]

    got = jax.grad(value, (0, 1))(z_video.astype(np.float32), z_text.astype(np.float32))
    step = 1e-5
    for which, place in [(0, (0, 1)), (0, (3, 2)), (1, (2, 0)), (1, (4, 4)), (0, (1, 1))]:
        ends = []
        for sign in (1, -1):
            z = [z_video.copy(), z_text.copy()]
            z[which][place] += sign * step
            ends.append(slow_nce(*z, SCALE, OK, KEYS, smoothing))
        assert float(got[which][place]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-4)


# Temperature --------------------------------------------------------------------------------


@pytest.mark.parametrize('scale,held', [(10.0, 10.0), (99.0, 99.0), (101.0, 100.0), (1e6, 100.0)])
def test_the_scale_is_held_at_its_limit(scale, held):
    log_scale = jnp.log(jnp.float32(scale))
    value, slope = jax.value_and_grad(logit_scale)(log_scale, 100.0)
    assert float(value) == pytest.approx(held, 1e-5)
    assert float(slope) == pytest.approx(held, 1e-5)  # d exp(x) / dx = exp(x): no dead end above


def test_the_held_scale_is_what_the_loss_uses():
    z_video, z_text = pairs()
    loss, watch = call(z_video, z_text, scale=1000.0, max_scale=20.0)
    assert float(loss) == pytest.approx(slow_nce(z_video, z_text, 20.0), 1e-5)
    assert float(watch['temperature']) == pytest.approx(1 / 20, 1e-5)

    def value(log_scale):
        ok, keys = np.ones(B, bool), np.arange(B, dtype=np.int32)
        return nce(z_video, z_text, log_scale, ok, keys, max_scale=20.0)[0]

    slope = jax.grad(value)
    there = float(slope(jnp.log(jnp.float32(20.0))))  # CLIP's is at its clamp: it can come down
    assert abs(there) > 1e-3
    assert float(slope(jnp.log(jnp.float32(1000.0)))) == pytest.approx(there, 1e-5)
    assert abs(float(slope(jnp.log(jnp.float32(10.0))))) > 1e-3


def test_half_precision_embeddings_lose_nothing_more():
    """The products are taken in float32, whatever comes in."""
    z_video, z_text = (jnp.asarray(units(seed), jnp.bfloat16) for seed in (0, 1))
    loss, _ = call(z_video, z_text)
    wide = [np.asarray(z, np.float32) for z in (z_video, z_text)]
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(slow_nce(*wide, SCALE), 1e-5)


# What is watched ----------------------------------------------------------------------------


def slow_watch(z_video, z_text, ok, keys):
    cosine = z_video @ z_text.T
    real = [i for i in range(len(ok)) if ok[i]]
    hits, negatives = 0, []
    for matrix in (cosine, cosine.T):
        for i in real:
            others = [matrix[i, j] for j in real if keys[j] != keys[i]]
            hits += all(matrix[i, i] > other for other in others)
            negatives += others
    gap = np.mean([cosine[i, i] for i in real]) - np.mean(negatives)
    return hits / (2 * len(real)), gap


def test_recall_and_gap_are_those_of_plain_loops():
    z_video, z_text = pairs()
    _, watch = call(z_video, z_text, ok=OK, keys=KEYS)
    recall, gap = slow_watch(z_video, z_text, OK, KEYS)
    assert 0 < recall < 1
    assert float(watch['recall']) == pytest.approx(recall)
    assert float(watch['gap']) == pytest.approx(gap, 1e-5)
    assert float(watch['temperature']) == pytest.approx(1 / SCALE, 1e-5)


def test_a_collapsed_model_recalls_nothing():
    """Ties are lost: a model that says the same of everything must not look perfect."""
    same = np.tile(units(0)[:1], (B, 1))
    _, watch = call(same, same)
    assert float(watch['recall']) == 0
    assert float(watch['gap']) == pytest.approx(0, abs=1e-6)
