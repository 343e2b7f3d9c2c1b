"""The table at the end of a run, from the `results` that are also written to results.json.

results = {
    'stages': {                              in the order they were taught
        NAME: {
            'scores': {                      'ordered' and, where asked for, 'shuffled' (the frames
                'ordered': {                 in random order) and 'one_frame' (one frame repeated)
                    'text_to_video': {...},  Retrieval.to_dict(); optional 'interval': [low, high]
                    'video_to_text': {...},  of recall_at_1, in [0, 1], and 'bounds': [low, high]
                                             of it with all missing videos wrong or right
                    'twin_accuracy': 0.5,    in [0, 1]; None where the set has no order twins
                },
            },
            'protocol': {'data': 'shape_stories/short:test', 'frames': 16, ...},   any plain values
            'steps': 500, 'seconds': 61.2, 'clips_per_s': 88.0, 'tokens_per_s': 45000.0,
            'peak_memory_bytes': 2**30, 'peak_memory_of': 'device' | 'process',
            'data_wait_share': 0.03, 'num_broken': 0, 'num_bad_steps': 0,
            'texts': {'videos': 16000, 'videos/cut': 12},   see `texts_of` in window.py
            'images': {'scores': {'ordered': ...}, 'protocol': ...},    of still images, afterwards
        },
    },
    'before': {'images': ...},               the same of what the first stage started from
}

`scores` may have rows of other names; they are shown as they are.

A field that is missing or None shows as '-', or not at all in a sentence. Other fields are left
alone.
"""

import io
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console, Group
from rich.text import Text

from long_vivit.progress import compact, duration, size

SHOWN = {'ordered': 'in order', 'shuffled': 'shuffled', 'one_frame': 'one frame'}
_WAYS = {'text_to_video': ('captions', 'videos'), 'video_to_text': ('videos', 'captions')}
_WIDTH = 100


def results_table(results: Mapping[str, Any]) -> Group:
    """Returns the scores, the protocol of each, and what training cost, to print with rich."""
    stages = results['stages']
    blocks = [*stages.items(), ('images', _images(results))]
    blocks = [(name, block) for name, block in blocks if block.get('scores')]
    parts = []
    if blocks:
        parts += [*_scores(blocks), Text(), *_protocols(blocks), Text()]
    taught = {name: stage for name, stage in stages.items() if 'steps' in stage}
    return Group(*parts, *(_costs(taught) if taught else ()))


