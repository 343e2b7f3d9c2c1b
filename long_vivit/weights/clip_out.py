"""A model of ours as a CLIP of Hugging Face's: what `weights/clip.py` reads, written.

Only what is CLIP's can be: a class token, a LayerNorm before the blocks, a causal text tower ...;
all that stands against it is said at once. The image tower goes out; tubelets and times stay here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from long_vivit.inputs.foreign_text import CLIP
from long_vivit.weights import clip, pairs
from long_vivit.weights.flat import save_tensors
from long_vivit.weights.pairs import Sizes
from long_vivit.weights.rows import Row, Tower
from long_vivit.writers import write_json_atomic, write_text_atomic

# Of model.*.activation, as Transformers calls them: what clip.ACTIVATIONS reads.
ACTIVATIONS = {'quick_gelu': 'quick_gelu', 'gelu_erf': 'gelu', 'gelu': 'gelu_pytorch_tanh'}
LEGACY_END = 2  # with this number of the end token CLIPModel takes the largest number instead


def faults(config: Mapping[str, Any], tokenizer: Any) -> Iterator[str]:
    """A line for all that keeps a model from being CLIP's.

    config: `flat.architecture` of it. tokenizer: an `inputs.text.Tokenizer`.
    """
    video, text = config['video'], config['text']
    wanted = (
        ('model.video.pool', video['pool'], 'cls'),
        ('model.video.norm_input', video['norm_input'], True),
        ('model.video.positions', video['positions'], 'split'),
        ('model.video.head', video['head'], True),
        ('model.text.kind', text['kind'], 'causal'),
        ('model.text.positions', text['positions'], 'learned'),
        ('model.text.head_bias', text['head_bias'], False),
    )
    for path, value, clips in wanted:
        if value != clips:
            yield f'{path}: is {value!r}, CLIP has {clips!r}'
    if video.get('adapter_width', 0):
        yield (
            f'model.video.adapter_width: is {video["adapter_width"]}; CLIP has none, and its '
            'weights cannot take them in'
        )
    backbone = video.get('backbone', 'joint')
    if backbone != 'joint' and (backbone, video.get('frame_pool')) != ('frames', 'mean'):
        yield (
            f'model.video.backbone: is {backbone!r}, which has more than an image tower above or '
            "within it; CLIP's is that of 'joint', or of 'frames' with frame_pool 'mean'"
        )
    if config['logit_bias']:
        yield "loss.kind: is 'sigmoid', whose logits have a bias; CLIP's have none"
    _, h, w = video['grid']
    if h != w:
        yield f"grid: {h} x {w} patches, CLIP's images are square"
    if tokenizer.scheme != CLIP:
        yield (
            f'data.tokenizer: is one of {tokenizer.scheme.name}, whose words CLIPTokenizer would '
            "split otherwise; only CLIP's can be written as vocab.json and merges.txt"
        )
    elif tokenizer.end == LEGACY_END:
        yield (
            'data.tokenizer: its end token has the number 2, for which Transformers takes the '
            "largest number of a text instead; CLIP's tokenizer has 49407"
        )


def tensors(params: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{CLIPModel's name: float32 array} of the image tower and the text tower."""
    video, text = config['video'], config['text']
    sizes = Sizes(
        video=_tower(video), text=_tower(text), patch=video['patch'], side=video['grid'][1],
        length=text['length'], vocab=text['vocab'], embed=config['embed'],
        activation=video['activation'],
    )  # fmt: skip
    return told(pairs.transformers_rows(sizes), unfinished(params, video))


