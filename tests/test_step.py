"""The training step: what a good one changes, what a bad one leaves alone, what is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from long_vivit import losses, optim, tuning
from long_vivit.names import below, flatten
from long_vivit.state import State
from long_vivit.step import make_step
from tests.tiny_models import FAST, batch, dual

pytestmark = pytest.mark.usefixtures('quick_compilation')

DEPTH = 3
SCHEDULE = {'lr': 0.05, 'steps': 20, 'warmup_steps': 4}
GOOD, BAD_LOSS, BAD_GRADIENT = 0, -1, -2  # in the first text key


def ready(*, tune='all', ema=0.0, **options):
    """(fresh state, step function)."""
    model = dual(video={'depth': DEPTH, 'pool': 'cls'})
    tune = tuning.parsed(tune)
    optimiser = optim.make(model, **SCHEDULE, weight_decay=0.1, clip=1.0, tune=tune)
    mean = jax.tree.map(jnp.copy, model) if ema else None
    state = State(jnp.zeros((), jnp.int32), model, optimiser.init(model), mean)
    step = make_step(
        optimiser,
        optim.lr_schedule(**SCHEDULE),
        max_scale=100.0,
        label_smoothing=0.0,
        ema_decay=ema,
        **tune.cuts(DEPTH),
    )
    return state, jax.jit(step, compiler_options=FAST, **options)


def poisoned(z_video, z_text, log_scale, ok, text_key, *video_key, **options):
    """The loss, or NaN, or the loss with a NaN gradient, as the first text key says."""
    loss, watch = TRUE_NCE(z_video, z_text, log_scale, ok, text_key, *video_key, **options)
    loss = jnp.where(text_key[0] == BAD_LOSS, jnp.nan, loss)
    # The square root has no slope at 0.
    root = jnp.sqrt(0 * log_scale + jnp.where(text_key[0] == BAD_GRADIENT, 0.0, 1.0))
    return loss + root - jax.lax.stop_gradient(root), watch


TRUE_NCE = losses.nce


@pytest.fixture(scope='module')
def with_ema():
    """State and step with a running mean; the step can be poisoned."""
    state, step = ready(ema=0.75)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, 'nce', poisoned)
        step(state, batch())  # compiles
    return state, step


def signed(sign, seed=0):
    one = batch(seed=seed)
    one['text_key'][0] = sign
    return one


def assert_same(one, other):
    for (name, x), y in zip(flatten(one).items(), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


def test_a_good_step_changes_all_that_it_may(with_ema):
    state, step = with_ema
    after, watch = step(state, signed(GOOD))
    before = flatten(state)
    for name, leaf in flatten(after).items():
        # No image was shown, so its stem has no gradient: its kernel decays, its bias stays.
        stays = 'image_embed/bias' in name or ('image_embed' in name and name.startswith('opt'))
        assert np.array_equal(leaf, before[name]) == stays, name
        assert np.isfinite(leaf).all() and leaf.dtype == before[name].dtype, name
    assert int(after.step) == 1 and float(watch['skipped']) == 0
    trees = after.ema, state.ema, after.model
    for ema, old, new in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(ema, 0.75 * old + 0.25 * new, rtol=1e-5, atol=1e-6)


def test_what_is_watched(with_ema):
    state, step = with_ema
    one = signed(GOOD)
    one['ok'][1] = False
    state, watch = step(step(state, one)[0], one)
    keys = {'loss', 'recall', 'gap', 'temperature', 'grad_norm', 'lr', 'ok', 'skipped'}
    assert set(watch) == keys
    assert all(x.shape == () and x.dtype == jnp.float32 for x in watch.values())
    assert float(watch['ok']) == 0.75
    assert float(watch['lr']) == pytest.approx(0.05 * 2 / 4)  # the second of four to warm up
    assert float(watch['grad_norm']) > 0


def test_the_scale_stays_at_its_clamp_and_comes_down_again():
    """CLIP's starts there. Above it, what is exported were another scale than was taught."""
    state, step = ready()
    most = jnp.log(jnp.float32(100.0))
    state.model.log_scale[...] = most
    sharp = batch()
    down = sharp | {'text_key': np.arange(len(sharp['ok']), dtype=np.int32)}
    found = [float(most)]
    for _ in range(6):
        state, _ = step(state, down)
        found.append(float(state.model.log_scale[...]))
    assert max(found) <= float(most)
    assert found[-1] < found[0]  # random pairs at a scale of 100: lower is better


