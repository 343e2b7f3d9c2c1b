"""What only a GPU can show: utilisation, an hour in a step, what masking saves, the bus.

    python scripts/bench/gpu.py                           # all of it
    python scripts/bench/gpu.py mfu hour --record
    python scripts/bench/gpu.py mfu --batch 16 --remat attention full
    python scripts/bench/gpu.py --sizes tiny --frames 8   # whether it runs: also on a CPU

mfu      ViT-L, 256 frames, 75% masked, with each --remat: the step, its share of the chip's peak
hour     ViT-B, 3,600 frames, 75% masked, 2 pairs one after the other: the step, peak, falling loss
masking  ViT-B, 16, 64 and 128 frames: the step with 75% of the patches left out, and with none
bus      ViT-L's batch of 256 frames: the patches that the host has chosen, sent to the device,
         against all frames, sent and cut there

All: the trainer's own step (`recipe.training`) of configs/long.py with all layers trained, text
tower, loss and AdamW included, 256 pixels, bfloat16, on patches that are made up here: clips differ
in brightness. Each row is a process of its own, so its peak memory is its own. Utilisation counts
what the mathematics needs (`long_vivit.flops`), against the chip's data sheet and against a product
of two large matrices in the same run.

On a CPU the figures mean nothing, and the rows say so. Besides JAX, flax, optax, orbax, einops and
numpy this needs ml_collections (and its PyYAML), for the configuration; what reads videos and texts
may be missing (stand_ins.py).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.bench.rows import header, record, record_argument, table

FRAMES = {'mfu': [256], 'hour': [3600], 'masking': [16, 64, 128], 'bus': [256]}
SIZES = {'mfu': 'large', 'hour': 'base', 'masking': 'base', 'bus': 'large'}
PARTS = tuple(FRAMES)


def child(ask):
    """`gpu_rows.measured` in a process of its own; where that ends in an error, the row says so."""
    command = [sys.executable, __file__, '--child', json.dumps(ask)]
    environment = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.95'} | os.environ
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        return {'device': '?', 'failed': f'ended with status {done.returncode}, see above'}
    return json.loads(done.stdout.splitlines()[-1])


def spread(seconds, unit=1.0):
    """'12.3 (11.9 to 14)', of seconds, or of parts of one."""
    low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
    return f'{middle / unit:.3g} ({low / unit:.3g} to {high / unit:.3g})'


def step_rows(part, args, reached):
    """A table of training steps. reached: FLOP/s of a large product here, None: not known."""
    shares = 'TFLOP/s', 'of data sheet', 'of a product'
    names = 'remat', 'attention', 'step, s', *shares, 'peak, GB', 'loss', 'device'
    yield header(part, 'frames', 'masked', 'tokens', *names)
    batch = {'batch': 2, 'micro_batch': 1} if part == 'hour' else {'batch': args.batch}
    ways = [(0.75, remat) for remat in args.remat] if part == 'mfu' else [(0.75, 'full')]
    if part == 'masking':
        ways.append((0.0, 'full'))
    for frames in args.frames or FRAMES[part]:
        found = []
        for rate, remat in ways:
            ask = {'what': 'step', 'size': args.sizes or SIZES[part], 'steps': args.steps}
            one = child(ask | {'frames': frames, 'mask_rate': rate, 'remat': remat} | batch)
            found.append(one)
            yield step_row([ask['size'], frames, f'{rate:.0%}'], remat, one, reached)
        if part == 'masking' and not any('failed' in one for one in found):
            masked, whole = (statistics.median(one['seconds']) for one in found)
            yield table('', frames, '0% / 75%', '', '', '', f'{whole / masked:.2f} x', *[''] * 6)


def step_row(first, remat, one, reached):
    """A row of such a table."""
    if 'failed' in one:
        return table(*first, '', remat, '', one['failed'], *[''] * 5, one['device'])
    shares = [f'{one["rate"] / x:.1%}' if x else '-' for x in (one['sheet'], reached)]
    rate, peak = f'{one["rate"] / 1e12:.3g}', f'{one["peak"] / 1e9:.2f}'
    loss = f'{one["losses"][0]:.3f} to {one["losses"][-1]:.3f}'
    found = f'{one["tokens"]:,}', remat, one['attention'], spread(one['seconds'])
    return table(*first, *found, rate, *shares, peak, loss, one['device'])


def bus_rows(args):
    """A table of the two ways to the device."""
    yield header('bus', 'frames', 'MB', 'sent, ms', 'cut, ms', 'device')
    for frames in args.frames or FRAMES['bus']:
        ask = {'what': 'bus', 'size': args.sizes or SIZES['bus'], 'rounds': args.steps}
        one = child(ask | {'frames': frames, 'mask_rate': 0.75, 'batch': args.batch})
        if 'failed' in one:
            yield table(one['failed'], frames, '', '', '', one['device'])
            continue
        for i, way in enumerate(('patches, cut on the host', 'all frames, cut on the device')):
            sent, cut = (spread(one[key][i], 1e-3) for key in ('send', 'cut'))
            yield table(way, frames, f'{one["bytes"][i] / 1e6:.4g}', sent, cut, one['device'])


def lines(args):
    """What the device is, and a table for each part."""
    side = 256 if args.sizes == 'tiny' else 8192
    one = child({'what': 'product', 'side': side, 'rounds': 5})
    if one['device'].startswith('CPU'):
        yield 'JAX has a CPU alone: this shows that the script runs. THE FIGURES MEAN NOTHING.'
    if 'failed' not in one:
        sheet = f'{one["sheet"] / 1e12:.0f}' if one['sheet'] else 'none that is known'
        yield (
            f'{one["device"]}: a bfloat16 product of {side} x {side} reaches '
            f'{one["reached"] / 1e12:.3g} TFLOP/s (data sheet: {sheet})'
        )
    for part in args.parts or PARTS:
        reached = one.get('reached')
        yield from bus_rows(args) if part == 'bus' else step_rows(part, args, reached)


def main():
    """Measures, prints, and records where --record asks for it."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('parts', nargs='*', metavar='PART', help=f'some of {", ".join(PARTS)}')
    parser.add_argument('--sizes', choices=('base', 'large', 'tiny'), help='of all parts')
    parser.add_argument('--frames', type=int, nargs='+', help='of all parts')
    parser.add_argument('--batch', type=int, default=8, help='pairs; of an hour there are two')
    parser.add_argument('--remat', nargs='+', default=['full', 'attention'], help='of mfu')
    parser.add_argument('--steps', type=int, default=5, help='that count, after two')
    parser.add_argument('--child', help=argparse.SUPPRESS)
    record_argument(parser)
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f'{", ".join(sorted(unknown))}: no such part; there are {", ".join(PARTS)}')
    if args.child:
        from scripts.bench import stand_ins

        stand_ins.allow()
        from scripts.bench import gpu_rows

        print(json.dumps(gpu_rows.measured(json.loads(args.child))))
        return
    record(lines(args), args.record, 'jax')


if __name__ == '__main__':
    main()
