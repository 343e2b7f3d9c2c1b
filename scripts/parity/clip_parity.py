"""CLIP as Hugging Face's transformers has it, saved by save_pretrained."""

import json

import numpy as np
import torch
import towers
from tokens_parity import TEXTS, save_tokenizer
from transformers import CLIPConfig, CLIPModel

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SIZES = {  # name: sizes of the two towers; heads are 64 wide as in CLIP, or 32 and 80
    'ViT-Ti/32, 64 px, 77 tokens': {},
    'ViT-Ti/16, 96 px, 77 tokens': {'image_size': 96, 'patch_size': 16},
    'ViT-Ti/14, 70 px, 248 tokens': {'image_size': 70, 'patch_size': 14, 'length': 248},
    'ViT-Ti/14, 84 px, gelu, MLP 3.5 d, eps 1e-6': {
        'image_size': 84, 'patch_size': 14, 'act': 'gelu', 'mlp': 3.5, 'eps': 1e-6,
    },
    'ViT-S/16, 224 px, 8 layers, 77 tokens': {
        'image_size': 224, 'patch_size': 16, 'width': 384, 'layers': 8,
    },
}  # fmt: skip


def config(image_size=64, patch_size=32, length=77, act='quick_gelu', mlp=4.0, eps=1e-5,
           width=128, layers=3):  # fmt: skip
    """The CLIPConfig of a size."""
    vision = {'hidden_size': width, 'intermediate_size': int(mlp * width),
              'num_hidden_layers': layers, 'num_attention_heads': width // 64,
              'image_size': image_size, 'patch_size': patch_size}  # fmt: skip
    text = {'hidden_size': 96, 'intermediate_size': int(mlp * 96), 'num_hidden_layers': 2,
            'num_attention_heads': 3, 'max_position_embeddings': length}  # fmt: skip
    same = {'hidden_act': act, 'layer_norm_eps': eps}
    return CLIPConfig(text_config=text | same, vision_config=vision | same, projection_dim=64)


def loud(model, seed=0):
    """Every parameter at a value of its own: as initialised, biases are zero and norms do nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith('logit_scale'):
                value.fill_(3.0)
            elif 'norm' in name or 'ln_' in name or name.endswith('bias'):
                value.add_(0.2 * noise)
            elif value.ndim > 1 and 'embedding' not in name:
                value.copy_(noise * value[0].numel() ** -0.5)
            else:
                value.copy_(0.5 * noise)
    return model.eval()


def check(folder):
    """See `run.py`."""
    for number, (size, fields) in enumerate(SIZES.items()):
        place = folder / str(number)
        cfg = config(**fields)
        model = loud(CLIPModel(cfg), number)
        # The last one in shards, as large models lie.
        model.save_pretrained(place, max_shard_size='20MB' if number == len(SIZES) - 1 else '5GB')
        (place / 'preprocessor_config.json').write_text(
            json.dumps({'image_mean': MEAN, 'image_std': STD})
        )
        ids = save_tokenizer(place, TEXTS, cfg.text_config.max_position_embeddings)
        side = cfg.vision_config.image_size
        frames = towers.images(4, side, seed=number)
        yield from towers.compare(size, f'clip:{place}', frames, TEXTS, reference(model, frames, ids))


def reference(model, frames, ids):
    """Embeddings and logits as CLIPModel computes them."""
    with torch.no_grad():
        out = model(
            input_ids=torch.from_numpy(np.asarray(ids, np.int64)),
            pixel_values=torch.from_numpy(towers.normalised(frames, MEAN, STD)),
        )
    return {
        'image': out.image_embeds.numpy(), 'text': out.text_embeds.numpy(),
        'logits': out.logits_per_image.numpy(),
    }  # fmt: skip
