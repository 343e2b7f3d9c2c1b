"""How parameters lie over the mesh: one table, for the model, its optimiser and its running mean.

A row is a regex that must match the END of a leaf's name, and what its last dims are; dims before
those (the depth of stacked blocks) are never split. So 'opt/adam/mu/video/trunk/blocks/up/kernel'
lies as 'model/video/trunk/blocks/up/kernel' does.
"""

import math
import re

import jax
from jax.sharding import NamedSharding, PartitionSpec

from long_vivit import sharding
from long_vivit.axes import FSDP, TENSOR
from long_vivit.names import names

TABLE = (
    (r'((image|tubelet)_embed|tubes/\w+)/kernel', (None, 'width')),
    (r'text/embed', ('vocab', None)),  # a split width would be gathered at every look-up
    (r'positions(/\w+)?', ()),
    (r'attention/qkv', ('width', None, 'heads', None)),
    (r'attention/qkv_bias', (None, 'heads', None)),
    (r'attention/out', ('heads', None, 'width')),
    (r'up/kernel', ('width', 'mlp')),
    (r'up/bias', ('mlp',)),
    (r'down/kernel', ('mlp', 'width')),
    (r'head/kernel', ('width', None)),
    (r'qkv_lora/b', (None, None, 'heads', None)),
    (r'out_lora/a', ('heads', None, None)),
    (r'(qkv_lora|up/lora)/a', ()),  # small, as adapters are: whole on every device
    (r'up/lora/b', (None, 'mlp')),
    (r'down/lora/a', ('mlp', None)),
    (r'(out_lora|down/lora)/b', ()),
    (r'adapter/(narrow|widen)/(kernel|bias)', ()),
    (
        r'(scale|cls|probe|out_bias|(norm\w*|down|head|image_embed|tubelet_embed|tubes/\w+)/bias)',
        (),
    ),
    (r'(log_scale|logit_bias|temporal/gate|step|count)', ()),
)
AXES_OF = {'width': (FSDP,), 'vocab': (FSDP, TENSOR), 'heads': (TENSOR,), 'mlp': (TENSOR,)}


def dims_of(name):
    """The row of TABLE for a leaf: names of its last dims. Raises ValueError unless it is one."""
    rows = [dims for regex, dims in TABLE if re.fullmatch(rf'(.*/)?{regex}', name)]
    if len(rows) != 1:
        raise ValueError(
            f'{name}: matches {len(rows)} rows of layout.TABLE; it must match exactly one'
        )
    return rows[0]


def spec_of(name, shape, sizes):
    """How a leaf is split: its PartitionSpec, and a line for each dim that does not divide.

    sizes: {axis: size}; an axis that is not in it has size 1.
    Raises ValueError where the row names more dims than there are, or is not one row.
    """
    dims = dims_of(name)
    if len(dims) > len(shape):
        raise ValueError(f'{name}: shape {list(shape)}, but layout.TABLE names the dims {dims}')
    spec, whole = [None] * (len(shape) - len(dims)), []
    for size, dim in zip(shape[len(shape) - len(dims) :], dims, strict=True):
        wanted = split = tuple(axis for axis in AXES_OF.get(dim, ()) if sizes.get(axis, 1) > 1)
        while size % math.prod(sizes[axis] for axis in split):
            split = split[:-1]
        if split != wanted:
            over = ', '.join(f'{axis}={sizes[axis]}' for axis in wanted[len(split) :])
            whole.append(f'{name}: {dim} {size} does not split over {over}')
        spec.append(split or None)
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec), whole


def shardings(tree, mesh):
    """How a pytree of parameters, or a whole State, lies over a mesh.

    Returns:
      the same tree of NamedSharding, and a line for each dim that stays whole on every device
      since its axes do not divide it.
    Raises ValueError: listing every leaf that does not match exactly one row of TABLE.
    """
    found, whole, faults = [], [], []
    for name, leaf in zip(names(tree), jax.tree.leaves(tree), strict=True):
        try:
            spec, lines = spec_of(name, leaf.shape, mesh.shape)
        except ValueError as error:
            faults.append(str(error))
            continue
        found.append(NamedSharding(mesh, spec))
        whole += lines
    if faults:
        raise ValueError('\n  '.join(['parameters without a place on the mesh:', *faults]))
    return jax.tree.unflatten(jax.tree.structure(tree), found), whole


def like(shapes, layout):
    """Pytrees of shapes and of shardings -> ShapeDtypeStruct that lie so."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        layout,
    )


def batch(shapes, mesh):
    """A batch {name: ShapeDtypeStruct [b, ...], or a tuple} as `sharding.place` lays it."""
    found = {}
    for name, some in shapes.items():
        lies = sharding.over_batch(mesh, tokens=name in sharding.TOKENS)
        found[name] = like(some, jax.tree.map(lambda _, lies=lies: lies, some))
    return found


def spread(tree, layout):
    """A pytree of arrays laid out so; what lies so already is passed on.

    Each host gives the parts that its devices hold, from an array that it has whole.
    """

    def one(x, sharding):
        if isinstance(x, jax.Array):
            same = x.sharding.is_equivalent_to(sharding, x.ndim)
            return x if same else jax.device_put(x, sharding)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(one, tree, layout)
