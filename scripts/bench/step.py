"""A full training step of a ViT-S video encoder, beside what torch's users would take instead.

    make bench BENCH=step                             # in .venv-bench, which has the others
    python scripts/bench/step.py                      # 16 frames by 4 clips, 64 frames by 2
    python scripts/bench/step.py --frames 16 --rounds 9 --rows ours 'ours 75%' vivit

All: 384 x 12 x 6, patches of 16 pixels, 128 pixels, float32, forward, backward and AdamW. The loss
is InfoNCE of the clips against given text vectors: no side has a text tower. `ours` is the
project's own step (long_vivit.step), `ours 75% full` with remat 'full'. transformers' ViViT (its
CLS token) and VideoMAE (the mean of its tokens) have tubelets of 2 frames too; `videomae 75%` sees
a quarter of them. `open_clip` is its ViT on every frame, and the mean over frames: twice the
tokens, but none sees another frame. Torch is eager, with AdamW(fused=True).

Each row is a process of its own, which waits while the others step: they take turns of some steps
in a row, as in training, of which the first, after the wait, is not counted. Each one's peak memory
is its own: of the process, imports and compilation included, and what of it came after the imports.
Where there is a GPU all rows run there, and the peak is the device's.
"""

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.bench import precision
from scripts.bench.rows import header, record, record_argument, table

ROWS = (
    'ours', 'ours 75%', 'ours 75% full', 'vivit', 'vivit eager', 'videomae', 'videomae 75%',
    'open_clip',
)  # fmt: skip
BASE = 'vivit'
CLIPS = {16: 4, 64: 2}  # frames -> clips in a batch


class Size(NamedTuple):
    """What all rows have in common."""

    frames: int
    clips: int
    pixels: int = 128
    patch: int = 16
    tubelet: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    embed: int = 512


# One row, in its process ----------------------------------------------------------------------


def process_peak():
    """Bytes of the largest resident set that this process has had."""
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def worker(row, size):
    """Takes a step for each line on stdin, and says in JSON how long it took."""
    mine = row.startswith('ours')
    library = importlib.import_module('step_ours' if mine else 'step_torch')
    if not mine:
        library.load(row)
    imports = process_peak()
    once, facts = library.make(row.removeprefix('ours').strip() if mine else row, size)
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        loss = once()
        seconds = time.perf_counter() - begun
        device = library.device_peak()
        peak = process_peak() if device is None else device
        above = peak - (imports if device is None else 0)
        found = {'seconds': seconds, 'loss': loss, 'peak_mib': peak / 2**20}
        print(json.dumps(found | {'above_mib': above / 2**20}), flush=True)


# All rows in turn -----------------------------------------------------------------------------


def start(row, frames):
    """The process of a row. JAX takes no more of a GPU than it needs: the others are there too."""
    command = [sys.executable, __file__, '--frames', str(frames), '--worker', row]
    environment = os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)


def measure(rows, frames, rounds, steps):
    """{row: {'seconds': [mean of a turn's steps, ...], 'peak_mib', ...}}.

    In each turn the first step is not counted, nor is the first turn.
    """
    workers, found = {}, {}
    for row in rows:  # one after the other: compiling together would only be slower
        one = start(row, frames)
        line = one.stdout.readline()
        if line:
            workers[row], found[row] = one, {'seconds': []} | json.loads(line)
        else:
            print(f'{row}: did not start here (see above), left out')
    for turn in range(rounds + 1):
        for row, one in workers.items():
            taken = []
            for _ in range(1 + steps):
                one.stdin.write('\n')
                one.stdin.flush()
                answer = json.loads(one.stdout.readline())
                taken.append(answer.pop('seconds'))
                found[row] |= answer
            if turn:
                found[row]['seconds'].append(statistics.mean(taken[1:]))
    for one in workers.values():
        one.stdin.close()
        one.wait()
    return found


def show(found, frames):
    """A table: median (min to max), and ratios to the base, of the seconds round by round."""
    to = f'to {BASE}'
    first = f'{frames} frames, {CLIPS[frames]} clips'
    yield '; '.join(f'{row} on {one["device"]}' for row, one in found.items())
    yield header(first, 'step', to, 'peak MiB', to, 'above imports', to)
    base = found.get(BASE)
    for row, one in found.items():
        seconds, ratios = one['seconds'], ['-'] * 3
        if base:
            pairs = [a / b for a, b in zip(seconds, base['seconds'], strict=True)]
            shares = [one[name] / base[name] for name in ('peak_mib', 'above_mib')]
            ratios = [f'{ratio:.2f}' for ratio in (statistics.median(pairs), *shares)]
        middle = statistics.median(seconds)
        said = f'{middle:.2f} s ({min(seconds):.2f} to {max(seconds):.2f})'
        peaks = f'{one["peak_mib"]:.0f}', ratios[1], f'{one["above_mib"]:.0f}', ratios[2]
        yield table(row, said, ratios[0], *peaks)


def lines(args):
    """A table for each number of frames."""
    yield precision.WORDS
    for frames in args.frames:
        yield from show(measure(args.rows, frames, args.rounds, args.steps), frames)


def main():
    """Measures, prints, and records where --record asks for it."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--frames', type=int, nargs='+', choices=CLIPS, default=list(CLIPS))
    parser.add_argument('--rows', nargs='+', choices=ROWS, default=ROWS)
    parser.add_argument('--rounds', type=int, default=5, help='turns of each row that count')
    parser.add_argument('--steps', type=int, default=2, help='steps of a turn that count, >= 1')
    parser.add_argument('--worker', help=argparse.SUPPRESS)
    record_argument(parser)
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f'--steps {args.steps}: at least 1 of each turn must count')
    if args.worker:
        worker(args.worker, Size(args.frames[0], CLIPS[args.frames[0]]))
        return
    record(lines(args), args.record, 'jax', 'torch', 'transformers', 'open_clip_torch')


if __name__ == '__main__':
    main()
