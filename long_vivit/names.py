"""Every leaf of a pytree has one name: checkpoints, sharding and the optimiser all go by it.

A name is the path of the leaf with '/' between its parts, without the '/value' that an nnx
Variable adds: 'video/trunk/blocks/up/kernel'. The names are the file format: they do not depend on
the version of Flax, and a test holds them fixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax


def names(tree: Any) -> list[str]:
    """The names of the leaves of `tree`, in the order of `jax.tree.leaves`."""
    found = []
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
        found.append(jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value'))
    assert len(set(found)) == len(found), f'two leaves share a name: {_repeated(found)}'
    return found


def flatten(tree: Any) -> dict[str, Any]:
    """{name: leaf} of every leaf of `tree`, unchanged; None and empty nodes have no leaf."""
    return dict(zip(names(tree), jax.tree.leaves(tree), strict=True))


def unflatten(like: Any, flat: Mapping[str, Any]) -> Any:
    """The tree shaped as `like` with the leaves of `flat`: the inverse of `flatten`.

    `like` may hold arrays or `jax.ShapeDtypeStruct`; leaves are taken from `flat` as they are.
    Raises ValueError listing every name that is missing, left over or of another shape.
    """
    leaves = flatten(like)
    faults = [f'  {name}: missing' for name in leaves if name not in flat]
    faults += [f'  {name}: has no place in the tree' for name in flat if name not in leaves]
    for name, leaf in leaves.items():
        if name in flat and _shape(leaf) != _shape(flat[name]):
            faults.append(f'  {name}: shape {_shape(flat[name])} given, {_shape(leaf)} wanted')
    if faults:
        raise ValueError('the arrays do not fit the tree:\n' + '\n'.join(faults))
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in leaves])


def below(flat: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The part of `flat` below `prefix`, with the prefix cut off the names.

    `below(flatten(state), 'model')` is `flatten(state.model)`.
    """
    start = prefix.rstrip('/') + '/'
    return {name[len(start) :]: leaf for name, leaf in flat.items() if name.startswith(start)}


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(getattr(leaf, 'shape', ()))


def _repeated(found: Sequence[str]) -> list[str]:
    return sorted({name for name in found if found.count(name) > 1})
