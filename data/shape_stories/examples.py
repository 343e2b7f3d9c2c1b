"""Makes the records of a split, in several processes, in order.

Imports neither TFDS nor JAX: a worker process starts in a fraction of a second.
"""

import collections
import concurrent.futures
import itertools
import multiprocessing
import os
from collections.abc import Iterator

from data.shape_stories import captions, draw, films, world
from long_vivit import children


def make_group(seed: int, setting: world.Setting, split: str, group: int) -> list[dict]:
    """The records of one story: a dict per film, as the builder stores it.

    Returns:
      `setting.twins` dicts: id str, video bytes (mp4), caption str, long_caption str, group int,
      label str (what happens, in order, by the names of `world.MOTIONS` and `MEETINGS`).
    """
    story = world.make_story(seed, setting, split, group)
    shots = draw.draw_story(seed, setting, split, group)
    videos = films.encode_films(shots, story.orders, setting.fps)
    texts = captions.captions(seed, setting, split, group)
    records = []
    for i, (order, video, (caption, narrative)) in enumerate(
        zip(story.orders, videos, texts, strict=True)
    ):
        twin = 'ab'[i] if setting.twins == 2 else ''
        records.append(
            {
                'id': f'{setting.name}-{split}-{group:06d}{twin}',
                'video': video,
                'caption': caption,
                'long_caption': narrative,
                'group': group,
                'label': ', '.join(story.events[k].kind for k in order),
            }
        )
    return records


def make_split(seed: int, setting: world.Setting, split: str, workers: int = 1) -> Iterator[dict]:
    """All records of a split in order of group; the same for any number of workers."""
    groups = setting.size(split) // setting.twins
    if workers <= 1:
        for group in range(groups):
            yield from make_group(seed, setting, split, group)
        return
    step = max(1, min(16, groups // (4 * workers)))
    chunks = ((g, min(g + step, groups)) for g in range(0, groups, step))
    # Fresh interpreters: forking a process that has threads (JAX, TFDS) can deadlock.
    context = multiprocessing.get_context('spawn')
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, context, children.as_worker, (os.getpid(),)
    )
    pending = collections.deque()

    def submit(chunk):
        pending.append(pool.submit(_make_groups, seed, setting, split, *chunk))

    try:
        for chunk in itertools.islice(chunks, 4 * workers):  # bounds what waits in memory
            submit(chunk)
        while pending:
            records = pending.popleft().result()
            for chunk in itertools.islice(chunks, 1):
                submit(chunk)
            yield from records
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _make_groups(seed, setting, split, start, stop) -> list[dict]:
    return [r for g in range(start, stop) for r in make_group(seed, setting, split, g)]
