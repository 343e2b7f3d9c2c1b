"""The two losses of a step with short texts: by hand, in all forms, on devices and in parts."""

from functools import lru_cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from long_vivit import grad_cache, optim
from long_vivit.names import flatten
from long_vivit.state import State
from long_vivit.step import make_step, two_branches
from tests.test_loss_forms import SMOOTHING, on_paper
from tests.tiny_models import FAST, batch, dual

pytestmark = pytest.mark.usefixtures('quick_compilation')

B, E, K, WEIGHT = 24, 6, 3, 0.5
SCALE, BIAS = 5.0, -2.0
SHORT = {
    'weight': WEIGHT, 'components': K, 'basis_gradient': 'full', 'components_scope': 'global',
    'renormalise': False,
}  # fmt: skip
needs_eight = pytest.mark.usefixtures('eight_devices')


def units(seed):
    z = np.random.default_rng(seed).standard_normal((B, E)) + 0.5
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def pairs():
    """ok and the keys: some broken, some long texts equal, more short ones equal."""
    rng = np.random.default_rng(3)
    keys = {'text_key': rng.integers(0, 20, B), 'short_key': rng.integers(0, 8, B)}
    return {'ok': rng.random(B) > 0.2} | {k: x.astype(np.int32) for k, x in keys.items()}


def graded(kind, short=SHORT, **loss):
    """(z_video, z_text, z_short, log_scale, bias, pairs) -> ((loss, watch), gradients), jitted."""
    smoothing = {'label_smoothing': SMOOTHING} if kind == 'nce' else {}

    def run(z_video, z_text, z_short, log_scale, bias, pairs):
        model = SimpleNamespace(log_scale=log_scale, logit_bias=bias)
        return two_branches(
            model, z_video, z_text, z_short, pairs, short, kind=kind, **smoothing, **loss
        )

    return jax.jit(jax.value_and_grad(run, tuple(range(5)), has_aux=True), compiler_options=FAST)


def given():
    return units(0), units(1), units(2), jnp.log(jnp.float32(SCALE)), jnp.float32(BIAS), pairs()


@lru_cache(None)
def dense(kind):
    return jax.device_get(graded(kind)(*given()))


def coarse(z, ok):
    """In float64, by the singular vectors."""
    z = z.astype(np.float64)
    mean = z[ok].mean(0)
    main = np.linalg.svd(z[ok] - mean)[2][:K]
    return (z - mean) @ main.T @ main + mean


@pytest.mark.parametrize('kind', ['nce', 'sigmoid'])
def test_both_losses_are_those_on_paper(kind):
    """Each with its own equal texts left out of its negatives."""
    z_video, z_text, z_short, _, _, one = given()
    ok = one['ok']
    first, recall, gap = on_paper(kind, z_video, z_text, ok, one['text_key'], SCALE, BIAS)
    main = coarse(z_video, ok)
    second, of_short, _ = on_paper(kind, main, z_short, ok, one['short_key'], SCALE, BIAS)
    (loss, watch), _ = dense(kind)
    assert loss == pytest.approx(first + WEIGHT * second, rel=1e-5)
    assert watch['loss_short'] == pytest.approx(second, rel=1e-5)
    assert [watch[key] for key in ('recall', 'recall_short', 'gap')] == pytest.approx(
        [recall, of_short, gap], abs=1e-6
    )
    spread = np.square(z_video[ok] - z_video[ok].mean(0)).sum()
    taken = np.square(z_video[ok] - main[ok]).sum() / spread
    assert watch['removed'] == pytest.approx(taken, rel=1e-4) and 0.1 < taken < 0.6
    assert {'temperature', 'bias'} & watch.keys() == (
        {'temperature'} if kind == 'nce' else {'temperature', 'bias'}
    )
    wrong, *_ = on_paper(kind, main, z_short, ok, one['text_key'], SCALE, BIAS)
    assert abs(wrong - second) > 0.01  # the short texts' own keys are what counts


def test_without_components_the_videos_are_as_they_are():
    z_video, z_text, z_short, _, _, one = given()
    ways = [(z_text, one['text_key']), (z_short, one['short_key'])]
    first, second = (on_paper('nce', z_video, z, one['ok'], key, SCALE, BIAS)[0] for z, key in ways)
    (loss, watch), _ = graded('nce', SHORT | {'components': 0})(*given())
    assert loss == pytest.approx(first + WEIGHT * second, rel=1e-5)
    assert 'removed' not in watch and watch['loss_short'] == pytest.approx(second, rel=1e-5)


FORMS = {
    'nce, tiled': ('nce', 'tiled', ()),
    'sigmoid, tiled': ('sigmoid', 'tiled', ()),
    'nce, dense on 2 x 2 x 2': ('nce', 'dense', (('data', 2), ('fsdp', 2), ('tensor', 2))),
    'nce, ring of 4, on 2 x 2 x 2': ('nce', 'ring', (('data', 2), ('fsdp', 2), ('seq', 2))),
    'sigmoid, ring of 8': ('sigmoid', 'ring', (('data', 8),)),
}


