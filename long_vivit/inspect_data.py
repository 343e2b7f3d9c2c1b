"""Says what is in a data set and which of its files are broken, before a training finds out.

    python -m long_vivit.inspect_data videos:PATH/manifest.jsonl
    python -m long_vivit.inspect_data shape_stories/long:test --json

Exit status: 0 when every video can be read, 1 when one is broken, 2 when the data spec or the
manifest itself is at fault.
"""

import argparse
import json
import math
import os
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console, Group
from rich.progress import track
from rich.table import Table
from rich.text import Text

from long_vivit import command_line
from long_vivit.inputs import sources, video
from long_vivit.inputs.samplers import mid
from long_vivit.inputs.text import Tokenizer

LENGTHS = (16, 32, 52, 64, 77, 212, 248, 256, 512)  # of configs/; 77 is CLIP's, 248 Long-CLIP's
PIPED_WIDTH = 110  # columns where the output is no terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Inspects what the command line names; returns the exit status 0 or 1."""
    args = parse_args(argv)
    source = sources.open_source(args.data, data_dir=args.data_dir, text='')
    measure = text_measure(args.tokenizer, args.data_dir)
    with ThreadPoolExecutor(args.threads or os.cpu_count()) as pool:
        try:
            checks = pool.map(lambda i: check_example(source[i], args), range(len(source)))
            console = Console(stderr=True)
            bar = {'console': console, 'transient': True, 'disable': not console.is_terminal}
            checks = list(track(checks, 'reading', len(source), **bar))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    report = summarise(source, checks, measure)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)
        console.print(page(report))
    return 1 if report['broken'] else 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m long_vivit.inspect_data',
        description=__doc__.split('\n')[0],
        epilog=f'A data spec is {sources.SPEC_FORMS}.',
        allow_abbrev=False,
    )
    add = parser.add_argument
    add('data', metavar='SPEC', help='the data spec')
    add('--json', action='store_true', help='print the report as JSON')
    tokens = 'count tokens with this tokenizer.json (default: the one stored with shape_stories; '
    add('--tokenizer', metavar='FILE', help=tokens + 'without either, words are counted)')
    add('--data_dir', default='data/built', metavar='DIR', help='stored data sets (%(default)s)')
    frames = 'frames decoded of each video to find damage (%(default)s); 0 = only list its packets'
    add('--frames', type=int, default=8, metavar='N', help=frames + ', which is faster')
    limit = 'for one video (%(default)g)'
    add('--time_limit', type=float, default=20.0, metavar='SECONDS', help=limit)
    add('--threads', type=int, default=0, metavar='N', help='0 = one for each core')
    args = parser.parse_args(argv)
    for name, value, low in (('frames', args.frames, 0), ('threads', args.threads, 0)):
        if value < low:
            parser.error(f'--{name}: {value} must be at least {low}')
    if not args.time_limit > 0:
        parser.error(f'--time_limit: {args.time_limit} must be greater than 0 seconds')
    return args


# Measuring ------------------------------------------------------------------------------------


def check_example(example: sources.Example, args: argparse.Namespace) -> dict:
    """Texts of an example and either its video's `info` or the `fault`; keeps no video bytes."""
    found = {
        'id': example.id,
        'file': example.video if isinstance(example.video, str) else example.id,
        'caption': example.captions,
        'long_caption': example.long_captions,
        'label': example.label,
        **dict.fromkeys(('part_s', 'info', 'fault')),
    }
    start, end = example.start_s, example.end_s
    part = start is not None or end is not None
    frames = args.frames or int(part)  # whether a part is there is told by reading it
    how = {'name': found['file'], 'time_limit_s': args.time_limit}
    try:
        if frames:
            how |= {'pixels': 16, 'start': start, 'end': end, 'max_missing': 0.0}
            info = video.read_frames(example.video, lambda a, b: mid(a, b, frames), **how).info
        else:
            info = video.probe(example.video, **how)
            if info.fault:
                raise video.VideoError(info.fault, info.detail, found['file'])
        found['info'] = info
        if part:
            found['part_s'] = min(end or math.inf, info.duration_s) - (start or 0.0)
    except video.VideoError as error:
        where = f': {found["file"]}' if error.reason == 'not-found' else ''
        found['fault'] = (error.reason, error.detail + where)
    return found


