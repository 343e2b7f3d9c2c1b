"""What the towers of others have: pools, activations, positions; each against plain numpy."""

import json
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from scipy.special import erf

from long_vivit import config, model_rules, optim, recipe, sharding, tuning
from long_vivit.models import layers, pool, positions, text
from long_vivit.names import below, flatten, unflatten
from long_vivit.warm_start import warm_start
from tests import tiny_models, tiny_run
from tests.test_models import slow_unit, stills
from tests.tiny_models import FAST, GRID, LENGTH, batch, dual

pytestmark = pytest.mark.usefixtures('quick_compilation')

MLP = {'activation': 'quick_gelu', 'norm_epsilon': 1e-2, 'mlp_width': 24}
embed_video = jax.jit(lambda model, *given: model.video(*given), compiler_options=FAST)
embed_text = jax.jit(lambda model, *given: model.text(*given), compiler_options=FAST)

ACTIVATIONS = {
    'gelu': lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    'gelu_erf': lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
    'quick_gelu': lambda x: x / (1 + np.exp(-1.702 * x)),
}


# By the formulas, in float64 ----------------------------------------------------------------


def norm(x, p, epsilon):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * p['scale'] + p['bias']


def attention(queries, x, p):
    """Of queries [q, d] to x [n, d]."""
    out = p['out_bias']
    for head in range(p['qkv'].shape[2]):
        query, key, value = (
            tokens @ p['qkv'][:, i, head] + p['qkv_bias'][i, head]
            for i, tokens in enumerate((queries, x, x))
        )
        weights = np.exp(query @ key.T / np.sqrt(key.shape[-1]))
        out = out + weights / weights.sum(-1, keepdims=True) @ value @ p['out'][head]
    return out


def mlp(x, p, activation):
    x = ACTIVATIONS[activation](x @ p['up/kernel'] + p['up/bias'])
    return x @ p['down/kernel'] + p['down/bias']


def trunk(x, p, *, activation='gelu', norm_epsilon=1e-6, mlp_width=0):
    """One sequence x [n, d], every token of which sees all."""
    for layer in range(len(p['blocks/up/kernel'])):
        q = {name: leaf[layer] for name, leaf in below(p, 'blocks').items()}
        assert mlp_width in (0, q['up/bias'].size)
        y = norm(x, below(q, 'norm_1'), norm_epsilon)
        x = x + attention(y, y, below(q, 'attention'))
        x = x + mlp(norm(x, below(q, 'norm_2'), norm_epsilon), q, activation)
    return norm(x, below(p, 'norm'), norm_epsilon)


