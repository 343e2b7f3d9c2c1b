"""What masking buys: the small recipe's long stage with 75% of the tubes left out, and with all.

    python scripts/bench/masking.py              # step time and memory of the compiled step
    python scripts/bench/masking.py --recall runs/long --kinds tube random --seeds 3 --steps 300

The two steps are timed in turn in one process. With --recall, the long stage is also taught from
the short stage of that work directory, with all tubelets and with a quarter of them chosen in each
way of --kinds, for the same number of steps and each seed, and scored with all tubelets; with
--tail, the masked stages see all in their last steps; --start names other weights than those of
that short stage. The long stage takes the patch and tubelet of --patch and --tubelet; the work
directory must have the same.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np

from configs import long
from long_vivit import config, recipe, train
from long_vivit.perf import keep_freed_memory
from long_vivit.workdir import Workdir
from scripts.bench.rows import header, record, record_argument, table

VOCAB = 538  # of the built-in tokenizer; only the size of a table here
RATES = (0.75, 0.0)


def recipe_at(rate, kind, args):
    """The small recipe's fields, its long stage masked at a rate in a way."""
    fields = long.get_config()
    fields.model.video.update(patch=args.patch, tubelet=args.tubelet)
    fields.stages.long.update(mask_rate=rate, mask_kind=kind, batch=args.batch)
    return fields


def compiled(rate, args):
    """The compiled step of the long stage at a masking rate, with a state and a batch for it."""
    run = config.resolve(recipe_at(rate, 'tube', args))
    stage = run.stages[-1]
    view = recipe.view(run, stage)
    init, step = recipe.training(run, stage, VOCAB)
    like = recipe.batch_like(run, stage)
    kept = like['where'].shape[1]
    rng = np.random.default_rng(0)
    places = np.stack(np.unravel_index(np.arange(kept), view.grid), -1)
    values = {
        'patches': rng.integers(0, 256, like['patches'].shape, np.uint8),
        'where': places,
        'tokens': rng.integers(3, VOCAB, like['tokens'].shape),
        'lengths': 150,
        'ok': True,
        'text_key': np.arange(args.batch),
        'video_key': np.arange(args.batch),
    }
    arrays = {
        name: np.broadcast_to(value, like[name].shape).astype(like[name].dtype)
        for name, value in values.items()
    }
    state = jax.jit(init)()
    return jax.jit(step).lower(state, arrays).compile(), state, arrays, kept


def speed(args):
    """Rows: step time and temporary memory of both, and their ratios."""
    steps = {rate: compiled(rate, args) for rate in RATES}
    seconds = {rate: [] for rate in RATES}
    for repeat in range(args.repeats + 1):
        for rate, (function, state, arrays, _) in steps.items():
            begun = time.perf_counter()
            jax.block_until_ready(function(state, arrays))
            if repeat:  # the first round warms up
                seconds[rate].append(time.perf_counter() - begun)
    yield header('masked', 'tokens', 'step, s', 'temporary memory, MiB')
    for rate, (function, _, _, kept) in steps.items():
        temp = function.memory_analysis().temp_size_in_bytes / 2**20
        low, middle, high = min(seconds[rate]), statistics.median(seconds[rate]), max(seconds[rate])
        yield table(f'{rate:.0%}', kept, f'{middle:.3f} ({low:.3f} to {high:.3f})', f'{temp:.0f}')
    pairs = [a / b for a, b in zip(seconds[0.75], seconds[0.0], strict=True)]
    memory = [steps[rate][0].memory_analysis().temp_size_in_bytes for rate in RATES]
    yield table('ratio', '', f'{statistics.median(pairs):.2f}', f'{memory[0] / memory[1]:.2f}')


def recall(args):
    """Rows: R@1 of the long stage with all tubelets and with a quarter, from one short stage."""
    start = args.start or str(Workdir(args.recall).checkpoints('short'))
    yield header('masked', 'steps', 'R@1, %', *(f'seed {seed}' for seed in range(args.seeds)))
    for rate, kind in [*((0.75, kind) for kind in args.kinds), (0.0, 'tube')]:
        found, name = [], f'{kind} {rate:.0%}' if rate else 'none'
        for seed in range(args.seeds):
            fields = recipe_at(rate, kind, args)
            fields.run, fields.seed, fields.init = ('long',), seed, start
            fields.workdir = f'{args.recall}_{name.replace(" ", "_").rstrip("%")}_seed{seed}'
            fields.eval.ablations = False
            fields.stages.long.steps = args.steps
            fields.stages.long.unmasked_tail = args.tail if rate else 0.0
            if train.train(config.resolve(fields)):
                raise SystemExit(f'{fields.workdir}: stopped; the same command goes on')
            ordered = Workdir(fields.workdir).finished('long')['scores']['ordered']
            ways = [ordered[way]['recall_at_1'] for way in ('text_to_video', 'video_to_text')]
            found.append(100 * sum(ways) / 2)
            print(f'masked: {name}, {args.steps} steps, seed {seed}: R@1 {found[-1]:.1f}')
        spread = statistics.stdev(found) if len(found) > 1 else float('nan')
        mean = f'{statistics.mean(found):.1f} +- {spread:.1f}'
        yield table(name, args.steps, mean, *(f'{x:.1f}' for x in found))


def lines(args):
    """What the command line asks for."""
    yield f'patch {args.patch}, tubelet {args.tubelet}, batch {args.batch}'
    if args.repeats:
        yield from speed(args)
    if args.recall:
        yield from recall(args)


def main():
    """Measures, prints, and records where --record asks for it."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--patch', type=int, default=16)
    parser.add_argument('--tubelet', type=int, default=2)
    parser.add_argument('--kinds', nargs='+', default=['tube'])
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--recall', default='', metavar='WORKDIR')
    parser.add_argument('--start', default='', metavar='CHECKPOINTS')
    parser.add_argument('--tail', type=float, default=0.0, help='share of the steps')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--steps', type=int, default=100)
    record_argument(parser)
    args = parser.parse_args()
    keep_freed_memory()
    record(lines(args), args.record, 'jax')


if __name__ == '__main__':
    main()
