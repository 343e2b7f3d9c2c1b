"""The rows of step.py that are ours: long_vivit.step on the video encoder, texts given."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from long_vivit import optim
from long_vivit.compiling import HASTY, compiler_options
from long_vivit.models.video import VideoEncoder
from long_vivit.perf import give_back_freed_memory, keep_freed_memory
from long_vivit.programs import Programs
from long_vivit.state import State
from long_vivit.step import make_step
from scripts.bench import precision

jnp.zeros(1).block_until_ready()  # starts the backend: part of the imports, as torch's libraries


def drawn(size, grid, rate):
    """A batch of clips of noise, as the pipeline would send it."""
    kept = round(np.prod(grid) * (1 - rate))
    rng = np.random.default_rng(0)
    places = np.stack(np.unravel_index(np.sort(rng.permutation(np.prod(grid))[:kept]), grid), -1)
    shape = size.clips, kept, size.tubelet * size.patch**2 * 3
    return {
        'patches': rng.integers(0, 256, shape, np.uint8),
        'where': np.broadcast_to(places, (size.clips, kept, 3)).astype(np.int32),
        'z_text': np.eye(size.clips, size.embed, dtype=np.float32),
        'ok': np.ones(size.clips, bool),
        'text_key': np.arange(size.clips, dtype=np.int32),
        'video_key': np.arange(size.clips, dtype=np.int32),
    }


def tower(size, grid, remat):
    """() -> a model of the video encoder alone, with given vectors for the texts."""

    class Tower(nnx.Module):
        def __init__(self):
            self.video = VideoEncoder(
                grid=grid, patch=size.patch, tubelet=size.tubelet, width=size.width,
                depth=size.depth, heads=size.heads, embed=size.embed, pool='mean',
                attention='blockwise', remat=remat, dtype=jnp.float32, rngs=nnx.Rngs(0),
            )  # fmt: skip
            self.log_scale = nnx.Param(jnp.log(1 / jnp.float32(0.07)))

        def __call__(self, batch, *, num_frozen=0, num_still=0):
            return self.video(batch['patches'], batch['where']), batch['z_text']

    return Tower


def make(how, size):
    """how: '' or '75%', then perhaps a policy of remat -> (takes one step -> loss, facts)."""
    rate, _, remat = how.partition(' ')
    precision.of_jax()
    keep_freed_memory()
    grid = size.frames // size.tubelet, size.pixels // size.patch, size.pixels // size.patch
    batch = drawn(size, grid, float(rate.strip('%') or 0) / 100)
    model = tower(size, grid, remat or 'none')
    fields = {'lr': 1e-4, 'steps': 1000, 'warmup_steps': 0}
    optimiser = optim.make(jax.eval_shape(model), **fields, weight_decay=0.1, clip=1.0)
    step = make_step(
        optimiser, optim.lr_schedule(**fields), max_scale=100.0, label_smoothing=0.0,
        num_frozen=0, ema_decay=0.0,
    )  # fmt: skip

    def init():
        taught = model()
        return State(jnp.zeros((), jnp.int32), taught, optimiser.init(taught))

    step = Programs(jax.jit(step, donate_argnums=0, compiler_options=compiler_options()))
    step.prepare(jax.eval_shape(init), batch)  # before there are parameters, as the trainer does
    draw = Programs(jax.jit(init, compiler_options=HASTY))
    draw.prepare()
    held = [jax.block_until_ready(draw())]
    give_back_freed_memory()
    program = step.function.lower(held[0], batch).compile()

    def once():
        held[0], watch = step(held[0], batch)
        return float(jax.block_until_ready((held[0], watch))[1]['loss'])

    temporary = program.memory_analysis().temp_size_in_bytes / 2**20
    return once, {'temporary_mib': temporary, 'device': jax.devices()[0].device_kind}


def device_peak():
    """Bytes that the device held at once; None where it is the host."""
    stats = jax.local_devices()[0].memory_stats()
    return stats['peak_bytes_in_use'] if stats and 'peak_bytes_in_use' in stats else None
