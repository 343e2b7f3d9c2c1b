"""Commands beside each other, each on its share of the devices, until all have ended.

Whoever runs this has one thread and holds no devices: it starts processes and waits for them.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from long_vivit import children

PAUSE_S = 0.1  # between looks at what runs


@dataclass(frozen=True)
class Task:
    """A command, the tasks whose result it needs, and how to see that its result is there."""

    name: str
    arguments: tuple[str, ...]  # of Python
    finished: Callable[[], bool]
    needs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Share:
    """Devices of one job: variables that show them to JAX, cores to run on (None: all)."""

    environment: dict[str, str]
    cores: frozenset[int] | None = None


def shares(jobs: int) -> list[Share]:
    """The devices of this machine in `jobs` equal parts; one job has them all.

    Raises ValueError where there are fewer devices (cores, on a CPU) than jobs.
    """
    if jobs == 1:
        return [Share({})]
    platform, count = devices()
    cores = sorted(os.sched_getaffinity(0))
    count = len(cores) if platform == 'cpu' else count
    if count < jobs:
        what = 'cores' if platform == 'cpu' else f'devices ({platform})'
        raise ValueError(f'--jobs={jobs}: there are {count} {what}; use at most as many jobs')
    each = count // jobs
    parts = [range(i * each, (i + 1) * each) for i in range(jobs)]
    if platform == 'cpu':
        return [Share({}, frozenset(cores[i] for i in part)) for part in parts]
    if platform == 'tpu':
        parts = [part[:1] for part in parts]  # parts of more chips must be boxes of the torus
    return [Share(visible(platform, part)) for part in parts]


def visible(platform: str, part: range) -> dict[str, str]:
    """Variables that show a process the devices of these numbers only."""
    if platform == 'tpu':
        one = '1,1,1'
        return {
            'TPU_VISIBLE_CHIPS': ','.join(map(str, part)),
            'TPU_CHIPS_PER_PROCESS_BOUNDS': one,
            'TPU_PROCESS_BOUNDS': one,
        }
    name = 'CUDA_VISIBLE_DEVICES'
    seen = os.environ.get(name, '').split(',') if os.environ.get(name) else None
    return {name: ','.join(seen[i] if seen else str(i) for i in part)}


def devices() -> tuple[str, int]:
    """(platform, devices) as JAX sees them, in a process that gives them back at once."""
    if os.environ.get('JAX_PLATFORMS') == 'cpu':
        return 'cpu', 1
    code = 'import jax; print(jax.devices()[0].platform, jax.local_device_count())'
    told = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    if told.returncode:
        raise ValueError(f'--jobs: JAX found no devices: {told.stderr.strip()[-300:]}')
    platform, count = told.stdout.split()[-2:]
    return platform, int(count)


class Pool:
    """Runs tasks, as many at a time as there are shares. Use it in a `with` block.

    On the way out, by whatever, what still runs is told to stop and waited for. If this process is
    killed, so are the commands.
    """

    def __init__(self, all_shares: list[Share], logs: Path):
        self.free, self.logs = list(all_shares), logs
        self.running = {}  # process -> (task, share)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def run(self, tasks: list[Task]) -> Iterator[tuple[Task, str]]:
        """Yields each task when it is done, with '' or why it failed; none is started twice.

        What is finished already is yielded at once. A task that needs a failed one fails with it.
        """
        waiting, ended = list(tasks), {}
        while waiting or self.running:
            for task in list(waiting):
                reason = next((f'{n}: {ended[n]}' for n in task.needs if ended.get(n)), '')
                if reason or task.finished():
                    waiting.remove(task)
                    ended[task.name] = reason
                    yield task, reason
                elif self.free and all(n in ended for n in task.needs):
                    waiting.remove(task)
                    self.start(task)
            for task, reason in self.ends():
                ended[task.name] = reason
                yield task, reason
            if self.running:
                time.sleep(PAUSE_S)

    def start(self, task: Task) -> None:
        """Starts the command of a task; what it prints goes to its log."""
        share = self.free.pop(0)
        log = self.log(task)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, 'wb') as file:
            process = children.start(
                task.arguments, cores=share.cores or (), stdin=subprocess.DEVNULL,
                stdout=file, stderr=subprocess.STDOUT,
                env={**os.environ, **share.environment, **task.environment},
            )  # fmt: skip
        self.running[process] = task, share

    def log(self, task: Task) -> Path:
        """Where the output of a task goes."""
        return self.logs / f'{task.name}.log'

    def ends(self) -> Iterator[tuple[Task, str]]:
        """The tasks that have ended since the last look, with '' or why they failed."""
        for process, (task, share) in list(self.running.items()):
            status = process.poll()
            if status is None:
                continue
            del self.running[process]
            self.free.append(share)
            if status == 0 and task.finished():
                yield task, ''
            else:
                yield task, why(status, self.log(task))

    def stop(self) -> None:
        """Tells what runs to stop, and waits; an exception while waiting ends it at once."""
        for process in self.running:
            process.terminate()
        try:
            for process in self.running:
                process.wait()
        finally:
            for process in self.running:
                process.kill()
                process.wait()
            self.running = {}


def why(status: int, log: Path) -> str:
    """Why a command ended: its message to the user, else its last line."""
    text = log.read_text(encoding='utf-8', errors='replace').rstrip()
    told = re.findall(r'^error: .*(?:\n  .*)*', text, re.M)
    last = told[-1].removeprefix('error: ') if told else text.rsplit('\n', 1)[-1]
    how = f'{signal.Signals(-status).name}' if status < 0 else f'exit status {status}'
    return f'{last or "no output"} ({how}; {log})'
