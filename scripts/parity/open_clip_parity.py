"""Plain CLIPs of open_clip, saved as it saves them for the hub."""

import json

import numpy as np
import safetensors.torch
import torch
import towers
from opened import open_clip
from strings import CAPTIONS
from tokens_parity import save_tokenizer

MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.3, 0.28)
SIZES = {  # name: fields of model_cfg, vision_cfg and text_cfg
    'Ti/16, 64 px, gelu, 77 tokens': ({}, {}, {}),
    'Ti/16, 64 px, quickgelu, 2 heads of 48': ({'quick_gelu': True}, {'head_width': 48}, {}),
    'Ti/14, 84 px, 120 tokens, eps 1e-6, text bias': (
        {'init_logit_bias': -10.0},
        {'image_size': 84, 'patch_size': 14, 'norm_kwargs': {'eps': 1e-6}},
        {'context_length': 120, 'proj_bias': True},
    ),
    'Ti/16, 64 px, gelu tanh, MLP 4.3637 d': (
        {}, {'mlp_ratio': 4.3637, 'act_kwargs': {'approximate': 'tanh'}}, {},
    ),
}  # fmt: skip


def build(top, vision, text):
    """A model and its model_cfg."""
    cfg = {
        'embed_dim': 64,
        'vision_cfg': {'layers': 3, 'width': 96, 'head_width': 32, 'image_size': 64} | vision,
        'text_cfg': {'layers': 2, 'width': 64, 'heads': 2} | text,
        **top,
    }
    return open_clip.CLIP(**cfg), cfg


def check(folder):
    """See `run.py`."""
    for number, (size, fields) in enumerate(SIZES.items()):
        place, (model, cfg) = folder / str(number), build(*fields)
        model = towers.loud(model, number)
        ids = save_tokenizer(place, CAPTIONS, model.context_length)
        save(place, model, cfg)
        frames = towers.images(4, model.visual.image_size[0], seed=number)
        wanted = reference(model, frames, ids, MEAN, STD)
        yield from towers.compare(size, f'open_clip:{place}', frames, CAPTIONS, wanted, still=(2,))


def save(place, model, cfg):
    """The files of a model on the hub."""
    pixels = {'mean': MEAN, 'std': STD}
    config = {'model_cfg': cfg, 'preprocess_cfg': pixels}
    (place / 'open_clip_config.json').write_text(json.dumps(config))
    safetensors.torch.save_file(model.state_dict(), place / 'open_clip_model.safetensors')


def reference(model, frames, ids, mean, std):
    """Embeddings and logits as open_clip computes them."""
    with torch.no_grad():
        image = torch.from_numpy(towers.normalised(frames, mean, std))
        text = torch.from_numpy(np.asarray(ids, np.int64))
        return {
            'image': model.encode_image(image, normalize=True).numpy(),
            'text': model.encode_text(text, normalize=True).numpy(),
            'logits': model.get_logits(image, text)[0].numpy(),
        }
