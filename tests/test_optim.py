"""AdamW by parameter name: schedule, decay, clipping, freezing of leaves and of slices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from long_vivit import tuning
from long_vivit.models.dual import DualEncoder
from long_vivit.names import flatten, names, unflatten
from long_vivit.optim import ema_update, lr_schedule, make, rules
from tests.tiny_models import FAST

DEPTH = 4
LAST = tuning.parsed('last:1')
COMMON = {'lr': 0.1, 'steps': 20, 'warmup_steps': 4, 'b1': 0.9, 'b2': 0.98, 'eps': 1e-8}
VIDEO = 'video/trunk/blocks/'


@functools.cache
def dual():
    return jax.jit(build, compiler_options=FAST)()


def build():
    tower = {'width': 8, 'heads': 2, 'remat': 'none', 'dtype': jnp.float32}
    video = {'grid': (2, 2, 2), 'patch': 2, 'tubelet': 2, 'depth': DEPTH, 'pool': 'cls'}
    text = {'vocab': 11, 'length': 6, 'depth': 2, 'position_scale': 0.3, 'kind': 'bidirectional'}
    return DualEncoder(
        video=video | tower | {'attention': 'dense'},
        text=text | tower,
        embed=4,
        temperature=0.07,
        rngs=nnx.Rngs(0),
    )


def gradients(like, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype), like)


def run(tx, params, steps=5):
    opt, update = tx.init(params), updating(tx)
    for step in range(steps):
        params, opt = update(gradients(params, step), opt, params)
    return params, opt


def updating(tx):
    """(gradients of all, state, parameters) -> parameters and state after an update."""

    def update(grads, opt, params):
        live = tx.take(params)
        updates, opt = tx.update(tx.take(grads), opt, live)
        return tx.put(params, optax.apply_updates(live, updates)), opt

    return jax.jit(update, compiler_options=FAST)


def small():
    rng = np.random.default_rng(0)
    sizes = {'a': {'kernel': (3, 2), 'bias': (2,)}, 'b': {'kernel': (2, 2), 'scale': (2,)}}

    def draw(size):
        return jnp.asarray(rng.standard_normal(size), jnp.float32)

    return jax.tree.map(draw, sizes, is_leaf=lambda x: isinstance(x, tuple))


def test_schedule():
    rate = lr_schedule(0.1, 20, 4)
    np.testing.assert_allclose([rate(s) for s in range(5)], [0.025, 0.05, 0.075, 0.1, 0.1])
    np.testing.assert_allclose(rate(12), 0.05, rtol=1e-6)  # half of the way down
    assert all(rate(s) > rate(s + 1) > 0 for s in range(4, 18)) and rate(19) > 0
    np.testing.assert_allclose([rate(20), rate(99)], 0, atol=1e-9)
    assert lr_schedule(0.1, 3, 0)(0) == np.float32(0.1)
    assert lr_schedule(0.1, 3, 3)(2) == np.float32(0.1)  # all of it warm-up
    with pytest.raises(ValueError, match='warmup_steps 9'):
        lr_schedule(0.1, 3, 9)


def test_against_adamw_written_out():
    """Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, in float64."""
    params, decay, clip = small(), 0.3, 1.5
    made, _ = run(make(params, weight_decay=decay, clip=clip, **COMMON), params)
    want = {name: np.asarray(leaf, np.float64) for name, leaf in flatten(params).items()}
    m = dict.fromkeys(want, 0.0)
    v = dict(m)
    for step in range(5):
        grads = {k: np.asarray(g, np.float64) for k, g in flatten(gradients(params, step)).items()}
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        assert norm > clip  # else the test tests no clipping
        rate = float(lr_schedule(0.1, 20, 4)(step))
        for name, g in grads.items():
            g = g * clip / norm
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.98 * v[name] + 0.02 * g**2
            ahead = (m[name] / (1 - 0.9 ** (step + 1))) / (
                np.sqrt(v[name] / (1 - 0.98 ** (step + 1))) + 1e-8
            )
            pull = decay * want[name] if name.endswith('kernel') else 0
            want[name] = want[name] - rate * (ahead + pull)
    for name, leaf in flatten(made).items():
        np.testing.assert_allclose(leaf, want[name], rtol=1e-4, atol=1e-5)


def test_every_parameter_of_the_model_has_one_rule():
    found = rules(jax.eval_shape(build))
    assert list(found) == names(dual())
    assert {name for name, rule in found.items() if rule.decay} == {
        name for name in found if name.rsplit('/')[-1] in ('kernel', 'qkv', 'out', 'embed')
    }
    assert all(rule.trained and not rule.num_frozen for rule in found.values())


def test_decay_alone_moves_only_matrices():
    params = small()
    tx = make(params, weight_decay=0.5, decay_skip=('b/kernel',), **COMMON)
    still = jax.tree.map(jnp.zeros_like, params)
    updates = tx.update(tx.take(still), tx.init(params), tx.take(params))[0]
    assert {name for name, update in updates.items() if np.any(update)} == {'a/kernel'}
    np.testing.assert_allclose(updates['a/kernel'], -0.025 * 0.5 * params['a']['kernel'], rtol=1e-6)


def test_frozen_parameters_keep_their_bits_and_have_no_moments():
    params = dual()
    tx = make(params, weight_decay=0.5, clip=1.0, freeze=('text/.*', 'log_scale'), **COMMON)
    after, opt = run(tx, params)
    for name, leaf in flatten(after).items():
        same = np.array_equal(leaf, flatten(params)[name])
        assert same == (name.startswith('text/') or name == 'log_scale'), name
    assert not [name for name in names(opt) if 'text/' in name or 'log_scale' in name]
    assert f'adam/mu/{VIDEO}up/kernel' in names(opt)


def test_last_layers_freeze_slices_and_the_stem():
    params = dual()
    tx = make(params, weight_decay=0.5, clip=1.0, tune=LAST, **COMMON)
    after, opt = run(tx, params)
    before = flatten(params)
    for name, leaf in flatten(after).items():
        moved = np.asarray(leaf != before[name])
        if name.startswith(VIDEO):
            assert not moved[: DEPTH - 1].any(), name
            assert moved[DEPTH - 1].any(), name
            for moment in ('mu', 'nu'):
                assert flatten(opt)[f'adam/{moment}/{name}'].shape == (1, *leaf.shape[1:])
        elif name.startswith(('video/image_embed', 'video/tubelet', 'video/pos', 'video/cls')):
            assert not moved.any(), name
            assert f'adam/mu/{name}' not in flatten(opt)
        else:  # the trunk's last norm, the head, the text tower, the temperature
            assert moved.any(), name


def test_kept_rows_keep_their_bits_and_have_no_moments():
    """Whatever their gradient is, with decay on them, and the other rows all move."""
    params, kept = dual(), {'text/positions': 2}
    how = {'weight_decay': 0.5, 'clip': 1.0, 'kept_rows': kept}
    after, opt = run(make(params, **how, **COMMON), params)
    before = flatten(params)
    for name, leaf in flatten(after).items():
        moved = np.asarray(leaf != before[name])
        count = kept.get(name, 0)
        assert not moved.reshape(len(leaf) if leaf.ndim else 1, -1)[:count].any(), name
        assert (moved[count:] if leaf.ndim else moved).any(), name
    for moment in ('mu', 'nu'):
        assert flatten(opt)[f'adam/{moment}/text/positions'].shape == (4, 8)


def test_a_table_with_fewer_rows_than_are_kept_is_frozen():
    params = dual()
    after, opt = run(make(params, kept_rows={'text/positions': 20}, **COMMON), params, steps=1)
    table = flatten(after)['text/positions']
    np.testing.assert_array_equal(table, flatten(params)['text/positions'])
    assert 'adam/mu/text/positions' not in names(opt)
    with pytest.raises(ValueError, match="kept_rows: there is no 'text/places'"):
        make(params, kept_rows={'text/places': 1}, **COMMON)


def test_frozen_gradients_do_not_count():
    """Neither the clipping norm nor the update sees them, even when they are not finite."""
    params = dual()
    how = {'tune': tuning.parsed('last:2'), 'freeze': ('text/trunk/.*',)}
    how |= {'kept_rows': {'text/positions': 3}}
    tx = make(params, clip=1.0, **how, **COMMON)
    table = rules(params, **how)

    def spoil(value):
        spoilt = {}
        for name, g in flatten(gradients(params, 0)).items():
            rule = table[name]
            count = rule.num_frozen if rule.trained else len(g)
            spoilt[name] = g.at[:count].set(value) if count else g
        return unflatten(params, spoilt)

    update, opt = updating(tx), tx.init(params)
    (a, opt_a), (b, opt_b) = (update(spoil(value), opt, params) for value in (0.0, np.nan))
    jax.tree.map(np.testing.assert_array_equal, (a, opt_a), (b, opt_b))


def test_state_saved_by_name_continues_bit_for_bit():
    params = dual()
    tx = make(params, weight_decay=0.5, clip=1.0, tune=LAST, **COMMON)
    after, opt = run(tx, params, 3)
    shapes = jax.eval_shape(tx.init, params)
    again = unflatten(shapes, {name: np.asarray(leaf) for name, leaf in flatten(opt).items()})
    assert jax.tree.structure(again) == jax.tree.structure(opt)
    grads, update = gradients(params, 9), updating(tx)
    one, two = (update(grads, state, after) for state in (opt, again))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_first_moment_of_half_the_width():
    """Its rounding is all that differs; the second moment and the parameters stay float32."""
    params = small()
    made, opt = run(make(params, clip=1.5, moment_dtype=jnp.bfloat16, **COMMON), params)
    wanted, _ = run(make(params, clip=1.5, **COMMON), params)
    kinds = {name.split('/')[1]: leaf.dtype for name, leaf in flatten(opt).items() if '/a/' in name}
    assert kinds == {'mu': jnp.bfloat16, 'nu': jnp.float32}
    for name, leaf in flatten(made).items():
        moved = np.abs(flatten(wanted)[name] - flatten(params)[name]).max()
        difference = np.abs(leaf - flatten(wanted)[name]).max()
        assert leaf.dtype == jnp.float32
        assert 0 < difference < 0.02 * moved, name


def test_no_clipping_leaves_the_names_alone():
    params = small()
    assert names(make(params, **COMMON).init(params)) == names(
        make(params, clip=1.0, **COMMON).init(params)
    )
    assert names(make(params, **COMMON).init(params))[:2] == ['adam/count', 'adam/mu/a/bias']


def test_faults_in_one_error():
    params = {
        'a': {'kernel': jnp.ones(2)},
        'video': {'trunk': {'blocks': {'odd': jnp.ones((3, 2))}}},
    }
    odd = tuning.parsed('temporal+stem')
    with pytest.raises(ValueError) as error:
        make(params, freeze=('b/.*',), decay_skip=('c',), tune=odd, **COMMON)
    for text in (
        "freeze: 'b/.*' matches no parameter",
        "decay_skip: 'c' matches no parameter",
        f'{VIDEO}odd: matches 0 rows of optim.DECAY',
        "tune: 'temporal' names no parameter of this model; only encoders with attention over time",
        "tune: 'stem' names no parameter of this model",
    ):
        assert text in str(error.value)
    with pytest.raises(ValueError, match='tune: last:5 of an encoder with 4 layers'):
        make(dual(), tune=tuning.parsed('last:5'), **COMMON)
    with pytest.raises(ValueError, match=r"freeze: 'text/\(' is no regular expression \(missing"):
        make(dual(), freeze=('text/(',), **COMMON)
    with pytest.raises(ValueError, match='nothing to train'):
        make(small(), freeze=('.*',), **COMMON)


def test_ema():
    params = small()
    zero = jax.tree.map(jnp.zeros_like, params)
    after = jax.jit(ema_update)(zero, params, 0.75)
    jax.tree.map(lambda a, p: np.testing.assert_allclose(a, 0.25 * p, rtol=1e-6), after, params)
    model = dual()
    kept = ema_update(model, gradients(model, 0), 1.0)
    assert isinstance(kept, DualEncoder)
    jax.tree.map(np.testing.assert_array_equal, kept, model)
