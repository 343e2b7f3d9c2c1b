"""Builds Shape Stories into a data folder and trains its tokenizer. No TensorFlow.

DATA_DIR/shape_stories/CONFIG/VERSION/ holds each configuration as TFDS stores it (ArrayRecord);
DATA_DIR/shape_stories/tokenizer.json the tokenizer, which is the same for every size.
"""

import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence

import tensorflow_datasets as tfds
from array_record.python import array_record_module

from data.shape_stories import captions, world
from data.shape_stories import shape_stories_dataset_builder as builders
from long_vivit.inputs import text

CONFIGS = ('image', 'short', 'long')  # what a build makes unless it is told: the recipe's
VOCAB_SIZE = 1000
# Training stories of each configuration whose captions the tokenizer learns from.
TOKENIZER_GROUPS = 1000
# Bytes of a film with its record, rounded up: for the check that the disk has room.
FILM_BYTES = {'image': 3_000, 'short': 13_000, 'long': 45_000, 'episodes': 45_000}


def build(
    data_dir: str | os.PathLike,
    configs: Sequence[str] = CONFIGS,
    *,
    scale: float = 1.0,
    sizes: dict[str, int] | None = None,
    seed: int = world.SEED,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> list[pathlib.Path]:
    """Builds what is missing; what is there and right is left alone.

    Args:
      data_dir: made if missing.
      configs: some of `world.SETTINGS`.
      scale: fraction of the default number of films, above 0. Recorded with the files: a
        build of another scale is never taken for this one.
      sizes: {'train': n, 'test': n} films of every configuration, instead of `scale`.
      seed: of everything random.
      workers: processes that draw; None = one per usable core, 1 = this process alone.
      overwrite: deletes what was built with other settings and builds it anew.
      progress: called with (what, done, total) after every film.
      say: called with a line about each part.

    Returns:
      The folder of each configuration, then the tokenizer's file.

    Raises:
      ValueError: an argument is wrong, or the folder holds a build of other settings or with
        files missing, and `overwrite` is False.
      OSError: the folder cannot be written or the disk is full. Nothing half-built counts as
        built: a configuration appears under its name when it is complete.
    """
    _check_arguments(configs, scale, workers)
    data_dir = pathlib.Path(data_dir).expanduser()
    paths, todo = _compare(data_dir, configs, scale, sizes, seed, overwrite, say)
    _check_room(data_dir, [setting for _, setting in todo])
    for path, setting in todo:
        if path.exists():
            shutil.rmtree(path)
        builder = _builder(data_dir, setting, seed)
        builder.workers = workers or len(os.sched_getaffinity(0))
        _prepare(builder, progress, say)
    paths.append(_build_tokenizer(data_dir, seed, overwrite, say))
    return paths


def _compare(data_dir, configs, scale, sizes, seed, overwrite, say):
    """The folder of each configuration, and (folder, setting) of those that must be built."""
    todo, paths = [], []
    for name in configs:
        wanted = dataclasses.replace(
            world.SETTINGS[name], **_sizes(world.SETTINGS[name], scale, sizes)
        )
        path = data_dir / 'shape_stories' / name / world.VERSION
        faults = _faults(path, data_dir, wanted, seed)
        if faults and not overwrite:
            raise ValueError(
                f'{path} holds something else than what was asked for: {"; ".join(faults)}. '
                'Build into another --data_dir, or replace it with --overwrite.'
            )
        paths.append(path)
        if faults or not path.exists():
            todo.append((path, wanted))
        else:
            say(f'{path}: complete, left as it is')
    return paths, todo


def build_tiny(data_dir: str | os.PathLike, train: int = 64, test: int = 32) -> None:
    """`CONFIGS` with few films, in a few seconds and one process: for tests."""
    build(data_dir, sizes={'train': train, 'test': test}, workers=1)


def _check_arguments(configs, scale, workers) -> None:
    unknown = [name for name in configs if name not in world.SETTINGS]
    if unknown:
        known = ', '.join(world.SETTINGS)
        raise ValueError(f'no configuration {", ".join(unknown)}; there are {known}')
    if not scale > 0:
        raise ValueError(f'scale is {scale}, wanted a number above 0')
    if workers is not None and workers < 1:
        raise ValueError(f'workers is {workers}, wanted 1 or more')


def _sizes(setting: world.Setting, scale: float, sizes: dict | None) -> dict[str, int]:
    if sizes is None:
        stories = {s: setting.size(s) * scale / setting.twins for s in world.SPLITS}
        return {s: max(1, round(n)) * setting.twins for s, n in stories.items()}
    odd = {s: n for s, n in sizes.items() if n < 1 or n % setting.twins}
    if odd or set(sizes) != set(world.SPLITS):
        raise ValueError(f'sizes are {sizes}, wanted train and test, each a positive even number')
    return dict(sizes)


def _builder(data_dir, setting: world.Setting, seed: int) -> builders.Builder:
    builder = builders.Builder(data_dir=data_dir, config=setting.name, file_format='array_record')
    builder.sizes = {split: setting.size(split) for split in world.SPLITS}
    builder.seed = seed
    return builder


def _faults(path: pathlib.Path, data_dir, setting: world.Setting, seed: int) -> list[str]:
    """What is wrong with what is stored; nothing is wrong where nothing is stored."""
    if not path.exists():
        return []
    for name in ('dataset_info.json', 'features.json', 'metadata.json'):
        try:
            json.loads((path / name).read_text())
        except (FileNotFoundError, ValueError):
            return [f'{name} is missing or unreadable']
    builder = _builder(data_dir, setting, seed)
    # A field that came after the files were built stands at its default in them.
    fields = [f for f in dataclasses.fields(setting) if f.default is not dataclasses.MISSING]
    stored = {f.name: f.default for f in fields} | dict(builder.info.metadata)
    faults = [
        f'{field} is {stored.get(field)}, wanted {value}'
        for field, value in builder.settings_record.items()
        if stored.get(field) != value
    ]
    # The shards, where the settings are right: else there is enough to say.
    for split in world.SPLITS if not faults else ():
        faults.extend(_miscounted(builder.info.splits[split]))
    return faults


def _miscounted(split_info) -> list[str]:
    found = 0
    for file in split_info.filepaths:
        if not file.exists():
            return [f'{file.name} is missing']
        reader = array_record_module.ArrayRecordReader(os.fspath(file))
        if not reader.ok():
            return [f'{file.name} is damaged']
        found += reader.num_records()
        reader.close()
    if found != split_info.num_examples:
        return [f'{split_info.name} holds {found} films, wanted {split_info.num_examples}']
    return []


def _check_room(data_dir: pathlib.Path, todo: list[world.Setting]) -> None:
    data_dir.mkdir(parents=True, exist_ok=True)
    need = sum(FILM_BYTES[s.name] * (s.train + s.test) for s in todo)
    free = shutil.disk_usage(data_dir).free
    if free < need:
        raise OSError(
            f'{data_dir}: about {need / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free'
        )


def _prepare(builder: builders.Builder, progress, say) -> None:
    name = builder.setting.name
    path = pathlib.Path(builder.data_path)
    builder.progress = lambda split, done, total: progress(f'{name} {split}', done, total)
    left = sorted(str(p) for p in path.parent.glob('incomplete.*'))
    if left:
        say(f'left by a build that was killed, unless one is running; may be deleted: {left}')
    tfds.disable_progress_bar()
    # TFDS prints about downloads, and makes a folder for them, though there are none.
    with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=downloads)
    megabytes = sum(f.stat().st_size for f in path.iterdir()) / 1e6
    counts = ', '.join(f'{builder.info.splits[s].num_examples} {s}' for s in world.SPLITS)
    say(f'{path}: built ({counts}; {megabytes:.1f} MB)')


@functools.cache
def make_tokenizer(seed: int = world.SEED) -> text.Tokenizer:
    """The tokenizer of the training captions; no video is needed and the size has no say."""
    texts = []
    for setting in map(world.SETTINGS.get, CONFIGS):  # the others use the same words
        for group in range(TOKENIZER_GROUPS):
            for film in captions.captions(seed, setting, 'train', group):
                texts.extend(words for words in film if words)
    return text.train_tokenizer(texts, VOCAB_SIZE)


def _build_tokenizer(data_dir, seed: int, overwrite: bool, say) -> pathlib.Path:
    path = data_dir / 'shape_stories' / 'tokenizer.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(seed)
    if path.exists() and not overwrite:
        if text.Tokenizer.load(path).to_json() != tokenizer.to_json():
            raise ValueError(
                f'{path} is another tokenizer than the one that belongs to these captions. '
                'Models that were trained with it need it: build into another --data_dir, or '
                'replace it with --overwrite.'
            )
        say(f'{path}: complete, left as it is')
        return path
    tokenizer.save(path)
    say(f'{path}: built (vocabulary {tokenizer.vocab_size})')
    return path
