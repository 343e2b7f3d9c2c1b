"""Attention over devices: what eight devices compute together is what one computes alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from long_vivit.models import sequence
from long_vivit.models.attention import attend
from tests.test_attention import assert_all_near
from tests.tiny_models import FAST, batch, dual

pytestmark = pytest.mark.usefixtures('eight_devices')
B, M, F = 4, 4, 8


def mesh_of(**sizes):
    """A mesh over as many devices as the sizes say, its axes in their order."""
    devices = np.array(jax.devices()[: np.prod(list(sizes.values()))])
    auto = (AxisType.Auto,) * len(sizes)
    return Mesh(devices.reshape(tuple(sizes.values())), tuple(sizes), axis_types=auto)


def arrays(n, dtype=np.float32, seed=0, m=M):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(2 * rng.standard_normal((B, n, m, F)), dtype) for _ in range(4)]


def all_of(query, key, value, d_out, lengths=None, **how):
    """Output and the three gradients."""
    out, back = jax.vjp(partial(attend, lengths=lengths, **how), query, key, value)
    return out, *back(d_out)


def compiled(**how):
    return jax.jit(partial(all_of, **how), compiler_options=FAST)


def on_mesh(mesh, values, lengths=None, **how):
    with jax.set_mesh(mesh):
        return jax.device_get(compiled(**how)(*values, lengths))


MESHES = {
    'ulysses': {'data': 2, 'seq': 2, 'tensor': 2},
    'ulysses of 4': {'dcn': 2, 'seq': 4},
    'ring': {'data': 2, 'seq': 2, 'tensor': 2},
    'ring of 8': {'seq': 8},
}


@pytest.mark.parametrize('name', MESHES)
@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('with_lengths', [False, True])
def test_output_and_gradients_are_those_of_dense(name, causal, with_lengths):
    """37 tokens divide by no axis; some examples end in another piece, one has nothing at all."""
    values = arrays(37)
    lengths = np.array([37, 3, 0, 20], np.int32) if with_lengths else None
    wanted = compiled(implementation='dense', causal=causal)(*values, lengths)
    split = name.split()[0]
    got = on_mesh(mesh_of(**MESHES[name]), values, lengths, split=split, causal=causal)
    assert_all_near(got, wanted)
    if with_lengths:
        assert not any(np.any(x[2]) for x in got)


@pytest.mark.parametrize('split', ['ulysses', 'ring'])
def test_half_precision(split):
    values = arrays(40, jnp.bfloat16)
    exact = compiled(implementation='dense')(*(x.astype(jnp.float32) for x in values))
    got = on_mesh(mesh_of(data=2, seq=4), values, split=split)
    assert {x.dtype for x in got} == {jnp.dtype(jnp.bfloat16)}
    assert_all_near(got, exact, 0.015)


def test_more_blocks_than_one_in_each_piece(monkeypatch):
    monkeypatch.setattr(sequence.blockwise, 'ROWS', 4)
    monkeypatch.setattr(sequence.blockwise, 'COLUMNS', 8)
    values, lengths = arrays(41), np.array([41, 30, 11, 1], np.int32)
    wanted = compiled(implementation='dense', causal=True)(*values, lengths)
    got = on_mesh(mesh_of(data=2, seq=2), values, lengths, split='ring', causal=True)
    assert_all_near(got, wanted)


def hlo(mesh, split, m=M):
    like = jax.ShapeDtypeStruct((B, 32, m, F), jnp.float32)
    with jax.set_mesh(mesh):
        return jax.jit(partial(all_of, split=split)).lower(*[like] * 4).compile().as_text()


def test_what_travels():
    """Tokens go round or change places; nothing is gathered whole, batch and heads stay split."""
    mesh = mesh_of(data=2, seq=2, tensor=2)
    split = {name: hlo(mesh, name) for name in ('ulysses', 'ring')}
    assert 'all-to-all' in split['ulysses'] and 'collective-permute' not in split['ulysses']
    assert 'collective-permute' in split['ring'] and 'all-to-all' not in split['ring']
    for text in split.values():
        assert 'all-gather' not in text
    assert 'all-to-all' in hlo(mesh, 'auto') and 'collective-permute' in hlo(mesh, 'auto', m=2)


@pytest.mark.parametrize('split', ['ulysses', 'ring'])
def test_a_whole_encoder(split):
    """Two blocks with their gradients, computed again (remat)."""
    model = dual(video={'attention': 'blockwise', 'split': split, 'remat': 'full'})
    values = batch(b=B)

    def loss(video, values, over):
        patches = values['patches']
        if over is not None:
            patches = jax.lax.with_sharding_constraint(patches, over)
        return (video(patches, values['where']) ** 3).sum()

    def grads(over):
        function = jax.jit(jax.value_and_grad(partial(loss, over=over)), compiler_options=FAST)
        return jax.tree.leaves(jax.device_get(function(model.video, values)))

    wanted = grads(None)
    with jax.set_mesh(mesh_of(data=2, seq=2)):
        got = grads(PartitionSpec('data', 'seq'))
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


def test_text_stays_whole():
    """Dense attention, that of text, never hears of the axis."""
    values = arrays(5)
    with jax.set_mesh(mesh_of(data=2, seq=4)):
        text = str(jax.make_jaxpr(partial(all_of, implementation='dense'))(*values))
    assert 'shard_map' not in text


# What is chosen, and what is refused ---------------------------------------------------------


def test_how_tokens_are_split_is_said_with_the_reason():
    assert sequence.resolve('auto', 12, 2, 2) == (
        'ulysses',
        '12 heads divide by seq=2 times tensor=2',
    )
    assert sequence.resolve('auto', 6, 4) == ('ring', '6 heads do not divide by seq=4')
    assert sequence.resolve('ring', 12, 4)[0] == 'ring'
    with pytest.raises(ValueError, match="model.sequence is 'rign'; it must be one of auto, ul"):
        sequence.resolve('rign', 12, 4)
    with pytest.raises(ValueError, match="is 'ulysses', but 6 heads do not divide by seq=4"):
        sequence.resolve('ulysses', 6, 4)
    with pytest.raises(ValueError, match='6 heads .* do not divide by tensor=4'):
        sequence.resolve('ring', 6, 2, 4)


def test_a_batch_that_does_not_divide_is_refused():
    with (
        jax.set_mesh(mesh_of(data=2, fsdp=4)),
        pytest.raises(ValueError, match='a batch of 4 does not divide by .* data=2, fsdp=4'),
    ):
        sequence.over_devices(
            None, *arrays(8)[:3], None, False, implementation='splash', split='auto'
        )


def test_a_kernel_is_not_replaced_by_a_ring():
    with (
        jax.set_mesh(mesh_of(seq=8)),
        pytest.raises(ValueError, match="'cudnn', but the tokens go round .*4 heads do not divide"),
    ):
        attend(*arrays(8)[:3], implementation='cudnn')


def test_inside_a_shard_map_of_others_nothing_is_split_again():
    values = arrays(8)
    wanted = compiled()(*values)
    spec = PartitionSpec('seq')

    def piece(*values):
        return all_of(*values)

    with jax.set_mesh(mesh_of(seq=4)):
        over = jax.shard_map(piece, in_specs=(spec,) * 4, out_specs=(spec,) * 4, check_vma=False)
        got = jax.jit(over, compiler_options=FAST)(*values)
    assert_all_near(got, wanted)
