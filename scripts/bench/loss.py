"""What a loss over all pairs costs: dense, tiled, ring, and the step with gradient caching.

    python scripts/bench/loss.py            # time at moderate batches, memory up to 65,536 pairs

Times are taken in turn in one process, of loss and gradients together; memory is what the compiled
program says it needs beside the embeddings and their gradients. On CPU the host plays eight devices
(they share its cores: a ring is then no faster, only smaller).
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=8')
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from configs import long
from long_vivit import config, losses, recipe
from scripts.bench.rows import header, record, record_argument, table

VOCAB = 538  # of the built-in tokenizer; only the size of a table here
FORMS = (('dense', 1), ('tiled', 1), ('dense', 0), ('ring', 0))  # form, devices (0: all)
MB = 1e6


def pairs_like(mesh, b, e):
    """The arguments of a loss, as ShapeDtypeStruct: z_video, z_text, log_scale, bias, ok, key."""
    rows = NamedSharding(mesh, PartitionSpec('data'))
    everywhere = NamedSharding(mesh, PartitionSpec())
    z = jax.ShapeDtypeStruct((b, e), jnp.float32, sharding=rows)
    ok, key = (jax.ShapeDtypeStruct((b,), d, sharding=rows) for d in (bool, jnp.int32))
    one = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
    return z, z, one, one, ok, key


def compiled(kind, form, mesh, b, e, tile):
    """Loss and gradients, compiled."""

    def loss(z_video, z_text, log_scale, bias, ok, key):
        if kind == 'nce':
            return losses.nce(z_video, z_text, log_scale, ok, key, form=form, tile=tile)
        return losses.sigmoid(z_video, z_text, log_scale, bias, ok, key, form=form, tile=tile)

    with jax.set_mesh(mesh):
        grad = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))
        return grad.lower(*pairs_like(mesh, b, e)).compile()


def mesh_of(devices):
    """The first so many devices, or all of them (0), in one axis."""
    chosen = np.array(jax.devices()[: devices or None])
    return Mesh(chosen, ('data',), axis_types=(AxisType.Auto,))


def draw(mesh, b, e):
    """Random pairs, laid out as `pairs_like` says."""
    rng = np.random.default_rng(0)
    z = [rng.standard_normal((b, e)).astype(np.float32) for _ in range(2)]
    z = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in z]
    values = *z, np.log(np.float32(14)), np.float32(-10), np.ones(b, bool), np.arange(b, dtype='i')
    return [
        jax.device_put(x, like.sharding)
        for x, like in zip(values, pairs_like(mesh, b, e), strict=True)
    ]


def timed(calls, repeats):
    """{name: () -> arrays} -> {name: seconds of each repeat}, taken in turn, the first left out."""
    seconds = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            begun = time.perf_counter()
            jax.block_until_ready(call())
            if repeat:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def row(what, seconds, temp):
    """A row of the table."""
    shown = '-'
    if seconds:
        middle = statistics.median(seconds)
        shown = f'{middle:.3f} ({min(seconds):.3f} to {max(seconds):.3f})'
    return table(what, shown, f'{temp / MB:,.0f}')


def show_losses(args):
    """Rows of the forms: times at --batch, memory at --memory."""
    for kind in ('nce', 'sigmoid'):
        programs, calls = {}, {}
        for form, devices in FORMS:
            mesh = mesh_of(devices)
            name = f'{kind}, {form}, {args.batch} pairs, {mesh.size} device(s)'
            programs[name] = compiled(kind, form, mesh, args.batch, args.embed, args.tile)
            given = draw(mesh, args.batch, args.embed)
            calls[name] = lambda run=programs[name], given=given: run(*given)
        for name, seconds in timed(calls, args.repeats).items():
            yield row(name, seconds, programs[name].memory_analysis().temp_size_in_bytes)
        for form, devices in FORMS:
            for b in args.memory:
                mesh = mesh_of(devices)
                program = compiled(kind, form, mesh, b, args.embed, args.tile)
                name = f'{kind}, {form}, {b} pairs, {mesh.size} device(s)'
                yield row(name, [], program.memory_analysis().temp_size_in_bytes)


def show_caching(args):
    """Rows of the small recipe's short stage: one batch taken at once, and in micro-batches."""
    programs, calls = {}, {}
    for micro_batch in (0, args.cached // 4, args.cached // 16):
        fields = long.get_config()
        fields.stages.short.update(batch=args.cached, micro_batch=micro_batch)
        run = config.resolve(fields)
        init, step = recipe.training(run, run.stages[1], VOCAB)
        like = recipe.batch_like(run, run.stages[1])
        batch = {key: np.ones(x.shape, x.dtype) for key, x in like.items()}
        batch['text_key'] = batch['video_key'] = np.arange(args.cached, dtype=np.int32)
        state = jax.jit(init)()
        part = f'micro-batches of {micro_batch}' if micro_batch else 'all at once'
        name = f'step of {args.cached} pairs, {part}'
        programs[name] = jax.jit(step).lower(state, batch).compile()
        calls[name] = lambda run=programs[name], state=state, batch=batch: run(state, batch)
    for name, seconds in timed(calls, args.repeats).items():
        yield row(name, seconds, programs[name].memory_analysis().temp_size_in_bytes)


def lines(args):
    """What the devices and sizes are, and the table."""
    device = jax.devices()[0]
    yield (
        f'{jax.device_count()} x {device.device_kind}, float32, width {args.embed}, '
        f'tiles of {args.tile}'
    )
    yield header('', 'seconds, median (range)', 'temporary, MB')
    yield from show_losses(args)
    yield from show_caching(args)


def main():
    """Measures, prints, and records where --record asks for it."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--batch', type=int, default=4096, help='pairs of the timed losses')
    parser.add_argument('--memory', type=int, nargs='*', default=[16384, 65536], help='pairs')
    parser.add_argument('--embed', type=int, default=768)
    parser.add_argument('--tile', type=int, default=1024)
    parser.add_argument('--cached', type=int, default=64, help='pairs of the timed steps')
    parser.add_argument('--repeats', type=int, default=5)
    record_argument(parser)
    args = parser.parse_args()
    record(lines(args), args.record, 'jax')


if __name__ == '__main__':
    main()
