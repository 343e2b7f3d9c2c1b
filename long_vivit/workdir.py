"""The folder of a run: what lies where, and whether a configuration may go on in it.

config.json        the resolved configuration      tokenizer.json    what reads the texts
metrics.jsonl      the curves of all stages         results.json      the final table
broken.jsonl       videos that could not be read    bad_steps.jsonl   steps that were skipped
stages/NAME/checkpoints/   state by step            stages/NAME/finished.json   the scores
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import tempfile
from pathlib import Path

from long_vivit import config
from long_vivit.writers import write_json_atomic, write_text_atomic

# Fields that may differ when a run goes on: they change what is shown, saved and scored and how
# fast, not what is taught.
FREE = re.compile(
    r'(workdir|mesh|compile_cache|max_bad_steps|data\.(dir|threads|time_limit_s|eval)'
    r'|(log|checkpoint|eval)\.\w+|loss\.(form|tile)'
    r'|stages\.\w+\.(eval|eval_batch|eval_sampler|micro_batch|text_buckets))'
)


class Workdir:
    """The files of a run under `path`."""

    def __init__(self, path):
        self.path = Path(path)
        self.config = self.path / 'config.json'
        self.tokenizer = self.path / 'tokenizer.json'
        self.metrics = self.path / 'metrics.jsonl'
        self.results = self.path / 'results.json'
        self.before = self.path / 'before.json'  # scores of what the run starts from
        self.broken = self.path / 'broken.jsonl'
        self.bad_steps = self.path / 'bad_steps.jsonl'
        self.tensorboard = self.path / 'tensorboard'
        self.profile = self.path / 'profile'
        self._lock = None

    def checkpoints(self, stage):
        """The folder of a stage's checkpoints; `stage` is its name."""
        return self.path / 'stages' / stage / 'checkpoints'

    def finished(self, stage):
        """What `finish` wrote of the stage, or None while it is not finished."""
        path = self._finished(stage)
        return json.loads(path.read_text()) if path.exists() else None

    def finish(self, stage, result):
        """Records the stage's result: from now on it is skipped."""
        write_json_atomic(self._finished(stage), result)

    def _finished(self, stage):
        return self.path / 'stages' / stage / 'finished.json'

    def read_config(self):
        """The configuration that the run was begun with. Raises ValueError where there is none."""
        if not self.config.is_file():
            raise ValueError(f'{self.path}: no run was begun here (it has no config.json)')
        return config.from_json(self.config.read_text())

    def open(self, run, tokenizer_json):
        """Makes the folder, or checks that the run in it may go on with this configuration.

        A run that failed before its first line and its first checkpoint is none: it may have been
        the configuration that was at fault.

        Until `close`, or the end of the process, no other command may open it.

        Raises ValueError: the folder cannot be written; another command teaches in it; it holds a
        run with another configuration or tokenizer (all differences are listed, and nothing has
        been changed).
        """
        with writable(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path) as file:
                file.write(bytes(2**20))
        self._lock = locked(self.path, 'another command is teaching', 'this run')
        try:
            if self.config.exists() and self._begun():
                self._check_same(run, tokenizer_json)
            else:
                self.before.unlink(missing_ok=True)  # it may have been of another configuration
            with writable(self.path):
                write_text_atomic(self.tokenizer, tokenizer_json)
                write_text_atomic(self.config, config.to_json(run))
        except BaseException:
            self.close()
            raise

    def close(self):
        """Lets other commands open the folder."""
        if self._lock is not None:
            self._lock.close()

    def _begun(self):
        """Whether anything but the configuration and the tokenizer would be lost."""
        files = (self.metrics, self.broken, self.bad_steps)
        written = any(file.exists() and file.stat().st_size for file in files)
        stages = self.path.glob('stages/*/*')
        return written or any(file.is_file() or any(file.iterdir()) for file in stages)

    def _check_same(self, run, tokenizer_json):
        changed = changed_fields(run, self.read_config())
        if self.tokenizer.exists() and self.tokenizer.read_text() != tokenizer_json:
            changed.append('data.tokenizer: another vocabulary than the one in the folder')
        if changed:
            raise ValueError(
                '\n  '.join(
                    [
                        f'{self.path} holds a run with another configuration; change these back, '
                        'or give this run a workdir of its own (nothing was changed):',
                        *changed,
                    ]
                )
            )


def locked(folder, who, mine):
    """An open file in `folder`, which no other command may have as long as it is open.

    who, mine: for the ValueError where one has it: who is at work there, and what needs another.
    """
    with writable(folder):
        file = open(folder / '.lock', 'a')  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(
            f'{folder}: {who} here; wait for its end, or give {mine} a workdir of its own'
        ) from None
    except OSError:  # a file system without locks
        pass
    return file


def changed_fields(now, before, below=''):
    """A line for each field that differs and may not, of two resolved configurations.

    below: where in them a run lies, such as 'base.'.
    """
    later = config.came_later(now, before, below)
    return [
        line
        for line in config.difference(now, before)
        if (path := line.partition(':')[0]) not in later
        and not FREE.fullmatch(path.removeprefix(below))
    ]


REASONS = {
    errno.ENOSPC: 'the disk is full; free some space and start the same command again',
    errno.EDQUOT: 'the disk quota is used up; free some space and start again',
    errno.EFBIG: 'a file grew beyond the limit for files; raise it (ulimit -f) and start again',
    errno.EIO: 'the disk reports a fault; look at it, or choose another workdir',
    errno.EACCES: 'no permission to write; choose another workdir',
    errno.EPERM: 'no permission to write; choose another workdir',
    errno.EROFS: 'the file system is read-only; choose another workdir',
    errno.ENOENT: 'no folder can be made there; choose another workdir',
    errno.ENOTDIR: 'a part of the path is a file; choose another workdir',
    errno.EEXIST: 'a file of this name is in the way; choose another workdir',
    errno.ENAMETOOLONG: 'the path is too long; choose another workdir',
}


@contextlib.contextmanager
def writable(path):
    """Turns the system's errors of writing below `path` into ones that say what to do."""
    try:
        yield
    except OSError as error:
        place = error.filename
        if not isinstance(place, str | os.PathLike):
            place = None
        if error.errno not in REASONS or not (place is None or _below(place, path)):
            raise  # not of the work directory: its traceback says more
        detail = (
            '' if error.strerror in (None, os.strerror(error.errno)) else f' ({error.strerror})'
        )
        raise ValueError(
            f'workdir: cannot write {place or path}: {REASONS[error.errno]}{detail}'
        ) from error


def _below(place, path):
    """Whether `place` is `path`, a folder around it or something in it."""
    place, path = Path(place).absolute(), Path(path).absolute()
    return path == place or path in place.parents or place in path.parents