def slow_video(model, patches, where, *, pool, num_cls=1, norm_input=False, **how):
    """z of each video by the formulas. num_cls: copies of the learnt token."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in flatten(model.video).items()}
    epsilon, rows = how.get('norm_epsilon', 1e-6), []
    for pixels, places in zip(patches / 127.5 - 1, where, strict=True):
        x = pixels @ p['tubelet_embed/kernel'] + p['tubelet_embed/bias']
        for row, (t, h, w) in zip(x, places, strict=True):
            if 'positions/joint' in p:
                row += p['positions/joint'][t, h, w]
            else:
                row += p['positions/space'][h, w] + p['positions/time'][t]
        if pool == 'cls':
            x = np.concatenate([np.tile(p['cls'], (num_cls, 1)), x])
        x = trunk(norm(x, below(p, 'norm_input'), epsilon) if norm_input else x,
                  below(p, 'trunk'), **how)  # fmt: skip
        if pool == 'map':
            q = below(p, 'map')
            y = attention(q['probe'][None], x, below(q, 'attention'))
            x = y + mlp(norm(y, below(q, 'norm'), epsilon), q, how.get('activation', 'gelu'))
        else:
            x = x[:1] if pool == 'cls' else x.mean(0, keepdims=True)
        rows.append((x @ p['head/kernel'])[0] if 'head/kernel' in p else x[0])
    return slow_unit(np.stack(rows))


VIDEOS = {
    'map': {'pool': 'map', **MLP},
    'map of tanh': {'pool': 'map', 'norm_epsilon': 1e-5},
    'clip': {'pool': 'cls', 'norm_input': True, **MLP},
    'vivit': {'pool': 'cls', 'positions': 'joint', 'activation': 'gelu_erf'},
}


@pytest.mark.parametrize('name', VIDEOS)
def test_video_encoder_is_its_formula(name):
    choices = VIDEOS[name]
    model, one = dual(video=choices), batch()
    wanted = {key: value for key, value in choices.items() if key != 'positions'}
    wanted = slow_video(model, one['patches'], one['where'], **wanted)
    got = embed_video(model, one['patches'], one['where'])
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_without_a_head_the_pooled_vector_is_the_embedding():
    fields = {'head': False, 'width': tiny_models.EMBED, 'heads': 2, 'pool': 'map'}
    model, one = dual(video=fields), batch()
    assert not any('video/head' in name for name in flatten(model))
    wanted = slow_video(model, one['patches'], one['where'], pool='map')
    got = embed_video(model, one['patches'], one['where'])
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    with pytest.raises(ValueError, match='model.embed is 8, .* must be the width 16'):
        dual(video={'head': False})


def slow_padded(model, tokens):
    """All of a text is read, padding too, and the last place is taken."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in flatten(model.text).items()}
    rows = []
    for ids in tokens:
        x = trunk(p['embed'][ids] + p['positions'], below(p, 'trunk'), **MLP)[-1]
        rows.append(x @ p['head/kernel'] + p['head/bias'])
    return slow_unit(np.stack(rows))


def test_padded_text_is_its_formula():
    model, one = dual(text={'kind': 'padded', 'head_bias': True, **MLP}), batch(b=6)
    assert (one['lengths'] < LENGTH).any()
    z = embed_text(model, one['tokens'], one['lengths'])
    np.testing.assert_allclose(z, slow_padded(model, one['tokens']), atol=1e-5)
    with pytest.raises(ValueError, match="text of 4 tokens, but .* 'padded' reads all 6 places"):
        embed_text(model, one['tokens'][:, :4], one['lengths'])


# A still video is its frame -------------------------------------------------------------------


@pytest.mark.parametrize(('pool', 'num_slices'), [('cls', 2), ('cls', 7), ('map', 3)])
def test_a_still_video_embeds_as_its_image(pool, num_slices):
    """With the learnt token repeated; one alone would weigh less the longer the video is."""
    choices = {'pool': pool, 'cls_repeat': True, 'norm_input': True}
    image = dual(video={'grid': (1, *GRID[1:]), 'tubelet': 1, **choices})
    shapes = tiny_models.like({'grid': (num_slices, *GRID[1:]), **choices})
    params = warm_start(flatten(image), flatten(shapes)).params
    params['video/positions/time'] = np.zeros_like(params['video/positions/time'])
    video = unflatten(shapes, jax.tree.map(jnp.asarray, params))
    shown, film = stills(num_slices)
    z = embed_video(image, *shown)
    np.testing.assert_allclose(embed_video(video, *film), z, atol=2e-6)
    if pool == 'cls':
        one_token = dual(video={'grid': (num_slices, *GRID[1:]), **choices, 'cls_repeat': False})
        one_token = unflatten(one_token, flatten(video))
        assert np.abs(embed_video(one_token, *film) - z).max() > 1e-4


@pytest.mark.parametrize(
    ('k', 'wanted'), [(1, 1), (4, 1), (8, 1), (11, 1), (13, 2), (16, 2), (64, 8)]
)
def test_copies_of_the_learnt_token(k, wanted):
    assert pool.num_cls(k, GRID) == wanted


def test_the_copies_enter_the_formula():
    model = dual(video={'pool': 'cls', 'cls_repeat': True})
    one = batch(k=16)
    z = embed_video(model, one['patches'], one['where'])
    wanted = slow_video(model, one['patches'], one['where'], pool='cls', num_cls=2)
    np.testing.assert_allclose(z, wanted, atol=1e-5)


