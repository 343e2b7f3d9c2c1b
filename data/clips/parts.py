"""A part is a run of rows whose videos are decoded by one worker into one file of records.

Each is made whole or not at all, by whoever has the time: processes here, or workers of Beam.
"""

import dataclasses
import itertools
import json
import os
import pathlib
import uuid
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from data.clips import shrink
from long_vivit.inputs import video

# A record stands alone, and compressing what is raw would cost more than decoding it.
WRITER = 'group_size:1,uncompressed'
GROUP_BROKEN = 'group-broken'  # the reason in the ledger of a row whose near-twin is broken
TOO_LARGE = 'too-large'

FEATURES = {
    'id': tfds.features.Text(),
    'video': tfds.features.Scalar(np.object_),
    'end': tfds.features.Text(),  # seconds; as text, since records hold 32-bit floats
    'caption': tfds.features.Sequence(tfds.features.Text()),
    'long_caption': tfds.features.Sequence(tfds.features.Text()),
    'label': tfds.features.Text(),
    'group': tfds.features.Scalar(np.int64),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows of one split as `manifests.read_manifest` gives them; `video` is an absolute path."""

    folder: str  # where the finished part goes
    split: str
    number: int
    rows: tuple[dict, ...]
    group_size: int
    settings: shrink.Settings

    @property
    def file(self) -> pathlib.Path:
        """The records."""
        return pathlib.Path(self.folder) / f'{self.split}-{self.number:06d}.array_record'

    @property
    def report(self) -> pathlib.Path:
        """What became of the rows; it is written last, so where it lies the part is done."""
        return self.file.with_suffix('.json')

    def read(self) -> dict | None:
        """The report, or None where the part is still to be made."""
        try:
            return json.loads(self.report.read_text(encoding='utf-8'))
        except FileNotFoundError:
            return None


def cut(rows: list[dict], size: int) -> Iterator[tuple[dict, ...]]:
    """Runs of about `size` rows; groups stay whole."""
    group = group_size(rows)
    step = max(1, size // group) * group
    return (tuple(rows[i : i + step]) for i in range(0, len(rows), step))


def group_size(rows: list[dict]) -> int:
    """Rows in each group; 1 without groups."""
    return 1 if rows[0]['group'] is None else sum(r['group'] == rows[0]['group'] for r in rows)


def make(part: Part) -> dict:
    """Makes a part unless it is there. Returns its report.

    {'split', 'number', 'records', 'bytes', 'frames', 'missing_frames', 'broken': [{'id', 'video',
    'reason', 'detail'}]}. Raises OSError where the folder cannot be written.
    """
    if (found := part.read()) is not None:
        return found
    report = {'split': part.split, 'number': part.number, 'records': 0, 'bytes': 0, 'frames': 0}
    report |= {'missing_frames': 0, 'broken': []}
    features = tfds.features.FeaturesDict(FEATURES)
    info = features.get_serialized_info()
    serializer = tfds.core.example_serializer.ExampleSerializer(info)
    draft = part.file.with_name(f'.{part.file.name}.{uuid.uuid4().hex}')
    try:
        writer = array_record_module.ArrayRecordWriter(str(draft), WRITER)
        for record in _records(part, report):
            example = serializer.get_tf_example(features.encode_example(record))
            writer.write(example.SerializeToString(deterministic=True))
            report['records'] += 1
        writer.close()
        os.replace(draft, part.file)
        report['bytes'] = part.file.stat().st_size
        draft.write_text(json.dumps(report), encoding='utf-8')
        os.replace(draft, part.report)
    finally:
        draft.unlink(missing_ok=True)
    return report


def _records(part: Part, report: dict) -> Iterator[dict]:
    """The records of the rows that can be read; the others go to the report."""
    for first in range(0, len(part.rows), part.group_size):
        group, made = part.rows[first : first + part.group_size], []
        for row in group:
            try:
                path, start, end = row['video'], row['start'], row['end']
                made.append((row, shrink.shrink(path, start, end, part.settings)))
            except video.VideoError as error:
                report['broken'].append(_fault(row, error.reason, error.detail))
            except shrink.TooLarge as error:
                report['broken'].append(_fault(row, TOO_LARGE, str(error)))
        if len(made) < len(group):  # near-twins come together or not at all
            detail = 'a video of the same group is broken'
            report['broken'] += [_fault(row, GROUP_BROKEN, detail) for row, _ in made]
            continue
        for row, shrunk in made:
            report['frames'] += shrunk.num_frames
            report['missing_frames'] += shrunk.num_missing
            yield _record(row, shrunk)


def _record(row: dict, shrunk: shrink.Shrunk) -> dict:
    return {
        'id': row['id'],
        'video': shrunk.file,
        'end': repr(float(shrunk.seconds)),
        'caption': list(row['caption']),
        'long_caption': list(row['long_caption']),
        'label': row['label'] or '',
        'group': row['number'] if row['group'] is None else row['group'],
    }


def _fault(row: dict, reason: str, detail: str) -> dict:
    return {'id': row['id'], 'video': row['video'], 'reason': reason, 'detail': detail}


def runs(reports: list[dict]) -> Iterator[tuple[str, list[dict]]]:
    """(split, its reports in order), the empty ones left out."""
    ordered = sorted(reports, key=lambda report: (report['split'], report['number']))
    for split, members in itertools.groupby(ordered, key=lambda report: report['split']):
        yield split, [report for report in members if report['records']]
