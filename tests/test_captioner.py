"""Video-to-text: a frozen language model that looks at a frozen encoder's video; its step."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import sweep as recipes
from long_vivit import config, estimate, recipe, trained
from long_vivit.models import captioner
from long_vivit.names import flatten, unflatten
from long_vivit.sweeps import captioning, grid, shapes

LANGUAGE = {'width': 32, 'depth': 2, 'heads': 2, 'latents': 3, 'resampler_depth': 2}
VOCAB, LENGTH = 40, 8


@jax.jit
def told(model, seen, tokens):
    return model(seen, tokens)


def reader(seen_width=16, gate=0.0, **other):
    """A Captioner whose gates are open by `gate`."""
    found = captioner.Captioner(
        seen_width, vocab=VOCAB, length=LENGTH, **LANGUAGE | {'remat': 'none'} | other,
        dtype=jnp.float32, rngs=nnx.Rngs(params=jax.random.key(0)),
    )  # fmt: skip
    flat = flatten(found)
    flat['trunk/blocks/gate'] = jnp.full_like(flat['trunk/blocks/gate'], gate)
    return unflatten(found, flat)


def inputs(seen_width=16, num_seen=5):
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(2, num_seen, seen_width)).astype(np.float32)
    return seen, rng.integers(0, VOCAB, (2, LENGTH))


def test_a_shut_gate_leaves_the_language_model_as_it_was():
    seen, tokens = inputs()
    logits = told(reader(), seen, tokens)
    assert logits.shape == (2, LENGTH, VOCAB) and logits.dtype == jnp.float32
    np.testing.assert_array_equal(logits, told(reader(), 0 * seen, tokens))
    looking = reader(gate=1.0)
    assert np.abs(told(looking, seen, tokens) - told(looking, 0 * seen, tokens)).max() > 0.01


def test_words_look_back_only_and_at_the_video_of_their_own():
    seen, tokens = inputs()
    looking = reader(gate=1.0)
    before = told(looking, seen, tokens)
    later = tokens.copy()
    later[:, 5] = (later[:, 5] + 1) % VOCAB
    after = told(looking, seen, later)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.abs(before[:, 6:] - after[:, 6:]).max() > 0.01
    other = np.stack([seen[0], seen[0]])
    np.testing.assert_allclose(told(looking, other, tokens)[0], before[0], atol=1e-5)
    assert np.abs(told(looking, other, tokens)[1] - before[1]).max() > 0.01


def test_the_resampler_takes_a_set():
    """Of any number of tokens, in any order, as many latents: time is in the tokens themselves."""
    seen, _ = inputs(num_seen=7)
    resampler = reader().resampler
    latents = resampler(seen)
    assert latents.shape == (2, LANGUAGE['latents'], LANGUAGE['width'])
    np.testing.assert_allclose(resampler(seen[:, ::-1]), latents, atol=2e-5)
    assert resampler(seen[:, :2]).shape == latents.shape


def test_a_look_is_attention_over_what_is_given():
    """Against a softmax written out, head by head, in float64."""
    look = captioner.Look(8, 2, dtype=jnp.float32, rngs=nnx.Rngs(params=jax.random.key(1)))
    rng = np.random.default_rng(0)
    x, seen = rng.normal(size=(3, 8)), rng.normal(size=(5, 8))
    p = {name: np.asarray(value, np.float64) for name, value in flatten(look).items()}
    y = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    out = np.zeros((3, 8))
    for m in range(2):
        query, key, value = (
            z @ p['attention/qkv'][:, i, m] + p['attention/qkv_bias'][i, m]
            for i, z in enumerate((y, seen, seen))
        )
        weights = np.exp(query @ key.T / 2)
        out += weights / weights.sum(-1, keepdims=True) @ value @ p['attention/out'][m]
    np.testing.assert_allclose(look(np.float32(x[None]), np.float32(seen[None]))[0], out, atol=1e-5)


@pytest.mark.parametrize('remat', ['full', 'dots'])
def test_remat_computes_again_and_changes_nothing(remat):
    seen, tokens = inputs()
    lengths = np.array([8, 5])

    def loss(model):
        return captioner.next_word_loss(model(seen, tokens), tokens, lengths)

    plain, again = (reader(gate=0.5, remat=name) for name in ('none', remat))
    grads = (jax.tree.leaves(jax.jit(jax.grad(loss))(model)) for model in (plain, again))
    for one, other in zip(*grads, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)

    def kept(model):
        residuals = jax.eval_shape(lambda: jax.vjp(loss, model)[1])
        return sum(x.size for x in jax.tree.leaves(residuals))

    num_parameters = sum(x.size for x in jax.tree.leaves(plain))
    assert kept(again) - num_parameters < 0.75 * (kept(plain) - num_parameters)


def test_the_loss_is_that_of_the_real_words_after_the_first():
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(size=(2, 5, 7)), rng.integers(0, 7, (2, 5))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    each = [-np.log(p[b, i - 1, tokens[b, i]]) for b, n in ((0, 5), (1, 3)) for i in range(1, n)]
    found = captioner.next_word_loss(logits, tokens, np.array([5, 3]))
    assert found == pytest.approx(np.mean(each), rel=1e-5)


# What the encoder saw, and the step


def run_of(**changes):
    """The base of the tiny sweep, its long stage alone and unmasked, with other fields."""
    cfg = recipes.get_config('tiny')
    cfg.base.run = ('long',)
    return config.resolve(config.changed(cfg.base, {'stages.long.mask_rate': 0.0} | changes))


def encoder_and_batch(run):
    (stage,) = run.stages
    like = recipe.batch_like(run, stage)
    patches = np.random.default_rng(0).integers(0, 256, like['patches'].shape, np.uint8)
    grid_ = recipe.view(run, stage).grid
    where = np.stack(np.unravel_index(np.arange(np.prod(grid_)), grid_), -1)
    where = np.broadcast_to(where, like['where'].shape).astype(np.int32)
    return recipe.model(run, stage, VOCAB, jax.random.key(0)).video, patches, where


BACKBONE, POOL, CLS = 'model.video.backbone', 'model.video.frame_pool', {'model.video.pool': 'cls'}
FRAMES, PATCH = 'stages.long.frames', 'model.video.patch'


def tokens_of(encoder, patches, where, t):
    """What leaves the trunk of patches, without learnt tokens: [b, t * places, d]."""
    x = encoder.tokens(patches, where)
    if encoder.backbone == 'joint':
        x, _ = encoder.joint(patches, where)
        return x[:, encoder.num_cls(patches.shape[1]) :]
    x = encoder.entered(x, t)
    if encoder.backbone == 'factorised':
        x = encoder.trunk(x, num_slices=t)
        per = x.shape[1] // t
        return x[:, [i for i in range(x.shape[1]) if encoder.cls is None or i % per]]
    each = [encoder.trunk(one) for one in jnp.split(x, t, axis=1)]
    return jnp.concatenate([one[:, encoder.cls is not None :] for one in each], axis=1)


@pytest.mark.parametrize('frames', [4, 12])
@pytest.mark.parametrize('pool', [{}, CLS])
@pytest.mark.parametrize('backbone', ['joint', 'factorised', 'frames'])
def test_a_token_for_each_place_however_long_the_video_is(backbone, pool, frames):
    """The mean over the patches that lie there: t is 2 or 6, and there are 4 places."""
    run = run_of(**{BACKBONE: backbone, FRAMES: frames} | pool)
    encoder, patches, where = encoder_and_batch(run)
    t = frames // 2
    seen = jax.jit(captioner.seen_by)(encoder, patches, where)
    every = jax.jit(tokens_of, static_argnums=3)(encoder, patches, where, t)
    assert seen.shape == (8, 4, 16) and every.shape == (8, 4 * t, 16)
    places = where[0, :, 1] * 2 + where[0, :, 2]
    for place in range(4):
        np.testing.assert_allclose(
            seen[:, place], every[:, places == place].mean(1), rtol=1e-5, atol=1e-5
        )
    if backbone == 'joint' and not pool:  # mean pooling: what is contrasted is their mean
        contrasted = jax.jit(type(encoder).__call__)(encoder, patches, where)
        np.testing.assert_allclose(encoder.projected(seen.mean(1)), contrasted, atol=1e-5)


@pytest.mark.parametrize(
    'changes', [{BACKBONE: 'frames', POOL: 'temporal'}, {BACKBONE: 'factorised_encoder'}]
)
def test_a_token_for_each_slice_where_layers_over_time_see_slices(changes):
    encoder, patches, where = encoder_and_batch(run_of(**changes | {FRAMES: 12}))
    seen = jax.jit(captioner.seen_by)(encoder, patches, where)
    assert seen.shape == (8, 6, 16)
    contrasted = jax.jit(type(encoder).__call__)(encoder, patches, where)
    np.testing.assert_allclose(encoder.projected(seen.mean(1)), contrasted, atol=1e-5)


def test_what_lies_on_no_whole_grid_is_refused():
    kernels = '4x8x8/4x8x8'
    found = grid.read(recipes.get_config('tiny'))
    for changes in ({'tubes': kernels}, {'token_budget': 8, 'mask_kind': 'random'}):
        run = run_of(**{f'stages.long.{name}': value for name, value in changes.items()})
        at = {'size': 'B', 'frames': 8, 'remat': 'none'}
        large = shapes.at(run, found.base, found.memory, **at)
        assert captioning.lowered(large, LANGUAGE) is None
        (stage,) = run.stages
        encoder = recipe.model(run, stage, VOCAB, jax.random.key(0)).video
        with pytest.raises(ValueError, match='tubes and a token budget lie on no grid of places'):
            captioner.seen_by(encoder, None, None)
    encoder, patches, where = encoder_and_batch(run_of())
    half = slice(0, None, 2)
    with pytest.raises(ValueError, match=r'all 4 x 2 x 2 patches .* 8 are given: .*mask_rate = 0'):
        captioner.seen_by(encoder, patches[:, half], where[:, half])


def test_the_step_teaches_what_is_new_and_nothing_else():
    """Which of two videos it is, told by the first word: a look at the video alone can know."""
    encoder, patches, where = encoder_and_batch(run_of())
    model = reader(seen_width=16)
    rules, optimiser = captioning.table(model), optax.adam(1e-2)
    tokens = np.tile(np.arange(LENGTH), (2, 1))
    tokens[1, 1:] += 10
    batch = {'patches': patches[:2], 'where': where[:2], 'tokens': tokens}
    batch['lengths'] = np.array([8, 8])
    before, opt = flatten(model), optimiser.init(trained.take(model, rules))
    assert {name for name, rule in rules.items() if rule.trained} == set(opt[0].mu)
    step = jax.jit(captioning.make_step(optimiser))
    losses = []
    for _ in range(30):
        model, opt, loss = step(encoder, model, opt, jax.tree.map(jnp.asarray, batch))
        losses.append(float(loss))
    after = flatten(model)
    for name, leaf in before.items():
        new = bool(re.search('resampler|look|gate', name))
        assert rules[name].trained == new
        assert np.array_equal(leaf, after[name]) != new, name
    assert losses[-1] < losses[0] - 0.5, losses
    swapped = batch | {'patches': patches[1::-1]}
    _, _, confused = step(encoder, model, opt, jax.tree.map(jnp.asarray, swapped))
    assert confused > losses[-1] + 0.2


def test_no_gradient_and_no_moment_of_what_is_frozen_is_compiled():
    """A wider frozen encoder costs its parameters, not thrice as much."""
    found = grid.read(recipes.get_config('tiny'))
    small, large = (
        captioning.lowered(
            shapes.at(run_of(), found.base, found.memory | {'text_length': 8, 'pixels': 32},
                      size=size, frames=2, remat='none'), LANGUAGE,
        ).compile(compiler_options=estimate.OPTIONS).memory_analysis()
        for size in 'BL'
    )  # fmt: skip
    more = large.argument_size_in_bytes - small.argument_size_in_bytes
    assert more == pytest.approx(4 * (303e6 - 86e6), rel=0.02)
    assert large.output_size_in_bytes - small.output_size_in_bytes < 1e6
    assert large.temp_size_in_bytes - small.temp_size_in_bytes < more / 2
