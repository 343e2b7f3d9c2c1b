"""Every leaf has one place on the mesh, alike in model, optimiser and running mean."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from long_vivit import axes, layout, optim, sharding
from long_vivit.names import flatten
from long_vivit.state import State
from tests import tiny_models

FIELDS = {'lr': 0.1, 'steps': 10, 'warmup_steps': 0}


def state_like(**video):
    """The shapes of a whole State."""
    model = tiny_models.like(video=video)
    optimiser = optim.make(model, **FIELDS, clip=1.0, weight_decay=0.1)
    return State(
        jax.ShapeDtypeStruct((), jnp.int32), model, jax.eval_shape(optimiser.init, model), model
    )


@pytest.mark.parametrize('pool', ['mean', 'cls'])
def test_one_table_for_model_optimiser_and_mean(pool):
    like = state_like(pool=pool)
    found, whole = layout.shardings(like, sharding.make_mesh('fsdp=4,tensor=2'))
    specs = {name: x.spec for name, x in flatten(found).items()}
    assert specs['model/video/trunk/blocks/attention/qkv'] == P(None, ('fsdp',), None, ('tensor',))
    assert specs['model/video/trunk/blocks/down/kernel'] == P(None, ('tensor',), ('fsdp',))
    assert specs['model/video/trunk/blocks/up/bias'] == P(None, ('tensor',))
    assert specs['model/video/positions/space'] == specs['step'] == specs['opt/adam/count'] == P()
    for name, spec in specs.items():
        if name.startswith('model/'):
            leaf = name.removeprefix('model/')
            for other in ('ema/', 'opt/adam/mu/', 'opt/adam/nu/'):
                assert specs[other + leaf] == spec, name
    # The text tower has 3 heads of 4, and 11 words: neither splits, and both are told.
    assert {re.sub('.*/text/', '', line) for line in whole} == {
        'embed: vocab 11 does not split over fsdp=4, tensor=2',
        *(f'trunk/blocks/attention/{x}: heads 3 does not split over tensor=2'
          for x in ('qkv', 'qkv_bias', 'out')),
    }  # fmt: skip


def test_most_of_a_large_model_is_split():
    """What stays whole is small: vectors, and the tables of positions."""
    like = tiny_models.like(
        video={'width': 64, 'heads': 4}, text={'width': 64, 'heads': 4, 'vocab': 512}
    )
    found, whole = layout.shardings(like, sharding.make_mesh('fsdp=4,tensor=2'))
    assert not whole
    sizes = {name: leaf.size for name, leaf in flatten(like).items()}
    kept = sum(sizes[k] for k, x in flatten(found).items() if x.is_fully_replicated)
    assert kept < 0.03 * sum(sizes.values())


def test_words_are_split_as_far_as_they_go():
    sizes = {'fsdp': 4, 'tensor': 2}
    assert layout.spec_of('text/embed', (512, 8), sizes)[0] == P(('fsdp', 'tensor'))
    spec, whole = layout.spec_of('text/embed', (12, 8), sizes)
    assert spec == P(('fsdp',)) and whole == ['text/embed: vocab 12 does not split over tensor=2']
    assert layout.spec_of('text/embed', (12, 8), {}) == (P(), [])  # a mesh without these axes


def test_a_leaf_without_a_row_is_refused():
    like = {'up': {'kernel': jax.ShapeDtypeStruct((2, 8), jnp.float32)}, 'new': jnp.ones(3)}
    with pytest.raises(ValueError, match='new: matches 0 rows of layout.TABLE') as caught:
        layout.shardings(like | {'gate': jnp.ones(3)}, sharding.make_mesh())
    assert 'gate: matches 0 rows' in str(caught.value)
    with pytest.raises(ValueError, match=r'up/kernel: shape \[8\], but layout.TABLE names'):
        layout.spec_of('up/kernel', (8,), {})


@pytest.mark.parametrize(
    ('spec', 'shape'),
    [
        ('data=-1', (1, 8, 1, 1, 1)),
        ('data=-1,fsdp=4', (1, 2, 4, 1, 1)),
        ('seq=2, dcn=2, tensor=2', (2, 1, 1, 2, 2)),
        ('fsdp=-1,seq=2', (1, 1, 4, 2, 1)),
    ],
)
def test_sizes(spec, shape):
    assert tuple(axes.sizes(spec, 8).values()) == sharding.make_mesh(spec).devices.shape == shape


@pytest.mark.parametrize(
    ('spec', 'words'),
    [
        ('data=3', 'needs 3 devices, and there are 8'),
        ('data=-1,fsdp=3', 'needs a multiple of 3 devices, and there are 8'),
        ('data=16', 'needs 16 devices, and there are 8'),
        ('tensors=8', "'tensors' in 'tensors=8' is no axis; nearest: tensor"),
        ('data=-1,fsdp=-1', 'more than one -1'),
        ('data=4,data=2', "'data' comes twice"),
        ('data=two', "'data=two' in 'data=two': the size of an axis must be at least 1"),
        ('data', 'the size of an axis must be at least 1'),
    ],
)
def test_sizes_that_are_refused(spec, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        axes.sizes(spec, 8)


def slices_of_tpu(num_slices, side=2):
    """Fake devices of slices of side x side chips."""
    return [
        SimpleNamespace(
            id=i, platform='tpu', device_kind='TPU v5 lite', slice_index=i // side**2,
            process_index=i // side**2, coords=(i % side, i // side % side, 0), core_on_chip=0,
        )
        for i in range(num_slices * side**2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('spec', 'crosses'),
    [('dcn=2,fsdp=4', 'dcn'), ('data=-1', 'data'), ('dcn=4,tensor=2', 'dcn')],
)
def test_only_one_axis_crosses_from_slice_to_slice(spec, crosses):
    devices = slices_of_tpu(2)
    placed = sharding.arrange(axes.sizes(spec, 8), devices)
    assert {device.id for device in placed.flat} == set(range(8))
    place = axes.AXES.index(crosses)
    first, second = placed.swapaxes(0, place).reshape(2, 4)
    assert [{d.slice_index for d in half} for half in (first, second)] == [{0}, {1}]


def test_slices_that_no_axis_may_cross_are_refused():
    shape = axes.sizes('fsdp=8', 8)
    with pytest.raises(ValueError, match='8 devices lie in 2 slices .* data=1 .*; set dcn=2'):
        sharding.arrange(shape, slices_of_tpu(2))
    assert sharding.arrange(shape, jax.devices()).shape == (1, 1, 8, 1, 1)


def test_what_the_ambient_mesh_says():
    x = jnp.ones((4, 6, 3))
    pin = jax.jit(lambda x: sharding.constrain(x, axes.BATCH, axes.SEQ, None))
    assert sharding.axis_size('data') == 1 and sharding.batch_axes() == ()
    assert len(pin(x).sharding.device_set) == 1
    with jax.set_mesh(sharding.make_mesh('data=2,fsdp=2,seq=2')):
        assert sharding.axis_size(axes.BATCH) == 4 and sharding.axis_size('seq') == 2
        assert sharding.batch_axes() == ('data', 'fsdp') and sharding.axis_size('expert') == 1
        assert {shard.data.shape for shard in pin(x).addressable_shards} == {(1, 3, 3)}
        with pytest.raises(ValueError, match='7 rows over seq=2'):
            pin(jnp.ones((4, 7, 3)))
        inside = jax.shard_map(
            lambda x: sharding.constrain(x, axes.BATCH, axes.SEQ, None) * sharding.axis_size('seq'),
            in_specs=P(axes.BATCH, 'seq'), out_specs=P(axes.BATCH, 'seq'),
        )  # fmt: skip
        assert float(jax.jit(inside)(x).sum()) == 2 * x.size
    small = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(small):  # lacks the other axes
        assert {s.data.shape for s in pin(jnp.ones((8, 1, 3))).addressable_shards} == {(1, 1, 3)}


def test_a_batch_is_split_by_rows_and_videos_by_tokens():
    mesh = sharding.make_mesh('data=2,tensor=2,seq=2')
    one = tiny_models.batch(b=4, k=6)
    np.testing.assert_array_equal(sharding.rows_here(mesh, 4), range(4))
    for name, placed in sharding.place(mesh, one, 4).items():
        np.testing.assert_array_equal(placed, one[name])
        k = 3 if name in ('patches', 'where') else one[name].shape[1:2]
        for shard in placed.addressable_shards:
            assert shard.data.shape[:2] == ((2, k) if isinstance(k, int) else (2, *k)), name
            np.testing.assert_array_equal(shard.data, one[name][shard.index])
