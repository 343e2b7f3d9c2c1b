"""SigLIP and SigLIP 2 of one resolution, in the layout of Hugging Face.

config.json                its model_type is 'siglip', for SigLIP 2 as well; 'siglip2' there is
                           NaFlex, which takes images of any shape and is another model
model.safetensors          or model.safetensors.index.json and the shards that it names
preprocessor_config.json   mean and standard deviation of the pixels
tokenizer.json             of SigLIP 2, which has Gemma's vocabulary

The image tower has no class token and no projection: a learnt probe looks at all patches. The text
tower reads all 64 places, padding too, and gives the last one's output. The loss goes pair by pair
and has a bias (arXiv 2303.15343; SigLIP 2: 2502.14786).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange

from long_vivit.weights import Described, clip, pairs, rows, tokenizer_of
from long_vivit.weights.files import open_tensors, read_json
from long_vivit.weights.rows import Row, Tower, one

# What a config.json that leaves a field out means by it (transformers, SiglipConfig).
SHARED = {
    'hidden_size': 768, 'intermediate_size': 3072, 'num_hidden_layers': 12,
    'num_attention_heads': 12, 'hidden_act': 'gelu_pytorch_tanh', 'layer_norm_eps': 1e-6,
}  # fmt: skip
TEXT = SHARED | {'max_position_embeddings': 64, 'vocab_size': 32000, 'projection_size': None}
VISION = SHARED | {
    'num_channels': 3, 'image_size': 224, 'patch_size': 16, 'vision_use_head': True,
}  # fmt: skip
HALF = (0.5, 0.5, 0.5)
PIXELS = pairs.Pixels(HALF, HALF, 'bilinear')  # where no preprocessor_config.json says so
BUFFERS = re.compile(r'(text|vision)_model\.embeddings\.position_ids')
SPACE = 'video/positions/space'
MAX_SCALE = 1000.0  # theirs is held nowhere; it ends near 110


class Sizes(NamedTuple):
    """The shape of a SigLIP, and the choices that its weights do not show."""

    video: Tower
    text: Tower
    patch: int
    side: int  # patches along a side of the image
    length: int  # rows of the text's position table
    vocab: int
    activation: str
    text_activation: str
    epsilon: float
    text_epsilon: float

    def fields(self) -> dict[str, Any]:
        """The architecture in the paths of configs/base.py, and the loss it was taught by."""
        return {
            **self.video.fields(
                'video', self.activation, self.epsilon, patch=self.patch, pool='map',
                norm_input=False, positions='split', head=False,
            ),
            **self.text.fields(
                'text', self.text_activation, self.text_epsilon, kind='padded', head_bias=True
            ),
            'model.embed': self.video.width,
            'loss.kind': 'sigmoid',
            'loss.max_scale': MAX_SCALE,
        }  # fmt: skip


def describe(path: Path) -> Described:
    """See `weights.describe`."""
    sizes = sizes_of(path)
    rows.check(rows_of(sizes), open_tensors(path), BUFFERS.fullmatch)
    return Described(
        sizes.fields(), tokenizer_of(path), sizes.vocab, 'sigmoid',
        pixels=sizes.side * sizes.patch, text_length=sizes.length,
        scaling=clip.pixels_of(path, PIXELS)[0].scaling,
    )  # fmt: skip


def read(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """See `weights.read`."""
    sizes = sizes_of(path)
    table, tensors = rows_of(sizes), open_tensors(path)
    pixels, lines = clip.pixels_of(path, PIXELS)
    lines += rows.check(table, tensors, BUFFERS.fullmatch)
    params = rows.read(table, tensors)
    params[SPACE] = rearrange(params[SPACE], '(h w) d -> h w d', h=sizes.side)
    params['video/positions/time'] = np.zeros((1, sizes.video.width), np.float32)
    kernel, bias = 'video/image_embed/kernel', 'video/image_embed/bias'
    params[kernel], params[bias] = rows.fold_pixels(
        params[kernel], params[bias], pixels.mean, pixels.std
    )
    return params, lines


def sizes_of(path: Path) -> Sizes:
    """What config.json says. Raises ValueError where it is no SigLIP that this model can be."""
    config = read_json(path / 'config.json')
    kind = config.get('model_type')
    if kind != 'siglip':
        what = ' (NaFlex, which takes images of any shape)' if kind == 'siglip2' else ''
        raise ValueError(
            f"{path / 'config.json'}: model_type is {kind!r}{what}; it must be 'siglip', which "
            'SigLIP 2 of one resolution has too. Another family: see long_vivit/weights.'
        )
    text = TEXT | (config.get('text_config') or {})
    vision = VISION | (config.get('vision_config') or {})
    side, left = divmod(vision['image_size'], vision['patch_size'])
    embed = text['projection_size'] or text['hidden_size']
    faults = [
        f'{name} is {value}, {wanted}'
        for name, value, wanted, right in (
            ('vision_config.num_channels', vision['num_channels'], 'it must be 3',
             vision['num_channels'] == 3),
            ('vision_config.image_size', vision['image_size'],
             f'not a multiple of patch_size {vision["patch_size"]}', not left),
            ('vision_config.vision_use_head', vision['vision_use_head'], 'it must be true',
             vision['vision_use_head']),
            ('text_config.projection_size', embed,
             f'not the width {vision["hidden_size"]} of the image tower, which has no projection',
             embed == vision['hidden_size']),
            *((f'{name}_config.hidden_act', repr(part['hidden_act']),
               f'it must be one of {", ".join(clip.ACTIVATIONS)}',
               part['hidden_act'] in clip.ACTIVATIONS)
              for name, part in (('text', text), ('vision', vision))),
        )
        if not right
    ]  # fmt: skip
    if faults:
        raise ValueError('\n  '.join([f'{path / "config.json"}:', *faults]))
    return Sizes(
        video=clip.tower(vision), text=clip.tower(text), patch=vision['patch_size'], side=side,
        length=text['max_position_embeddings'], vocab=text['vocab_size'],
        activation=clip.ACTIVATIONS[vision['hidden_act']],
        text_activation=clip.ACTIVATIONS[text['hidden_act']], epsilon=vision['layer_norm_eps'],
        text_epsilon=text['layer_norm_eps'],
    )  # fmt: skip


def rows_of(sizes: Sizes) -> list[Row]:
    """The rows in the names of Hugging Face's SiglipModel."""
    v, t = sizes.video, sizes.text
    seen, read = 'vision_model', 'text_model'
    probe = f'{seen}.head'
    return [
        rows.patches('video/image_embed', f'{seen}.embeddings.patch_embedding', v.width,
                     sizes.patch),
        one('video/image_embed/bias', f'{seen}.embeddings.patch_embedding.bias', (v.width,)),
        one(SPACE, f'{seen}.embeddings.position_embedding.weight', (sizes.side**2, v.width)),
        *rows.blocks('video/trunk', f'{seen}.encoder.layers', v, 'transformers'),
        *rows.norm('video/trunk/norm', f'{seen}.post_layernorm', v.width),
        one('video/map/probe', f'{probe}.probe', (1, 1, v.width), '1 1 d -> d'),
        *rows.qkv('video/map/attention', {f'{probe}.attention.in_proj_': -1}, v),
        one('video/map/attention/out', f'{probe}.attention.out_proj.weight', (v.width, v.width),
            'd (m f) -> m f d', m=v.heads),
        one('video/map/attention/out_bias', f'{probe}.attention.out_proj.bias', (v.width,)),
        *rows.norm('video/map/norm', f'{probe}.layernorm', v.width),
        *rows.linear('video/map/up', f'{probe}.mlp.fc1', v.width, v.mlp),
        *rows.linear('video/map/down', f'{probe}.mlp.fc2', v.mlp, v.width),
        one('text/embed', f'{read}.embeddings.token_embedding.weight', (sizes.vocab, t.width)),
        one('text/positions', f'{read}.embeddings.position_embedding.weight',
            (sizes.length, t.width)),
        *rows.blocks('text/trunk', f'{read}.encoder.layers', t, 'transformers'),
        *rows.norm('text/trunk/norm', f'{read}.final_layer_norm', t.width),
        *rows.linear('text/head', f'{read}.head', t.width, v.width),
        one('log_scale', 'logit_scale', (1,), '1 ->'),
        one('logit_bias', 'logit_bias', (1,), '1 ->'),
    ]  # fmt: skip
