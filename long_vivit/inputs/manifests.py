"""Manifests: a list of one's own videos, a row each, as JSON lines or CSV.

| field        | what                                                                              |
|--------------|-----------------------------------------------------------------------------------|
| video        | path of the file, absolute or relative to the manifest's folder; the one field    |
|              | that every row needs                                                              |
| caption      | a sentence, or a list of them; in a CSV cell: ["a man", "a dog"]                  |
| long_caption | a paragraph, or a list of them, likewise                                          |
| start, end   | seconds, where the row is a part of the video; end is not in the part             |
| label        | a class name                                                                      |
| split        | which split the row belongs to: `videos:PATH#train` takes the rows of one         |
| id           | a name for the row, unlike all others; made from the video when absent            |
| group        | rows with the same group are near-twins: hard negatives of each other. Either all |
|              | rows have one or none, and all groups are equally large                           |

Other fields are kept out of the way, but one that looks like a slip of the pen is refused.
"""

import contextlib
import csv
import difflib
import io
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

FIELDS = (
    'video',
    'caption',
    'long_caption',
    'start',
    'end',
    'label',
    'split',
    'id',
    'group',
)
TEXTS = {'caption': ('caption',), 'long_caption': ('long_caption',), '': ()}
TEXTS['any'] = ('caption', 'long_caption')
ALSO = {'caption': ('caption',)}  # short text of a stage -> what it takes of a row
MISSING = 'is missing; it must be a text or a list of texts'
MAX_FAULTS = 50  # lines of one error message


def read_manifest(
    path: Path, split: str = '', text: str = 'any', short_text: str = ''
) -> list[dict]:
    """Rows of a manifest in the order of the file, or by group where there are groups.

    path: a .jsonl or .csv file, UTF-8.
    split: take the rows of this split; '' = all rows.
    text: what every row taken must have: 'caption', 'long_caption', 'any' of the two, '' = nothing.
    short_text: 'caption': and a caption besides.

    A row has exactly FIELDS: video and id are str, caption and long_caption tuples of str (which
    may be empty), start and end float or None, label and split str or None, group int or None
    (0, 1, ... in order of appearance).

    Raises ValueError with all faults of the file, each with its line number and field.
    """
    rows, faults = [], []
    for line, given in _parse(path, faults):
        row = {'line': line}
        taken = split in ('', str(given.get('split')))
        wanted = dict.fromkeys((TEXTS[text], ALSO.get(short_text, ()))) if taken else ()
        _read_row(row, given, wanted, lambda message, at=line: faults.append((at, message)))
        rows.append(row)
    if not rows and not faults:
        faults.append((1, 'the file has no rows'))
    _name_rows(rows, faults)
    if not faults:
        rows = _pick(rows, split, path)
        rows = _by_group(rows, faults)
    if faults:
        raise ValueError(_message(path, faults))
    return [{field: row[field] for field in FIELDS} for row in rows]


def near_miss(name: str) -> str | None:
    """The field that `name` was probably meant to be, or None; a field itself is no miss."""
    if name in FIELDS:
        return None
    plain = ''.join(c for c in name.lower() if c.isalpha())
    for field in FIELDS:
        if plain.removesuffix('s') == field.replace('_', '').removesuffix('s'):
            return field
        if field in ('start', 'end') and name.lower().startswith(field + '_'):
            return field
    long_enough = [field for field in FIELDS if len(field) > 3]
    return next(iter(difflib.get_close_matches(name.lower(), long_enough, 1, 0.8)), None)


def _parse(path: Path, faults: list) -> Iterator[tuple[int, dict]]:
    """(line number, fields as written) of each row; blank lines are no rows."""
    try:
        content = path.read_text(encoding='utf-8-sig')
    except FileNotFoundError:
        raise ValueError(f'{path}: no such manifest.') from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b'\n') + 1
        raise ValueError(f'{path}: line {line} is not UTF-8 text; store it as UTF-8.') from None
    except OSError as error:
        raise ValueError(f'{path}: cannot be read ({error.strerror}).') from None
    if path.suffix == '.csv':
        yield from _parse_csv(content, faults)
        return
    for line, words in enumerate(content.split('\n'), 1):
        if not words.strip():
            continue
        try:
            row = json.loads(words)
        except ValueError as error:
            faults.append((line, f'is not JSON: {error}'))
            continue
        if isinstance(row, dict):
            yield line, row
        else:
            faults.append((line, f'must be an object {{...}}, is {type(row).__name__}'))


def _parse_csv(content: str, faults: list) -> Iterator[tuple[int, dict]]:
    """Rows of a CSV text; an empty cell counts as absent."""
    reader = csv.DictReader(io.StringIO(content, newline=''), strict=True)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            several = 'several captions go into one cell as a JSON list: ["a man", "a dog"]'
            faults.append((1, f'column {", ".join(twice)} is there more than once; {several}'))
            return
        for row in reader:
            if None in row or None in row.values():
                cells = f'must have {len(reader.fieldnames)} cells, as the first line has'
                faults.append((reader.line_num, cells))
            else:
                yield reader.line_num, {k.strip(): _cell(v) for k, v in row.items() if v != ''}
    except csv.Error as error:
        faults.append((reader.line_num, f'is not CSV: {error}'))


