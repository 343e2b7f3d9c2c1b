"""What a stage trains: by words, in the step, in the optimiser, through a run."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from long_vivit import layout, optim, rates, trained, tuning
from long_vivit.models import lora
from long_vivit.models.dual import DualEncoder
from long_vivit.names import flatten, unflatten
from long_vivit.state import State
from long_vivit.step import make_step
from long_vivit.warm_start import warm_start
from long_vivit.weights import clip_out, flat
from tests.test_sequence import mesh_of
from tests.tiny_models import EMBED, FAST, VIDEO, batch, dual, like
from tests.tiny_models import TEXT as TEXT_TOWER

pytestmark = pytest.mark.usefixtures('quick_compilation')

DEPTH, WIDTH, RANK = 3, 5, 2
BOTH = {'depth': DEPTH, 'adapter_width': WIDTH, 'lora_rank': RANK}
FIELDS = {'lr': 0.05, 'steps': 20, 'warmup_steps': 1}
BLOCKS = 'video/trunk/blocks/'
TEXT = ('text/', 'log_scale')


@functools.cache
def shapes_of(**video):
    return like({**BOTH, **video})


def table_of(tune, text_tower='train', **video):
    return optim.rules(shapes_of(**video), tune=tuning.parsed(tune, text_tower))


# Words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'tune',
    ['', 'every', 'adapters+', 'adapters+all', 'none+stem', 'stem+stem', 'last:0', 'last',
     'first:x', 'last:2+stem', 'last:1+first:1', 'Lora'],
)  # fmt: skip
def test_words_that_are_refused(tune):
    with pytest.raises(ValueError, match='tune: .* is not allowed; it must be one of all, none'):
        tuning.parsed(tune)


def test_text_towers_that_are_refused():
    with pytest.raises(ValueError, match="text_tower: 'thaw' is not allowed"):
        tuning.parsed('all', 'thaw')


NAMED = {  # what of the video encoder's names each word means
    'adapters': lambda name: '/adapter/' in name,
    'lora': lambda name: 'lora/' in name,
    'stem': lambda name: name.startswith(('video/tubelet_embed/', 'video/positions/time')),
    'head': lambda name: name.startswith(('video/trunk/norm/', 'video/head/')),
}
TUNES = ['+'.join(some) for n in (1, 2, 4) for some in itertools.combinations(NAMED, n)]


@pytest.mark.parametrize('tune', [*TUNES, 'none'])
def test_words_name_parameters(tune):
    found = table_of(tune)
    for name, rule in found.items():
        words = tune.split('+') if tune != 'none' else []
        wanted = name.startswith(TEXT) or any(NAMED[word](name) for word in words)
        assert rule.trained == wanted, name
        assert (rule.num_frozen, rule.num_still) == (0, 0)
    for word in tune.split('+') if tune != 'none' else []:
        assert sum(NAMED[word](name) for name in found) >= 2


@pytest.mark.parametrize(
    ('tune', 'still'), [('last:1', (DEPTH - 1, 0)), ('first:1', (0, DEPTH - 1))]
)
def test_layers(tune, still):
    """All in them, adapters and pairs too, and what stands above or below."""
    outside = {'last:1': ('trunk/norm', 'head'), 'first:1': ('image_embed', 'tubelet', 'positions')}
    for name, rule in table_of(tune).items():
        if name.startswith(BLOCKS):
            assert rule.trained and (rule.num_frozen, rule.num_still) == still, name
            continue
        above = name.removeprefix('video/').startswith(outside[tune])
        assert rule.trained == (above or name.startswith(TEXT)), name


def test_a_frozen_text_tower_leaves_the_temperature():
    trained = {name for name, rule in table_of('stem', 'frozen').items() if rule.trained}
    assert trained == {n for n in table_of('stem') if NAMED['stem'](n)} | {'log_scale'}


def test_without_tubelets_the_stem_is_that_of_patches():
    trained = {n for n, rule in table_of('stem', 'frozen', tubelet=1).items() if rule.trained}
    stem = {'video/image_embed/kernel', 'video/image_embed/bias', 'video/positions/time'}
    assert trained == stem | {'log_scale'}


@pytest.mark.parametrize(
    ('tune', 'words'),
    [
        ('temporal', "tune: 'temporal' names no parameter of this model; only encoders with att"),
        ('lora+stem', "tune: 'lora' names no parameter of this model; set model.video.lora_rank"),
        ('first:9', 'tune: first:9 of an encoder with 3 layers'),
    ],
)
def test_what_a_model_has_not_is_refused(tune, words):
    with pytest.raises(ValueError, match=words):
        optim.rules(like({'depth': DEPTH}), tune=tuning.parsed(tune))


def test_temporal_attention_goes_by_its_name():
    """As a factorised block has it: a part `temporal` in the path."""
    names = [f'{BLOCKS}temporal/attention/qkv', f'{BLOCKS}temporal/gate', f'{BLOCKS}up/kernel']
    found = tuning.rows(tuning.parsed('temporal'), names, DEPTH)
    assert list(found.values()) == [(0, 0), (0, 0), None]


def test_every_table_knows_the_new_names():
    """The optimiser's decay, the layers' rates, the mesh: one row for each name."""
    shapes = like(BOTH)
    new = [name for name in flatten(shapes) if 'lora/' in name or '/adapter/' in name]
    assert len(new) == 8 + 4
    decays = {name: rule.decay for name, rule in optim.rules(shapes).items()}
    assert all(decays[name] == (not name.endswith('bias')) for name in new)
    factors = rates.factors(shapes, layer_decay=0.5)
    assert all(factors[name].tolist() == [0.125, 0.25, 0.5] for name in new)
    spread, _ = layout.shardings(shapes, mesh_of(fsdp=2, tensor=2))
    split = {name: one.spec for name, one in flatten(spread).items()}
    assert split[f'{BLOCKS}attention/qkv_lora/b'] == PartitionSpec(None, None, None, 'tensor')
    assert split[f'{BLOCKS}attention/out_lora/a'] == PartitionSpec(None, 'tensor')
    assert split[f'{BLOCKS}down/lora/a'] == PartitionSpec(None, 'tensor')


def test_rates_of_the_first_layers_are_theirs():
    """Updates of the lowest layer have the lowest factor, not that of the top."""
    model = dual({'depth': DEPTH})
    fields = {**FIELDS, 'tune': tuning.parsed('first:1')}
    plain, rated = optim.make(model, **fields), optim.make(model, **fields, layer_decay=0.5)
    one, two = (
        jax.jit(lambda model, tx=tx: tx.update(tx.take(model), tx.init(model), tx.take(model))[0],
                compiler_options=FAST)(model)
        for tx in (plain, rated)
    )  # fmt: skip
    name = f'{BLOCKS}up/kernel'
    assert one[name].shape[0] == 1
    np.testing.assert_allclose(two[name], 0.5**DEPTH * one[name], rtol=1e-6)


# The model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('tune', ['last:1', 'first:2', 'lora+stem'])
def test_the_part_and_the_whole(tune):
    """What is put back moves the slices that are trained; all others keep their bits."""
    model = dual(BOTH)
    table = optim.rules(model, tune=tuning.parsed(tune, 'frozen'))

    @functools.partial(jax.jit, compiler_options=FAST)
    def moved(model):
        live = trained.take(model, table)
        return trained.put(model, {name: leaf + 1 for name, leaf in live.items()}, table)

    after = flatten(moved(model))
    for name, leaf in flatten(model).items():
        changed, rule = np.atleast_1d(after[name] != leaf), table[name]
        assert changed.sum() == (rule.live(changed).size if rule.trained else 0), name
        assert rule.live(changed).all() == rule.trained, name


@jax.jit
def embedded(model, one):
    return model.video(one['patches'], one['where'])


def test_fresh_adapters_and_pairs_change_nothing():
    """Not a bit of the other parameters, as they are drawn, and nothing of what comes out."""

    def build(**more):
        return DualEncoder(
            video={**VIDEO, **more}, text=TEXT_TOWER, embed=EMBED,
            temperature=0.07, rngs=nnx.Rngs(0),
        )  # fmt: skip

    plain, more = (
        jax.jit(lambda more=more: build(**more), compiler_options=FAST)()
        for more in ({}, {'adapter_width': WIDTH, 'lora_rank': RANK})
    )
    old, new = flatten(plain), flatten(more)
    assert all(np.array_equal(new[name], leaf) for name, leaf in old.items())
    fresh = {name: np.asarray(new[name]) for name in new if name not in old}
    zero = {name for name, leaf in fresh.items() if not leaf.any()}
    assert zero == {name for name in fresh if name.endswith(('lora/b', 'bias', 'widen/kernel'))}
    one = batch()
    np.testing.assert_allclose(embedded(more, one), embedded(plain, one), atol=1e-6)


def test_merged_pairs_embed_as_before():
    model, one = dual({'depth': DEPTH, 'lora_rank': RANK}), batch()
    plain = lora.merged(flatten(model))
    shapes = like({'depth': DEPTH})
    started = warm_start(plain, flatten(shapes))  # a plain model starts from them as they are
    assert not started.lines
    same = unflatten(shapes, started.params)
    before, after = embedded(model, one), embedded(same, one)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-6)
    without = {name: leaf for name, leaf in flatten(model).items() if 'lora/' not in name}
    other = embedded(unflatten(shapes, without), one)
    assert np.abs(other - before).max() > 0.01  # the pairs did something
    with pytest.raises(ValueError, match='up/lora: cannot be merged, there is no'):
        lora.merged(
            {name: leaf for name, leaf in flatten(model).items() if '/up/kernel' not in name}
        )


def test_exports_know_adapters():
    config = flat.architecture(dual({**BOTH, 'lora_rank': 0}))
    assert config['video']['adapter_width'] == WIDTH
    assert any('CLIP has none, and its weights' in line for line in clip_out.faults(config, 7))
    assert 'adapter_width' not in flat.architecture(dual())['video']


# The step -----------------------------------------------------------------------------------------


def step_of(tune, text_tower='train', micro_batch=0, **video):
    """(fresh state, step, the optimiser)."""
    model, found = dual({**BOTH, **video}), tuning.parsed(tune, text_tower)
    tx = optim.make(model, **FIELDS, weight_decay=0.1, clip=1.0, tune=found)
    step = make_step(
        tx, optim.lr_schedule(**FIELDS), max_scale=100.0, ema_decay=0.0, micro_batch=micro_batch,
        **found.cuts(DEPTH),
    )  # fmt: skip
    return State(jnp.zeros((), jnp.int32), model, tx.init(model)), step, tx


CASES = {
    'adapters and the stem': ('adapters+stem', 'train', {'lora_rank': 0, 'remat': 'full'}, 0),
    'pairs, in micro-batches': ('lora', 'frozen', {'adapter_width': 0}, 2),
    'attention over time': (
        'temporal', 'frozen', {'adapter_width': 0, 'lora_rank': 0, 'backbone': 'factorised'}, 0,
    ),
    'attention over time, adapters and pairs': (
        'temporal+adapters+lora', 'frozen', {'backbone': 'factorised'}, 0,
    ),
    'the first layer': ('first:1', 'frozen', {'adapter_width': 0, 'lora_rank': 0}, 0),
}  # fmt: skip


@pytest.mark.parametrize(('tune', 'text', 'video', 'micro_batch'), CASES.values(), ids=CASES)
def test_two_steps_move_what_is_named_and_nothing_else(tune, text, video, micro_batch):
    state, step, tx = step_of(tune, text, micro_batch, **video)
    moments = {name: leaf.shape for name, leaf in flatten(state.opt).items() if '/mu/' in name}
    live = {f'adam/mu/{name}': leaf.shape for name, leaf in tx.take(state.model).items()}
    assert moments == live
    step, after = jax.jit(step, compiler_options=FAST), state
    for seed in range(2):
        after, watch = step(after, batch(k=12, seed=seed))  # of 3 slices
        assert watch['skipped'] == 0
    before = flatten(state.model)
    for name, leaf in flatten(after.model).items():
        rule, changed = tx.table[name], np.asarray(leaf != before[name])
        if not rule.trained:
            assert not changed.any(), name
        elif name != 'video/image_embed/bias':  # no image was shown
            assert (rule.live(changed) if changed.ndim else changed).any(), name
            assert changed.sum() == (rule.live(changed).sum() if changed.ndim else changed), name
    assert trained.counts(state) == (
        sum(np.prod(shape, dtype=int) for shape in live.values()),
        sum(leaf.size for leaf in jax.tree.leaves(state.model)),
    )
