"""Sources of examples: a manifest of one's own videos, or a stored (TFDS) data set.

A source is a sequence: `len(source)`, `source[i] -> Example`, in an order that never changes. It
knows paths and bytes and text, not pixels; reading them is left to video.py.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import re
from pathlib import Path

from long_vivit.inputs import manifests

SPEC_FORMS = (
    "'videos:PATH.jsonl', 'videos:PATH.csv', either with '#SPLIT', or 'NAME/CONFIG:SPLIT' "
    "such as 'shape_stories/long:train'"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """A video with its texts.

    id: a name that no other example of the source has.
    video: the path of a file, or the file itself as bytes.
    captions, long_captions: texts that say the same video in other words; either may be empty.
    start_s, end_s: the part of the video in seconds, None = from its start, to its end.
    label: a class name, or None.
    group: examples with the same number are near-twins (hard negatives of each other, such as the
        same events in another order) and lie beside each other in the source.
    """

    id: str
    video: bytes | str
    captions: tuple[str, ...] = ()
    long_captions: tuple[str, ...] = ()
    start_s: float | None = None
    end_s: float | None = None
    label: str | None = None
    group: int = 0


@dataclasses.dataclass(frozen=True)
class Spec:
    """A data spec taken apart: `manifest` is a path, or None and name, config say which set."""

    manifest: Path | None
    name: str
    config: str
    split: str


def parse_spec(spec: str) -> Spec:
    """Takes a data spec apart without looking at any file. Raises ValueError for no spec."""
    if match := re.fullmatch(r'videos:(.+?\.(?:jsonl|csv))(?:#(.+))?', spec):
        return Spec(Path(os.path.expanduser(match[1])), 'videos', '', match[2] or '')
    if match := re.fullmatch(r'(?!videos:)([a-z]\w*)(?:/([\w.-]+))?:(\w.*)', spec):
        return Spec(None, match[1], match[2] or '', match[3])
    raise ValueError(f'{spec!r} is no data spec; it must be {SPEC_FORMS}.')


def open_source(
    spec: str, *, data_dir: str | Path = 'data/built', text: str = 'any', short_text: str = ''
) -> 'Videos | Stored':
    """The source that a data spec names.

    data_dir: folder of the stored data sets.
    text: what every example must have: 'caption', 'long_caption', 'any' of both, '' = nothing.
    short_text: as the field of a stage; with 'caption' every example must have one of those too.

    Raises ValueError: the spec is none; the manifest has faults (all are listed); the data set
    was not built, or has no such split.
    """
    if text not in manifests.TEXTS:
        raise ValueError(f'text: {text!r} must be one of {", ".join(map(repr, manifests.TEXTS))}.')
    parts = parse_spec(spec)
    if parts.manifest:
        return Videos(spec, parts, text, short_text)
    return Stored(spec, parts, Path(data_dir), text, short_text)


class Videos:
    """The rows of a manifest.

    group_size: rows in each group, 1 without groups; `i // group_size` is the group of example i.
    name: the spec.
    fingerprint: 16 hex digits; the same for the same rows, wherever the folder lies.
    """

    def __init__(self, spec: str, parts: Spec, text: str, short_text: str):
        rows = manifests.read_manifest(parts.manifest, parts.split, text, short_text)
        self.name = spec
        self.fingerprint = _digest(rows)
        grouped = rows[0]['group'] is not None
        self.group_size = sum(row['group'] == 0 for row in rows) if grouped else 1
        folder = parts.manifest.parent
        self._examples = [
            Example(
                id=row['id'],
                video=str(folder / row['video']),
                captions=row['caption'],
                long_captions=row['long_caption'],
                start_s=row['start'],
                end_s=row['end'],
                label=row['label'],
                group=row['group'] if grouped else i,
            )
            for i, row in enumerate(rows)
        ]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]


class Stored:
    """A split of a data set that `long_vivit.build_data` stored; read without TensorFlow.

    The attributes are those of `Videos`. A record's fields: id, video (a file as bytes), caption,
    long_caption, label (texts; '' = none), group (an integer) and end (seconds as text, where the
    video ends, for files that go on to the end of a last frame); all but id and video optional.
    """

    def __init__(self, spec: str, parts: Spec, data_dir: Path, text: str, short_text: str):
        import tensorflow_datasets as tfds  # late: it takes a second, and manifests go without

        folder = _newest_version(data_dir, parts)
        try:
            builder = tfds.builder_from_directory(folder)
        except Exception as error:  # of many classes, for files that are cut or missing
            raise ValueError(f'{folder}: cannot be read; build it again ({error})') from error
        split = re.split(r'[\[+]', parts.split)[0]
        if split not in builder.info.splits:
            raise ValueError(
                f'{spec}: no split {split!r}; there are {", ".join(sorted(builder.info.splits))}.'
            )
        for wanted in (manifests.TEXTS[text], manifests.ALSO.get(short_text)):
            if wanted and not any(name in builder.info.features for name in wanted):
                raise ValueError(f'{spec}: its records have no {" or ".join(wanted)}.')
        self.name = spec
        try:
            self._records = builder.as_data_source(parts.split)
            empty = not len(self._records)
        except Exception as error:  # of many classes, for slices that are none and for lost files
            raise ValueError(
                f'{spec}: cannot be read ({error}); splits have '
                + ', '.join(f'{n}: {one.num_examples}' for n, one in builder.info.splits.items())
                + f' records, a part is written as {split}[:256]; else build {folder} again'
            ) from error
        if empty:
            raise ValueError(f'{spec}: the split is empty.')
        self.fingerprint = _digest(
            [builder.info.full_name, parts.split, len(self), _contents(folder)]
        )
        self.group_size = self._measure_groups()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):  # ends a loop over the source, which ArrayRecord would not
            raise IndexError(f'{self.name}: no example {index} of {len(self)}')
        try:
            record = self._records[index]
        except Exception as error:  # a damaged file
            raise ValueError(
                f'{self.name}: record {index} cannot be read; build it again ({error})'
            ) from error
        names = ('id', 'caption', 'long_caption', 'end', 'label')
        text = {name: _texts(record.get(name)) for name in names}
        return Example(
            id=text['id'][0],
            video=record['video'],
            captions=text['caption'],
            long_captions=text['long_caption'],
            end_s=float(text['end'][0]) if text['end'] else None,
            label=text['label'][0] if text['label'] else None,
            group=int(record.get('group', index)),
        )

    def _measure_groups(self) -> int:
        """The size of the groups: they are equally large, the first two and the last are looked at.

        Raises ValueError where the split begins or ends within a group.
        """
        first = self._run(range(len(self)))
        second = self._run(range(first, len(self)))
        last = self._run(range(len(self) - 1, -1, -1))
        if second not in (0, first) or last != first:
            size = max(first, second, last)
            raise ValueError(
                f'{self.name}: the split cuts a group of {size} near-twins; cut at multiples of '
                f'{size}.'
            )
        return first

    def _run(self, places) -> int:
        """How many records from the first of these places on share its group."""
        groups = (self[i].group for i in places)
        return sum(1 for _ in next(itertools.groupby(groups), (0, ()))[1])


def _newest_version(data_dir: Path, parts: Spec) -> Path:
    """The folder of the newest stored version. Raises ValueError saying how to build it."""
    folder = data_dir / parts.name / parts.config
    versions = [info.parent for info in folder.glob('*/dataset_info.json')]
    if versions:
        return max(versions, key=lambda path: [int(n) for n in re.findall(r'\d+', path.name)])
    others = sorted({p.parent.parent.name for p in folder.parent.glob('*/*/dataset_info.json')})
    there, flag = '', ''
    if parts.config and others:  # built without this one, which may have to be asked for
        there, flag = f' (there is {", ".join(others)})', f' --config={parts.config}'
    flag += '' if str(data_dir) == 'data/built' else f' --data_dir={data_dir}'
    raise ValueError(
        f'{folder}: not built{there}; run `python -m long_vivit.build_data {parts.name}{flag}`, '
        'or change data.dir.'
    )


def _texts(value) -> tuple[str, ...]:
    """TFDS gives text as bytes, lists of texts as lists of bytes; '' means none."""
    values = [value] if isinstance(value, bytes | str) else ([] if value is None else list(value))
    decoded = (v.decode('utf-8') if isinstance(v, bytes) else str(v) for v in values)
    return tuple(v for v in decoded if v)


def _contents(folder: Path) -> list:
    """Names and sizes of a stored data set's record files."""
    return sorted([f.name, f.stat().st_size] for f in folder.iterdir() if 'array_record' in f.name)


def _digest(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
