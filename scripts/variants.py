"""Draw the README's figure of variants from a sweep's rows, and print the tables of RESULTS.md.

python scripts/variants.py runs/sweep scripts/variants.png
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use('Agg')

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from long_vivit.sweeps import deltas, figures, report, rows
from long_vivit.writers import read_jsonl
from scripts.bench import rows as bench


def draw(folder, out):
    """The figure of the sweep in `folder`, written to the file `out`; its tables, printed."""
    found, memory = (read_jsonl(Path(folder) / f'{name}.jsonl') for name in ('rows', 'memory'))
    limit = report.settings(folder)['limit_gb']
    figure, said = figures.all_variants(found, figures.shape_of(found), limit)
    if figure is None:
        raise SystemExit(f'error: {folder}: {said}')
    figure.savefig(out, dpi=130)
    for line in (*table(found), *memory_table(memory, limit), '', said):
        print(line)


def table(found):
    """The rows as a table of Markdown, the best recall first; those that end early at the end."""
    _, frames, remat = figures.shape_of(found)
    sizes = dict.fromkeys(one['size'] for row in found for one in row['memory'])
    yield bench.header(
        'variant', 'R@1', 'R@5', 'order twins', 'shuffled R@1', 'trained', 'tokens',
        'GFLOP a clip', *(f'ViT-{size}, {frames} frames' for size in sizes),
    )  # fmt: skip
    last = {row['variant'] for row in figures.last_stage(found)}

    def place(mine):
        return mine[0]['variant'] not in last, -rows.spread(map(rows.recall, mine))[0]

    for mine in sorted(rows.by_variant(found).values(), key=place):
        one = mine[0]
        yield bench.table(
            one['variant'],
            *(report.percent(rows.recall(row, k) for row in mine) for k in (1, 5)),
            report.percent(map(deltas.twins, mine)),
            report.percent(rows.recall(row['shuffled']) for row in mine if 'shuffled' in row),
            f'{one["num_trained"]:,}',
            f'{one["tokens_per_clip"]:,}',
            f'{one["flops_per_clip"] / 1e9:.2f}',
            *(report.gigabytes(rows.peak(one, size, frames, remat)) for size in sizes),
        )


def memory_table(memory, limit_gb):
    """Lines of memory.jsonl as a table of Markdown, in GB; bold is over the limit."""
    shapes = sorted({(one['size'], one['frames']) for one in memory})
    yield bench.header('variant', 'masked', *(f'{size} {frames}' for size, frames in shapes))
    for (variant, rate, _), peaks in report.peaks_by_shape(memory).items():
        told = (
            f'**{report.gigabytes(x)}**' if x and x > limit_gb * 1e9 else report.gigabytes(x)
            for x in map(peaks.get, shapes)
        )  # fmt: skip
        yield bench.table(variant, f'{rate:.0%}', *told)


if __name__ == '__main__':
    draw(*sys.argv[1:])
