"""AdamW with linear warm-up and cosine decay; which parameters decay and which are frozen is data.

The optimiser works on the flat dict of the parameters' names (`names.py`), so its state is named by
them as well: 'adam/mu/video/trunk/blocks/up/kernel'.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from long_vivit import rates
from long_vivit.adam import keep_if, scale_by_adam
from long_vivit.names import flatten, unflatten

# (regex of a whole name, does weight decay apply). Each name matches exactly one row.
DECAY = (
    (r'(.*/)?(kernel|qkv|out|embed)', True),
    (r'(.*/)?(\w+_)?bias', False),
    (r'(.*/)?(scale|log_scale|cls|probe|temporal/gate)', False),
    (r'(.*/)?positions(/\w+)?', False),
)
# With `last_layers` these lie below the trained layers: the stacked blocks, and all before them.
BLOCKS = r'video/trunk/blocks/.*'
STEM = r'video/(image_embed|tubelet_embed|positions|cls|norm_input)(/.*)?'


class Rule(NamedTuple):
    """How one parameter is trained."""

    trained: bool  # False: its update is zero and the optimiser keeps nothing for it
    decay: bool  # weight decay applies
    num_frozen: int  # so many first slices of its leading dim never change


def rules(
    params_like: Any,
    *,
    freeze: Sequence[str] = (),
    decay_skip: Sequence[str] = (),
    last_layers: int = 0,
    depth: int = 0,
    kept_rows: Mapping[str, int] | None = None,
) -> dict[str, Rule]:
    """{name: Rule} of every parameter.

    Args:
      params_like: the model, or its `jax.eval_shape`.
      freeze, decay_skip: regexes of whole names, in addition to the tables above; each must match
        something.
      last_layers: 0 trains all; k trains the last k of the video's `depth` blocks and what follows
        them (and the text tower): the stem and the first depth - k blocks are frozen.
      kept_rows: {name: so many first rows never change}; all, where there are no more.
    Raises:
      ValueError: listing regexes that match nothing, names that the tables do not know or know
        twice, a `last_layers` or `depth` that the parameters contradict.
    """
    flat, kept_rows = flatten(params_like), kept_rows or {}
    for regex in (*freeze, *decay_skip):
        try:
            re.compile(regex)
        except re.error as error:
            raise ValueError(f'freeze: {regex!r} is no regular expression ({error})') from error
    faults = [
        f'{field}: {regex!r} matches no parameter'
        for field, table in (('freeze', freeze), ('decay_skip', decay_skip))
        for regex in table
        if not any(re.fullmatch(regex, name) for name in flat)
    ]
    faults += [f'kept_rows: there is no {name!r}' for name in kept_rows if name not in flat]
    if last_layers and not 0 < last_layers <= depth:
        faults.append(f'last_layers: {last_layers} of depth {depth}; it must be 0 to depth')
    found = {}
    for name, leaf in flat.items():
        rows = [decay for regex, decay in DECAY if re.fullmatch(regex, name)]
        if len(rows) != 1:
            faults.append(f'{name}: matches {len(rows)} rows of optim.DECAY; it must match one')
        stacked = last_layers and re.fullmatch(BLOCKS, name)
        if stacked and leaf.shape[:1] != (depth,):
            faults.append(f'{name}: shape {tuple(leaf.shape)} is not {depth} stacked layers')
        frozen = _any(freeze, name) or (last_layers and re.fullmatch(STEM, name))
        num_frozen = depth - last_layers if stacked else kept_rows.get(name, 0)
        frozen = frozen or (name in kept_rows and num_frozen >= len(leaf))
        found[name] = Rule(not frozen, rows == [True] and not _any(decay_skip, name), num_frozen)
    if not any(rule.trained for rule in found.values()):
        faults.append('freeze: leaves nothing to train')
    if faults:
        raise ValueError('\n  '.join(['the optimiser does not fit the parameters:', *faults]))
    return found


def lr_schedule(lr: float, steps: int, warmup_steps: int) -> Callable[[Any], jax.Array]:
    """f(number of finished steps) -> the learning rate of the next step, float32.

    Rises linearly, lr / warmup_steps at the first step and lr at step `warmup_steps`, then falls
    as half a cosine to 0, which it reaches after `steps` steps.
    """
    if not (lr > 0 and steps >= 1 and 0 <= warmup_steps <= steps):
        raise ValueError(
            f'lr {lr}, steps {steps}, warmup_steps {warmup_steps}: wanted lr > 0, steps >= 1 and '
            '0 <= warmup_steps <= steps'
        )

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        rise = (step + 1) / max(warmup_steps, 1)
        done = jnp.clip((step - warmup_steps) / max(steps - warmup_steps, 1), 0, 1)
        return lr * jnp.where(step < warmup_steps, rise, 0.5 * (1 + jnp.cos(jnp.pi * done)))

    return schedule


def make(
    params_like: Any,
    *,
    lr: float,
    steps: int,
    warmup_steps: int,
    b1: float = 0.9,
    b2: float = 0.98,
    eps: float = 1e-8,
    moment_dtype: Any = None,
    weight_decay: float = 0.0,
    clip: float = 0.0,
    freeze: Sequence[str] = (),
    decay_skip: Sequence[str] = (),
    last_layers: int = 0,
    depth: int = 0,
    kept_rows: Mapping[str, int] | None = None,
    **factors: float,
) -> optax.GradientTransformationExtraArgs:
    """AdamW for the parameters named like those of `params_like` (see `rules`, `lr_schedule`).

    The gradients of all that is trained are cut together at the global norm `clip` (0: never);
    the decay is `weight_decay` times the learning rate times the parameter. Frozen parameters and
    frozen slices get an update of exactly zero, whatever their gradient, and count nothing towards
    the norm; neither has moments: those of stacked layers are as long as there are trained layers,
    those of a table with `kept_rows` as the rows below them. `moment_dtype` is that of the first
    moment as it is stored; None: the parameter's. `factors` of the learning rate, and so of the
    decay: video_lr, text_lr, layer_decay of `rates.factors`. The state is a pytree of arrays; both
    counts start at 0. `update` takes `good`, a bool scalar: where it is False the state stays as it
    is, and the updates mean nothing.
    """
    table = rules(
        params_like, freeze=freeze, decay_skip=decay_skip, last_layers=last_layers, depth=depth,
        kept_rows=kept_rows,
    )  # fmt: skip
    inner = optax.named_chain(
        ('clip', optax.clip_by_global_norm(clip) if clip else optax.identity()),
        ('adam', scale_by_adam(b1, b2, eps, mu_dtype=moment_dtype)),
        (
            'decay',
            optax.add_decayed_weights(
                weight_decay, {name: rule.decay for name, rule in table.items() if rule.trained}
            ),
        ),
        ('lr', optax.scale_by_learning_rate(lr_schedule(lr, steps, warmup_steps))),
        ('rates', rates.scale(rates.factors(params_like, **factors) if factors else {})),
    )

    def init(params):
        return inner.init(_trained(flatten(params), table))

    def update(grads, state, params, *, good=True):
        flat = flatten(params)
        live = _trained(flatten(grads), table)
        updates, new = inner.update(live, state, _trained(flat, table), good=good)
        kept = keep_if(good, new | {'adam': ()}, state | {'adam': ()})  # Adam has kept its own
        zeros = {name: jnp.zeros_like(flat[name]) for name in flat if name not in updates}
        return unflatten(params, _whole(updates, table) | zeros), kept | {'adam': new['adam']}

    return optax.GradientTransformationExtraArgs(init, update)


def ema_update(ema: Any, params: Any, decay: float) -> Any:
    """decay * ema + (1 - decay) * params, leaf by leaf, in ema's dtypes.

    Written so that the mean of a parameter that never changes does not change by a bit.
    """
    return jax.tree.map(lambda e, p: (e + (1 - decay) * (p - e)).astype(e.dtype), ema, params)


def _trained(flat: Mapping[str, Any], table: Mapping[str, Rule]) -> dict[str, Any]:
    """What is trained: without frozen parameters, and of stacked layers the last slices only."""
    return {
        name: leaf[table[name].num_frozen :] if table[name].num_frozen else leaf
        for name, leaf in flat.items()
        if table[name].trained
    }


def _whole(trained: Mapping[str, Any], table: Mapping[str, Rule]) -> dict[str, Any]:
    """The same as long as the parameters, with exact zeros in the frozen slices."""
    whole = dict(trained)
    for name, leaf in trained.items():
        if count := table[name].num_frozen:
            whole[name] = jnp.pad(leaf, [(count, 0)] + [(0, 0)] * (leaf.ndim - 1))
    return whole


def _any(regexes: Sequence[str], name: str) -> bool:
    return any(re.fullmatch(regex, name) for regex in regexes)
