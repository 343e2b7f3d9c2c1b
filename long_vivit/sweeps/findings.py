"""What the rows of a sweep say about the paper's findings: numbers first, then agree or disagree.

Everything here is arithmetic on rows (see rows.py); nothing is drawn. Differences are in points of
recall, paired by seed, with the standard error of the pairs; one seed has none.
"""

import math
import statistics
from typing import NamedTuple

from long_vivit.sweeps import grid, rows


class Delta(NamedTuple):
    """How far one variant is above another, in points (hundredths)."""

    mean: float
    error: float | None  # standard error over the seeds that both have; None for one seed

    def __str__(self):
        return f'{self.mean:+.1f}' + ('' if self.error is None else f' +- {self.error:.1f}')


def of_grid(found, name):
    """The rows that belong to the grid."""
    return [row for row in found if name in row['grids']]


def lines_of(found):
    """{label: {masking rate: rows, one a seed}}: variants that differ in the rate only are a line.

    The label names the rest of the difference, 'base' for none.
    """
    told = {}
    for mine in rows.by_variant(found).values():
        one = mine[0]
        rate = f'stages.{one["stage"]}.mask_rate'
        rest = {path: value for path, value in one['difference'].items() if path != rate}
        told.setdefault(grid.name_of(rest), {})[one['mask_rate']] = mine
    return {label: dict(sorted(rates.items())) for label, rates in told.items()}


def delta(above, below, measure=rows.recall):
    """`above` - `below` -> Delta, or None where they have no seed, or no such score, in common."""
    values = [{row['seed']: measure(row) for row in mine} for mine in (above, below)]
    pairs = [
        100 * (values[0][seed] - values[1][seed])
        for seed in values[0].keys() & values[1].keys()
        if None not in (values[0][seed], values[1][seed])
    ]
    if not pairs:
        return None
    error = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
    return Delta(statistics.mean(pairs), error)


def twins(row):
    return row['twin_accuracy']


def held(claim, holds, deltas=()):
    """'The paper: CLAIM; these rows agree.' - or disagree, or cannot tell it from the seeds.

    holds: None where rows are missing. They cannot tell where a Delta's error is larger than it is.
    """
    if holds is None:
        return f'The paper: {claim}; the rows for it are missing.'
    unsure = [d for d in deltas if d.error is not None and abs(d.mean) < d.error]
    word = 'agree' if holds else 'disagree'
    doubt = ', within the noise of the seeds' if unsure else ''
    one = any(d.error is None for d in deltas)
    return f'The paper: {claim}; these rows {word}{doubt}{" (one seed)" if one else ""}.'


def masking(found, base='base', rate=0.75, allowed=2.0):
    """Sentences on masking: what each line loses between no masking and `rate`."""
    losses = {}
    for label, rates in lines_of(found).items():
        if 0.0 in rates and rate in rates:
            losses[label] = delta(rates[rate], rates[0.0])
    losses = {label: loss for label, loss in losses.items() if loss is not None}
    if not losses:
        return f'No variant has rows unmasked and at {rate:.0%}.'
    told = ', '.join(f'{label} {loss}' for label, loss in losses.items())
    said = [f'From no masking to {rate:.0%}, R@1 changes by {told} points.']
    own = losses.pop(base, None)
    said.append(held(
        f'joint space-time attention keeps within {allowed:g} points',
        None if own is None else own.mean >= -allowed, [own] if own else [],
    ))  # fmt: skip
    if own and losses:
        falls = all(loss.mean < own.mean for loss in losses.values())
        said.append(held('the other backbones fall by more', falls, list(losses.values())))
    return ' '.join(said)


def kinds(found):
    """What each kind of mask gains over the base's kind at the same masking rate."""
    lines = lines_of(found)
    own = lines.pop('base', {})
    told = [
        f'{label} at {rate:.0%}: {d}'
        for label, rates in lines.items()
        for rate, mine in rates.items()
        if 'mask_kind' in label and rate in own and (d := delta(mine, own[rate])) is not None
    ]
    return f'Against the base at the same rate: {"; ".join(told)}.' if told else ''


def coarser(found):
    """The variants with other tubelets or tubes than the base, at whatever masking rate."""
    words = ('patch', 'tubelet', 'tubes')
    return [
        variant
        for variant, mine in rows.by_variant(found).items()
        if any(path.endswith(words) for path in mine[0]['difference'])
    ]


def order(found, margin=5.0):
    """Sentences on order: who tells order twins apart (50% is chance)."""
    means = {
        label: rows.spread([twins(row) for row in mine])[0]
        for label, mine in rows.by_variant(found).items()
    }
    means = {label: 100 * mean for label, mean in means.items() if mean is not None}
    if not means:
        return 'No row has order twins.'
    blind = [label for label, mean in means.items() if abs(mean - 50) <= margin]
    told = ', '.join(f'{label} {mean:.1f}%' for label, mean in means.items())
    return (
        f'Order twins told apart: {told}. Within {margin:g} points of chance: '
        f'{", ".join(blind) or "none"}.'
    )


def growth(row, frames, remat, sizes=('B', 'L')):
    """How much more memory it takes at the larger size: 0.5 is half more. None: unknown."""
    small, large = (rows.peak(row, size, frames, remat) for size in sizes)
    return None if not (small and large) else large / small - 1


def against(found, base='base', measure=rows.recall):
    """{label: Delta to the base} of each variant but the base."""
    variants = rows.by_variant(found)
    if base not in variants:
        return {}
    deltas = {name: delta(mine, variants[base], measure) for name, mine in variants.items()}
    return {name: d for name, d in deltas.items() if name != base and d is not None}
