"""Processes that do not outlive the one that started them, by whatever it ends.

Imports nothing heavy: workers start with it.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl, which outlives exec
FIRST = 'from long_vivit import children; children.become()'


def start(arguments: Sequence[str], *, cores: Sequence[int] = (), **options) -> subprocess.Popen:
    """Starts Python with these arguments, on these cores (none: all), in a session of its own.

    Ctrl-C does not reach it: whoever started it says when it ends. options: of subprocess.Popen.
    """
    mine = [str(os.getpid()), ','.join(map(str, sorted(cores)))]
    return subprocess.Popen(
        [sys.executable, '-c', FIRST, *mine, *arguments], start_new_session=True, **options
    )


def run(arguments: Sequence[str]) -> int:
    """Runs Python with these arguments to its end -> exit status.

    Whatever ends the waiting, a signal or Ctrl-C, ends it too, politely and waited for.
    """
    process = start(arguments)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def become() -> None:
    """Makes of a process of `start`, PARENT CORES ARGUMENTS, the command that it is for."""
    parent, cores, *arguments = sys.argv[1:]
    tie_to(int(parent))
    if cores:
        os.sched_setaffinity(0, map(int, cores.split(',')))
    os.execv(sys.executable, [sys.executable, *arguments])


def as_worker(parent: int) -> None:
    """First thing in a worker process: it is `parent`'s (a pid) to stop, and ends with it.

    Ctrl-C reaches every process of a terminal; the parent alone acts on it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tie_to(parent)


def tie_to(parent: int) -> None:
    """Ends this process when its parent, of this pid, ends; at once where it has. Linux only."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
