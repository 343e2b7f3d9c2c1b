"""Backbones that tell slices apart: each against plain numpy, and what each must not know."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from long_vivit import layout, optim, rates, retrieval, sharding, tuning
from long_vivit.inputs import patches as masks
from long_vivit.models import blockwise, parts
from long_vivit.models.slices import KINDS, num_slices
from long_vivit.names import below, flatten, unflatten
from long_vivit.warm_start import warm_start
from tests import tiny_models
from tests.test_model_choices import attention, mlp, norm, trunk
from tests.test_models import slow_unit, stills
from tests.tiny_models import FAST, GRID, PATCH, TUBELET, changed, dual

pytestmark = pytest.mark.usefixtures('quick_compilation')

ENDS = {'temporal_depth': 2, 'frame_pool': 'temporal'}
MODELS = {
    'factorised': {'backbone': 'factorised'},
    'factorised cls': {'backbone': 'factorised', 'pool': 'cls', 'norm_input': True},
    'factorised map': {'backbone': 'factorised', 'pool': 'map', 'attention': 'blockwise'},
    'encoder': {'backbone': 'factorised_encoder', 'temporal_depth': 2},
    'encoder map': {'backbone': 'factorised_encoder', 'temporal_depth': 1, 'pool': 'map'},
    'mean': {'backbone': 'frames'},
    'mean cls': {'backbone': 'frames', 'pool': 'cls', 'cls_repeat': True},
    'attention': {'backbone': 'frames', 'frame_pool': 'attention', 'attention': 'blockwise'},
    'temporal': {'backbone': 'frames', **ENDS},
}
BLIND = ('mean', 'mean cls', 'attention')
SOME = ('factorised cls', 'encoder map', 'attention', 'temporal')  # with every kind of part
embed_video = jax.jit(lambda model, *given: model.video(*given), compiler_options=FAST)


def videos(kind='tube', rate=0.0, b=3, grid=GRID, tubelet=TUBELET, seed=0):
    """Patches and where of b videos under a mask, as the input pipeline makes them."""
    rng = np.random.default_rng(seed)
    where = np.stack([masks.choose(kind, grid, rate, rng) for _ in range(b)])
    values = tubelet * PATCH**2 * 3
    return rng.integers(0, 256, (*where.shape[:2], values), np.uint8), where


def model_of(name, kind='tube', **more):
    return dual(video=MODELS[name] | {'whole_slices': kind == 'frame'} | more)


# By the formulas, in float64 ----------------------------------------------------------------


def slow_factorised(x, p, t):
    """Tokens [n, d] of t slices: attention by slices, then by places through the gate, an MLP."""
    s = len(x) // t
    slices = [range(i * s, (i + 1) * s) for i in range(t)]
    places = [range(i, t * s, s) for i in range(s)]
    for layer in range(len(p['blocks/up/kernel'])):
        q = {name: leaf[layer] for name, leaf in below(p, 'blocks').items()}
        gate = np.tanh(q['temporal/gate'])
        for groups, at, own in ((slices, 'norm_1', 'attention'),
                                (places, 'temporal/norm', 'temporal/attention')):  # fmt: skip
            y, new = norm(x, below(q, at), 1e-6), x.copy()
            for group in groups:
                more = attention(y[group], y[group], below(q, own))
                new[group] += more * (gate if own != 'attention' else 1)
            x = new
        x = x + mlp(norm(x, below(q, 'norm_2'), 1e-6), q, 'gelu')
    return norm(x, below(p, 'norm'), 1e-6)


def slow_map(x, p):
    y = attention(p['probe'][None], x, below(p, 'attention'))
    return (y + mlp(norm(y, below(p, 'norm'), 1e-6), p, 'gelu'))[0]


def slow_pool(x, p):
    return slow_map(x, below(p, 'map')) if 'map/probe' in p else x.mean(0)


def slow_video(model, pixels, where, backbone, t):
    """z of one video: pixels [k, ...] of t slices."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in flatten(model.video).items()}
    still = pixels.shape[-1] == PATCH**2 * 3
    stem = below(p, 'image_embed' if still else 'tubelet_embed')
    x = (pixels / 127.5 - 1) @ stem['kernel'] + stem['bias']
    x = x + p['positions/space'][where[:, 1], where[:, 2]]
    if backbone != 'frames' and not still:
        x = x + p['positions/time'][where[:, 0]]
    groups = np.split(x, t)
    if 'cls' in p:
        groups = [np.concatenate([p['cls'][None], group]) for group in groups]
    if 'norm_input/scale' in p:
        groups = [norm(group, below(p, 'norm_input'), 1e-6) for group in groups]
    if backbone == 'factorised':
        x = slow_factorised(np.concatenate(groups), below(p, 'trunk'), t)
        x = x[:: len(x) // t].mean(0) if 'cls' in p else slow_pool(x, p)
        return x @ p['head/kernel']
    groups = [trunk(group, below(p, 'trunk')) for group in groups]
    x = np.stack([group[0] if 'cls' in p else slow_pool(group, p) for group in groups])
    if 'over_time/map/probe' in p:
        return slow_map(x, below(p, 'over_time/map')) @ p['head/kernel']
    if 'over_time/trunk/norm/scale' in p:
        if backbone == 'frames' and not still:
            x = x + p['positions/time'][where[:: len(where) // t, 0]]
        x = trunk(x, below(p, 'over_time/trunk'))
    return x.mean(0) @ p['head/kernel']


@pytest.mark.parametrize('name', ['factorised map', 'mean cls', *SOME])
def test_each_is_its_formula(name):
    """Videos under each mask that it takes, whole ones, and images."""
    backbone = MODELS[name]['backbone']
    cases = [(kind, 0.5, TUBELET, 2 if kind == 'frame' else 3) for kind in KINDS[backbone]]
    for kind, rate, tubelet, t in (*cases, ('tube', 0.0, TUBELET, 3), ('tube', 0.5, 1, 1)):
        model = model_of(name, kind)
        grid = GRID if tubelet > 1 else (1, *GRID[1:])
        pixels, where = videos(kind, rate, grid=grid, tubelet=tubelet)
        rows = zip(pixels, where, strict=True)
        wanted = slow_unit(np.stack([slow_video(model, *row, backbone, t) for row in rows]))
        z = embed_video(model, pixels, where)
        assert z.dtype == jnp.float32
        np.testing.assert_allclose(z, wanted, atol=2e-5, err_msg=f'{kind} {rate} {tubelet}')


# What they know of time, and what they do not ----------------------------------------------------


def shuffled(pixels, t):
    """The slices of each video in another order, each as it was."""
    order = np.roll(np.arange(t), 1)
    return pixels.reshape(len(pixels), t, -1, pixels.shape[-1])[:, order].reshape(pixels.shape)


@pytest.mark.parametrize('name', MODELS)
def test_who_knows_the_order_of_slices(name):
    pixels, where = videos()
    model = model_of(name)
    z, other = (np.asarray(embed_video(model, x, where)) for x in (pixels, shuffled(pixels, 3)))
    louder = embed_video(changed(model, 'video/positions/time'), pixels, where)
    if name in BLIND:
        np.testing.assert_allclose(z, other, atol=2e-6)
        np.testing.assert_array_equal(z, louder)  # the table of times is not read
    else:
        assert np.abs(z - other).max() > 1e-3 and np.abs(z - louder).max() > 1e-3


@pytest.mark.parametrize('name', BLIND)
def test_whole_slices_left_out_are_as_if_they_had_not_been(name):
    """Masks of whole slices, to who knows no times: a shorter video of the others."""
    model = model_of(name, 'frame')
    pixels, where = videos()
    few = where[0, :, 0] != 1
    shorter = np.array(where[:, few])
    z = embed_video(model, pixels[:, few], shorter)
    shorter[..., 0] = np.minimum(shorter[..., 0], 1)
    np.testing.assert_array_equal(z, embed_video(model, pixels[:, few], shorter))
    assert np.abs(z - embed_video(model, pixels, where)).max() > 1e-3


@pytest.mark.parametrize('name', [*BLIND, 'factorised', 'factorised cls', 'factorised map'])
def test_a_still_video_embeds_as_its_image(name):
    """Without times: those of order-blind ones are not read, those of the others are made zero."""
    model = model_of(name)
    flat = flatten(model)
    kernel = np.asarray(flat['video/image_embed/kernel'])
    flat |= {
        'video/tubelet_embed/kernel': np.tile(kernel / TUBELET, (TUBELET, 1)),
        'video/tubelet_embed/bias': flat['video/image_embed/bias'],
    }
    if name not in BLIND:
        flat['video/positions/time'] *= 0
    model = unflatten(model, flat)
    image, video = stills(num_slices=3)
    z = embed_video(model, *image)
    np.testing.assert_allclose(embed_video(model, *video), z, atol=2e-6)


def test_a_shut_gate_lets_nothing_of_time_through():
    """The paper's start: each slice is then as if it stood alone; opened, it is not."""
    model = model_of('factorised')
    gate = 'video/trunk/blocks/temporal/gate'
    shut = unflatten(model, flatten(model) | {gate: jnp.zeros(2)})
    pixels, where = videos()
    z = embed_video(shut, pixels, where)
    other = changed(shut, 'video/trunk/blocks/temporal/attention')
    np.testing.assert_array_equal(z, embed_video(other, pixels, where))
    assert np.abs(z - embed_video(model, pixels, where)).max() > 1e-3
    # Without the attention over time it is a mean over slices, each by itself, that know when.
    slices = dual(video={'backbone': 'frames'})
    own = {name: leaf for name, leaf in flatten(shut).items() if '/temporal/' not in name}
    slices = unflatten(slices, own)
    flat = {'video/positions/time': flatten(shut)['video/positions/time'] * 0}
    timeless = embed_video(unflatten(shut, flatten(shut) | flat), pixels, where)
    np.testing.assert_allclose(timeless, embed_video(slices, pixels, where), atol=2e-6)


def test_warm_start_of_attention_over_time():
    """A model of images becomes a factorised one of videos: each layer's attention twice."""
    images = dual(video={'tubelet': 1, 'grid': (1, 2, 4)})
    like = flatten(tiny_models.like(video=MODELS['factorised']))
    gate = {'video/trunk/blocks/temporal/gate': np.zeros(2, np.float32)}
    params, lines = warm_start(flatten(images) | gate, like)
    blocks = below(params, 'video/trunk/blocks')
    for name in ('qkv', 'qkv_bias', 'out', 'out_bias'):
        np.testing.assert_array_equal(
            blocks[f'temporal/attention/{name}'], blocks[f'attention/{name}']
        )
    np.testing.assert_array_equal(blocks['temporal/norm/scale'], blocks['norm_1/scale'])
    assert any(
        line.startswith('video/trunk/blocks/temporal/attention/qkv: copy of '
                        'video/trunk/blocks/attention/qkv') for line in lines
    )  # fmt: skip
    model = unflatten(tiny_models.like(video=MODELS['factorised']), params)
    pixels, where = videos(grid=(1, *GRID[1:]), tubelet=1)
    z = embed_video(model, pixels, where)
    np.testing.assert_allclose(z, embed_video(images, pixels, where), atol=2e-6)


# Training -----------------------------------------------------------------------------------


def gradients(model, *given, num_frozen=0):
    weights = np.random.default_rng(3).standard_normal((len(given[0]), tiny_models.EMBED))

    def loss(model):
        return (model.video(*given, num_frozen=num_frozen) * weights).sum()

    return flatten(jax.jit(jax.grad(loss), compiler_options=FAST)(model).video)


@pytest.mark.parametrize('name', ['factorised cls', 'temporal'])
def test_gradients_reach_all_that_is_used(name):
    unread = {'image_embed/kernel', 'image_embed/bias'}
    unread |= {'positions/time'} if name in BLIND else set()
    found = gradients(model_of(name), *videos(rate=0.5))
    assert {name for name, leaf in found.items() if not np.any(leaf)} == unread
    below_cut = gradients(model_of(name), *videos(rate=0.5), num_frozen=1)
    for leaf, of in below_cut.items():
        stem = leaf.split('/')[0] in ('tubelet_embed', 'positions', 'cls', 'norm_input')
        if stem or leaf in unread:
            assert not np.any(of), leaf
        elif leaf.startswith('trunk/blocks/'):
            assert not np.any(of[0]) and np.any(of[1]), leaf
        else:
            assert np.any(of), leaf


@pytest.mark.parametrize(('name', 'remat'), [('factorised', 'attention'), ('temporal', 'full')])
def test_remat_changes_no_gradient(name, remat, monkeypatch):
    """Nor do parts: here a slice, or a token of an example, at once."""
    given = videos(rate=0.5, b=2)
    wanted = gradients(model_of(name, attention='blockwise'), *given)
    monkeypatch.setattr(parts, 'TOKENS', 5)
    found = gradients(model_of(name, attention='blockwise', remat=remat), *given)
    for leaf, value in wanted.items():
        np.testing.assert_allclose(found[leaf], value, atol=2e-5, err_msg=leaf)


@pytest.mark.parametrize('name', MODELS)
def test_every_parameter_has_its_rows(name):
    """On the mesh, in weight decay, in rates by layer; last:1 trains what is above them."""
    like = tiny_models.like(video=MODELS[name])
    table = optim.rules(like, tune=tuning.parsed('last:1'))
    factors = rates.factors(like, layer_decay=0.5)
    layout.shardings(like, sharding.make_mesh('fsdp=4,tensor=2'))  # raises where there is none
    for leaf, rule in table.items():
        if leaf.startswith('video/over_time/'):
            assert rule.trained and not rule.num_frozen and factors[leaf] == 1, leaf
        if leaf.startswith('video/trunk/blocks/temporal/'):
            assert rule.num_frozen == 1 and list(factors[leaf]) == [0.25, 0.5], leaf
    assert not any(rule.decay for leaf, rule in table.items() if leaf.endswith('temporal/gate'))


# Long videos, and refusals ------------------------------------------------------------------


@pytest.mark.parametrize('name', ['factorised map', 'encoder map', 'temporal'])
def test_in_parts_the_numbers_are_the_same(name, monkeypatch):
    given = videos(grid=(5, 2, 4), b=2)
    model = dual(video=MODELS[name] | {'grid': (5, 2, 4)})
    wanted = embed_video(model, *given)
    monkeypatch.setattr(parts, 'TOKENS', 18)  # two slices; three places
    monkeypatch.setattr(blockwise, 'COLUMNS', 16)
    encode = retrieval.encode_patches.__wrapped__
    found = jax.jit(lambda *given: encode(*given), compiler_options=FAST)(model, *given)
    np.testing.assert_allclose(found, wanted, atol=3e-6)


def test_slices_by_their_number():
    """Each kind of mask at each rate, whole videos and images."""
    for kind in ('slice', 'tube', 'frame'):
        for rate in (0.0, 0.3, 0.75):
            count = partial(num_slices, grid=(6, 4, 5), whole=kind == 'frame')
            where = masks.choose(kind, (6, 4, 5), rate, np.random.default_rng(0))
            assert count(len(where)) == len(np.unique(where[:, 0]))
    assert count(20) == 1 and count(7, still=True) == 1
    with pytest.raises(ValueError, match='37 patches make no equal time slices, 6 of them'):
        num_slices(37, (6, 4, 5), whole=False)
    with pytest.raises(ValueError, match='50 patches make no .* each of 20 patches'):
        num_slices(50, (6, 4, 5), whole=True)


def test_unknown_words_are_refused():
    for field in ('backbone', 'frame_pool'):
        with pytest.raises(ValueError, match=f"model.video.{field} is 'x'; it must be one of"):
            dual(video={'backbone': 'frames', field: 'x'})


@pytest.mark.parametrize('name', ['factorised map', 'temporal'])
def test_on_eight_devices_the_numbers_are_the_same(name, eight_devices):
    """Batch, parameters and heads split: slices and places stay with their example."""
    model, (pixels, where) = model_of(name), videos(rate=0.5, b=4)
    mesh = sharding.make_mesh('data=2,fsdp=2,tensor=2')
    spread = layout.spread(model, layout.shardings(model, mesh)[0])
    placed = sharding.place(mesh, {'patches': pixels, 'where': where}, 4)
    with jax.set_mesh(mesh):
        z = retrieval.encode_patches(spread, **placed)
    np.testing.assert_allclose(z, embed_video(model, pixels, where), atol=2e-6)
