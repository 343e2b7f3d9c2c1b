"""The rows of gpu.py, each measured in a process of its own: steps, what is sent, a product."""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from configs import long
from long_vivit import chips, config, recipe
from long_vivit.inputs import patches
from long_vivit.inputs.looks import patches_of
from long_vivit.perf import keep_freed_memory, peak_memory

VOCAB = 49_408  # CLIP's
NO_FIGURE = 'CPU: no figure'


def resolved(size, remat, **stage):
    """The Run of the recipe's long stage alone, all layers trained; 'tiny' for a test."""
    cfg = long.get_config('' if size == 'tiny' else size)
    if size == 'tiny':
        cfg.model.video.update(width=32, depth=2, heads=2)
        cfg.model.text.update(width=32, depth=1, heads=2)
        cfg.model.attention = 'dense'  # is compiled soonest
    cfg.run, cfg.init, cfg.data.train = ('long',), '.', 'videos:not_named.jsonl'
    cfg.model.video.remat = remat
    more = {'last_layers': 0, 'lr': 1e-4, 'warmup_steps': 20, 'mask_kind': 'random'}
    cfg.stages.long.update(more | stage)
    return config.resolve(cfg)


def made_up(run, stage):
    """A batch of the stage's shapes; no two clips are equally bright, no two texts equal."""
    like, looks, b = recipe.batch_like(run, stage), recipe.view(run, stage), stage.batch
    rng = np.random.default_rng(0)
    chosen = [patches.choose(looks.mask_kind, looks.grid, looks.mask_rate, rng) for _ in range(b)]
    values = rng.integers(0, 64, like['patches'].shape, np.uint8)
    values += np.linspace(0, 191, b).astype(np.uint8)[:, None, None]
    found = {
        'patches': values,
        'where': np.stack(chosen),
        'tokens': rng.integers(3, VOCAB, like['tokens'].shape),
        'lengths': np.full(b, stage.text_length),
        'ok': np.ones(b, bool),
        'text_key': np.arange(b),
        'video_key': np.arange(b),
    }
    return {key: found[key].astype(x.dtype) for key, x in like.items()}


def measured(ask):
    """What a row says, as plain values, and on which device.

    ask: {'what': 'step', 'bus' or 'product', and the arguments of its function}.
    """
    device, ask = jax.devices()[0], dict(ask)
    kind = NO_FIGURE if device.platform == 'cpu' else device.device_kind
    do = {'step': stepped, 'bus': carried, 'product': multiplied}[ask.pop('what')]
    try:
        return {'device': kind} | do(**ask)
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        return {'device': kind, 'failed': 'does not fit'}


def multiplied(side, rounds):
    """FLOP/s of a product of two large matrices, and of the chip's data sheet (None: unknown)."""
    one = jnp.ones((side, side), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    seconds = timed(lambda: jax.block_until_ready(product(one, one)), rounds)
    reached = 2 * side**3 / statistics.median(seconds)
    return {'reached': reached, 'sheet': chips.peak_flops(jax.devices()[:1])}


def stepped(size, remat, steps, **stage):
    """Seconds and losses of training steps on one batch, the model's FLOP/s, and peak bytes."""
    keep_freed_memory()
    run = resolved(size, remat, **stage)
    stage = run.stages[0]
    init, step = recipe.training(run, stage, VOCAB)
    batch = jax.device_put(made_up(run, stage))
    held, losses = [jax.jit(init)()], []
    program = jax.jit(step, donate_argnums=0).lower(held[0], batch).compile()

    def once():
        held[0], watch = program(held[0], batch)
        losses.append(float(jax.block_until_ready((held[0], watch))[1]['loss']))

    seconds = timed(once, steps)
    k, values = patches_of(recipe.batch_like(run, stage))
    flops = recipe.step_flops(run, stage, batch=stage.batch, num_patches=k, patch_values=values)
    return {
        'seconds': seconds,
        'losses': losses,
        'tokens': k,
        'rate': flops / statistics.median(seconds),
        'sheet': chips.peak_flops(jax.devices()[:1]),
        'attention': recipe.attention_of(run)[0],
        'peak': peak_memory().num_bytes,
    }


def carried(size, rounds, **stage):
    """Both ways to the device, [by patches, by frames]: bytes sent, seconds to send and to cut."""
    run = resolved(size, 'none', **stage)
    looks, b = recipe.view(run, run.stages[0]), run.stages[0].batch
    where = made_up(run, run.stages[0])['where']
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (b, looks.frames, looks.pixels, looks.pixels, 3), np.uint8)

    def on_host():
        each = zip(frames, where, strict=True)
        return np.stack([patches.patchify(x, at, looks.tubelet, looks.patch) for x, at in each])

    @jax.jit
    def on_device(frames, where):
        sizes = {'r': looks.tubelet, 'p': looks.patch, 'q': looks.patch}
        cells = rearrange(frames, 'b (t r) (h p) (w q) c -> b t h w (r p q c)', **sizes)
        return jax.vmap(lambda x, at: x[at[:, 0], at[:, 1], at[:, 2]])(cells, where)

    def send(arrays):
        return jax.block_until_ready(jax.device_put(arrays))

    chosen, there = on_host(), send((frames, where))
    if not np.array_equal(on_device(*there), chosen):
        raise AssertionError('the device cuts other patches than the host')
    return {
        'bytes': [x.nbytes + where.nbytes for x in (chosen, frames)],
        'send': [timed(lambda x=x: send((x, where)), rounds) for x in (chosen, frames)],
        'cut': [
            timed(on_host, rounds),
            timed(lambda: jax.block_until_ready(on_device(*there)), rounds),
        ],
    }


def timed(function, rounds):
    """Seconds of each of `rounds` calls, after two that warm up."""
    found = []
    for _ in range(rounds + 2):
        begun = time.perf_counter()
        function()
        found.append(time.perf_counter() - begun)
    return found[2:]
