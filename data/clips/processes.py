"""Makes parts with processes of this machine."""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence

from data.clips import parts
from long_vivit import children


def workforce(
    workers: int | None,
    progress: Callable[[str, int, int], None],
    say: Callable[[str], None],
) -> Callable[[Sequence[parts.Part]], list[dict]]:
    """Returns `work(parts)` for the builder; `workers` None = a process for each usable core.

    A process holds one video at a time, in windows of frames.
    """
    workers = workers or len(os.sched_getaffinity(0))

    def work(todo: Sequence[parts.Part]) -> list[dict]:
        total, done, reports = sum(len(part.rows) for part in todo), 0, []
        kept = sum(len(part.rows) for part in todo if part.read() is not None)
        if kept:
            say(f'going on: {kept} of {total} videos are done')
        for part, report in _made(todo, workers):
            reports.append(report)
            done += len(part.rows)
            progress('videos', done, total)
        return reports

    return work


def _made(todo: Sequence[parts.Part], workers: int) -> Iterator[tuple[parts.Part, dict]]:
    """(part, report) of each as it is finished."""
    if workers == 1:
        yield from ((part, parts.make(part)) for part in todo)
        return
    # Fresh interpreters: forking a process that has threads (TFDS) can deadlock.
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context('spawn'), children.as_worker, (os.getpid(),)
    )
    try:
        futures = {pool.submit(parts.make, part): part for part in todo}
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise OSError(
            'a worker died, most likely for want of memory; the same command goes on where it '
            'stopped, with fewer --workers if need be'
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
