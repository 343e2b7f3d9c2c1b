"""Differences between the variants of a sweep, paired by seed; arithmetic on rows (see rows.py).

In points (hundredths) of a share, with the standard error of the pairs; one seed has none.
"""

import math
import statistics
from typing import NamedTuple

from long_vivit.sweeps import grid, rows


class Delta(NamedTuple):
    """How far one variant is above another, in points."""

    mean: float
    error: float | None  # standard error over the seeds that both have; None for one seed

    def __str__(self):
        return f'{self.mean:+.1f}' + ('' if self.error is None else f' +- {self.error:.1f}')


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


def against(found, base='base', measure=rows.recall):
    """{label: Delta to the base} of each variant but the base."""
    variants = rows.by_variant(found)
    if base not in variants:
        return {}
    deltas = {name: delta(mine, variants[base], measure) for name, mine in variants.items()}
    return {name: d for name, d in deltas.items() if name != base and d is not None}


def of_grid(found, name):
    """The rows that belong to the grid."""
    return [row for row in found if name in row['grids']]


def changes(row):
    """The difference of a row by the last words of its fields: {'mask_rate': 0.0}."""
    return {path.rpartition('.')[2]: value for path, value in row['difference'].items()}


def those(found, *names, **values):
    """The rows that differ from the base in just these fields, by their last words.

    values: fields that must have this value as well.
    """
    wanted = {*names, *values}
    return [
        row
        for row in found
        if (mine := changes(row)).keys() == wanted
        and all(mine[name] == value for name, value in values.items())
    ]


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


def twins(row):
    """The share of order twins that are told apart, or None."""
    return row['twin_accuracy']


def growth(row, frames, remat, sizes=('B', 'L')):
    """How much more memory it takes at the larger size: 0.5 is half more. None: unknown."""
    small, large = (rows.peak(row, size, frames, remat) for size in sizes)
    return None if not (small and large) else large / small - 1
