"""Which device holds what: one mesh, the batch split over it, the train state on every device."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA = 'data'


def make_mesh(devices=None):
    """A mesh of one axis, `data`, over all devices (or those given)."""
    devices = np.asarray(jax.devices() if devices is None else devices)
    return Mesh(devices, (DATA,), axis_types=(AxisType.Auto,))


def over_batch(mesh):
    """The first dim split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def everywhere(mesh):
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def like(shapes, sharding):
    """A pytree of shapes and dtypes -> the same as ShapeDtypeStruct that lie as `sharding` says."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def place(mesh, batch):
    """This host's arrays [b / hosts, ...] -> global arrays [b, ...], split over the mesh."""
    sharding = over_batch(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
