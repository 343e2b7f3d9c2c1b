"""CLIP in the layout of Hugging Face: a folder with config.json and model.safetensors.

config.json                what the towers look like, from which every shape follows
model.safetensors          or model.safetensors.index.json and the shards that it names
preprocessor_config.json   mean and standard deviation of the pixels, how pictures are scaled
tokenizer.json             or vocab.json and merges.txt
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from long_vivit.weights import Described, longclip, pairs, rows, tokenizer_of
from long_vivit.weights.files import open_tensors, read_json

# What a config.json that leaves a field out means by it (transformers, CLIPConfig).
TEXT = {
    'hidden_size': 512, 'intermediate_size': 2048, 'num_hidden_layers': 12,
    'num_attention_heads': 8, 'max_position_embeddings': 77, 'vocab_size': 49408,
    'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-5,
}  # fmt: skip
VISION = {
    'hidden_size': 768, 'intermediate_size': 3072, 'num_hidden_layers': 12,
    'num_attention_heads': 12, 'num_channels': 3, 'image_size': 224, 'patch_size': 32,
    'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-5,
}  # fmt: skip
ACTIVATIONS = {
    'quick_gelu': 'quick_gelu', 'gelu': 'gelu_erf', 'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu',
}  # fmt: skip
RESAMPLE = {'bilinear': 2, 'bicubic': 3}  # data.scaling in the numbers of PIL
BUFFERS = re.compile(r'(text|vision)_model\.embeddings\.position_ids')


def describe(path: Path) -> Described:
    """See `weights.describe`."""
    sizes, _ = sizes_of(path)
    rows.check(pairs.transformers_rows(sizes), open_tensors(path), BUFFERS.fullmatch)
    return sizes.described(tokenizer_of(path))


def read(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """See `weights.read`."""
    sizes, lines = sizes_of(path)
    table, tensors = pairs.transformers_rows(sizes), open_tensors(path)
    lines += rows.check(table, tensors, BUFFERS.fullmatch)
    params = pairs.finish(rows.read(table, tensors), sizes)
    return params, lines + longclip.unsure(params['text/positions'])


def sizes_of(path: Path) -> tuple[pairs.Sizes, list[str]]:
    """What config.json says, and lines for people. Raises ValueError where it is no CLIP."""
    config = read_json(path / 'config.json')
    if config.get('model_type') != 'clip':
        raise ValueError(
            f'{path / "config.json"}: model_type is {config.get("model_type")!r}; it must be '
            "'clip'. Another family: see long_vivit/weights."
        )
    # Configs from before transformers 4.25 say the same once more in *_dict, which goes first.
    text, vision = (
        defaults | (config.get(f'{name}_config') or {}) | (config.get(f'{name}_config_dict') or {})
        for name, defaults in (('text', TEXT), ('vision', VISION))
    )
    side, left = divmod(vision['image_size'], vision['patch_size'])
    faults = [
        f'vision_config.{name} is {vision[name]}, {wanted}'
        for name, wanted, wrong in (
            ('num_channels', 'it must be 3', vision['num_channels'] != 3),
            ('image_size', f'not a multiple of patch_size {vision["patch_size"]}', left),
        )
        if wrong
    ]
    faults += [
        f'{name}_config.hidden_act is {part["hidden_act"]!r}, it must be one of '
        + ', '.join(ACTIVATIONS)
        for name, part in (('text', text), ('vision', vision))
        if part['hidden_act'] not in ACTIVATIONS
    ]
    if faults:
        raise ValueError('\n  '.join([f'{path / "config.json"}:', *faults]))
    pixels, lines = pixels_of(path)
    return pairs.Sizes(
        video=tower(vision), text=tower(text), patch=vision['patch_size'], side=side,
        length=text['max_position_embeddings'], vocab=text['vocab_size'],
        embed=config.get('projection_dim', 512), activation=ACTIVATIONS[vision['hidden_act']],
        text_activation=ACTIVATIONS[text['hidden_act']], epsilon=vision['layer_norm_eps'],
        text_epsilon=text['layer_norm_eps'], pixels=pixels,
    ), lines  # fmt: skip


def tower(part: dict) -> rows.Tower:
    """The sizes in a part of a config.json."""
    return rows.Tower(
        part['hidden_size'], part['num_hidden_layers'], part['num_attention_heads'],
        part['intermediate_size'],
    )  # fmt: skip


def pixels_of(path: Path, assumed=pairs.PIXELS) -> tuple[pairs.Pixels, list[str]]:
    """How the pictures of a folder are made ready, and a line where that is assumed."""
    for name in ('preprocessor_config.json', 'processor_config.json'):
        if (path / name).is_file():
            found = read_json(path / name)
            found = found.get('image_processor', found)
            if 'image_mean' in found and 'image_std' in found:
                number = found.get('resample')
                scaling = next((k for k, n in RESAMPLE.items() if n == number), assumed.scaling)
                pixels = tuple(found['image_mean']), tuple(found['image_std']), scaling
                return pairs.Pixels(*pixels), other_scaling(number, RESAMPLE.values(), scaling)
    mean, std, scaling = assumed
    line = f'no preprocessor_config.json there: pixels of mean {mean}, deviation {std}, {scaling}'
    return assumed, [line]


def other_scaling(given, known, scaling: str) -> list[str]:
    """A line where pictures were scaled in a way that is not offered here."""
    if given is None or given in known:
        return []
    return [f'pictures were scaled by {given!r}, which is not offered: {scaling}']
