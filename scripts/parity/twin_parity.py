"""scripts/torch_twin.py, which loads `export --format safetensors`, against our encoders.

Every choice of configs/base.py that changes a tower, with random weights: videos of all patches and
of some, still images, texts of several lengths.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import towers

from long_vivit import config, recipe
from long_vivit.names import flatten, unflatten
from long_vivit.retrieval import encode_patches, encode_tokens
from long_vivit.weights import flat

sys.path.append(str(Path(__file__).parents[1]))
import torch_twin

VOCAB = 50
CLIPS = {'activation': 'quick_gelu', 'norm_epsilon': 1e-5}
CASES = {  # name: fields of model.video, of model.text, of model
    'as configs/base.py': ({}, {}, {}),
    'CLIP': ({'pool': 'cls', 'norm_input': True, **CLIPS}, {'kind': 'causal', **CLIPS}, {}),
    'SigLIP': (
        {'pool': 'map', 'head': False, 'mlp_width': 80, 'activation': 'gelu_erf'},
        {'kind': 'padded', 'head_bias': True, 'mlp_width': 72},
        {'embed': 32},
    ),
    'ViViT': (
        {'pool': 'cls', 'cls_repeat': False, 'positions': 'joint', 'activation': 'gelu_erf'},
        {}, {},
    ),
    'rotary': ({}, {'positions': 'rotary'}, {}),
    'rotary, causal': ({}, {'positions': 'rotary', 'kind': 'causal'}, {}),
    'tubelets of one frame': ({'tubelet': 1, 'pool': 'cls'}, {'kind': 'causal'}, {}),
    'adapters': ({'adapter_width': 5, 'activation': 'quick_gelu'}, {}, {}),
}  # fmt: skip
BACKBONES = ('factorised', 'factorised_encoder', 'frames')  # which the twin has not
TOWER = {'width': 32, 'depth': 3, 'heads': 4}


def build(video, text, model, frames=8, pixels=48, text_length=12):
    """A DualEncoder with random values in every parameter, as a stage of a run would have it."""
    cfg = config.base_config()
    cfg.run = ('image', 'short')  # adapters come behind a stage
    cfg.model.video.update(TOWER | {'patch': 16, **video})
    cfg.model.text.update(TOWER | text)
    cfg.model.update({'embed': 24} | model)
    for name in cfg.run:
        cfg.stages[name].update(train='videos:none.jsonl', pixels=pixels, text_length=text_length)
    cfg.stages.short.update(frames=frames, tune='adapters' if video.get('adapter_width') else 'all')
    run = config.resolve(cfg)
    made = recipe.model(run, run.stages[1], VOCAB, jax.random.key(0))
    rng = np.random.default_rng(0)
    noise = {
        name: leaf + jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32)
        for name, leaf in flatten(made).items()
    }
    return unflatten(made, noise)


def check(folder):
    """See `run.py`."""
    jax.config.update('jax_disable_most_optimizations', True)  # compiles many small programs
    for number, (name, fields) in enumerate(CASES.items()):
        model, place = build(*fields), folder / str(number)
        architecture = flat.architecture(model)
        params = {key: np.asarray(leaf) for key, leaf in flatten(model).items()}
        flat.write(place, params, architecture, '{}')
        yield from compare(name, model, torch_twin.load(place))
    for backbone in BACKBONES:
        video = flat.architecture(build({'backbone': backbone}, {}, {}))['video']
        yield towers.Row(f'backbone {backbone}', 'refused', float(not refused(video)), limit=0)


def refused(video):
    """Whether the twin says that it cannot run such a video tower."""
    try:
        torch_twin.Twin({'video': video})
    except ValueError as error:
        return f"'backbone': {video['backbone']!r}" in str(error)
    return False


def compare(name, model, twin):
    """Rows of one model."""
    rng = np.random.default_rng(1)
    for frames in (1, 8):
        clips = torch.from_numpy(rng.integers(0, 256, (3, frames, 48, 48, 3), np.uint8))
        patches, where = twin.video.patchify(clips)
        some = torch.from_numpy(np.sort(rng.permutation(patches.shape[1])[: patches.shape[1] // 2]))
        for what, kept in (('all', slice(None)), ('half', some)):
            cut = patches[:, kept], where[:, kept]
            with torch.no_grad():
                theirs = twin.encode_video(clips) if what == 'all' else twin.video(*cut)
            ours = encode_patches(model, *(jnp.asarray(x.numpy()) for x in cut))
            yield towers.Row(name, f'{frames} frames, {what}', towers.gap(ours, theirs))
    longest = 12 if twin.text.positions is None else len(twin.text.positions)
    for length in (longest,) if twin.text.kind == 'padded' else (longest, longest // 2):
        ids = rng.integers(0, VOCAB, (4, length))
        lengths = np.array([length, 2, 3, length - 1])
        with torch.no_grad():
            theirs = twin.encode_text(torch.from_numpy(ids), torch.from_numpy(lengths))
        ours = encode_tokens(model, jnp.asarray(ids), jnp.asarray(lengths))
        yield towers.Row(name, f'text of {length}', towers.gap(ours, theirs))