def text_measure(tokenizer: str | None, data_dir: str) -> tuple[str, Callable]:
    """('tokens' or 'words', function from texts to their lengths)."""
    stored = Path(data_dir) / 'shape_stories/tokenizer.json'
    if tokenizer or stored.is_file():
        encode = Tokenizer.load(tokenizer or stored).encode
        return 'tokens', lambda texts: encode(texts, LENGTHS[-1]).num_tokens.tolist()
    return 'words', lambda texts: [len(re.findall(r'\w+|[^\w\s]', text)) for text in texts]


def summarise(source, checks: list[dict], measure: tuple[str, Callable]) -> dict:
    """The report: plain values, as --json prints it. Every count is of examples or of texts."""
    infos = [c['info'] for c in checks if c['info']]
    parts = [c['part_s'] for c in checks if c['part_s'] is not None]
    return {
        'data': source.name,
        'fingerprint': source.fingerprint,
        'examples': len(source),
        'group_size': source.group_size,
        'files': len({c['file'] for c in checks}),
        'readable': len(infos),
        'duration_s': spread([info.duration_s for info in infos]),
        'part_s': spread(parts),
        'fps': count(frame_rate(info) for info in infos),
        'size': count(f'{info.width}x{info.height}' for info in infos),
        'codec': count(info.codec for info in infos),
        'container': count(','.join(info.container.split(',')[:2]) for info in infos),
        'rotation': count(str(info.rotation % 360) for info in infos),
        'labels': len({c['label'] for c in checks if c['label']}),
        'counted_in': measure[0],
        'texts': {kind: texts(checks, kind, measure[1]) for kind in ('caption', 'long_caption')},
        'without_text': [c['id'] for c in checks if not (c['caption'] or c['long_caption'])],
        'broken': [
            {'id': c['id'], 'file': c['file'], 'reason': c['fault'][0], 'detail': c['fault'][1]}
            for c in checks
            if c['fault']
        ],
    }


def texts(checks: list[dict], kind: str, lengths_of: Callable) -> dict:
    """How many texts of a kind, how long, and how many of them each length would cut."""
    every = [text for c in checks for text in c[kind]]
    lengths = lengths_of(every) if every else []
    return {
        'texts': len(every),
        'distinct': len(set(every)),
        'examples_without': sum(not c[kind] for c in checks),
        'length': spread(lengths),
        'cut_at': {str(limit): sum(n > limit for n in lengths) for limit in LENGTHS},
    }


def spread(values: list[float]) -> dict | None:
    """min, median, max and total; None of nothing."""
    if not values:
        return None
    middle = statistics.median(values)
    numbers = {'min': min(values), 'median': middle, 'max': max(values), 'total': sum(values)}
    return {key: round(value, 3) for key, value in numbers.items()}


def count(values) -> dict[str, int]:
    """How often each value occurs, the most frequent first."""
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def frame_rate(info: video.VideoInfo) -> str:
    if info.num_frames == 1:
        return 'one frame'
    return 'variable' if info.variable_rate or info.fps is None else f'{info.fps:.4g}'


# Showing --------------------------------------------------------------------------------------


def page(report: dict) -> Group:
    """The report for people."""
    good, all_of = report['readable'], report['examples']
    files = f' in {report["files"]:,} files' if report['files'] != all_of else ''
    head = Text.assemble(
        (report['data'], 'bold'),
        f'\n{all_of:,} examples{files}, ',
        (f'{good:,} readable', 'green' if good == all_of else 'yellow'),
        *([', ', (f'{len(report["broken"]):,} broken', 'bold red')] if report['broken'] else []),
    )
    blocks = [head, video_table(report)]
    if any(kind['texts'] for kind in report['texts'].values()):
        blocks.append(text_table(report))
    if report['without_text']:
        names = report['without_text']
        more = f' and {len(names) - 10:,} more' if len(names) > 10 else ''
        few = f'{len(names):,} without any text: {", ".join(names[:10])}{more}'
        blocks.append(Text(few, 'yellow'))
    if report['broken']:
        blocks.append(broken_table(report['broken']))
    return Group(*(part for block in blocks for part in (block, Text())))


