"""Which device holds what, and the few words about it that models, losses and the trainer share.

The mesh is ambient: the trainer enters `jax.set_mesh(make_mesh(...))`, and traced code asks for the
size of an axis or pins the layout of an array without being handed a mesh. Without an ambient mesh
every axis has size 1 and nothing is pinned.
"""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from long_vivit import axes
from long_vivit.axes import AXES, BATCH, DATA, DCN, FSDP, SEQ, TENSOR

__all__ = ['AXES', 'BATCH', 'DATA', 'DCN', 'FSDP', 'SEQ', 'TENSOR']


def axis_size(names):
    """How many parts the ambient mesh makes of what is split over `names`, an axis or some; int.

    An axis that the mesh lacks has size 1.
    """
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(name, 1) for name in _several(names))


def batch_axes():
    """The axes of the ambient mesh that the batch is split over: a tuple, () where none is."""
    shape = jax.sharding.get_abstract_mesh().shape
    return tuple(name for name in BATCH if shape.get(name, 1) > 1)


def constrain(x, *names):
    """x as it is, laid out over the ambient mesh: for each dim an axis, a tuple of axes, or None.

    Axes that the mesh lacks, that have size 1, or that a surrounding shard_map has taken over are
    left out. `constrain(x, BATCH, SEQ, None)` for activations [b, n, d].

    Raises ValueError: a dim that its axes do not divide, or another number of dims.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes_here = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    auto = {name: size for name, size, kind in axes_here if size > 1 and kind == AxisType.Auto}
    if not auto:
        return x
    if len(names) != x.ndim:
        raise ValueError(f'{len(names)} dims are named of an array of shape {x.shape}')
    spec = [tuple(name for name in _several(dim) if name in auto) for dim in names]
    for size, split in zip(x.shape, spec, strict=True):
        if size % math.prod(auto[name] for name in split):
            raise ValueError(
                f'an array of shape {x.shape} does not split evenly over the mesh axes {spec}: '
                f'{size} rows over {", ".join(f"{name}={auto[name]}" for name in split)}; change '
                'mesh, or the size of the batch or of the video'
            )
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def _several(names):
    """None -> (), 'a' -> ('a',), a tuple as it is."""
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)


def make_mesh(spec='data=-1', devices=None):
    """A mesh of all AXES over all devices (or those given), as the field `mesh` says."""
    devices = np.asarray(jax.devices() if devices is None else devices)
    shape = axes.sizes(spec, devices.size)
    return Mesh(
        devices.reshape(tuple(shape.values())), AXES, axis_types=(AxisType.Auto,) * len(AXES)
    )


def over_batch(mesh):
    """The first dim split over the devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


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
