"""The text tower at 248 tokens on a real mixture of lengths, with and without buckets.

    python scripts/bench/text.py                          # CLIP B's tower, the built-in captions
    python scripts/bench/text.py --depth 4 --batch 16     # less of it
    python scripts/bench/text.py --texts FILE.jsonl --field IIW --tokenizer CLIP_FOLDER

The mixture: half short texts and half long ones. Of the built-in stories, captions of short films
and long captions of long ones; of a file, the texts of a field and the first sentence of each.
`step` is the forward and backward pass of the tower on a batch drawn from them, `score` encodes 8
batches of them as `retrieval.embed_texts` does, sorted by length. The rows are timed in turn in one
process; memory is what XLA reserves for the compiled step besides parameters, inputs and results.
"""

import argparse
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from long_vivit.compiling import compiler_options
from long_vivit.inputs.short_text import first_sentence
from long_vivit.inputs.sources import open_source
from long_vivit.inputs.text import Tokenizer
from long_vivit.models.text import TextEncoder
from long_vivit.perf import keep_freed_memory
from scripts.bench.rows import header, record, record_argument, table

LONGEST, VOCAB = 248, 49_408  # CLIP's tokens
STORIES = 'data/built'
SCORED = 8  # batches


def texts_of(args):
    """(short texts, long texts) of the mixture."""
    if args.texts:
        rows = [json.loads(line) for line in Path(args.texts).read_text().splitlines()]
        every = [row[args.field] for row in rows if row.get(args.field)]
        return [first_sentence(text) for text in every], every
    short, long = (
        open_source(f'shape_stories/{name}:train', data_dir=STORIES) for name in ('short', 'long')
    )
    few = range(min(len(short), len(long), 1000))
    return [short[i].captions[0] for i in few], [long[i].long_captions[0] for i in few]


def lengths_of(args, count):
    """int32 [count]: tokens of short and long texts in turn, drawn with a fixed seed."""
    tokenizer = Tokenizer.load(args.tokenizer or f'{STORIES}/shape_stories/tokenizer.json')
    kinds = [tokenizer.encode(texts, LONGEST).lengths for texts in texts_of(args)]
    rng = np.random.default_rng(0)
    drawn = [rng.choice(lengths, (count + 1) // 2) for lengths in kinds]
    return rng.permutation(np.concatenate(drawn)[:count]).astype(np.int32)


def tokens_of(lengths):
    """int32 [n, 248]: words at random, as many as the lengths say."""
    drawn = np.random.default_rng(0).integers(3, VOCAB, (len(lengths), LONGEST))
    return (drawn * (np.arange(LONGEST) < lengths[:, None])).astype(np.int32)


def rows_of(args, lengths):
    """{name: (function to time, MiB of temporary memory)} with and without buckets."""
    found, tokens = {}, tokens_of(lengths)
    b, aim = args.batch, jnp.eye(args.batch, args.width)
    by_length = np.argsort(lengths, kind='stable')
    for name, buckets in (('whole', ()), ('buckets', tuple(args.buckets))):
        tower = jax.jit(
            lambda buckets=buckets: TextEncoder(
                vocab=VOCAB, length=LONGEST, position_scale=0.05, width=args.width,
                depth=args.depth, heads=args.heads, embed=args.width, kind='causal',
                activation='quick_gelu', remat=args.remat, dtype=jnp.float32, buckets=buckets,
                rngs=nnx.Rngs(0),
            )
        )()  # fmt: skip

        def loss(tower, tokens, lengths):
            return (tower(tokens, lengths) * aim).sum()

        programs = {'step': jax.grad(loss), 'score': lambda tower, *texts: tower(*texts)}
        first = tower, tokens[:b], lengths[:b]
        for kind, function in programs.items():
            compiled = jax.jit(function).lower(*first).compile(compiler_options())
            batches = [np.arange(b)]
            if kind == 'score':
                order = by_length if buckets else np.arange(len(lengths))
                batches = np.split(order, SCORED)
            once = partial(run, compiled, tower, tokens, lengths, batches)
            temporary = compiled.memory_analysis().temp_size_in_bytes / 2**20
            found[kind, name] = once, temporary
    return found


def run(program, tower, tokens, lengths, batches):
    """The program on each batch of row numbers."""
    jax.block_until_ready([program(tower, tokens[rows], lengths[rows]) for rows in batches])


def measure(rows, rounds):
    """{row: seconds of each round}; they take turns, and the first round warms up."""
    seconds = {row: [] for row in rows}
    for turn in range(rounds + 1):
        for row, (once, _) in rows.items():
            begun = time.perf_counter()
            once()
            if turn:
                seconds[row].append(time.perf_counter() - begun)
    return seconds


def lines(args):
    """The mixture, and a row for each program with and without buckets."""
    lengths = lengths_of(args, SCORED * args.batch)
    quarters = [round(x) for x in np.percentile(lengths, [0, 25, 50, 75, 100])]
    yield (
        f'{args.width} x {args.depth} x {args.heads}, {args.batch} texts, remat {args.remat}; '
        f'tokens of a text: least, quarters, most {quarters}'
    )
    rows = rows_of(args, lengths)
    seconds = measure(rows, args.rounds)
    yield header('', '', 'seconds', 'to whole', 'temporary memory, MiB', 'to whole')
    for (kind, name), (_, temporary) in rows.items():
        times, whole = seconds[kind, name], seconds[kind, 'whole']
        middle, low, high = statistics.median(times), min(times), max(times)
        ratio = statistics.median(a / b for a, b in zip(times, whole, strict=True))
        memory = f'{temporary:.0f}', f'{temporary / rows[kind, "whole"][1]:.2f}'
        yield table(kind, name, f'{middle:.3f} ({low:.3f} to {high:.3f})', f'{ratio:.2f}', *memory)


def main():
    """Measures, prints, and records where --record asks for it."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--texts', default='', metavar='FILE.jsonl')
    parser.add_argument('--field', default='IIW')
    parser.add_argument('--tokenizer', default='', metavar='FILE')
    parser.add_argument('--width', type=int, default=512)
    parser.add_argument('--depth', type=int, default=12)
    parser.add_argument('--heads', type=int, default=8)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--remat', default='none')
    parser.add_argument('--buckets', type=int, nargs='+', default=[32, 77, 248])
    parser.add_argument('--rounds', type=int, default=3)
    record_argument(parser)
    args = parser.parse_args()
    keep_freed_memory()
    record(lines(args), args.record, 'jax')


if __name__ == '__main__':
    main()
