"""Long-CLIP (arXiv 2403.15378) as released: OpenAI's names, and two tables of text positions.

`positional_embedding` holds what the first 20 rows are, kept from CLIP, and
`positional_embedding_res` what all others are: no residual but a replacement, so that one table of
both is the same model. A copy with one table either was merged so or lost the trained one, and
nobody can tell from outside: PATH#merged says that it was merged.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from long_vivit.weights import MERGED, Described, openai, pairs, rows
from long_vivit.weights.files import Tensors, open_tensors
from long_vivit.weights.rows import Part, Row

KEPT = 20  # rows of CLIP's table that Long-CLIP keeps
RATIO, ROWS = 4, 248
HALF_PRECISION = 2e-3  # of the largest value: the release stretches in float16
REST = 'positional_embedding_res'


def describe(path: Path) -> Described:
    """See `weights.describe`."""
    sizes, table, tensors = _opened(path)
    rows.check(table, tensors, openai.NUMBERS.fullmatch)
    return openai.described(_file(path), sizes)


def read(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """See `weights.read`."""
    sizes, table, tensors = _opened(path)
    lines = rows.check(table, tensors, openai.NUMBERS.fullmatch)
    params = pairs.finish(rows.read(table, tensors), sizes)
    if REST in tensors.shapes:
        lines.append(apart(params['text/positions'], tensors.read('positional_embedding')))
    return params, lines


def apart(merged: np.ndarray, kept: np.ndarray) -> str:
    """How far the trained rows are from where they started, in words."""
    most = float(np.abs(merged[KEPT:] - kept[KEPT:].astype(np.float32)).max())
    line = (
        f'text/positions: rows 0 to {KEPT - 1} of positional_embedding, the others of {REST}, '
        f'which differ from the first table by {most:.3g} at most'
    )
    return line + (': nothing was trained there, or lost on the way' if most == 0 else '')


def unsure(table: np.ndarray) -> list[str]:
    """A line where a table [248, d] in other people's layout was stretched and never trained.

    Converters that know one table only keep the first, whose rows from 20 on are CLIP's stretched:
    three of four lie on the straight line between two others.
    """
    if len(table) != ROWS:
        return []
    ends, j = table[KEPT:-4:RATIO], np.arange(RATIO)[:, None, None] / RATIO
    straight = (1 - j) * ends[:-1] + j * ends[1:]
    given = table[KEPT : KEPT + RATIO * (len(ends) - 1)].reshape(len(ends) - 1, RATIO, -1)
    off = np.abs(given - straight.swapaxes(0, 1)).max()
    if off > HALF_PRECISION * np.abs(table).max():
        return []
    return [
        f'text/positions: rows from {KEPT} on are stretched and untrained. Where these are weights '
        f'of Long-CLIP in another layout, the trained rows ({REST}) were lost on the way: start '
        'from its own file as longclip:PATH'
    ]


def _opened(path: Path) -> tuple[pairs.Sizes, list[Row], Tensors]:
    tensors = open_tensors(_file(path))
    sizes = openai.sizes_of(tensors)
    there, told = REST in tensors.shapes, str(path).endswith(MERGED)
    if there == told:
        raise ValueError(
            f'{tensors.path}: has {REST} and is said to be merged; leave {MERGED} out'
            if there
            else f'{tensors.path}: has no {REST}, which holds the rows that Long-CLIP trained. If '
            'its one table was made of both (rows from 20 on out of that one), say so: '
            f'longclip:PATH{MERGED}; else these weights have lost them'
        )
    table = pairs.openai_rows(sizes)
    return sizes, [_both(row) if there else row for row in table], tensors


def _both(row: Row) -> Row:
    """text/positions out of the two tables; other rows as they are."""
    if row.ours != 'text/positions':
        return row
    first = Part('positional_embedding', row.shape, lambda x: x[:KEPT], (slice(0, KEPT),))
    rest = Part(REST, row.shape, lambda x: x[KEPT:], (slice(KEPT, None),))
    return row._replace(parts=(first, rest))


def _file(path: Path) -> Path:
    return Path(str(path).removesuffix(MERGED))