def results_text(results: Mapping[str, Any], width: int = _WIDTH) -> str:
    """Returns the table as plain text, its sentences wrapped at `width` characters."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=False, color_system=None)
    console.print(results_table(results), crop=False)
    return '\n'.join(line.rstrip() for line in stream.getvalue().splitlines()) + '\n'


def print_results(results: Mapping[str, Any], stream: TextIO | None = None) -> None:
    """Prints the table: in colour on a terminal, as plain text of 100 columns elsewhere."""
    stream = stream or sys.stdout
    if stream.isatty() and os.environ.get('TERM') != 'dumb':
        Console(file=stream).print(results_table(results), crop=False)
        return
    text = results_text(results)
    try:
        text.encode(stream.encoding or 'utf-8')
    except UnicodeEncodeError:
        text = text.replace('─', '-')
    stream.write(text)
    stream.flush()


def _images(results: Mapping[str, Any]) -> dict[str, Any]:
    """What was scored on still images, before and after each stage, as one more block of rows.

    Of what differs in their protocols each row's own is said.
    """
    rows = {'before': (results.get('before') or {}).get('images')}
    rows |= {f'after {name}': stage.get('images') for name, stage in results['stages'].items()}
    rows = {name: row for name, row in rows.items() if row}
    protocol = {}
    for key in dict.fromkeys(key for row in rows.values() for key in row['protocol']):
        values = {name: row['protocol'].get(key) for name, row in rows.items()}
        alike = len({repr(value) for value in values.values()}) == 1
        each = (f'{_value(value)} ({name})' for name, value in values.items())
        protocol[key] = next(iter(values.values())) if alike else ', '.join(each)
    scores = {name: row['scores']['ordered'] for name, row in rows.items()}
    return {'scores': scores, 'protocol': protocol}


def _scores(blocks: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Text]:
    """Recall in percent by block and by what was shown, with a row of chance for each block."""
    columns = ('R@1', 'R@5', 'R@10', 'MedR')
    rows = []  # cells and style; no cells: a rule
    for name, block in blocks:
        scores = block['scores']
        for i, (shown, score) in enumerate(scores.items()):
            cells = [cell for way in _WAYS for cell in _recall(score.get(way), 'recall')]
            head = ['' if i else name, SHOWN.get(shown, shown)]
            twins = _percent(score.get('twin_accuracy'))
            rows.append(([*head, *cells, twins], 'bold' if shown == 'ordered' else ''))
        first = next(iter(scores.values()))
        cells = [cell for way in _WAYS for cell in _recall(first.get(way), 'chance')]
        twins = '-' if first.get('twin_accuracy') is None else '50.0'
        rows += [(['', 'chance', *cells, twins], 'dim'), ([], '')]
    headings = ['stage', 'frames', *columns, *columns, 'twins']
    lines, starts = _grid(headings, rows[:-1], num_left=2)
    above = ''
    for start, end, title in (
        (starts[2], starts[6] - 2, ' text to video '),
        (starts[6], starts[10] - 2, ' video to text '),
        (starts[10], len(lines[0]), 'order'),
    ):
        above = above.ljust(start) + title.center(end - start, '─' if ' ' in title else ' ')
    title = Text('Recall at k in percent and median rank', 'bold')
    return [title, Text(), Text(above.rstrip(), no_wrap=True, overflow='ignore'), *lines]


def _grid(
    headings: list[str], rows: list[tuple[list[str], str]], num_left: int
) -> tuple[list[Text], list[int]]:
    """Returns lines with aligned columns, two blanks between them, and where each column starts.

    The first `num_left` columns start alike, the others end alike. No cell is ever cut.
    """
    cells = [headings, *(row for row, _ in rows if row)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    starts = [sum(widths[:i]) + 2 * i for i in range(len(widths))]
    rule = '─' * (starts[-1] + widths[-1])

    def line(row: list[str], style: str) -> Text:
        padded = [
            cell.ljust(width) if i < num_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return Text('  '.join(padded), style, no_wrap=True, overflow='ignore')

    lines = [line(headings, 'bold'), Text(rule, no_wrap=True, overflow='ignore')]
    lines += [line(row, style) if row else Text() for row, style in rows]
    return lines, starts


def _recall(score: Mapping[str, Any] | None, kind: str) -> list[str]:
    """The four cells of one direction; `kind` is 'recall', or 'chance' for a constant encoder."""
    score = score or {}
    rank = score.get('median_rank' if kind == 'recall' else 'chance_rank')
    return [*(_percent(score.get(f'{kind}_at_{k}')) for k in (1, 5, 10)), _rank(rank)]


def _protocols(blocks: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Text]:
    """What the numbers of each block mean: candidates, interval and the protocol's own fields."""
    found = []
    for name, block in blocks:
        score = next(iter(block['scores'].values()))
        facts = []
        for way, (queries, items) in _WAYS.items():
            if one := score.get(way):
                fact = f'{one["num_queries"]:,} {queries} look for {one["num_items"]:,} {items}'
                if one.get('interval'):
                    low, high = map(_percent, one['interval'])
                    fact += f' (R@1 95% interval {low} to {high})'
                if one.get('bounds'):
                    low, high = map(_percent, one['bounds'])
                    fact += f' (R@1 with the missing ones all wrong {low}, all right {high})'
                facts.append(fact)
        protocol = (block.get('protocol') or {}).items()
        facts += [f'{k.replace("_", " ")} {_value(v)}' for k, v in protocol if v is not None]
        found.append(Text.assemble((f'{name}: ', 'bold'), '; '.join(facts)))
        for shown, score in block['scores'].items():
            if any((score.get(way) or {}).get('collapsed') for way in _WAYS):
                warning = 'all embeddings of a side are equal: an encoder has collapsed.'
                found.append(Text(f'{name}, {SHOWN.get(shown, shown)}: {warning}', 'bold red'))
    return found


def _costs(stages: Mapping[str, Any]) -> list[Text]:
    """What it took to teach each stage."""
    headings = ['stage', 'steps', 'time', 'clips/s', 'tokens/s', 'data wait', 'peak memory']
    headings += ['broken videos', 'bad steps']
    shows = {
        'steps': '{:,}'.format, 'seconds': duration, 'clips_per_s': compact,
        'tokens_per_s': compact, 'data_wait_share': lambda x: f'{100 * x:.0f}%',
        'peak_memory_bytes': size,
        'num_broken': '{:,}'.format, 'num_bad_steps': '{:,}'.format,
    }  # fmt: skip
    rows = []
    for name, stage in stages.items():
        values = [(stage.get(field), show) for field, show in shows.items()]
        cells = ['-' if value is None else show(value) for value, show in values]
        if stage.get('peak_memory_of'):
            cells[list(shows).index('peak_memory_bytes')] += f' ({stage["peak_memory_of"]})'
        rows.append(([name, *cells], ''))
    lines = [Text('Training', 'bold'), Text(), *_grid(headings, rows, num_left=1)[0]]
    cut = [Text(line) for name, stage in stages.items() for line in _cut(name, stage)]
    return [*lines, Text(), *cut] if cut else lines


def _cut(name: str, stage: Mapping[str, Any]) -> list[str]:
    """A sentence for each kind of text of a stage of which some did not fit."""
    texts, found = stage.get('texts') or {}, []
    for kind, num in texts.items():
        if cut := texts.get(f'{kind}/cut'):
            source, _, short = kind.partition('/')
            what, field = ('short texts', 'short_length') if short else ('texts', 'text_length')
            found.append(
                f'{name}: {cut:,} of the {num:,} {what} of {source} ({100 * cut / num:.1f}%) were '
                f'longer than {field} and cut there'
            )
    return found


def _percent(share: float | None) -> str:
    return '-' if share is None else f'{100 * float(share):.1f}'


def _rank(rank: float | None) -> str:
    if rank is None:
        return '-'
    return f'{rank:,.0f}' if rank >= 1000 or rank == int(rank) else f'{rank:.1f}'


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, int):
        return f'{value:,}' if value >= 10_000 else str(value)
    return f'{value:g}' if isinstance(value, float) else str(value)