# Joint positions --------------------------------------------------------------------------------


def test_a_joint_table_begins_as_the_two_tables_do():
    fresh = {
        kind: jax.jit(
            lambda key, kind=kind: positions.Positions(
                GRID, 16, kind=kind, rngs=SimpleNamespace(params=lambda: key)
            ),
            compiler_options=FAST,
        )(jax.random.key(0))
        for kind in positions.KINDS
    }
    where = jnp.asarray(tiny_models.everywhere(GRID))[None]
    split, joint = (fresh[kind](where, still=False) for kind in ('split', 'joint'))
    np.testing.assert_allclose(split, joint, atol=1e-6)
    assert [flat.shape for flat in flatten(fresh['joint']).values()] == [(*GRID, 16)]
    assert fresh['split'].grid == fresh['joint'].grid == GRID
    still = fresh['joint'](where, still=True)
    np.testing.assert_allclose(still, np.asarray(joint).reshape(*GRID, 16).mean(0).reshape(
        1, -1, 16).repeat(GRID[0], 0).reshape(1, -1, 16), atol=1e-6)  # fmt: skip


def test_a_video_stage_gives_order_to_a_joint_table_of_images():
    run = SimpleNamespace(
        model=SimpleNamespace(
            video=SimpleNamespace(width=6, patch=2, tubelet=2),
            text=SimpleNamespace(width=4, length=5),
        ),
        data=SimpleNamespace(time_limit_s=1.0, max_missing=0.0),
    )
    stage = SimpleNamespace(
        frames=8, pixels=4, sampler='mid', fps=1.0, mask_kind='tube', mask_rate=0.0,
        text='caption', text_length=5,
    )  # fmt: skip
    images = {'video/positions/joint': np.ones((1, 2, 2, 6), np.float32)}
    assert not recipe.knows_order(images)
    tables = recipe.order_tables(run, stage, images)
    assert recipe.knows_order(tables)
    joint = np.asarray(tables['video/positions/joint'])
    assert joint.shape == (4, 2, 2, 6)
    time = positions.TIME_SCALE * positions.waves(4, 6)
    np.testing.assert_allclose(joint, 1 + np.broadcast_to(time[:, None, None], joint.shape))


def test_a_joint_table_is_resized():
    name = 'video/positions/joint'
    table = np.arange(2, dtype=np.float32)[:, None, None, None] + np.zeros((2, 2, 2, 3), np.float32)
    target = {name: jax.ShapeDtypeStruct((4, 3, 2, 3), jnp.float32)}
    made = warm_start({name: table}, target).params[name]
    np.testing.assert_allclose(made[:, 0, 0, 0], [0, 0.25, 0.75, 1])
    assert (np.ptp(made, (1, 2, 3)) == 0).all()


# Training them ----------------------------------------------------------------------------------


def cubes(model, one, num_frozen=0):
    return (model.video(one['patches'], one['where'], num_frozen=num_frozen) ** 3).sum()


loss_and_grads = jax.jit(jax.value_and_grad(cubes), static_argnums=2, compiler_options=FAST)
CHOSEN = {
    'map': {'pool': 'map', 'norm_input': True, 'positions': 'joint', **MLP},
    'cls': {'pool': 'cls', 'norm_input': True, 'cls_repeat': True, 'activation': 'gelu_erf'},
}


