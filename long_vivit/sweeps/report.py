"""Rows of a sweep for people: a line as each comes, a table of all, a table of memory."""

import io
from pathlib import Path

from rich.console import Console
from rich.table import Table

from long_vivit import config
from long_vivit.progress import compact, duration, size
from long_vivit.sweeps import rows


def settings(folder):
    """The section `memory` that a sweep's rows were made with."""
    return vars(_stored(folder).memory)


def _stored(folder):
    """What the cells of a sweep's folder share."""
    return config.from_json((Path(folder) / 'sweep.json').read_text())


def about(found, folder):
    """Where the rows of a sweep's folder come from: machines, versions, commits, data, seeds."""

    def each(values):
        return ', '.join(dict.fromkeys(map(str, values))) or 'none'

    shared = ''
    if first := _stored(folder).seeds_from:
        runs = [row['difference'].get('run', (first,)) for row in found]
        but = '' if all(first in run for run in runs) else ', but for runs that end before it'
        shared = (
            f' The stages before `{first}` were taught once, for all seeds{but}: error bars do not '
            'hold what those stages would differ by.'
        )
    return (
        f'{len(found)} rows, seeds {each(row["seed"] for row in found)}; '
        f'{each(row["protocol"]["data"] for row in found)}; device '
        f'{each(row["device"] for row in found)}; jax '
        f'{each(row["versions"]["jax"] for row in found)}; commit '
        f'{each(row["commit"][:12] for row in found)}.' + shared
    )


def line(row):
    """One row, as it comes."""
    twins = row['twin_accuracy']
    return (
        f'{row["cell"]}: R@1 {100 * row["text_to_video"]["recall_at_1"]:.1f} / '
        f'{100 * row["video_to_text"]["recall_at_1"]:.1f}'
        + (f', twins {100 * twins:.1f}' if twins is not None else '')
        + f', {compact(row["clips_per_s"])} clips/s, step {size(row["peak_bytes"])}, '
        f'{duration(row["seconds"])}'
    )


def table(found, memory):
    """All rows, a line for each variant: mean +- standard deviation over its seeds.

    memory: the section of configs/sweep.py; its last frames and first remat are shown.
    """
    frames, remat = memory['frames'][-1:], memory['remats'][:1]
    sized = [(s, frames[0], remat[0]) for s in memory['sizes'] if frames and remat]
    headings = ['variant', 'seeds', 'R@1', 'R@5', 'R@10', 'twins', 'shuffled', 'one frame']
    headings += ['trained', 'tokens', 'GFLOP/clip', 'clips/s', 'step']
    headings += [f'{s}, {f} frames' for s, f, _ in sized]
    shown = Table(*headings, box=None, pad_edge=False)
    for column in shown.columns[1:]:
        column.justify = 'right'
    for variant, mine in rows.by_variant(found).items():
        one = mine[-1]
        shown.add_row(
            variant,
            str(len(mine)),
            *(percent(rows.recall(row, k) for row in mine) for k in (1, 5, 10)),
            percent(row['twin_accuracy'] for row in mine),
            *(percent(rows.recall(row[o]) if o in row else None for row in mine)
              for o in ('shuffled', 'one_frame')),
            compact(one['num_trained']),
            f'{one["tokens_per_clip"]:,}',
            f'{one["flops_per_clip"] / 1e9:,.1f}',
            compact(rows.spread([row['clips_per_s'] for row in mine])[0]),
            size(one['peak_bytes']),
            *(gigabytes(peaks(one, *shape)) for shape in sized),
        )  # fmt: skip
    note = 'Recall is the mean of both ways, in percent; +- is the standard deviation of the seeds.'
    return f'{text(shown)}\n\n{note}'


def peaks(row, size_, frames, remat):
    """The row's compiled peak at a size, or that of its image where it has no frames."""
    found = rows.peak(row, size_, frames, remat)
    return rows.peak(row, size_, 1, remat) if found is None else found


def peaks_by_shape(found):
    """{(variant, rate, remat): {(size, frames): bytes}} of rows as `memory_table` takes them."""
    lines = {}
    for one in found:
        key = one['variant'], one['rate'], one['remat']
        lines.setdefault(key, {})[one['size'], one['frames']] = one['peak_bytes']
    return lines


def memory_table(found, memory):
    """Compiled memory of each variant and masking rate; a star marks what is over the limit.

    found: rows {'variant', 'size', 'frames', 'remat', 'rate', 'peak_bytes'}.
    """
    keys = {(s, f) for s in memory['sizes'] for f in memory['frames']}
    keys = sorted(keys | {(one['size'], one['frames']) for one in found})
    shown = Table('variant', 'masked', 'remat', *(f'{s} {f}' for s, f in keys), box=None,
                  pad_edge=False)  # fmt: skip
    for column in shown.columns[1:]:
        column.justify = 'right'
    for (variant, rate, remat), cells in peaks_by_shape(found).items():
        values = [cells.get(key) for key in keys]
        over = ['*' if x and x > memory['limit_gb'] * 1e9 else ' ' for x in values]
        shown.add_row(variant, f'{100 * rate:g}%', remat, *(
            gigabytes(x) + mark for x, mark in zip(values, over, strict=True)))  # fmt: skip
    reading = {}
    for one in found:
        if taken := one.get('video_to_text_bytes'):
            reading.setdefault((one['size'], one['frames']), []).append(taken)
    told = ', '.join(f'{gigabytes(min(x))} to {gigabytes(max(x))} ({s} {f})'
                     for (s, f), x in sorted(reading.items()))  # fmt: skip
    told = f' Video-to-text on the same encoders, frozen, takes {told} GB.' if told else ''
    return (
        f'{text(shown)}\n\nPeak in GB of a compiled contrastive step, batch {memory["batch"]}, '
        f'{memory["dtype"]}, {memory["pixels"]} pixels, text tower and optimiser included, by '
        f"XLA's CPU compiler; * is more than {memory['limit_gb']:g} GB.{told}"
    )


def percent(shares):
    """'52.3 +- 1.2' of shares of 1; '-' where there are none."""
    mean, deviation = rows.spread(shares)
    if mean is None:
        return '-'
    return f'{100 * mean:.1f}' + ('' if deviation is None else f' +- {100 * deviation:.1f}')


def gigabytes(num_bytes):
    return '-' if num_bytes is None else f'{num_bytes / 1e9:.2f}'


def text(shown):
    """A rich table as plain text, never cut."""
    stream = io.StringIO()
    Console(file=stream, width=400, color_system=None, force_jupyter=False).print(shown)
    return '\n'.join(one.rstrip() for one in stream.getvalue().rstrip().splitlines())
