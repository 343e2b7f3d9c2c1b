"""What a run leaves on disk as it goes: curves in JSONL, results in JSON, TensorBoard when asked.

A run may be killed at any byte and resumed from a checkpoint. A resumed run's metrics.jsonl equals
that of an unbroken one (but for measured times), since `truncate` cuts away what the checkpoint
does not know of and each line is written whole.
"""

import json
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any


def plain(value: Any) -> Any:
    """Returns `value` as JSON can hold it.

    Arrays and array scalars (numpy, jax) become numbers and lists; mappings and sequences are gone
    through; NaN and infinities become 'nan', 'inf' and '-inf', for which JSON has no numbers.

    Raises:
      TypeError: a value that is none of these.
    """
    if hasattr(value, 'tolist'):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
        return [plain(item) for item in value]
    raise TypeError(f'{type(value).__name__} cannot be written as JSON: {value!r}')


def write_json_atomic(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` to `path`, whole or not at all: a reader never sees half of it."""
    write_text_atomic(path, json.dumps(plain(value), indent=2, allow_nan=False) + '\n')


def write_text_atomic(path: str | os.PathLike, text: str) -> None:
    """Writes `text` to `path`, whole or not at all."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    try:
        with open(partial, 'w', encoding='utf-8') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_jsonl(path: str | os.PathLike) -> list[dict]:
    """Returns the lines of a file; none if there is no file. A torn last line is left out.

    Raises:
      ValueError: a line other than the last is not a JSON object.
    """
    return [row for row, _ in _lines(pathlib.Path(path))]


class JsonlWriter:
    """Appends JSON objects to a file, a line each; `write` returns when the line is in the file.

    A torn last line, as a killed run leaves it, is removed when the file is opened.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        ends = [end for _, end in _lines(self.path)]
        # Unbuffered and appending: a line is one system call, so a kill does not halve it.
        self._file = open(self.path, 'ab', buffering=0)  # noqa: SIM115
        self._file.truncate(ends[-1] if ends else 0)

    def write(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends {'stage': ..., 'step': ..., **metrics}.

        Raises:
          ValueError: a metric is called 'stage' or 'step'.
        """
        if taken := {'stage', 'step'} & metrics.keys():
            raise ValueError(f'A metric cannot be called {sorted(taken)}: the line has that field.')
        self.append({'stage': stage, 'step': int(step), **metrics})

    def append(self, row: Mapping[str, Any]) -> None:
        """Appends one object as it is."""
        line = json.dumps(plain(row), allow_nan=False).encode() + b'\n'
        while line:  # a full disk takes a part of it first and raises at the rest
            line = line[self._file.write(line) :]

    def truncate(self, stage: str, step: int, order: Sequence[str]) -> int:
        """Removes what was written after `step` of `stage`, before a run goes on from there.

        Lines are cut from the first one that lies beyond (stage, step) to the end of the file; the
        lines of that step itself stay, so write them before the checkpoint is saved.

        Args:
          stage: name of the stage that goes on.
          step: steps done in it, as the checkpoint says.
          order: names of the run's stages in the order they are taught.

        Returns:
          The number of lines removed.

        Raises:
          ValueError: a line, or `stage`, names a stage that is not in `order`.
        """
        place = {name: i for i, name in enumerate(order)}
        rows = _lines(self.path)
        unknown = ({row.get('stage') for row, _ in rows} | {stage}) - place.keys()
        if unknown:
            names = ', '.join(sorted(map(str, unknown)))
            raise ValueError(
                f'{self.path} cannot be continued: this run has the stages {", ".join(order)}, '
                f'not {names}. Change workdir, or run the stages that it was begun with.'
            )
        end = 0
        for i, (row, line_end) in enumerate(rows):
            if (place[row['stage']], row['step']) > (place[stage], step):
                self._file.truncate(end)
                return len(rows) - i
            end = line_end
        return 0

    def close(self) -> None:
        """Closes the file; nothing was waiting to be written."""
        self._file.close()

    def __enter__(self) -> 'JsonlWriter':
        return self

    def __exit__(self, *_) -> None:
        self.close()


class TensorBoardWriter:
    """Writes numbers for TensorBoard, each stage as a run of its own (`logdir/STAGE`).

    What an interrupted run recorded from the first step written now on is struck out, so curves do
    not double back.

    Raises:
      ValueError: tensorboardX is not installed.
    """

    def __init__(self, folder: str | os.PathLike):
        try:
            import tensorboardX
        except ModuleNotFoundError as error:
            raise ValueError(
                'log.tensorboard needs tensorboardX, which is not installed. Either\n'
                '    python -m pip install tensorboardX\n'
                'or set log.tensorboard to False: the same numbers are in metrics.jsonl.'
            ) from error
        self._new = tensorboardX.SummaryWriter
        self._folder = pathlib.Path(folder)
        self._writers = {}

    def write(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Records the numbers of `metrics`, those of mappings inside it as 'outer/inner'."""
        if stage not in self._writers:
            self._writers[stage] = self._new(
                str(self._folder / stage),
                purge_step=int(step),
                flush_secs=10,
                filename_suffix=f'.{time.time_ns()}',  # names have whole seconds: never overwrite
            )
        for name, value in _numbers(metrics):
            self._writers[stage].add_scalar(name, value, int(step))

    def close(self) -> None:
        """Writes what is waiting and closes the files."""
        for writer in self._writers.values():
            writer.close()

    def __enter__(self) -> 'TensorBoardWriter':
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _numbers(metrics: Mapping[str, Any], before: str = ''):
    for name, value in metrics.items():
        if hasattr(value, 'tolist'):
            value = value.tolist()
        if isinstance(value, Mapping):
            yield from _numbers(value, f'{before}{name}/')
        elif isinstance(value, bool | int | float):
            yield before + name, float(value)


def _lines(path: pathlib.Path) -> list[tuple[dict, int]]:
    """Returns (object, byte offset of the line's end) for each line that was written whole."""
    found, start = [], 0
    content = path.read_bytes() if path.exists() else b''
    while start < len(content):
        newline = content.find(b'\n', start)
        if newline < 0:
            break  # torn: each line is written with its newline at once
        try:
            row = json.loads(content[start:newline])
            if not isinstance(row, dict):
                raise ValueError('not an object')
        except ValueError as error:
            if newline + 1 >= len(content):
                break
            raise ValueError(
                f'{path} line {len(found) + 1} is not a JSON object ({error}): the file is '
                'damaged. Repair or remove that line.'
            ) from error
        found.append((row, newline + 1))
        start = newline + 1
    return found
