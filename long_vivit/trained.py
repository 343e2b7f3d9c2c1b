"""The trained part of a model's parameters, and the model with that part put back.

The step differentiates with respect to the part alone, and the optimiser holds moments of it alone:
for what is frozen there is no gradient to compute, to sum over devices or to keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from long_vivit.names import below, flatten, unflatten


class Rule(NamedTuple):
    """How one parameter is trained."""

    trained: bool  # False: it stays as it is
    decay: bool  # weight decay applies
    num_frozen: int = 0  # so many first slices of its leading dim never change
    num_still: int = 0  # and so many last ones

    def live(self, leaf: Any) -> Any:
        """The slices that are trained of a leaf, or of anything as long."""
        if not (self.num_frozen or self.num_still):
            return leaf
        return leaf[self.num_frozen : len(leaf) - self.num_still]


def counts(state: Any) -> tuple[int, int]:
    """(parameters that are trained, all parameters) of a State of arrays or of shapes."""
    moments = below(flatten(state.opt), 'adam/mu').values()
    return sum(x.size for x in moments), sum(x.size for x in jax.tree.leaves(state.model))


def take(params: Any, table: Mapping[str, Rule]) -> dict[str, Any]:
    """{name: what is trained of it}: no frozen parameters, of stacked layers the trained slices."""
    return {
        name: table[name].live(leaf)
        for name, leaf in flatten(params).items()
        if table[name].trained
    }


def put(params: Any, live: Mapping[str, Any], table: Mapping[str, Rule]) -> Any:
    """The parameters with what `take` gives of them replaced by `live`; the rest is passed on."""
    whole = flatten(params)
    for name, leaf in live.items():
        rule, old = table[name], whole[name]
        if rule.num_frozen or rule.num_still:
            below, above = old[: rule.num_frozen], old[len(old) - rule.num_still :]
            leaf = jnp.concatenate([below, leaf, above])
        whole[name] = leaf
    return unflatten(params, whole)
