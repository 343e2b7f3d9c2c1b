"""All that a training run must remember between two steps, as one pytree."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from long_vivit.names import below, flatten, names, unflatten

__all__ = ['State', 'below', 'flatten', 'names', 'unflatten']


class State(NamedTuple):
    """The train state; the data order and the masks are functions of the step, so this is all.

    Its leaves are named 'step', 'model/video/...', 'opt/...' and 'ema/video/...' (see `names`).
    """

    step: jax.Array  # int32 []: the number of finished steps of this stage
    model: Any  # the nnx Module itself, float parameters only
    opt: Any  # the state of `optim.make`
    ema: Any = None  # a second Module with the averaged parameters, or None
