"""Our own parameters for other programs: one safetensors file, a config.json, the tokenizer.

model.safetensors   the flat names of `long_vivit.names`, float32
config.json         the architecture (`architecture`), and what the model was taught to look at
tokenizer.json      of the `tokenizers` library

scripts/torch_twin.py reads such a folder with PyTorch alone and says what each name is. It does not
run the backbones that have these besides (L layers):

video/trunk/blocks/temporal/...   factorised: norm, attention over time, gate [L] in each block;
                                  tanh(gate) times what comes of it is added before the MLP
video/over_time/trunk/...         factorised_encoder, frames with frame_pool temporal: the layers
                                  over slices, named as in a trunk
video/over_time/map/...           frames with frame_pool attention: named as video/map
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from long_vivit.models.positions import ROTARY_BASE
from long_vivit.writers import write_json_atomic, write_text_atomic

FORMAT, VERSION = 'long_vivit', 1


def architecture(model) -> dict[str, Any]:
    """What a program must know to build a `DualEncoder` anew, read off the model itself.

    Returns:
      {'video': {...}, 'text': {...}, 'embed': e, 'logit_bias': bool}. The fields of the towers are
      those of configs/base.py (without a backbone: 'joint'); besides, 'grid' of the video is
      [t, h, w], 'length' (0: any, there is no table) and 'vocab' of the text are the rows of its
      tables.
    """
    video, text = model.video, model.text
    if video.tubes is not None:
        raise ValueError('a model with tubes (stages.NAME.tubes) cannot be exported yet')
    tubelet, rotary = video.tubelet_embed, text.positions is None
    side = round((video.image_embed.kernel.shape[0] / 3) ** 0.5)
    return {
        'video': {
            **_trunk(video.trunk),
            **_adapters(video.trunk.blocks),
            'grid': list(video.positions.grid),
            'patch': side,
            'tubelet': 1 if tubelet is None else tubelet.kernel.shape[0] // (side * side * 3),
            'pool': 'map' if video.map is not None else 'mean' if video.cls is None else 'cls',
            'cls_repeat': bool(video.cls_repeat),
            'norm_input': video.norm_input is not None,
            'positions': 'joint' if video.positions.joint is not None else 'split',
            'head': video.head is not None,
            **_backbone(video),
        },
        'text': {
            **_trunk(text.trunk),
            'vocab': text.embed.shape[0],
            'length': 0 if rotary else text.positions.shape[0],
            'kind': text.kind,
            'positions': 'rotary' if rotary else 'learned',
            'rotary_base': ROTARY_BASE,
            'head_bias': text.head.bias is not None,
        },
        'embed': text.head.kernel.shape[-1],
        'logit_bias': model.logit_bias is not None,
    }


def _backbone(video) -> dict[str, Any]:
    """The backbone and what it has above its slices; nothing of joint attention."""
    over_time = video.over_time
    if video.backbone == 'joint':
        return {}
    if over_time is None:
        return {'backbone': video.backbone}
    layers = over_time.trunk is not None
    return {
        'backbone': video.backbone,
        'frame_pool': 'temporal' if layers else 'mean' if over_time.map is None else 'attention',
        'temporal_depth': over_time.trunk.depth if layers else 0,
    }


def _trunk(trunk) -> dict[str, Any]:
    """The sizes and choices of a tower's blocks."""
    depth, width, _, heads, _ = trunk.blocks.attention.qkv.shape
    return {
        'width': width, 'depth': depth, 'heads': heads,
        'mlp_width': trunk.blocks.up.kernel.shape[-1],
        'activation': trunk.blocks.activation, 'norm_epsilon': trunk.norm.epsilon,
    }  # fmt: skip


def _adapters(blocks) -> dict[str, int]:
    """{'adapter_width': hidden values}, or nothing without adapters."""
    adapter = blocks.adapter
    return {} if adapter is None else {'adapter_width': adapter.narrow.kernel.shape[-1]}


def write(
    folder: Path, params: Mapping[str, np.ndarray], config: Mapping[str, Any], tokenizer_json: str
) -> None:
    """Writes the three files. config: what config.json shall hold besides format and version."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder, params)
    write_json_atomic(folder / 'config.json', {'format': FORMAT, 'version': VERSION, **config})
    write_text_atomic(folder / 'tokenizer.json', tokenizer_json)


def save_tensors(folder: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """FOLDER/model.safetensors, float32, with the mark that Transformers asks for."""
    flat = {name: np.asarray(x, np.float32, order='C') for name, x in tensors.items()}
    save_file(flat, folder / 'model.safetensors', metadata={'format': 'pt'})