def _cell(text: str) -> str | list:
    """What a CSV cell holds: a text, or as a JSON list several."""
    if text.lstrip().startswith('["'):
        with contextlib.suppress(ValueError):
            return json.loads(text)
    return text


def _read_row(row: dict, given: dict, wanted, fault) -> None:
    """Fills `row` with all FIELDS as written; of each tuple in `wanted` one must be there."""
    misspelt = {meant: name for name in given if (meant := near_miss(name))}
    for meant, name in misspelt.items():
        fault(f'{name}: no such field; did you mean {meant!r}?')
    row['video'] = given.get('video')
    if not isinstance(row['video'], str) or not row['video'].strip():
        fault(f'video: must be the path of a file, is {row["video"]!r}; fields: {", ".join(given)}')
        row['video'] = ''
    for name in ('caption', 'long_caption'):
        row[name] = _texts(name, given.get(name), fault)
    for names in filter(None, wanted):
        if not any(row[name] or given.get(name) or name in misspelt for name in names):
            fault(f'{" or ".join(names)}: {MISSING}')
    row['start'], row['end'] = (_seconds(name, given.get(name), fault) for name in ('start', 'end'))
    if row['end'] is not None and row['end'] <= (row['start'] or 0.0):
        fault(f'end: {row["end"]} must be greater than start = {row["start"] or 0.0}')
    for name in ('label', 'split', 'id', 'group'):
        row[name] = _word(name, given.get(name), fault)


def _texts(name: str, value, fault) -> tuple[str, ...]:
    """A text or a list of texts as a tuple; None and '' as an empty one."""
    texts = [value] if isinstance(value, str) else value
    if value is None or value == '':
        return ()
    if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
        fault(f'{name}: must be a text or a list of texts, none of them empty, is {value!r:.80}')
        return ()
    return tuple(texts)


def _seconds(name: str, value, fault) -> float | None:
    """A number of seconds, 0 or more; numbers in CSV cells come as text."""
    if value is None:
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        fault(f'{name}: must be seconds, 0 or more, is {value!r:.80}')
        return None
    return seconds


def _word(name: str, value, fault) -> str | None:
    """A non-empty text; a whole number is taken as its digits."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        fault(f'{name}: must be a text that is not empty, is {value!r:.80}')
        return None
    return str(value)


def _name_rows(rows: list[dict], faults: list) -> None:
    """Refuses ids that appear twice; names rows without one after their video and range."""
    first = {}
    for row in rows:
        if row['id'] is None:
            continue
        line = first.setdefault(row['id'], row['line'])
        if line != row['line']:
            faults.append((row['line'], f'id: {row["id"]!r} is already the id of line {line}'))
    seen = Counter(first)
    for row in rows:
        if row['id'] is not None:
            continue
        whole = row['start'] is None and row['end'] is None
        end = '' if row['end'] is None else f'{row["end"]:g}'
        name = row['video'] if whole else f'{row["video"]}@{row["start"] or 0:g}-{end}'
        seen[name] += 1
        row['id'] = name if seen[name] == 1 else f'{name}~{seen[name]}'


def _pick(rows: list[dict], split: str, path: Path) -> list[dict]:
    """The rows of a split. Raises ValueError naming the splits there are where it has none."""
    picked = [row for row in rows if not split or row['split'] == split]
    if not picked:
        splits = ', '.join(sorted({row['split'] for row in rows if row['split']}))
        raise ValueError(
            f'{path}#{split}: no row has split {split!r}; '
            + (f'there are {splits}.' if splits else 'no row has a split: leave out the #.')
        )
    return picked


def _by_group(rows: list[dict], faults: list) -> list[dict]:
    """Rows with the members of a group beside each other, groups numbered 0, 1, ...

    Splits are read one at a time as well as together: in another split a name is another group.
    """
    if all(row['group'] is None for row in rows):
        return rows
    lines = {}
    for row in rows:
        if row['group'] is None:
            message = 'group: is missing; either all rows have a group or none'
            faults.append((row['line'], message))
        else:
            lines.setdefault((row['group'], row['split']), []).append(row['line'])
    usual = Counter(len(members) for members in lines.values()).most_common(1)[0][0]
    for (name, _), members in lines.items():
        if len(members) != usual:
            faults.append(
                (members[0], f'group: {name!r} has {len(members)} rows, others have {usual}')
            )
    if faults:
        return rows
    number = {group: i for i, group in enumerate(lines)}
    rows = [{**row, 'group': number[row['group'], row['split']]} for row in rows]
    return sorted(rows, key=lambda row: row['group'])  # stable: file order inside a group


def _message(path: Path, faults: list[tuple[int, str]]) -> str:
    """All faults in order of line; the count when some are left out."""
    faults = sorted(faults, key=lambda fault: fault[0])
    lines = [f'  line {line}: {message}' for line, message in faults[:MAX_FAULTS]]
    if len(faults) > MAX_FAULTS:
        lines.append(f'  ... and {len(faults) - MAX_FAULTS} more')
    if any(message == f'long_caption: {MISSING}' for _, message in faults):
        lines.append(
            "  where rows have captions only, set the stage's text to 'any' or 'caption': "
            '--config.stages.long.text=any, or --text any of long_vivit.evaluate'
        )
    count = 'one fault' if len(faults) == 1 else f'{len(faults)} faults'
    return '\n'.join([f'{path} has {count}:', *lines])
