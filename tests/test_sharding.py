"""Any mesh gives what one device gives; who holds what."""

import jax
import numpy as np
import pytest

from long_vivit import sharding
from long_vivit.names import flatten
from tests import mesh_steps

pytestmark = pytest.mark.usefixtures('eight_devices')

MESHES = (  # each axis alone, then together; see also test_several_processes
    'data=8',
    'fsdp=8',
    'seq=4',
    'tensor=2',
    'data=2,fsdp=2,seq=2',
    'dcn=2,fsdp=2,tensor=2',
)


def mesh_of(spec):
    """Of the first devices, as many as the sizes ask for."""
    count = np.prod([int(part.split('=')[1]) for part in spec.split(',')])
    return sharding.make_mesh(spec, jax.devices()[:count])


@pytest.fixture(scope='module')
def alone():
    """What two steps on one device give."""
    watched, state = mesh_steps.run(mesh_of('data=1'))
    return watched, {name: np.asarray(x) for name, x in state.items()}


@pytest.mark.parametrize('spec', MESHES)
def test_the_same_losses_and_state_on_any_mesh(spec, alone):
    mesh = mesh_of(spec)
    watched, state = mesh_steps.run(mesh)
    for key, values in alone[0].items():
        np.testing.assert_allclose(watched[key], values, rtol=1e-5, atol=1e-5, err_msg=key)
    assert state.keys() == alone[1].keys()
    for name, leaf in alone[1].items():
        np.testing.assert_allclose(state[name], leaf, rtol=0, atol=1e-5, err_msg=name)
    for name in ('model/', 'opt/adam/mu/', 'opt/adam/nu/'):
        up = state[name + 'video/trunk/blocks/up/kernel']  # [depth, d, 4 d]
        part = up.shape[1] // mesh.shape['fsdp'], up.shape[2] // mesh.shape['tensor']
        assert {shard.data.shape[1:] for shard in up.addressable_shards} == {part}
        assert len(up.addressable_shards) == mesh.size


def test_steps_move_parameters_further_than_that(alone):
    """Else the test above could pass without any step."""
    before = {f'model/{name}': x for name, x in flatten(mesh_steps.start()[1].model).items()}
    moved = [name for name in before if np.abs(alone[1][name] - before[name]).max() > 1e-3]
    assert len(moved) > 0.7 * len(before)
    assert abs(np.diff(alone[0]['loss'])) > 1e-2
