"""Memory of long videos on one device, from compiled programs; nothing is allocated.

    python scripts/bench/memory.py            all rows; some minutes
    python scripts/bench/memory.py hour       rows whose name has the word in it

Each row is the trainer's own step (text tower, AdamW and loss included) or the scorer's encoder,
compiled by XLA for CPU: peak = arguments + temporary + results - what serves as both.
Of two devices one is shown: a batch of one is two devices with one pair each. `in turns` is what
one card alone can run: two pairs, one after the other, by micro-batches of 1.
"""

import argparse
import os
import pathlib
import sys
import time

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=2'
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax

from configs import long
from long_vivit import config, estimate, recipe, retrieval, sharding
from scripts.bench.rows import header, record, record_argument, table

VOCAB = 49_408  # CLIP's
HOUR = {'frames': 3600, 'batch': 2}
IN_TURNS = HOUR | {'micro_batch': 1}  # one pair after the other, the gradients of both
ROWS = {  # name: (size, devices, fields of the long stage, GB that are allowed)
    'ViT-L, 256 frames, all layers, batch 4': ('large', 1, {'batch': 4}, 16),
    'ViT-L, 256 frames, all layers, batch 8': ('large', 1, {'batch': 8}, 16),
    'ViT-L, 256 frames, last 4 layers, batch 8': ('large', 1, {'batch': 8, 'last_layers': 4}, 16),
    'ViT-B, hour of 3600 frames, all layers, batch 1': ('base', 2, HOUR, 20),
    'ViT-L, hour of 3600 frames, all layers, batch 1': ('large', 2, HOUR, 40),
    'ViT-B, hour of 3600 frames, one device, batch 2 in turns': ('base', 1, IN_TURNS, 20),
    'ViT-L, hour of 3600 frames, one device, batch 2 in turns': ('large', 1, IN_TURNS, 40),
}
FOUR_HOURS = 14_400  # frames at one a second
ENCODE = {  # name: (share of patches masked, GB that are allowed)
    'ViT-B, encode 4 hours, all patches': (0.0, 16),
    'ViT-B, encode 4 hours, a quarter of the patches': (0.75, 16),
}


def resolved(size, changes):
    """The Run of the recipe with its long stage alone, all layers trained unless changed."""
    cfg = long.get_config(size)
    cfg.run, cfg.init, cfg.data.train = ('long',), '.', 'videos:not_named.jsonl'
    cfg.stages.long.update({'last_layers': 0, **changes})
    return config.resolve(cfg)


def training_peak(size, devices, changes):
    """Bytes of a training step on one of `devices` devices."""
    run = resolved(size, changes)
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    return estimate.memory(run, run.stages[0], VOCAB, mesh).peak


def encoding_peak(mask_rate):
    """Bytes of encoding one video of four hours, and its tokens."""
    run = resolved('base', {'frames': FOUR_HOURS, 'mask_rate': mask_rate, 'batch': 2})
    model = jax.eval_shape(lambda: recipe.model(run, run.stages[0], VOCAB, jax.random.key(0)))
    batch = recipe.batch_like(run, run.stages[0])
    one = {
        key: jax.ShapeDtypeStruct((1, *batch[key].shape[1:]), batch[key].dtype)
        for key in ('patches', 'where')
    }
    lowered = retrieval.encode_patches.lower(model, **one)
    found = lowered.compile(compiler_options=estimate.OPTIONS).memory_analysis()
    return estimate.peak(found), one['where'].shape[1]


def row(name, peak, allowed, begun):
    """A row of the table."""
    verdict = 'ok' if peak <= allowed * 1e9 else 'TOO MUCH'
    seconds = f'{time.monotonic() - begun:.1f} s'
    return table(name, f'{peak / 1e9:.2f} GB', f'{allowed} GB', verdict, seconds)


def lines(words):
    """The rows whose name has all the words."""
    yield 'XLA for CPU, remat full, bfloat16 activations, 256 pixels; trained: 75% masked'
    yield header('', 'peak', 'allowed', '', 'compiled in')
    for name, (size, devices, changes, allowed) in ROWS.items():
        if all(word in name for word in words):
            begun = time.monotonic()
            yield row(name, training_peak(size, devices, changes), allowed, begun)
    for name, (mask_rate, allowed) in ENCODE.items():
        if all(word in name for word in words):
            begun = time.monotonic()
            peak, tokens = encoding_peak(mask_rate)
            yield row(f'{name} ({tokens:,} tokens)', peak, allowed, begun)


def main():
    """Compiles, prints, and records where --record asks for it."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('words', nargs='*', metavar='WORD', help='rows whose name has them all')
    record_argument(parser)
    args = parser.parse_args()
    record(lines(args.words), args.record, 'jax')


if __name__ == '__main__':
    main()
