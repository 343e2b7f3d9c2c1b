"""A run so small that it takes seconds, for the tests that train: the flow of configs/long.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from configs import long
from long_vivit import config
from long_vivit.checkpoints import read_flat, steps
from tests import quick

ROOT = Path(__file__).parent.parent
STAGES = ('image', 'short', 'long')
# Fields of metrics.jsonl and results.json that are measured times or memory.
MEASURED = {'clips_per_s', 'tokens_per_s', 'data_wait_share', 'eta_s', 'seconds'}
MEASURED |= {'peak_memory_bytes', 'peak_memory_of', 'mfu', 'device_peak_bytes'}

# Every size is set here, so that the recipe may be tuned without harm to the tests.
FIELDS = {
    'seed': 0,
    'run': STAGES,
    'model.video.size': 'custom', 'model.video.width': 16, 'model.video.depth': 1,
    'model.video.heads': 2, 'model.video.patch': 16, 'model.video.tubelet': 2,
    'model.video.pool': 'mean', 'model.video.remat': 'none',
    'model.text.width': 16, 'model.text.depth': 1, 'model.text.heads': 2,
    'model.text.kind': 'bidirectional', 'model.text.length': 0, 'model.embed': 16,
    'model.dtype': 'float32', 'model.attention': 'dense',
    'loss.temperature': 0.07, 'loss.max_scale': 100.0, 'loss.label_smoothing': 0.0,
    'optim.b1': 0.9, 'optim.b2': 0.98, 'optim.eps': 1e-8, 'optim.weight_decay': 0.1,
    'optim.clip': 1.0, 'optim.ema': 0.0,
    'checkpoint.every': 2, 'checkpoint.keep': 10, 'log.every': 3, 'eval.every': 0,
}  # fmt: skip
STAGE_FIELDS = {
    'pixels': 32, 'batch': 8, 'eval_batch': 16, 'lr': 1e-3, 'warmup_steps': 1,
    'sampler': 'rand_seg', 'eval_sampler': 'mid', 'mask_kind': 'tube', 'mask_rate': 0.5,
    'text': 'caption', 'text_length': 16, 'image_train': '', 'image_ratio': 0.0, 'last_layers': 0,
}  # fmt: skip
OWN_FIELDS = {
    'image': {'frames': 1, 'steps': 4, 'mask_rate': 0.0},
    'short': {'frames': 4, 'steps': 6},
    'long': {'frames': 8, 'steps': 5, 'text': 'long_caption', 'text_length': 32},
}


def fields(data_dir, workdir, **changes):
    """{path: value} of the tiny run; `changes` by path with __ for the dots."""
    found = {**FIELDS, 'data.dir': str(data_dir), 'workdir': str(workdir)}
    for name in STAGES:
        own = {'train': f'shape_stories/{name}:train', 'eval': f'shape_stories/{name}:test'}
        for field, value in {**STAGE_FIELDS, **own, **OWN_FIELDS[name]}.items():
            found[f'stages.{name}.{field}'] = value
    found |= {path.replace('__', '.'): value for path, value in changes.items()}
    return found


def resolved(data_dir, workdir, **changes):
    """The tiny run for `train.train`."""
    cfg = long.get_config()
    cfg.update_from_flattened_dict(fields(data_dir, workdir, **changes))
    return config.resolve(cfg)


def flags(data_dir, workdir, **changes):
    """The same on the command line."""
    found = fields(data_dir, workdir, **changes).items()
    shown = {path: ','.join(x) if isinstance(x, tuple) else x for path, x in found}
    return ['--config=configs/long.py', *(f'--config.{path}={x}' for path, x in shown.items())]


def child(arguments, cache=None):
    """`python ARGUMENTS` on one device -> the finished process, its output as text.

    cache: a folder for compiled programs, which are then not optimised; None compiles as users do.
    """
    ours = ('XLA_FLAGS', 'JAX_DISABLE_MOST_OPTIMIZATIONS')  # of conftest.py
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    if cache is not None:
        environment |= quick.environment(cache)
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


def curves(workdir):
    """The lines of metrics.jsonl without what was measured."""
    lines = map(json.loads, (Path(workdir) / 'metrics.jsonl').read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]


def results(workdir):
    """The stages of results.json."""
    return json.loads((Path(workdir) / 'results.json').read_text())['stages']


def checkpoints(workdir, stage):
    """{step: path} of the checkpoints of a stage that are whole."""
    folder = Path(workdir) / 'stages' / stage / 'checkpoints'
    return {step: folder / str(step) for step in steps(folder)}


def differing(checkpoint, other):
    """Names of the arrays of two checkpoints that are not equal in every bit."""
    one, two = read_flat(checkpoint), read_flat(other)
    assert one.keys() == two.keys()
    assert len(one) > 50
    return [name for name in one if one[name].tobytes() != np.asarray(two[name]).tobytes()]
