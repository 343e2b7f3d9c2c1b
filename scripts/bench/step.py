"""A full training step of a ViT-S video encoder on CPU, beside that of torch's ViViT.

    pip install torch transformers
    python scripts/bench/step.py                      # 16 frames by 4 clips, 64 frames by 2
    python scripts/bench/step.py --frames 16 --rounds 9 --rows ours 'ours 75%' 'torch sdpa'

Both: 384 x 12 x 6, tubelets of 2 x 16 x 16 pixels, 128 pixels, float32, forward, backward and
AdamW. The loss is InfoNCE of the clips against given text vectors: neither side has a text tower.
`ours` is the project's own step (long_vivit.step); torch is transformers' VivitModel, its CLS token
projected, with torch.optim.AdamW(fused=True). Each row is a process of its own, which waits while
the others step: they take turns, and each one's peak memory is its own.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

ROWS = ('ours', 'ours 75%', 'torch sdpa', 'torch eager')
CLIPS = {16: 4, 64: 2}  # frames -> clips in a batch
WIDTH, DEPTH, HEADS, EMBED = 384, 12, 6, 512
PIXELS, PATCH, TUBELET = 128, 16, 2


# One row, in its process ----------------------------------------------------------------------


def drawn(grid, clips, rate):
    """A batch of so many clips of noise, as the pipeline would send it."""
    import numpy as np

    kept = round(np.prod(grid) * (1 - rate))
    rng = np.random.default_rng(0)
    places = np.stack(np.unravel_index(np.sort(rng.permutation(np.prod(grid))[:kept]), grid), -1)
    return {
        'patches': rng.integers(0, 256, (clips, kept, TUBELET * PATCH**2 * 3), np.uint8),
        'where': np.broadcast_to(places, (clips, kept, 3)).astype(np.int32),
        'z_text': np.eye(clips, EMBED, dtype=np.float32),
        'ok': np.ones(clips, bool),
        'text_key': np.arange(clips, dtype=np.int32),
    }


def ours(frames, clips, rate):
    """-> (a function that takes one step, facts about the compiled program)."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from long_vivit import optim
    from long_vivit.compiling import compiler_options
    from long_vivit.models.video import VideoEncoder
    from long_vivit.perf import keep_freed_memory
    from long_vivit.state import State
    from long_vivit.step import make_step

    keep_freed_memory()
    grid = frames // TUBELET, PIXELS // PATCH, PIXELS // PATCH

    class Tower(nnx.Module):
        """The video encoder, with given vectors for the texts."""

        def __init__(self):
            self.video = VideoEncoder(
                grid=grid, patch=PATCH, tubelet=TUBELET, width=WIDTH, depth=DEPTH, heads=HEADS,
                embed=EMBED, pool='mean', attention='blockwise', remat='none', dtype=jnp.float32,
                rngs=nnx.Rngs(0),
            )  # fmt: skip
            self.log_scale = nnx.Param(jnp.log(1 / jnp.float32(0.07)))

        def __call__(self, batch, *, num_frozen=0):
            return self.video(batch['patches'], batch['where']), batch['z_text']

    batch = drawn(grid, clips, rate)
    fields = {'lr': 1e-4, 'steps': 1000, 'warmup_steps': 0}
    optimiser = optim.make(jax.eval_shape(Tower), **fields, weight_decay=0.1, clip=1.0)
    step = make_step(
        optimiser, optim.lr_schedule(**fields), max_scale=100.0, label_smoothing=0.0,
        num_frozen=0, ema_decay=0.0,
    )  # fmt: skip

    def init():
        model = Tower()
        return State(jnp.zeros((), jnp.int32), model, optimiser.init(model))

    state = jax.jit(init)()
    step = jax.jit(step, donate_argnums=0, compiler_options=compiler_options())
    step = step.lower(state, batch).compile()
    held = [state]

    def once():
        held[0], watch = step(held[0], batch)
        return float(jax.block_until_ready((held[0], watch))[1]['loss'])

    return once, {'temporary_mib': step.memory_analysis().temp_size_in_bytes / 2**20}


