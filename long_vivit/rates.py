"""Learning rates by tower and by layer, as factors of the stage's rate.

Who goes on from weights that know something wants the layers that know most to change least: a
factor for each tower, and in both a factor that falls with each layer from the top (layer-wise
decay; BEiT, arXiv 2106.08254, numbers the layers as here).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from long_vivit.names import flatten

# (regex of a whole name, where in its tower it lies). Each name below a tower matches one row.
PLACES = (
    (r'\w+/trunk/blocks/.*', 'block'),
    (r'\w+/(trunk/norm|map|head|over_time)/.*', 'top'),
    (r'video/(image_embed|tubelet_embed|tubes|positions|cls|norm_input)(/.*)?', 'below'),
    (r'text/(embed|positions)(/.*)?', 'below'),
)
TOWERS = ('video', 'text')


def factors(
    params_like: Any, *, video_lr: float = 1.0, text_lr: float = 1.0, layer_decay: float = 1.0
) -> dict[str, np.ndarray]:
    """{name: factor float32} of every parameter: [] or, of stacked blocks, [depth].

    What stands above the blocks has its tower's factor; the last block that times `layer_decay`,
    the one below it times its square ..., and what comes before the first block once more. What
    belongs to no tower, the temperature and the bias, has 1.

    Raises:
      ValueError: listing each name of a tower that PLACES does not know, or knows twice.
    """
    flat, found, faults = flatten(params_like), {}, []
    depths = {
        name.split('/')[0]: len(leaf)
        for name, leaf in flat.items()
        if re.match(r'\w+/trunk/blocks/', name)
    }
    for name in flat:
        tower = name.split('/')[0]
        if tower not in TOWERS:
            found[name] = np.float32(1)
            continue
        places = [place for regex, place in PLACES if re.fullmatch(regex, name)]
        if len(places) != 1:
            faults.append(f'{name}: matches {len(places)} rows of rates.PLACES; it must match one')
            continue
        depth = depths[tower]
        steps = {'top': 0, 'block': depth - np.arange(depth), 'below': depth + 1}[places[0]]
        base = {'video': video_lr, 'text': text_lr}[tower]
        found[name] = (base * np.float64(layer_decay) ** steps).astype(np.float32)
    if faults:
        raise ValueError('\n  '.join(['the rates do not fit the parameters:', *faults]))
    return found


def scale(found: Mapping[str, np.ndarray]) -> optax.GradientTransformation:
    """Multiplies the updates, a flat dict, by the factors of their names.

    Of stacked blocks there is one for each block there is. Where all are 1 nothing is done.
    """
    if all(np.all(factor == 1) for factor in found.values()):
        return optax.identity()

    def one(name: str, update: jax.Array) -> jax.Array:
        factor = found[name]
        if factor.ndim:
            factor = factor.reshape(-1, *[1] * (update.ndim - 1))
        return update * jnp.asarray(factor, update.dtype)

    return optax.stateless(lambda updates, _: {name: one(name, u) for name, u in updates.items()})