def placed(sizes, one):
    """(mesh, arrays split over it): what has rows by the axes of the batch."""
    sizes = dict(sizes)
    devices = np.array(jax.devices()).reshape(tuple(sizes.values()))
    mesh = Mesh(devices, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    spec = PartitionSpec(tuple(name for name in sizes if name in ('data', 'fsdp')))

    def put(x):
        return jax.device_put(x, NamedSharding(mesh, spec if np.ndim(x) else PartitionSpec()))

    return mesh, jax.tree.map(put, one)


@needs_eight
@pytest.mark.parametrize(('kind', 'form', 'sizes'), FORMS.values(), ids=FORMS)
def test_all_forms_and_devices_agree(kind, form, sizes):
    """Loss, what is watched, and all gradients."""
    program, one = graded(kind, form=form, tile=5), given()
    if sizes:
        mesh, one = placed(sizes, one)
        with jax.set_mesh(mesh):
            got = program(*one)
    else:
        got = program(*one)
    wanted = dense(kind)
    assert jax.tree.structure(jax.device_get(got)) == jax.tree.structure(wanted)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * max(1, np.abs(y).max()))


# In parts -----------------------------------------------------------------------------------


def linear(micro_batch, scope, sizes):
    """Loss, watch and gradients of linear encoders in micro-batches; 0: of the whole batch."""
    rng = np.random.default_rng(4)
    model = {key: rng.standard_normal((9, E)).astype(np.float32) for key in ('v', 't', 's')}
    model['log_scale'] = jnp.log(jnp.float32(SCALE))
    one = {key: rng.standard_normal((32, 9)).astype(np.float32) for key in ('v', 't', 's')}
    one |= {'ok': np.arange(32) % 9 != 8, 'text_key': np.arange(32), 'short_key': np.arange(32) % 7}
    short = SHORT | {'components_scope': scope}

    def embed(model, batch):
        z = (batch[key] @ model[key] for key in ('v', 't', 's'))
        return tuple(x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in z)

    def contrast(model, z, batch):
        return two_branches(SimpleNamespace(log_scale=model['log_scale']), *z, batch, short)

    def run(model, one):
        if micro_batch:
            return grad_cache.value_and_grad(embed, contrast, model, one, micro_batch)
        whole = jax.value_and_grad(lambda m: contrast(m, embed(m, one), one), has_aux=True)
        return whole(model)

    run = jax.jit(run, compiler_options=FAST)
    if not sizes:
        return jax.device_get(run(model, one))
    mesh, one = placed(sizes, one)
    with jax.set_mesh(mesh):
        return jax.device_get(run(model, one))


FOUR = (('data', 4), ('tensor', 2))


@needs_eight
def test_rows_stay_on_their_device_in_parts():
    """So that local components are of eight rows of a device, not of four in each part."""
    (loss, watch), grads = linear(16, 'local', FOUR)
    (wanted, watched), wanted_grads = linear(0, 'local', FOUR)
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert watch['removed'] == pytest.approx(watched['removed'], rel=1e-4)
    assert watched['removed'] > 0.05
    for key, x in wanted_grads.items():
        np.testing.assert_allclose(grads[key], x, rtol=0, atol=1e-5 * max(1, np.abs(x).max()))
    (other, seen), _ = linear(0, 'global', FOUR)
    assert abs(other - wanted) > 1e-3
    assert seen['removed'] - watched['removed'] > 1e-3


def one_batch():
    """A batch with short texts: one video broken, two of the short texts equal."""
    one, other = batch(b=16), batch(b=16, seed=1)
    short = {'short_tokens': other['tokens'][:, :4], 'short_key': other['text_key']}
    one |= short | {'short_lengths': np.minimum(other['lengths'], 4)}
    one['ok'][5] = False
    one['short_key'][[2, 9]] = 77
    return one


def stepped(micro_batch=0, sizes=()):
    """The State and the watch after a step; plain descent in all but name."""
    model = dual({'depth': 1}, {'depth': 1})
    fields = {'lr': 0.05, 'steps': 20, 'warmup_steps': 4}
    optimiser = optim.make(model, **fields, b1=0.0, b2=0.0, eps=1.0)
    state = State(jnp.zeros((), jnp.int32), model, optimiser.init(model))
    step = make_step(
        optimiser, optim.lr_schedule(**fields), num_frozen=0, ema_decay=0.0,
        micro_batch=micro_batch, short=SHORT, kind='nce', label_smoothing=0.1,
    )  # fmt: skip
    run, one = jax.jit(step, compiler_options=FAST), one_batch()
    if not sizes:
        return jax.device_get(run(state, one))
    mesh, one = placed(sizes, one)
    with jax.set_mesh(mesh):
        return jax.device_get(run(jax.device_put(state, NamedSharding(mesh, PartitionSpec())), one))


@needs_eight
def test_the_step_is_the_same_in_parts_on_eight_devices():
    (after, watch), (wanted, watched) = stepped(8, (('data', 4), ('fsdp', 2))), stepped()
    assert watch.keys() == watched.keys() > {'loss_short', 'recall_short', 'removed', 'skipped'}
    for key, value in watched.items():
        np.testing.assert_allclose(watch[key], value, rtol=1e-5, atol=1e-5, err_msg=key)
    got = flatten(after.model)
    for name, leaf in flatten(wanted.model).items():
        within = 1e-5 * max(1, np.abs(leaf).max())
        np.testing.assert_allclose(got[name], leaf, rtol=0, atol=within, err_msg=name)
    before = flatten(dual({'depth': 1}, {'depth': 1}))
    moved = [name for name in got if np.abs(got[name] - before[name]).max() > 1e-3]
    assert len(moved) > 0.6 * len(before)