def torch_vivit(frames, clips, attention):
    """-> (a function that takes one step, {})."""
    import torch
    from transformers import VivitConfig, VivitModel

    torch.manual_seed(0)
    config = VivitConfig(
        image_size=PIXELS, num_frames=frames, tubelet_size=[TUBELET, PATCH, PATCH],
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH, attn_implementation=attention,
    )  # fmt: skip
    video = VivitModel(config, add_pooling_layer=False)
    model = torch.nn.ModuleDict({'video': video, 'head': torch.nn.Linear(WIDTH, EMBED, bias=False)})
    scale = torch.nn.Parameter(torch.tensor(1 / 0.07).log())
    optimiser = torch.optim.AdamW([*model.parameters(), scale], lr=1e-4, fused=True)
    frames_uint8 = torch.randint(0, 256, (clips, frames, 3, PIXELS, PIXELS), dtype=torch.uint8)
    texts, labels = torch.eye(clips, EMBED), torch.arange(clips)

    def once():
        optimiser.zero_grad(set_to_none=True)
        out = model['video'](pixel_values=frames_uint8.float() / 127.5 - 1)
        z = torch.nn.functional.normalize(model['head'](out.last_hidden_state[:, 0]), dim=-1)
        logits = scale.exp() * z @ texts.T
        entropy = torch.nn.functional.cross_entropy
        loss = (entropy(logits, labels) + entropy(logits.T, labels)) / 2
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    return once, {}


def worker(row, frames, clips):
    """Takes a step for each line on stdin, and says in JSON how long it took."""
    library, _, how = row.partition(' ')
    if library == 'torch':
        once, facts = torch_vivit(frames, clips, how)
    else:
        once, facts = ours(frames, clips, float(how.strip('%') or 0) / 100)
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        loss = once()
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({'seconds': seconds, 'loss': loss, 'peak_mib': peak}), flush=True)


# All rows in turn -----------------------------------------------------------------------------


def measure(rows, frames, clips, rounds):
    """{row: {'seconds': [...], 'peak_mib', ...}}; the first round warms up and is left out."""
    command = [sys.executable, __file__, '--frames', str(frames), '--worker']
    workers = {
        row: subprocess.Popen(
            [*command, row], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for row in rows
    }
    found = {row: {'seconds': []} | json.loads(w.stdout.readline()) for row, w in workers.items()}
    for turn in range(rounds + 1):
        for row, one in workers.items():
            one.stdin.write('\n')
            one.stdin.flush()
            answer = json.loads(one.stdout.readline())
            seconds = answer.pop('seconds')
            found[row] |= answer
            if turn:
                found[row]['seconds'].append(seconds)
    for one in workers.values():
        one.stdin.close()
        one.wait()
    return found


def show(found, frames, clips):
    """A line for each row: median (min to max), the ratio to torch sdpa round by round."""
    print(f'{frames} frames, {clips} clips, {PIXELS} pixels')
    base = found.get('torch sdpa')
    for row, one in found.items():
        seconds = one['seconds']
        line = f'  {row:12} {statistics.median(seconds):6.2f} s'
        line += f' ({min(seconds):.2f} to {max(seconds):.2f}), peak {one["peak_mib"]:.0f} MiB'
        if 'temporary_mib' in one:
            line += f' ({one["temporary_mib"]:.0f} temporary)'
        if base and one is not base:
            pairs = [a / b for a, b in zip(seconds, base['seconds'], strict=True)]
            line += f'; {statistics.median(pairs):.2f} x the time of torch sdpa'
            line += f' and {one["peak_mib"] / base["peak_mib"]:.2f} x its memory'
        print(line, flush=True)


def main():
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--frames', type=int, nargs='+', choices=CLIPS, default=list(CLIPS))
    parser.add_argument('--rows', nargs='+', choices=ROWS, default=ROWS)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--worker', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.frames[0], CLIPS[args.frames[0]])
        return
    for frames in args.frames:
        show(measure(args.rows, frames, CLIPS[frames], args.rounds), frames, CLIPS[frames])


if __name__ == '__main__':
    main()
