"""Builds decode-once shards of a manifest. No TensorFlow.

DATA_DIR/clips/CONFIG/VERSION/ holds them as TFDS stores them; DATA_DIR/clips/CONFIG/VERSION.parts/
what an unfinished build has made so far.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence

import absl.logging
import tensorflow_datasets as tfds

from data.clips import beam as beam_workers
from data.clips import clips_dataset_builder as builders
from data.clips import parts, processes, shrink
from long_vivit.inputs import manifests

CONFIGS = ()  # one, named after the manifest, unless --config names it


def build(
    data_dir: str | os.PathLike,
    configs: Sequence[str] = CONFIGS,
    *,
    manifest: str | os.PathLike,
    pixels: int,
    fps: str,
    scaling: str = 'bilinear',
    codec: str = 'raw',
    rows_per_shard: int = 64,
    time_limit_s: float = 600.0,
    max_missing: float = 0.1,
    beam: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> pathlib.Path:
    """Builds the shards, going on from what a killed build left. Returns their folder.

    The arguments are the options of the command, which its --help explains.

    Raises:
      ValueError: an argument or the manifest is wrong, no video can be read, or the folder holds a
        build of something else and `overwrite` is False.
      OSError: the folder cannot be written or the disk is full.
    """
    settings = shrink.Settings(pixels, str(fps), codec, time_limit_s, max_missing, scaling)
    settings.check()
    if rows_per_shard < 1 or (workers is not None and workers < 1):
        raise ValueError('--rows_per_shard and --workers must be 1 or more')
    manifest = pathlib.Path(manifest).expanduser()
    name = _config_name(configs, manifest)
    path = pathlib.Path(data_dir).expanduser() / 'clips' / name / str(builders.Builder.VERSION)
    folder = path.with_name(path.name + '.parts')
    splits = _splits(manifest)
    record = _record(splits, settings, rows_per_shard)
    if _is_complete(path, folder, record, overwrite, say):
        return path
    todo = tuple(_parts(splits, manifest.parent, folder.absolute(), settings, rows_per_shard))
    if beam is None:
        work = processes.workforce(workers, progress, say)
    else:
        work = beam_workers.workforce(beam)
    _prepare(data_dir, name, todo, work, record)
    _say_result(path, todo, say)
    shutil.rmtree(folder)
    return path


def _prepare(data_dir, name: str, todo, work, record: dict) -> None:
    """Runs the builder, without what TFDS prints about downloads that there are not."""
    level = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)  # no word that the configuration is our own
    try:
        config = tfds.core.BuilderConfig(name=name)
        builder = builders.Builder(data_dir=data_dir, config=config, file_format='array_record')
        builder.parts, builder.work, builder.record = todo, work, record
        with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_dir=downloads)
    finally:
        absl.logging.set_verbosity(level)


def _config_name(configs: Sequence[str], manifest: pathlib.Path) -> str:
    if len(configs) > 1:
        raise ValueError(f'--config names the shards of one manifest; given {", ".join(configs)}')
    name = configs[0] if configs else re.sub(r'[^\w.-]', '_', manifest.stem)
    if not re.fullmatch(r'[\w.-]+', name):
        raise ValueError(f'--config is {name!r}; it must be letters, digits, _, - and .')
    return name


def _splits(manifest: pathlib.Path) -> dict[str, list[dict]]:
    """The rows of each split; 'train' where the manifest has no splits."""
    rows = manifests.read_manifest(manifest, text='')
    names = list(dict.fromkeys(row['split'] for row in rows))
    if None in names and len(names) > 1:
        first = next(row['id'] for row in rows if row['split'] is None)
        raise ValueError(f'{manifest}: {first}: split: is missing; all rows have one or none has')
    odd = [name for name in names if name and not re.fullmatch(r'\w+', name)]
    if odd:
        raise ValueError(f'{manifest}: split {odd[0]!r} must be letters, digits and _')
    return {name or 'train': manifests.read_manifest(manifest, name or '', '') for name in names}


def _record(splits, settings: shrink.Settings, rows_per_shard: int) -> dict:
    """What decides the result, as strings and numbers."""
    rows = json.dumps(splits, sort_keys=True)
    return {
        **dataclasses.asdict(settings),
        'rows_per_shard': rows_per_shard,
        'manifest': hashlib.sha256(rows.encode()).hexdigest()[:16],
    }


def _is_complete(path, folder, record, overwrite, say) -> bool:
    """Whether nothing is to be done; makes `folder` ready for parts where something is."""
    for place, file in ((path, path / 'metadata.json'), (folder, folder / 'settings.json')):
        stored = {'scaling': 'bilinear'} | _read_json(file)  # as it was before one could choose
        faults = [f'{k} is {stored.get(k)}, wanted {v}' for k, v in record.items()
                  if stored.get(k) != v]  # fmt: skip
        if place.exists() and faults and not overwrite:
            raise ValueError(
                f'{place} holds something else than what was asked for: {"; ".join(faults)}. '
                'Give it another --config or --data_dir, or replace it with --overwrite.'
            )
        if place.exists() and faults:
            shutil.rmtree(place)
    if path.exists():
        say(f'{path}: complete, left as it is')
        return True
    if not folder.exists():
        draft = folder.with_name(folder.name + '.new')
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        (draft / 'settings.json').write_text(json.dumps(record), encoding='utf-8')
        draft.rename(folder)
    return False


def _read_json(file: pathlib.Path) -> dict:
    try:
        return json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}


def _parts(splits, base, folder, settings, rows_per_shard) -> Iterator[parts.Part]:
    for split, rows in splits.items():
        size = parts.group_size(rows)
        rows = [
            {**row, 'video': str(base.absolute() / row['video']), 'number': number}
            for number, row in enumerate(rows)
        ]
        for number, run in enumerate(parts.cut(rows, rows_per_shard)):
            yield parts.Part(str(folder), split, number, run, size, settings)


def _say_result(path, todo, say) -> None:
    reports = [part.read() for part in todo]
    broken = [fault for report in reports for fault in report['broken']]
    records, frames, size, missing = (
        sum(report[key] for report in reports)
        for key in ('records', 'frames', 'bytes', 'missing_frames')
    )
    say(f'{path}: {records:,} videos, {frames:,} frames, {size / 2**20:,.1f} MiB')
    if missing:
        say(f'{missing:,} steps show the nearest good frame, since theirs could not be decoded')
    if broken:
        say(
            f'{len(broken):,} of {records + len(broken):,} videos are left out '
            f'({builders.say_broken(broken)}): {path / builders.LEDGER}'
        )
