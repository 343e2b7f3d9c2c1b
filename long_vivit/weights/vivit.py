"""ViViT (arXiv 2103.15691, model 1) in the layout of Hugging Face: google/vivit-b-16x2 and its kin.

config.json         its model_type is 'vivit'
model.safetensors   of VivitModel or VivitForVideoClassification; or an index and its shards

A video tower only: the projection to the joint space and the text tower start afresh, and a head
for classes is left out. One class token stands for the whole video; all places at all times have
one table. An image gets the kernel of a tubelet that shows it still.

Pixels go from -1 to 1, as these weights were taught. The video processor that transformers has for
them may scale further, by mean and deviation 0.5; the conversion of the released weights asserts
that nothing of the kind was done to what they saw.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange, reduce

from long_vivit.weights import Described, clip, rows
from long_vivit.weights.files import Tensors, open_tensors, read_json
from long_vivit.weights.rows import Row, Tower, one

# What a config.json that leaves a field out means by it (transformers, VivitConfig).
DEFAULTS = {
    'image_size': 224, 'num_frames': 32, 'tubelet_size': [2, 16, 16], 'num_channels': 3,
    'hidden_size': 768, 'num_hidden_layers': 12, 'num_attention_heads': 12,
    'intermediate_size': 3072, 'hidden_act': 'gelu_fast', 'layer_norm_eps': 1e-6, 'qkv_bias': True,
}  # fmt: skip
ACTIVATIONS = clip.ACTIVATIONS | {'gelu_fast': 'gelu'}
HEADS = re.compile(r'(vivit\.)?(classifier|pooler\.dense)\.(weight|bias)')
TABLE = 'video/positions/table'  # class token and places in one table, until `read` ends


class Sizes(NamedTuple):
    """The shape of a ViViT, and the choices that its weights do not show."""

    video: Tower
    tubelet: int  # frames
    patch: int
    grid: tuple[int, int, int]  # tubelets, rows and columns of patches
    activation: str
    epsilon: float

    def fields(self) -> dict[str, Any]:
        """The architecture in the paths of configs/base.py."""
        return self.video.fields(
            'video', self.activation, self.epsilon, norm_input=False, patch=self.patch,
            tubelet=self.tubelet, pool='cls', cls_repeat=False, positions='joint', head=True,
        )  # fmt: skip


def describe(path: Path) -> Described:
    """See `weights.describe`."""
    sizes, tensors = sizes_of(path), open_tensors(path)
    rows.check(rows_of(sizes, tensors), tensors, HEADS.fullmatch)
    t, h, _ = sizes.grid
    return Described(sizes.fields(), pixels=h * sizes.patch, frames=t * sizes.tubelet)


def read(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """See `weights.read`."""
    sizes, tensors = sizes_of(path), open_tensors(path)
    table = rows_of(sizes, tensors)
    rows.check(table, tensors, HEADS.fullmatch)
    lines = [
        f'{name}: left out, of a head for classes'
        for name in tensors.shapes
        if HEADS.fullmatch(name)
    ]
    params, (t, h, w) = rows.read(table, tensors), sizes.grid
    places = params.pop(TABLE)
    params['video/cls'] += places[0]
    joint = rearrange(places[1:], '(t h w) d -> t h w d', t=t, h=h, w=w)
    params['video/positions/joint'] = joint
    kernel, bias = (f'video/{stem(sizes)}/{name}' for name in ('kernel', 'bias'))
    if sizes.tubelet > 1:
        still = reduce(params[kernel], '(r i) d -> i d', 'sum', r=sizes.tubelet)
        params['video/image_embed/kernel'] = still
        params['video/image_embed/bias'] = params[bias].copy()
    return params, lines


def stem(sizes: Sizes) -> str:
    """Where the convolution goes: a tubelet of one frame is an image."""
    return 'tubelet_embed' if sizes.tubelet > 1 else 'image_embed'


def sizes_of(path: Path) -> Sizes:
    """What config.json says. Raises ValueError where it is no ViViT that this model can be."""
    config = read_json(path / 'config.json')
    if config.get('model_type') != 'vivit':
        raise ValueError(
            f'{path / "config.json"}: model_type is {config.get("model_type")!r}; it must be '
            "'vivit'. Another family: see long_vivit/weights."
        )
    config = DEFAULTS | config
    side = config['image_size']
    sides = list(side) if isinstance(side, list) else [side, side]
    r, p, q = config['tubelet_size']
    faults = [
        f'{name} is {config[name]!r}, {wanted}'
        for name, wanted, right in (
            ('num_channels', 'it must be 3', config['num_channels'] == 3),
            ('qkv_bias', 'it must be true', config['qkv_bias']),
            ('image_size', 'it must be a square of whole patches',
             len(set(sides)) == 1 and sides[0] % p == 0),
            ('tubelet_size', 'its last two must be equal', p == q),
            ('num_frames', f'not a multiple of {r}, the frames of a tubelet',
             config['num_frames'] % r == 0),
            ('hidden_act', f'it must be one of {", ".join(ACTIVATIONS)}',
             config['hidden_act'] in ACTIVATIONS),
        )
        if not right
    ]  # fmt: skip
    if faults:
        raise ValueError('\n  '.join([f'{path / "config.json"}:', *faults]))
    return Sizes(
        video=clip.tower(config), tubelet=r, patch=p,
        grid=(config['num_frames'] // r, sides[0] // p, sides[0] // p),
        activation=ACTIVATIONS[config['hidden_act']], epsilon=config['layer_norm_eps'],
    )  # fmt: skip


def rows_of(sizes: Sizes, tensors: Tensors) -> list[Row]:
    """The rows in the names that the file has.

    With a head for classes all are below 'vivit.'; blocks are named anew since transformers 5.
    """
    (t, h, w), d, r, p = sizes.grid, sizes.video.width, sizes.tubelet, sizes.patch
    at = 'vivit.' if any(name.startswith('vivit.') for name in tensors.shapes) else ''
    old = any(name.startswith(f'{at}encoder.layer.') for name in tensors.shapes)
    layers, naming = ('encoder.layer', 'vit before 5') if old else ('layers', 'vit')
    embeddings = f'{at}embeddings'
    kernel = f'{embeddings}.patch_embeddings.projection'
    return [
        one(f'video/{stem(sizes)}/kernel', f'{kernel}.weight', (d, 3, r, p, p),
            'd c r p q -> (r p q c) d'),
        one(f'video/{stem(sizes)}/bias', f'{kernel}.bias', (d,)),
        one('video/cls', f'{embeddings}.cls_token', (1, 1, d), '1 1 d -> d'),
        one(TABLE, f'{embeddings}.position_embeddings', (1, 1 + t * h * w, d), '1 n d -> n d'),
        *rows.blocks('video/trunk', f'{at}{layers}', sizes.video, naming),
        *rows.norm('video/trunk/norm', f'{at}layernorm', d),
    ]  # fmt: skip