def unfinished(params: Mapping[str, np.ndarray], video: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The parameters before `pairs.finish`: one table of positions, pixels as CLIP normalises them.

    CLIP's convolution has no bias: what it would add to every patch goes into their positions, as
    do the times of an encoder whose tubelets are single frames: an image is then at time 0.
    """
    kernel, bias = unfold_pixels(params['video/image_embed/kernel'], pairs.MEAN, pairs.STD)
    bias = bias + params['video/image_embed/bias']
    timed = video.get('backbone', 'joint') != 'frames'
    if video['tubelet'] == 1 and video['grid'][0] > 1 and timed:
        bias = bias + params['video/positions/time'][0]
    places = rearrange(params['video/positions/space'], 'h w d -> (h w) d') + bias
    table = np.concatenate([np.zeros_like(places[:1]), places])
    return {**params, 'video/image_embed/kernel': kernel, pairs.TABLE: table}


def unfold_pixels(
    kernel: np.ndarray, mean: Sequence[float], std: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Our patch kernel [(p q c), d], for pixels from -1 to 1, as one for (x - mean) / std with x
    from 0 to 1, and the bias [d] that it then needs. See `rows.fold_pixels`."""
    by_channel = rearrange(np.asarray(kernel, np.float64), '(p c) d -> p c d', c=3)
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    shift = np.einsum('pcd,c->d', by_channel, 2 * mean - 1)
    scaled = rearrange(by_channel * (2 * std)[:, None], 'p c d -> (p c) d')
    return scaled.astype(np.float32), shift.astype(np.float32)


def told(table: Sequence[Row], params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `rows.read`: their tensors, from ours, by the same rows.

    A row only rearranges, so where each number came from tells where it must go.
    """
    found = {}
    for row in table:
        for part in row.parts:
            value = np.asarray(params[row.ours], np.float32)[part.at]
            if part.turn is not None:
                count = int(np.prod(part.shape))
                places = part.turn(np.arange(count).reshape(part.shape)).ravel()
                theirs = np.empty(count, np.float32)
                theirs[places] = value.ravel()
                value = theirs
            found[part.theirs] = value.reshape(part.shape)
    return found


def model_config(config: Mapping[str, Any], tokens: Mapping[str, int | None]) -> dict[str, Any]:
    """config.json of a CLIPModel. tokens: numbers of start, end and pad."""
    video, text = config['video'], config['text']
    return {
        'architectures': ['CLIPModel'],
        'model_type': 'clip',
        'projection_dim': config['embed'],
        'text_config': {
            'model_type': 'clip_text_model', 'projection_dim': config['embed'],
            'vocab_size': text['vocab'], 'max_position_embeddings': text['length'],
            'bos_token_id': tokens['start'], 'eos_token_id': tokens['end'],
            'pad_token_id': tokens['end'], **_fields(text),
        },
        'vision_config': {
            'model_type': 'clip_vision_model', 'projection_dim': config['embed'],
            'num_channels': 3, 'patch_size': video['patch'],
            'image_size': video['patch'] * video['grid'][1], **_fields(video),
        },
    }  # fmt: skip


def write(
    folder: Path, params: Mapping[str, np.ndarray], config: Mapping[str, Any], tokenizer: Any,
    scaling: str,
) -> None:  # fmt: skip
    """Writes the folder: weights, config.json, how pixels and texts are prepared.

    scaling: of data.scaling.
    Raises ValueError: listing what keeps the model from being CLIP's.
    """
    if wrong := list(faults(config, tokenizer)):
        head = f'this model is not a CLIP, {len(wrong)} point(s) stand against it:'
        raise ValueError('\n  '.join([head, *wrong, 'export it with --format safetensors']))
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder, tensors(params, config))
    tokens = {'start': tokenizer.start, 'end': tokenizer.end}
    write_json_atomic(folder / 'config.json', model_config(config, tokens))
    side = config['video']['patch'] * config['video']['grid'][1]
    write_json_atomic(folder / 'preprocessor_config.json', {
        'image_processor_type': 'CLIPImageProcessor', 'do_resize': True,
        'size': {'shortest_edge': side}, 'resample': clip.RESAMPLE[scaling],
        'do_center_crop': True, 'crop_size': {'height': side, 'width': side},
        'do_rescale': True, 'rescale_factor': 1 / 255, 'do_normalize': True, 'do_convert_rgb': True,
        'image_mean': pairs.MEAN, 'image_std': pairs.STD,
    })  # fmt: skip
    _write_tokenizer(folder, json.loads(tokenizer.to_json()), config['text']['length'])


def _write_tokenizer(folder: Path, stored: Mapping[str, Any], length: int) -> None:
    """vocab.json and merges.txt, from which Transformers builds CLIP's tokenizer as it should be:
    start and end around the text, padding, no more than `length` tokens."""
    vocab, merges = stored['model']['vocab'], stored['model']['merges']
    write_json_atomic(folder / 'vocab.json', vocab)
    pairs_ = (pair if isinstance(pair, str) else ' '.join(pair) for pair in merges)
    write_text_atomic(folder / 'merges.txt', '\n'.join(['#version: 0.2', *pairs_, '']))
    write_json_atomic(folder / 'tokenizer_config.json', {
        'tokenizer_class': 'CLIPTokenizer', 'model_max_length': length,
        'bos_token': '<|startoftext|>', 'eos_token': '<|endoftext|>',
        'pad_token': '<|endoftext|>', 'unk_token': '<|endoftext|>',
    })  # fmt: skip


def _tower(part: Mapping[str, Any]) -> Tower:
    return Tower(part['width'], part['depth'], part['heads'], part['mlp_width'])


def _fields(part: Mapping[str, Any]) -> dict[str, Any]:
    return {
        'hidden_size': part['width'], 'intermediate_size': part['mlp_width'],
        'num_hidden_layers': part['depth'], 'num_attention_heads': part['heads'],
        'hidden_act': ACTIVATIONS[part['activation']], 'layer_norm_eps': part['norm_epsilon'],
    }  # fmt: skip
