"""Checkpoints: flat dicts {name: array}, a folder for each saved step. The only importer of orbax.

    DIRECTORY/500/    written under another name and renamed when whole, so a killed run leaves
    DIRECTORY/1000/   no half checkpoint under a number

They can be read without this code: `orbax.checkpoint.v1.load('DIRECTORY/1000')` gives the dict.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1

from long_vivit.storable import brief, differences, json_note, numpy_like, storable

DELETED = '.deleted'  # marks a folder that is being deleted, as orbax marks one being written:
LEFTOVER = re.compile(rf'\d+({re.escape(DELETED)}|\.orbax-checkpoint-tmp.*)')
PARTS = ('_CHECKPOINT_METADATA', 'state/_METADATA', 'state/manifest.ocdbt')


class CheckpointError(ValueError):
    """A checkpoint that is not there, not whole, or not of the wanted names and shapes."""


class Checkpoints:
    """The checkpoints of one folder, written by one run at a time; use as a context manager.

    Kept are the newest `keep` and, of those saved with a metric, the `best` with the largest (the
    newest of equals). Others are deleted once a save has ended: in `wait`, or at the next save.
    """

    def __init__(self, directory: str | epath.Path, *, keep: int = 3, best: int = 1):
        """Creates the folder and removes what a killed run left half written or half deleted.

        Raises OSError if the folder cannot be made or written to, before any step is trained.
        """
        if keep < 1 or best < 0:
            raise ValueError(f'keep is {keep}, best is {best}: wanted keep >= 1 and best >= 0')
        self.directory, self.keep, self.best = _path(directory), keep, best
        self._pending: tuple[int, Any] | None = None
        self._metrics: dict[int, float | None] = {}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            trial = self.directory / f'.trial-{jax.process_index()}'
            trial.touch()
            trial.unlink()
            self._sweep()
        except OSError as error:
            text = f'cannot write checkpoints to {self.directory}: {error.strerror or error}'
            raise OSError(error.errno or errno.EIO, text) from error

    def save(
        self,
        step: int,
        arrays: Mapping[str, Any],
        info: Mapping[str, Any] | None = None,
        metric: float | None = None,
        *,
        block: bool = False,
    ) -> bool:
        """Saves `arrays` as step `step` while the caller goes on; `block` waits until it is whole.

        The arrays are copied before this returns, so they may be donated or changed afterwards.

        Args:
          step: the number of finished steps.
          arrays: {name: array}, JAX or numpy, of any sharding.
          info: what JSON can hold, to be read back with `info`.
          metric: decides what `best` keeps; larger is better.
        Returns:
          False if that step is there already; then nothing is written.
        Raises:
          OSError: this save, or the one before that ended meanwhile, could not be written. All
            whole checkpoints are still there, and saving may be tried again.
          ValueError: arrays, info or metric that cannot be stored.
        """
        arrays, note = storable(arrays), json_note(info or {}, metric)
        self.wait()
        if step in self.steps():
            return False
        folder = self.directory / str(step)
        try:
            if folder.exists():  # under the number, but not whole: copied in part by someone
                _delete(folder)
            self._pending = step, v1.save_async(folder, arrays, custom_metadata=note)
        except Exception as error:
            raise self._failed(step, error) from error
        if block:
            self.wait()
        return True

    def wait(self) -> None:
        """Until nothing is being written. Raises OSError if the last save failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        step, response = pending
        try:
            response.result()
        except Exception as error:
            raise self._failed(step, error) from error
        self._delete_old()

    close = wait  # nothing else is open

    def steps(self) -> list[int]:
        """The steps that are whole on disk, ascending; not the one still being written."""
        return steps(self.directory)

    def latest(self) -> int | None:
        """The last step that is whole on disk, or None."""
        return max(self.steps(), default=None)

    def restore(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays of a step; see the function `restore`."""
        return restore(self.directory / str(step), like)

    def info(self, step: int) -> dict[str, Any]:
        """What was saved with the arrays of a step."""
        return _note(self.directory / str(step))['info']

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self.wait()
        except OSError as late:
            if error is None:
                raise
            error.add_note(f'and besides: {late}')  # never hide why the run ended

    def _delete_old(self) -> None:
        if jax.process_index():
            return
        here = self.steps()
        for step in here:
            if step not in self._metrics:
                self._metrics[step] = _note(self.directory / str(step))['metric']
        scores = [(self._metrics[s], s) for s in here if self._metrics[s] is not None]
        best = {step for _, step in sorted(scores, reverse=True)[: self.best]}
        for step in here[: -self.keep]:
            if step not in best:
                _delete(self.directory / str(step))

    def _sweep(self) -> None:
        if jax.process_index():
            return
        for folder in self.directory.iterdir():
            if LEFTOVER.fullmatch(folder.name):
                folder.rmtree()

    def _failed(self, step: int, error: Exception) -> OSError:
        """Our error for one of orbax's; gives back the room that the failed save has taken."""
        code = re.search(r"os_error_code='(\d+)'", str(error))
        number = int(code[1]) if code else getattr(error, 'errno', None) or errno.EIO
        with contextlib.suppress(OSError):  # the disk is in trouble, as is about to be said
            self._sweep()
        last = self.latest()
        rest = 'there is none before it' if last is None else f'step {last} is there and whole'
        reason = 'no space left on the device' if number == errno.ENOSPC else brief(error)
        return OSError(number, f'step {step} not saved in {self.directory}: {reason}; {rest}')


def steps(directory: str | epath.Path) -> list[int]:
    """The steps whose checkpoints in `directory` are whole, ascending; [] without such a folder."""
    directory = _path(directory)
    inside = directory.iterdir() if directory.is_dir() else ()
    return sorted(int(sub.name) for sub in inside if sub.name.isdigit() and _whole(sub))


def restore(folder: str | epath.Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of one checkpoint, placed as `like` says.

    Args:
      folder: DIRECTORY/STEP.
      like: {name: jax.ShapeDtypeStruct}, of exactly the names, shapes and dtypes stored. Its
        sharding may be of any mesh; without one the array comes back as numpy.
    Raises:
      CheckpointError: no whole checkpoint there, or every difference, found before reading.
    """
    folder = _path(folder)
    faults = differences(_stored(folder), like)
    if faults:
        head = f'the checkpoint {folder} is of another model, {len(faults)} difference(s):'
        raise CheckpointError('\n  '.join([head, *faults]))
    placed = {name for name in like if getattr(like[name], 'sharding', None) is not None}
    return _load(folder, {n: v if n in placed else numpy_like(v) for n, v in like.items()})


def read_flat(directory: str | epath.Path, prefix: str = '') -> dict[str, np.ndarray]:
    """{name: numpy array} of a checkpoint, with no model at hand.

    Args:
      directory: a checkpoint (DIRECTORY/STEP), or a folder of them, of which the last is read.
      prefix: read only the names below it, 'model' for instance; they keep it.
    Raises:
      CheckpointError: no whole checkpoint there, or no such name in it.
    """
    folder = find(directory)
    stored = _stored(folder)
    start = prefix.rstrip('/') + '/' if prefix else ''
    wanted = {name: numpy_like(kind) for name, kind in stored.items() if name.startswith(start)}
    if not wanted:
        first = ', '.join(sorted({name.split('/')[0] for name in stored}))
        raise CheckpointError(f'{folder} holds nothing below {prefix!r}; it has: {first}')
    return _load(folder, wanted, dict.fromkeys(stored.keys() - wanted, v1.PLACEHOLDER))


def read_info(directory: str | epath.Path) -> dict[str, Any]:
    """The `info` that a checkpoint was saved with; `directory` as in `read_flat`."""
    return _note(find(directory))['info']


def find(directory: str | epath.Path) -> epath.Path:
    """The checkpoint meant by `directory`: itself, or the last one in it; else CheckpointError."""
    folder = _path(directory)
    if _whole(folder):
        return folder
    if last := steps(folder):
        return folder / str(last[-1])
    if not folder.exists():
        raise CheckpointError(f'no checkpoint at {folder}: it does not exist')
    missing = ', '.join(part for part in PARTS if not (folder / part).exists())
    text = f'no checkpoint at {folder}: it lacks {missing}, and no folder in it named by a step'
    raise CheckpointError(text + ' has them')


def _stored(folder: epath.Path) -> dict[str, Any]:
    """{name: metadata with .shape and .dtype}, without reading the arrays."""
    tree = _metadata(folder).metadata
    if tree is None:  # and orbax has logged why
        raise _damaged(folder, 'the list of its arrays is damaged')
    if not isinstance(tree, dict) or not all(hasattr(leaf, 'shape') for leaf in tree.values()):
        raise CheckpointError(f'{folder} is no flat dict of arrays: it was not saved by this code')
    return tree


def _note(folder: epath.Path) -> dict[str, Any]:
    return {'info': {}, 'metric': None} | (_metadata(folder).custom_metadata or {})


def _metadata(folder: epath.Path) -> Any:
    if find(folder) != folder:
        raise CheckpointError(f'no checkpoint at {folder} itself, only in it; name one of them')
    try:
        return v1.metadata(folder)
    except Exception as error:
        raise _damaged(folder, error) from error


def _load(folder: epath.Path, wanted: Mapping, skipped: Mapping = ()) -> dict[str, Any]:
    try:
        loaded = v1.load(folder, {**wanted, **dict(skipped)})
    except Exception as error:
        raise _damaged(folder, error) from error
    for name in wanted:  # orbax can leave a name unread without a word
        if not isinstance(loaded[name], (jax.Array, np.ndarray)):
            raise _damaged(folder, f'{name} was not read')
    return {name: loaded[name] for name in wanted}


def _damaged(folder: epath.Path, error: Exception | str) -> CheckpointError:
    return CheckpointError(
        f'the checkpoint {folder} cannot be read: {brief(error)}; remove this folder to go on '
        'from the one before it'
    )


def _path(path: str | epath.Path) -> epath.Path:
    return epath.Path(path if '://' in str(path) else os.path.abspath(path))  # orbax wants absolute


def _whole(folder: epath.Path) -> bool:
    return all((folder / part).exists() for part in PARTS)


def _delete(folder: epath.Path) -> None:
    """Renames first: killed in the middle, no step is left with only some of its files."""
    folder.rename(folder.with_name(folder.name + DELETED)).rmtree()


class _NotTwice(logging.Filter):
    """Orbax logs a failure from each thread that sees it, a thousand lines; we raise it once."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno != logging.ERROR or '/orbax/checkpoint/' not in record.pathname


logging.getLogger('absl').addFilter(_NotTwice())
