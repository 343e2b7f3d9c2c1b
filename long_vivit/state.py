"""All that a training run must remember between two steps, as one pytree."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from long_vivit import layout
from long_vivit.compiling import HASTY
from long_vivit.names import below, flatten, names, unflatten
from long_vivit.programs import Programs

__all__ = ['State', 'below', 'flatten', 'names', 'unflatten']


class State(NamedTuple):
    """The train state; the data order and the masks are functions of the step, so this is all.

    Its leaves are named 'step', 'model/video/...', 'opt/...' and 'ema/video/...' (see `names`).
    """

    step: jax.Array  # int32 []: the number of finished steps of this stage
    model: Any  # the nnx Module itself, float parameters only
    opt: Any  # the state of `optim.make`
    ema: Any = None  # a second Module with the averaged parameters, or None


def fresh(init, lies, params):
    """init(params) laid out as `lies` says; `params`: a flat dict of arrays on this host, or None.

    No device ever holds more of them than its part.
    """
    if params is not None:
        model = flatten(lies.model)
        params = {name: layout.spread(x, model[name]) for name, x in params.items()}
    draw = Programs(jax.jit(init, out_shardings=lies, compiler_options=HASTY))
    draw.prepare(params)
    return draw(params)
