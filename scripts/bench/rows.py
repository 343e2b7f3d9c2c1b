"""What a script of this folder measures: printed as it comes, with --record kept in RESULTS.md.

RESULTS.md is written by hand down to the heading `# Latest rows`; below it each script has a
section of its own, which is replaced at every run with --record.
"""

import argparse
import datetime
import importlib.metadata
import itertools
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name('RESULTS.md')
HEADING = '# Latest rows'
INTRODUCTION = 'What each script printed at its last run with `--record` (`make bench`).'


def record_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --record, the same in all scripts."""
    told = 'put what is printed into scripts/bench/RESULTS.md, in place of the last'
    parser.add_argument('--record', action='store_true', help=told)


def table(*cells) -> str:
    """A line of a table in Markdown."""
    return f'| {" | ".join(map(str, cells))} |'


def header(*cells) -> str:
    """Its first two lines, after an empty one: two tables in a row stay two."""
    return f'\n{table(*cells)}\n|' + '---|' * len(cells)


def record(lines: Iterable[str], asked: bool, *packages: str) -> None:
    """Prints each line as it comes; where `asked`, all of them become the script's section.

    packages: what the lines were measured with, by the names that pip knows; those that are not
        installed are left out, as the script leaves their rows out.
    Raises ValueError where no row is to be kept; nothing is written then, nor where the lines end
    in an error.
    """
    kept = []
    for line in lines:
        print(line, flush=True)
        kept.extend(line.splitlines())
    if asked:
        name = Path(sys.argv[0]).stem
        if sum(line.startswith('|') for line in kept) < 3:  # the first two are a table's header
            raise ValueError(f'{name}: no row was measured, so there is none to record')
        head = f'{datetime.date.today()}, {", ".join([machine(), *versions(packages)])}.'
        text = f'{head}\n\n    {command(sys.argv)}\n\n{markdown(kept)}'
        RESULTS.write_text(replaced(RESULTS.read_text(encoding='utf-8'), name, text), 'utf-8')
        print(f'recorded in {RESULTS.name}, "Latest: {name}"')


def machine() -> str:
    """'2 cores of an AMD EPYC 9B14', and the devices that JAX uses where they are others."""
    info = Path('/proc/cpuinfo')
    found = info.is_file() and re.search(r'^model name\s*: (.+)$', info.read_text(), re.M)
    said = f'{os.cpu_count()} cores ({found[1].strip() if found else platform.machine()})'
    jax = sys.modules.get('jax')
    if jax and jax.default_backend() != 'cpu':
        said += f', {jax.device_count()} x {jax.devices()[0].device_kind}'
    return said


def versions(packages: Iterable[str]) -> list[str]:
    """['Python 3.11.7', 'jax 0.10.2', ...]"""
    found = [f'Python {platform.python_version()}']
    for name in packages:
        try:
            found.append(f'{name} {importlib.metadata.version(name)}')
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command(words: list[str]) -> str:
    """The command that was given, seen from the repository; files elsewhere are PATH/name."""
    script, *rest = words
    shown = [_from_root(word) for word in rest if word != '--record']
    return shlex.join(['python', _from_root(os.path.abspath(script)), *shown])


def _from_root(word: str) -> str:
    """A word of a command line; what it says of a file is true in the repository's root."""
    option, equals, value = word.partition('=') if word.startswith('--') else ('', '', word)
    if not value or (os.sep not in value and not Path(value).exists()):
        return word
    path = Path(value).resolve()
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path('PATH') / path.name
    return f'{option}{equals}{shown}'


def markdown(lines: list[str]) -> str:
    """Tables as they are, other lines as they were printed, in indented blocks."""
    blocks = []
    for is_row, part in itertools.groupby(lines, lambda line: line.startswith('|')):
        margin = '' if is_row else '    '
        blocks.append('\n'.join(f'{margin}{line}'.rstrip() for line in part).strip('\n'))
    return '\n\n'.join(block for block in blocks if block)


def replaced(results: str, name: str, text: str) -> str:
    """The text of RESULTS.md with one section anew, or at the end; the rest as it was."""
    by_hand, _, latest = results.partition(f'\n{HEADING}\n')
    parts = re.split(r'^## Latest: (\w+)\n', latest, flags=re.M)[1:]
    sections = dict(zip(parts[::2], parts[1::2], strict=True)) | {name: text}
    shown = [by_hand.rstrip('\n'), HEADING, INTRODUCTION]
    shown += [f'## Latest: {name}\n\n{text.strip()}' for name, text in sections.items()]
    return '\n\n'.join(shown) + '\n'
