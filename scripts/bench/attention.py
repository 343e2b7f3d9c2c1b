"""Attention alone, forward and backward: ours beside jax.nn's and torch's.

    make bench BENCH=attention                                 # in .venv-bench, which has torch
    python scripts/bench/attention.py                          # 512 and 2,048 tokens, float32
    python scripts/bench/attention.py --shapes 1,8192,6,64 --rounds 3
    python scripts/bench/attention.py --dtype bfloat16 --shapes 1,8192,16,64   # a GPU: cuDNN too
    python scripts/bench/attention.py --memory 57600 --heads 12    # compiled only: nothing is run

`jax.nn` is jax.nn.dot_product_attention(implementation='xla'), `sdpa` torch's
scaled_dot_product_attention, on the same kind of device as ours or left out, as it is where torch
cannot be imported. All take turns in one process, on the same numbers.
"""

import argparse
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # a GPU is torch's as well

import jax
import jax.numpy as jnp
import numpy as np

from long_vivit.models.attention import attend, resolve
from long_vivit.perf import keep_freed_memory
from scripts.bench import precision
from scripts.bench.rows import header, record, record_argument, table

FORMS = {
    'blockwise': partial(attend, implementation='blockwise'),
    'dense': partial(attend, implementation='dense'),
    'jax.nn': partial(jax.nn.dot_product_attention, implementation='xla'),
}


def output_and_gradients(form, query, key, value, d_out):
    """[b, n, m, f] each -> the output and the three gradients."""
    out, back = jax.vjp(form, query, key, value)
    return out, *back(d_out)


def compiled(form, shape, dtype):
    """(forward, forward and backward), compiled."""
    like = jax.ShapeDtypeStruct(shape, dtype)
    both = jax.jit(partial(output_and_gradients, form)).lower(*[like] * 4).compile()
    return jax.jit(form).lower(*[like] * 3).compile(), both


def ours(form, values):
    """{'forward': a function that waits for it, 'both': the same with the backward pass}."""
    forward, both = compiled(form, values[0].shape, values[0].dtype)
    return {
        'forward': lambda: jax.block_until_ready(forward(*values[:3])),
        'both': lambda: jax.block_until_ready(both(*values)),
    }


def forms(dtype, head_width):
    """FORMS, and what this backend has beside them for arrays of this kind."""
    best, _ = resolve('auto', jax.default_backend(), dtype, head_width)
    return FORMS | {best: partial(attend, implementation=best)}


def torch_sdpa(values, dtype):
    """The same of torch, whose heads come before the tokens; {} where it cannot be compared."""
    try:
        import torch
    except ImportError:
        print('sdpa: torch cannot be imported here, left out')
        return {}
    device = {'cpu': 'cpu', 'gpu': 'cuda'}.get(jax.default_backend())
    if device is None or (device == 'cuda' and not torch.cuda.is_available()):
        print(f'sdpa: torch has no device of the backend {jax.default_backend()}, left out')
        return {}
    heads_first = [torch.tensor(x.swapaxes(1, 2).copy()) for x in values]
    query, key, value, d_out = (x.to(device, getattr(torch, dtype.name)) for x in heads_first)
    precision.of_torch(torch)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    wait = torch.cuda.synchronize if device == 'cuda' else lambda: None

    def forward():
        with torch.no_grad():
            sdpa(query, key, value)
        wait()

    def both():
        for x in (query, key, value):
            x.requires_grad_(True).grad = None
        sdpa(query, key, value).backward(d_out)
        wait()

    return {'sdpa': {'forward': forward, 'both': both}}


def speed(shape, dtype, rounds):
    """A row for each form: median (min to max) of both passes."""
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(shape).astype(np.float32) for _ in range(4)]
    rows = {
        name: ours(form, [jnp.asarray(x, dtype) for x in values])
        for name, form in forms(dtype, shape[-1]).items()
    } | torch_sdpa(values, dtype)
    seconds = {(row, part): [] for row in rows for part in ('forward', 'both')}
    for turn in range(rounds + 1):
        for row, part in seconds:
            begun = time.perf_counter()
            rows[row][part]()
            if turn:  # the first round warms up
                seconds[row, part].append(time.perf_counter() - begun)
    for row in rows:
        cells = [spread(seconds[row, part]) for part in ('forward', 'both')]
        yield table(', '.join(map(str, shape)), dtype.name, row, *cells)


def spread(seconds):
    """'12.3 (11.9 to 14.0)', milliseconds."""
    low, middle, high = (1e3 * x for x in (min(seconds), statistics.median(seconds), max(seconds)))
    return f'{middle:.1f} ({low:.1f} to {high:.1f})'


def memory(n, heads, head_width):
    """Rows: temporary memory of the compiled blockwise form, both passes, in both dtypes."""
    for dtype in (jnp.float32, jnp.bfloat16):
        shape = (1, n, heads, head_width)
        parts = compiled(FORMS['blockwise'], shape, dtype)
        sizes = [x.memory_analysis().temp_size_in_bytes / 2**20 for x in parts]
        one = np.prod(shape) * jnp.dtype(dtype).itemsize / 2**20
        shown = [f'{size:.0f}' for size in (*sizes, one)]
        yield table(f'{n:,}', heads, jnp.dtype(dtype).name, *shown)


def lines(args):
    """What the command line asks for."""
    if args.memory:
        sizes = 'forward, MiB', 'with backward, MiB', 'queries alone, MiB'
        yield header('tokens', 'heads', 'dtype', *sizes)
        for n in args.memory:
            yield from memory(n, args.heads, 64)
        return
    dtype = jnp.dtype(args.dtype)
    if dtype == jnp.float32:
        precision.of_jax()
        yield precision.WORDS
    shapes = [tuple(map(int, shape.split(','))) for shape in args.shapes]
    for head_width in sorted({shape[-1] for shape in shapes}):
        best, why = resolve('auto', jax.default_backend(), dtype, head_width)
        yield f"attention 'auto' is {best} here ({why})"
    yield header('b, n, m, f', 'dtype', 'row', 'forward, ms', 'with backward, ms')
    for shape in shapes:
        yield from speed(shape, dtype, args.rounds)


def main():
    """Measures, prints, and records where --record asks for it."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--shapes', nargs='+', default=['4,512,6,64', '2,2048,6,64'])
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    parser.add_argument('--memory', type=int, nargs='+', default=[], metavar='TOKENS')
    parser.add_argument('--heads', type=int, default=16)
    record_argument(parser)
    args = parser.parse_args()
    keep_freed_memory()
    record(lines(args), args.record, 'jax', *([] if args.memory else ['torch']))


if __name__ == '__main__':
    main()