def plain_table(**kwargs) -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style='dim', **kwargs)


def video_table(report: dict) -> Table:
    """Durations and the mixture of formats."""
    table = plain_table(show_header=False)
    table.add_column(style='cyan', no_wrap=True)
    table.add_column()
    for name, key in (('duration', 'duration_s'), ('part used', 'part_s')):
        if s := report[key]:
            row = (f'{word} {clock(s[word])}' for word in ('min', 'median', 'max', 'total'))
            table.add_row(name, '   '.join(row))
    units = {'fps': 'frames / s', 'size': 'pixels', 'rotation': 'rotation (°)'}
    for key in ('fps', 'size', 'codec', 'container', 'rotation'):
        if report[key]:
            table.add_row(units.get(key, key), mixture(report[key]))
    if report['labels']:
        table.add_row('labels', f'{report["labels"]:,} different')
    if report['group_size'] > 1:
        table.add_row('groups', f'of {report["group_size"]} twins')
    return table


def mixture(counts: dict[str, int], most: int = 8) -> Text:
    """'h264 (22)  mpeg4 (3)  ...'; a value and its count stay on one line."""
    shown = list(counts.items())[:most]
    text = Text('  ').join(Text.assemble(value, (f'\N{NBSP}({n:,})', 'dim')) for value, n in shown)
    if len(counts) > most:
        text.append(f'  and {len(counts) - most:,} more', 'dim')
    return text


def text_table(report: dict) -> Group:
    """Lengths of the texts, and the share that a stage's text_length would cut."""
    unit = report['counted_in']
    title = f'texts, in {unit}; under >N how many are longer than N and would be cut'
    if unit == 'words':
        title += '\n(no tokenizer is built or named; a text has more tokens than words)'
    table = plain_table()
    table.add_column(no_wrap=True)
    for name in ('texts', 'distinct', 'missing', 'min', 'median', 'max'):
        table.add_column(name, justify='right')
    limits = [n for n in LENGTHS if any(k['cut_at'][str(n)] for k in report['texts'].values())]
    limits = LENGTHS[: len(limits) + 1]
    for limit in limits:
        table.add_column(f'>{limit}', justify='right')
    for kind, words in report['texts'].items():
        if not words['texts']:
            continue
        lengths = [f'{words["length"][key]:g}' for key in ('min', 'median', 'max')]
        cut = [words['cut_at'][str(limit)] for limit in limits]
        table.add_row(
            Text(kind, 'cyan'), f'{words["texts"]:,}', f'{words["distinct"]:,}',
            f'{words["examples_without"]:,}', *lengths,
            *(Text(f'{n:,}' if n else '-', 'yellow' if n else 'dim') for n in cut),
        )  # fmt: skip
    return Group(Text(title, 'dim'), table)


def broken_table(broken: list[dict]) -> Table:
    """Each broken example with its reason; ids are folded, never cut."""
    table = plain_table(title='broken', title_justify='left', title_style='bold red')
    table.add_column('id', overflow='fold', ratio=3)
    table.add_column('reason', style='red', no_wrap=True)
    table.add_column('detail', overflow='fold', ratio=4)
    for fault in broken:
        table.add_row(fault['id'], fault['reason'], fault['detail'])
    return table


def clock(seconds: float) -> str:
    """'4.2 s', '3 min 20 s', '2 h 05 min'."""
    if seconds < 59.95:
        return f'{seconds:.1f} s'
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes:02d} min' if hours else f'{minutes} min {rest:02d} s'


if __name__ == '__main__':
    with command_line.user_errors():
        sys.exit(main())
