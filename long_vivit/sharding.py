"""Which device holds what, and the few words about it that models, losses and the trainer share.

The mesh is ambient: the trainer enters `jax.set_mesh(make_mesh(...))`, and traced code asks for the
size of an axis or pins the layout of an array without being handed a mesh. Without an ambient mesh
every axis has size 1 and nothing is pinned.
"""

import math
from functools import lru_cache

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from long_vivit import axes
from long_vivit.axes import AXES, BATCH, DATA, DCN, FSDP, SEQ, TENSOR

TOKENS = ('patches', 'where')  # arrays of a batch whose second dim are the tokens of a video

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
    """A mesh of all AXES over all devices (or those given), as the field `mesh` says.

    Raises ValueError: as `axes.sizes` and `arrange` do.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = axes.sizes(spec, len(devices))
    return Mesh(arrange(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange(shape, devices):
    """The devices as an array with a dim for each axis of `shape`, neighbours next to each other.

    Where they lie in several slices of a TPU pod, only `dcn` crosses from one to another, or `data`
    where dcn is 1. Elsewhere they are taken as they are numbered, node by node: so `dcn` crosses
    nodes first, `tensor` last.

    Raises ValueError where neither of the two is a multiple of the number of slices.
    """
    tpu = devices[0].platform == 'tpu'
    slices = len({getattr(device, 'slice_index', 0) for device in devices}) if tpu else 1
    axis = DCN if shape[DCN] > 1 else DATA
    if shape[axis] % slices:
        raise ValueError(
            f'the {len(devices)} devices lie in {slices} slices that a slow network joins, '
            f'and {axis}={shape[axis]} does not split over them; set dcn={slices}'
        )
    within = tuple((shape | {axis: shape[axis] // slices}).values())
    if slices == 1:
        return mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=True)
    across = tuple(slices if name == axis else 1 for name in shape)
    return mesh_utils.create_hybrid_device_mesh(
        within, across, devices, allow_split_physical_axes=True
    )


def everywhere(mesh):
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh, *, tokens=False):
    """The first dim split over the axes of the batch; `tokens`: and the second over `seq`."""
    return NamedSharding(mesh, PartitionSpec(BATCH, SEQ) if tokens else PartitionSpec(BATCH))


def batch_parts(mesh):
    """How many parts the batch is split into: a global batch must be a multiple of it."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


@lru_cache(maxsize=16)
def rows_here(mesh, b):
    """The rows of a global batch of `b` that this process must read, ascending: int [local b].

    Processes hold the same rows where `seq` or `tensor` reaches over more than one of them.
    """
    held = over_batch(mesh).addressable_devices_indices_map((b,)).values()
    return np.unique(np.concatenate([np.arange(b)[part] for part in held]))


def place(mesh, batch, b):
    """This process's arrays -> global arrays [b, ...], split over the mesh.

    batch: {name: array [local b, ...], or a tuple of them} of the rows `rows_here(mesh, b)`;
      patches and where are split by their tokens too.
    """
    rows = rows_here(mesh, b)

    def one(name, x):
        assert len(x) == len(rows), f'{name}: {len(x)} rows here, {len(rows)} wanted'
        layout = over_batch(mesh, tokens=name in TOKENS)
        if len(rows) == b:  # all is here, as with one process
            return jax.make_array_from_callback(x.shape, layout, lambda part: x[part])

        def cut(part):
            first, last, _ = part[0].indices(b)
            here = np.searchsorted(rows, first)
            return x[(slice(here, here + last - first), *part[1:])]

        return jax.make_array_from_callback((b, *x.shape[1:]), layout, cut)

    return {
        name: jax.tree.map(lambda leaf, name=name: one(name, leaf), x) for name, x in batch.items()
    }
