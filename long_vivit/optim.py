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

from long_vivit import rates, trained, tuning
from long_vivit.adam import keep_if, scale_by_adam
from long_vivit.names import flatten
from long_vivit.trained import Rule

# (regex of a whole name, does weight decay apply). Each name matches exactly one row.
DECAY = (
    (r'(.*/)?(kernel|qkv|out|embed|\w*lora/[ab])', True),
    (r'(.*/)?(\w+_)?bias', False),
    (r'(.*/)?(scale|log_scale|cls|probe|temporal/gate)', False),
    (r'(.*/)?positions(/\w+)?', False),
)


def rules(
    params_like: Any,
    *,
    freeze: Sequence[str] = (),
    decay_skip: Sequence[str] = (),
    tune: tuning.Tuning = tuning.ALL,
    kept_rows: Mapping[str, int] | None = None,
) -> dict[str, Rule]:
    """{name: Rule} of every parameter.

    Args:
      params_like: the model, or its `jax.eval_shape`.
      freeze, decay_skip: regexes of whole names, in addition to the tables above; each must match
        something.
      tune: what of the towers is trained; the default is all.
      kept_rows: {name: so many first rows never change}; all, where there are no more.
    Raises:
      ValueError: listing regexes that match nothing, names that the tables do not know or know
        twice, a `tune` that the parameters contradict.
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
    depths = {len(leaf) for name, leaf in flat.items() if re.fullmatch(tuning.BLOCKS, name)}
    depth = max(depths, default=0)
    faults += tuning.faults_of(tune, flat, depth)
    stays, found = tuning.rows(tune, flat, depth), {}
    for name, leaf in flat.items():
        rows = [decay for regex, decay in DECAY if re.fullmatch(regex, name)]
        if len(rows) != 1:
            faults.append(f'{name}: matches {len(rows)} rows of optim.DECAY; it must match one')
        below, above = stays[name] or (0, 0)
        below = kept_rows.get(name, below)
        frozen = stays[name] is None or _any(freeze, name)
        frozen = frozen or (name in kept_rows and below >= len(leaf))
        decays = rows == [True] and not _any(decay_skip, name)
        found[name] = Rule(not frozen, decays, below, above)
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


class Optimiser(NamedTuple):
    """An optimiser of the trained part of a model (`trained.take`, with `table`)."""

    init: Callable[[Any], Any]  # parameters, whole -> state
    update: Callable[[dict, Any, dict], tuple[dict, Any]]  # gradients, state, part -> updates, ...
    table: dict[str, Rule]

    def take(self, params: Any) -> dict[str, Any]:
        """The part of the parameters that is trained, {name: array}."""
        return trained.take(params, self.table)

    @staticmethod
    def num_updates(state: Any) -> jax.Array:
        """The updates behind a state, of which its learning rate goes by: skipped ones are none."""
        return state['lr'].count

    def put(self, params: Any, live: Mapping[str, Any]) -> Any:
        """The parameters with their trained part replaced."""
        return trained.put(params, live, self.table)


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
    tune: tuning.Tuning = tuning.ALL,
    kept_rows: Mapping[str, int] | None = None,
    **factors: float,
) -> Optimiser:
    """AdamW for the parameters named like those of `params_like` (see `rules`, `lr_schedule`).

    The gradients of all that is trained are cut together at the global norm `clip` (0: never);
    the decay is `weight_decay` times the learning rate times the parameter. What is frozen is not
    seen: moments of stacked layers are as long as there are trained layers, those of a table with
    `kept_rows` as the rows below them. `moment_dtype` is that of the first moment as it is stored;
    None: the parameter's. `factors` of the learning rate, and so of the decay: video_lr, text_lr,
    layer_decay of `rates.factors`. The state is a pytree of arrays; both counts start
    at 0. `update` takes `good`, a bool scalar: where it is False the state stays as it is, and the
    updates mean nothing.
    """
    table = rules(params_like, freeze=freeze, decay_skip=decay_skip, tune=tune, kept_rows=kept_rows)
    found = rates.factors(params_like, **factors) if factors else {}
    found = {name: table[name].live(one) if one.ndim else one for name, one in found.items()}
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
        ('rates', rates.scale(found)),
    )

    def update(grads, state, params, *, good=True):
        updates, new = inner.update(grads, state, params, good=good)
        kept = keep_if(good, new | {'adam': ()}, state | {'adam': ()})  # Adam has kept its own
        return updates, kept | {'adam': new['adam']}

    return Optimiser(lambda params: inner.init(trained.take(params, table)), update, table)


def ema_update(ema: Any, params: Any, decay: float) -> Any:
    """decay * ema + (1 - decay) * params, leaf by leaf, in ema's dtypes.

    Written so that the mean of a parameter that never changes does not change by a bit.
    """
    return jax.tree.map(lambda e, p: (e + (1 - decay) * (p - e)).astype(e.dtype), ema, params)


def _any(regexes: Sequence[str], name: str) -> bool:
    return any(re.fullmatch(regex, name) for regex in regexes)
