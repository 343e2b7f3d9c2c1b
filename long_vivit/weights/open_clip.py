"""Plain CLIPs of open_clip: a folder with open_clip_config.json and open_clip_model.safetensors.

Read are models whose two towers are open_clip's own ViT and text transformer in their plain form.
Any field of the config that means another model (layer scale, attentional pooling, towers of timm
or Hugging Face ...) is refused by its name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from long_vivit.weights import Described, clip, longclip, pairs, rows, tokenizer_of
from long_vivit.weights.files import open_tensors, read_json

# What a field that is left out means (open_clip: CLIPVisionCfg, CLIPTextCfg).
VISION = {
    'layers': 12, 'width': 768, 'head_width': 64, 'mlp_ratio': 4.0, 'patch_size': 16,
    'image_size': 224, 'act_kwargs': None, 'norm_kwargs': None,
}  # fmt: skip
TEXT = {
    'layers': 12, 'width': 512, 'heads': 8, 'mlp_ratio': 4.0, 'context_length': 77,
    'vocab_size': 49408, 'proj_bias': False, 'act_kwargs': None, 'norm_kwargs': None,
}  # fmt: skip
# Fields that must be as they are in a plain CLIP; and those that change nothing of what is computed
# when scoring.
PLAIN = {
    'pool_type': ('tok', 'argmax'), 'pos_embed_type': ('learnable',), 'proj_type': ('linear',),
    'block_type': (None, 'default'),
}  # fmt: skip
FREE = {
    'patch_dropout', 'output_tokens', 'pad_id', 'eos_id', 'hf_tokenizer_name', 'tokenizer_kwargs',
    'tokenizer_mode', 'attn_pooler_queries', 'attn_pooler_heads', 'hf_model_pretrained',
    'timm_model_pretrained', 'timm_pool', 'timm_proj', 'timm_proj_bias', 'timm_drop',
    'timm_drop_path', 'hf_proj_type', 'hf_pooler_type',
}  # fmt: skip
TOP = {
    'embed_dim', 'vision_cfg', 'text_cfg', 'quick_gelu', 'init_logit_scale', 'init_logit_bias',
    'custom_text', 'nonscalar_logit_scale',
}  # fmt: skip
NOTHING = re.compile(r'attn_mask|(text|visual)\.attn_mask')


def describe(path: Path) -> Described:
    """See `weights.describe`."""
    sizes, _, tensors, table = _opened(path)
    rows.check(table, tensors, NOTHING.fullmatch)
    return sizes.described(tokenizer_of(path))


def read(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """See `weights.read`."""
    sizes, lines, tensors, table = _opened(path)
    lines += rows.check(table, tensors, NOTHING.fullmatch)
    params = pairs.finish(rows.read(table, tensors), sizes)
    return params, lines + longclip.unsure(params['text/positions'])


def _opened(path: Path):
    sizes, lines = sizes_of(path)
    tensors, table = open_tensors(path, 'open_clip_model'), pairs.openai_rows(sizes)
    if any(name.startswith('text.') for name in tensors.shapes):  # custom_text keeps it in a module
        table = [_custom(row) for row in table]
    return sizes, lines, tensors, table


def _custom(row: rows.Row) -> rows.Row:
    """The row where the text tower is a module of its own, `text`."""
    if not row.ours.startswith('text/'):
        return row
    parts = (part._replace(theirs=f'text.{part.theirs}') for part in row.parts)
    return row._replace(parts=tuple(parts))


def sizes_of(path: Path) -> tuple[pairs.Sizes, list[str]]:
    """What open_clip_config.json says, and lines. Raises ValueError where it is no plain CLIP."""
    file = path / 'open_clip_config.json'
    config = read_json(file)
    model = config.get('model_cfg', {})
    faults = [f'model_cfg.{name} is no field of a plain CLIP' for name in model.keys() - TOP]
    if model.get('nonscalar_logit_scale'):
        faults.append('model_cfg.nonscalar_logit_scale: a scale with a dim is not read')
    vision, text = VISION | model.get('vision_cfg', {}), TEXT | model.get('text_cfg', {})
    faults += _faults('vision_cfg', vision, VISION) + _faults('text_cfg', text, TEXT)
    quick = bool(model.get('quick_gelu'))
    made = {}
    for name, part in (('vision_cfg', vision), ('text_cfg', text)):
        try:
            made[name] = _activation(part['act_kwargs'], quick), _epsilon(part['norm_kwargs'])
        except ValueError as error:
            faults.append(f'model_cfg.{name}.{error}')
    image, patch = vision['image_size'], vision['patch_size']
    image = image[0] if isinstance(image, list) and len(set(image)) == 1 else image
    if not isinstance(image, int) or image % patch:
        faults.append(f'model_cfg.vision_cfg.image_size {image}: not a square of whole patches')
    if 'embed_dim' not in model:
        faults.append('model_cfg.embed_dim is missing')
    if faults:
        raise ValueError('\n  '.join([f'{file}: not a plain CLIP of open_clip:', *faults]))
    pixels, lines = _pixels(config.get('preprocess_cfg', {}))
    return pairs.Sizes(
        video=_tower(vision, vision['width'] // vision['head_width']),
        text=_tower(text, text['heads']),
        patch=patch, side=image // patch, length=text['context_length'], vocab=text['vocab_size'],
        embed=model['embed_dim'], activation=made['vision_cfg'][0], epsilon=made['vision_cfg'][1],
        text_activation=made['text_cfg'][0], text_epsilon=made['text_cfg'][1],
        head_bias=text['proj_bias'], logit_bias=model.get('init_logit_bias') is not None,
        pixels=pixels,
    ), lines  # fmt: skip


def _tower(part: dict[str, Any], heads: int) -> rows.Tower:
    width = part['width']
    return rows.Tower(width, part['layers'], heads, int(width * part['mlp_ratio']))


def _faults(name: str, part: dict[str, Any], known: dict[str, Any]) -> list[str]:
    """Fields that make another model of it. What is false or empty asks for nothing."""
    return [
        f'model_cfg.{name}.{key} is {value!r}, which is not read'
        for key, value in part.items()
        if key not in known.keys() | FREE
        and value
        and value not in PLAIN.get(key, ())
        or key == 'layers'
        and not isinstance(value, int)
    ]


def _activation(options: dict | None, quick: bool) -> str:
    if quick and not options:
        return 'quick_gelu'
    if not quick and (options or {}) in ({}, {'approximate': 'none'}):
        return 'gelu_erf'
    if not quick and options == {'approximate': 'tanh'}:
        return 'gelu'
    raise ValueError(f'act_kwargs is {options!r}, which is not read')


def _epsilon(options: dict | None) -> float:
    if (options or {}).keys() - {'eps'}:
        raise ValueError(f'norm_kwargs is {options!r}, which is not read')
    return (options or {}).get('eps', 1e-5)


def _pixels(found: dict[str, Any]) -> tuple[pairs.Pixels, list[str]]:
    given = found.get('interpolation')  # open_clip may also draw one of the two, 'random'
    scaling = given if given in clip.RESAMPLE else pairs.PIXELS.scaling
    lines = clip.other_scaling(given, clip.RESAMPLE, scaling)
    if 'mean' in found and 'std' in found:
        return pairs.Pixels(tuple(found['mean']), tuple(found['std']), scaling), lines
    line = f"no preprocess_cfg there: pixels as OpenAI's CLIP has them, mean {pairs.MEAN}"
    return pairs.Pixels(scaling=scaling), [*lines, line]
