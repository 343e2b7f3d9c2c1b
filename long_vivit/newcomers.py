"""What a stage's model has and its start lacks as a whole, and what has no place in the model.

New ones are drawn. Adapters, LoRA and gates do nothing yet (the model is to the last bit what it
was). LoRA of a stage before is merged into the weights, where the stage has none. Adapters cannot
be: they bend.
"""

import math
import re

import jax
import numpy as np

from long_vivit import recipe, tuning
from long_vivit.compiling import HASTY
from long_vivit.models import lora
from long_vivit.names import flatten

# {kind: (regex of whole names, what is said of new ones)}; what lacks them does not stand against
# it. The rest of attention over time is a copy of the layer's own (`warm_start.ADAPTERS`).
KINDS = {
    'adapters': (tuning.NAMES['adapters'], '{count:,} parameters that change nothing yet'),
    'lora': (tuning.NAMES['lora'], '{count:,} parameters that change nothing yet'),
    'video/over_time/': (r'video/over_time/.*', 'it comes with the backbone'),
    'video/trunk/blocks/temporal/gate': (
        r'video/trunk/blocks/temporal/gate', 'it comes with the backbone'
    ),
}  # fmt: skip


def settled(run, stage, vocab, flat, like):
    """The parameters to start from with, or without, what not every model has.

    Args:
      flat: {name: array} to start from. like: {name: shape} of the stage's model.
    Returns:
      {name: array}, and lines for people.
    Raises ValueError: `flat` has adapters, the stage's model has none.
    """
    lines = []
    if lora.has_lora(flat) and not lora.has_lora(like):
        flat = lora.merged(flat)
        lines.append('lora: merged into the weights, which embed as before')
    if of_kind('adapters', flat) and not of_kind('adapters', like):
        hidden = flat[next(name for name in flat if name.endswith('adapter/narrow/kernel'))]
        raise ValueError(
            f'stages.{stage.name}: the start has adapters, this stage has no place for them, and '
            'no weights could do what they do; set model.video.adapter_width to '
            f'{hidden.shape[-1]}, and name adapters in the tune of the first stage, or in none'
        )
    for kind in KINDS:
        fresh = of_kind(kind, like)
        if not fresh or of_kind(kind, flat):
            continue
        flat = flat | drawn(run, stage, vocab, fresh)
        count = sum(math.prod(like[name].shape) for name in fresh)
        lines.append(f'{kind}: afresh, {KINDS[kind][1].format(count=count)}')
    return flat, lines


def of_kind(kind, names):
    """The names that a key of KINDS stands for."""
    return [name for name in names if re.fullmatch(KINDS[kind][0], name)]


def drawn(run, stage, vocab, names):
    """{name: array} of these parameters of a fresh model of the stage."""
    key = recipe.stage_key(run, stage)

    def some():
        fresh = flatten(recipe.model(run, stage, vocab, key))
        return {name: fresh[name] for name in names}

    return jax.tree.map(np.asarray, jax.jit(some, compiler_options=HASTY)())