@pytest.mark.parametrize(('name', 'remat'), [('map', 'full'), ('cls', 'dots')])
def test_computing_again_changes_no_number(name, remat):
    fields, one = CHOSEN[name] | {'attention': 'blockwise'}, batch()
    loss, grads = loss_and_grads(dual(video=fields), one, 0)
    other, other_grads = loss_and_grads(dual(video=fields | {'remat': remat}), one, 0)
    np.testing.assert_allclose(loss, other, rtol=1e-5)
    for leaf, grad in flatten(grads).items():
        wanted, got = np.asarray(grad), np.asarray(flatten(other_grads)[leaf])
        np.testing.assert_allclose(got, wanted, atol=5e-6 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize('name', CHOSEN)
def test_below_the_last_layers_nothing_is_trained(name):
    """No gradient, no moments; the probe stands above the layers."""
    model = dual(video=CHOSEN[name])
    _, grads = loss_and_grads(model, batch(), 1)
    table = optim.rules(model, tune=tuning.parsed('last:1'))
    for leaf, grad in flatten(grads.video).items():
        rule = table[f'video/{leaf}']
        if not rule.trained:
            assert not np.any(grad), leaf
        elif not leaf.endswith('bias'):
            assert np.any(grad), leaf
        assert not rule.decay or leaf.split('/')[-1] in ('kernel', 'qkv', 'out'), leaf
    frozen = {leaf.split('/')[1] for leaf, rule in table.items() if not rule.trained}
    stem = {'image_embed', 'tubelet_embed', 'positions', 'norm_input'}
    assert frozen == stem | ({'cls'} if name == 'cls' else set())


@pytest.mark.usefixtures('eight_devices')
@pytest.mark.parametrize(
    ('name', 'spec'), [('map', 'fsdp=2,seq=2,tensor=2'), ('cls', 'data=2,seq=4')]
)
def test_tokens_over_devices_change_no_number(name, spec):
    """The probe looks at tokens of all devices; the learnt tokens make their number odd."""
    fields = CHOSEN[name] | {'attention': 'blockwise', 'remat': 'full'}
    model, one = dual(video=fields), batch(k=16 if name == 'map' else 12)
    function = jax.jit(jax.value_and_grad(cubes), compiler_options=FAST)
    wanted = jax.device_get(function(model, one))
    with jax.set_mesh(sharding.make_mesh(spec)):
        split = PartitionSpec(sharding.BATCH, sharding.SEQ)
        place = partial(jax.lax.with_sharding_constraint, shardings=split)
        spread = jax.jit(
            jax.value_and_grad(lambda m, one: cubes(m, jax.tree.map(place, one))),
            compiler_options=FAST,
        )
        got = jax.device_get(spread(model, {key: one[key] for key in ('patches', 'where')}))
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5 * max(1e-2, np.abs(y).max()))


# Runs of before -----------------------------------------------------------------------------------


def test_a_run_stored_before_there_were_choices(tmp_path):
    """Its model is the one it was: the same parameters, and one learnt token."""
    run = tiny_run.resolved(tmp_path, tmp_path, model__video__pool='cls')
    fields = json.loads(config.to_json(run))
    fields['model'].pop('from_init')
    for tower, names in (('video', recipe.VIDEO_CHOICES), ('text', recipe.TEXT_CHOICES)):
        for name in names:
            fields['model'][tower].pop(name)
    old, stage = config.frozen(fields), run.stages[-1]
    models = [
        jax.eval_shape(lambda run=run: recipe.model(run, stage, 9, jax.random.key(0)))
        for run in (old, run)
    ]
    names = [{name: leaf.shape for name, leaf in flatten(model).items()} for model in models]
    assert names[0] == names[1]
    assert [model.video.cls_repeat for model in models] == [False, True]
    flops = [
        recipe.step_flops(run, stage, batch=2, num_patches=16, patch_values=96)
        for run in (old, run)
    ]
    assert flops[0] < flops[1]


# Words ------------------------------------------------------------------------------------------


def test_the_words_are_those_of_the_rules():
    """The rules may not import the models, so they repeat the words."""
    rules = model_rules.MODEL_RULES
    for field, words in (
        ('video.pool', pool.POOLS), ('video.activation', layers.ACTIVATIONS),
        ('text.activation', layers.ACTIVATIONS), ('video.positions', positions.KINDS),
        ('text.kind', text.KINDS),
    ):  # fmt: skip
        assert rules[f'model.{field}'].allowed == f'one of {", ".join(words)}'
    for fields, words in (
        ({'activation': 'relu'}, "activation is 'relu'.*gelu, gelu_erf, quick_gelu"),
        ({'positions': 'both'}, "positions is 'both'.*split, joint"),
    ):
        with pytest.raises(ValueError, match=words):
            dual(video=fields)
