"""Draw the README's figure of variants from the rows of a sweep, and print its table.

python scripts/variants.py runs/sweep scripts/variants.png
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use('Agg')

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from long_vivit.sweeps import deltas, figures, report, rows
from long_vivit.writers import read_jsonl


def draw(folder, out):
    """The figure of the sweep in `folder`, written to the file `out`."""
    found = read_jsonl(Path(folder) / 'rows.jsonl')
    shape = figures.shape_of(found)
    limit = report.settings(folder)['limit_gb']
    figure, said = figures.all_variants(found, shape, limit)
    if figure is None:
        raise SystemExit(f'error: {folder}: {said}')
    figure.savefig(out, dpi=130)
    for line in table(found, shape):
        print(line)
    print(said)


def table(found, shape):
    """The rows as a table of Markdown, the best recall first."""
    size, frames, _ = shape
    yield f'| variant | R@1 | order twins | ViT-{size}, {frames} frames |'
    yield '|---|---|---|---|'
    variants = sorted(
        rows.by_variant(figures.last_stage(found)).items(),
        key=lambda item: -rows.spread(map(rows.recall, item[1]))[0],
    )
    for variant, mine in variants:
        memory = rows.peak(mine[0], *shape)
        cells = report.percent(map(rows.recall, mine)), report.percent(map(deltas.twins, mine))
        yield f'| {variant} | {" | ".join(cells)} | {report.gigabytes(memory)} GB |'


if __name__ == '__main__':
    draw(*sys.argv[1:])
