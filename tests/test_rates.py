"""Learning rates by tower and by layer: each update is the plain one times its factor."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from long_vivit import optim, rates, recipe, tuning
from long_vivit.models.dual import DualEncoder
from long_vivit.names import flatten
from tests import tiny_run
from tests.tiny_models import FAST

pytestmark = pytest.mark.usefixtures('quick_compilation')

DEPTH = {'video': 3, 'text': 2}
COMMON = {'lr': 0.1, 'steps': 20, 'warmup_steps': 4, 'weight_decay': 0.5, 'clip': 1.0}
RATES = {'video_lr': 0.5, 'text_lr': 0.25, 'layer_decay': 0.8}


@pytest.fixture(scope='module')
def dual():
    def build():
        tower = {'width': 8, 'heads': 2, 'remat': 'none', 'dtype': jnp.float32}
        video = {'grid': (2, 2, 2), 'patch': 2, 'tubelet': 2, 'pool': 'cls', 'attention': 'dense'}
        text = {'vocab': 11, 'length': 6, 'position_scale': 0.3, 'kind': 'bidirectional'}
        return DualEncoder(
            video=video | tower | {'depth': DEPTH['video']},
            text=text | tower | {'depth': DEPTH['text']},
            embed=4, temperature=0.07, logit_bias=-10.0, rngs=nnx.Rngs(0),
        )  # fmt: skip

    return jax.jit(build, compiler_options=FAST)()


def updates(params, **how):
    """{name: update} of three steps with gradients that change."""
    tx, found = optim.make(params, **COMMON, **how), []
    update, live = jax.jit(tx.update, compiler_options=FAST), tx.take(params)
    still = jax.tree.map(jnp.zeros_like, params)
    opt = tx.init(params)
    for step in range(3):
        rng = np.random.default_rng(step)
        grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)  # noqa: B023
        one, opt = update(tx.take(grads), opt, live)
        found.append(flatten(tx.put(still, one)))
    return found


def by_hand(name):
    """The factor of a parameter, or of each of its slices, written out."""
    tower = name.split('/')[0]
    base = {'video': 0.5, 'text': 0.25}.get(tower, 1.0)
    if '/blocks/' in name:
        blocks = {'video': [0.8**3, 0.8**2, 0.8], 'text': [0.8**2, 0.8]}[tower]
        return [base * factor for factor in blocks]
    below = ('image_embed', 'tubelet_embed', 'positions', 'cls', 'embed')
    if tower in DEPTH and name.split('/')[1] in below:
        return base * 0.8 ** {'video': 4, 'text': 3}[tower]
    return base


def test_each_update_is_the_plain_one_times_its_factor(dual):
    """Decay included; the parameters stand still here, so that moments are the same in both."""
    for plain, rated in zip(updates(dual), updates(dual, **RATES), strict=True):
        for name, update in plain.items():
            factor = np.array(by_hand(name))
            factor = factor.reshape(-1, *[1] * (update.ndim - 1)) if factor.ndim else factor
            assert np.abs(update).max() > 0, name
            np.testing.assert_allclose(rated[name], factor * update, rtol=1e-5, err_msg=name)


def test_with_frozen_slices_the_rates_are_those_of_the_slices_left(dual):
    frozen = {'tune': tuning.parsed('last:1'), 'freeze': ('text/embed',)}
    plain, rated = updates(dual, **frozen)[0], updates(dual, **frozen, **RATES)[0]
    for name in ('video/trunk/blocks/up/kernel', 'video/trunk/blocks/attention/qkv_bias'):
        assert not rated[name][:2].any() and rated[name][2].any()
        np.testing.assert_allclose(rated[name][2], 0.5 * 0.8 * plain[name][2], rtol=1e-5)
    np.testing.assert_allclose(rated['text/head/kernel'], 0.25 * plain['text/head/kernel'])
    assert not rated['text/embed'].any() and not rated['video/image_embed/kernel'].any()


def test_factors_of_one_change_no_bit_and_no_name(dual):
    tx, same = optim.make(dual, **COMMON), optim.make(dual, **COMMON, video_lr=1.0, text_lr=1.0)
    assert flatten(tx.init(dual)).keys() == flatten(same.init(dual)).keys()
    rated = optim.make(dual, **COMMON, **RATES)
    assert flatten(tx.init(dual)).keys() == flatten(rated.init(dual)).keys()
    one, two = updates(dual)[2], updates(dual, video_lr=1.0, text_lr=1.0, layer_decay=1.0)[2]
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_parameter_of_no_known_place_is_named(dual):
    odd = {'video': {'trunk': {'blocks': {'up': jnp.ones((2, 3))}}, 'extra': jnp.ones(3)}}
    with pytest.raises(ValueError, match='video/extra: matches 0 rows of rates.PLACES'):
        rates.factors(odd, layer_decay=0.5)


def test_a_tower_that_learns_slower_and_the_rate_that_is_shown(tiny_stories, tmp_path):
    """Fields -> step: the text tower moves a hundredth as far, `lr` in the curves is the base."""
    fields = {'optim__weight_decay': 0.0}, {'optim__weight_decay': 0.0, 'optim__text_lr': 0.01}
    runs = [tiny_run.resolved(tiny_stories, tmp_path, **one) for one in fields]
    moved, shown = [], []
    for run in runs:
        init, step = recipe.training(run, run.stages[0], 20)
        state = jax.jit(init, compiler_options=FAST)()
        rng = np.random.default_rng(0)
        batch = {
            key: jnp.asarray(rng.integers(0, 2, x.shape) if x.dtype != bool else np.ones(x.shape))
            .astype(x.dtype) for key, x in recipe.batch_like(run, run.stages[0]).items()
        } | {'lengths': jnp.full(8, 5), 'text_key': jnp.arange(8)}  # fmt: skip
        batch['patches'] = jnp.asarray(rng.integers(0, 256, batch['patches'].shape), jnp.uint8)
        after, watch = jax.jit(step, compiler_options=FAST)(state, batch)
        before, after = flatten(state.model), flatten(after.model)
        moved.append({name: np.abs(after[name] - before[name]).max() for name in before})
        shown.append(float(watch['lr']))
    assert shown[0] == shown[1] > 0
    name = 'text/head/kernel'
    assert moved[1][name] == pytest.approx(0.01 * moved[0][name], rel=1e-2)
    name = 'video/head/kernel'
    assert moved[1][name] == pytest.approx(moved[0][name], rel=1e-5)
    assert optax.tree.norm(moved[0]) > 0