@pytest.mark.parametrize('sign', [BAD_LOSS, BAD_GRADIENT])
def test_a_step_that_is_not_finite_changes_no_bit(with_ema, sign):
    """Neither parameters, nor moments, nor counts, nor the mean; only the place in the data."""
    state, step = with_ema
    state, _ = step(state, signed(GOOD))
    after, watch = step(state, signed(sign, seed=1))
    assert float(watch['skipped']) == 1
    assert np.isfinite(watch['loss']) == (sign == BAD_GRADIENT)
    assert np.isfinite(watch['grad_norm']) == (sign == BAD_LOSS)
    assert int(after.step) == 2
    assert_same(after._replace(step=state.step), state)
    assert float(step(after, signed(GOOD))[1]['lr']) == pytest.approx(0.05 * 2 / 4)  # as applied
    # And the step that follows is the one that would have been.
    one = signed(GOOD, seed=2)
    assert_same(step(after, one)[0]._replace(step=0), step(state, one)[0]._replace(step=0))


def test_a_batch_without_any_readable_video_moves_nothing_but_by_decay(with_ema):
    """Loss 0, gradient 0: no NaN gets in."""
    state, step = with_ema
    one = signed(GOOD)
    one['ok'][:] = False
    after, watch = step(state, one)
    assert float(watch['loss']) == 0 and float(watch['grad_norm']) == 0
    assert float(watch['skipped']) == 0
    decayed = {'kernel', 'qkv', 'out', 'embed'}
    before = flatten(state.model)
    for name, leaf in flatten(after.model).items():
        factor = 1 - 0.1 * 0.05 / 4 if name.split('/')[-1] in decayed else 1
        np.testing.assert_allclose(leaf, factor * before[name], rtol=1e-6, err_msg=name)


def test_a_broken_video_teaches_nothing(with_ema):
    """Its pixels and its text have no say in the step."""
    state, step = with_ema
    one = signed(GOOD)
    one['ok'][2] = False
    other = {key: value.copy() for key, value in one.items()}
    other['patches'][2] = 0
    other['tokens'][2] = 4
    after, _ = step(state, one)
    assert_same(after, step(state, other)[0])
    other['patches'][1] = 0
    assert not np.array_equal(
        after.model.video.head.kernel, step(state, other)[0].model.video.head.kernel
    )


def test_the_loss_falls(with_ema):
    state, step = with_ema
    found = []
    for _ in range(15):
        state, watch = step(state, signed(GOOD))
        found.append(float(watch['loss']))
    assert found[-1] < 0.5 * found[0]


@pytest.fixture(scope='module')
def last_layer_only():
    """The leaves before, the states after three steps of the last layer, and the donating step."""
    state, step = ready(tune='last:1', donate_argnums=0)
    before = {name: np.array(leaf) for name, leaf in flatten(state).items()}
    states = [state]
    for seed in range(3):
        state, watch = step(state, batch(seed=seed))
        states.append(state)
        assert float(watch['skipped']) == 0
    return before, states, step


def test_frozen_layers_keep_every_bit(last_layer_only):
    """With the last layer trained: weight decay and momentum leave the others alone too."""
    before, states, _ = last_layer_only
    frozen = ('image_embed', 'tubelet_embed', 'positions', 'cls')
    for name, leaf in below(flatten(states[-1]), 'model').items():
        old = before[f'model/{name}']
        if name.startswith('video/trunk/blocks'):
            np.testing.assert_array_equal(leaf[:-1], old[:-1], err_msg=name)
            leaf, old = leaf[-1], old[-1]
        stays = name.startswith('video') and name.split('/')[1] in frozen
        assert np.array_equal(leaf, old) == stays, name


def test_the_state_is_donated(last_layer_only):
    """Its memory is used again for the new state, all of it."""
    before, states, step = last_layer_only
    for state in states[:-1]:
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(states[-1]))
    memory = step.lower(states[-1], batch()).compile().memory_analysis()
    assert memory.alias_size_in_bytes == sum(leaf.nbytes for leaf in before.values())
