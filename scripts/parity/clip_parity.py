"""CLIP as Hugging Face's transformers has it, saved by save_pretrained."""

import json

import numpy as np
import torch
import towers
from strings import CAPTIONS
from tokens_parity import save_tokenizer
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel
from transformers.utils import logging

import long_vivit
from long_vivit.inputs import pixels

logging.disable_progress_bar()
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


def check(folder):
    """See `run.py`."""
    for number, (size, fields) in enumerate(SIZES.items()):
        # The last one in shards, as large models lie.
        shard = '20MB' if number == len(SIZES) - 1 else '5GB'
        model = towers.loud(CLIPModel(config(**fields)), number)
        place = save(model, folder / str(number), shard)
        text, vision = model.config.text_config, model.config.vision_config
        ids = save_tokenizer(place, CAPTIONS, text.max_position_embeddings)
        frames = towers.images(4, vision.image_size, seed=number)
        wanted = reference(model, frames, ids)
        still = (16,) if number else (2, 16, 128)
        yield from towers.compare(size, f'clip:{place}', frames, CAPTIONS, wanted, still=still)
    yield scaled(f'clip:{place}')


def scaled(init):
    """How far a picture of another size is from what CLIP's processor makes of it: the mean, in
    grey levels of 255. The two programs round their weights differently."""
    y, x = np.mgrid[:256, :384] / 256
    picture = 255 * np.stack([np.sin(40 * x * y) > 0, np.hypot(x - 0.7, y - 0.5) < 0.3, x / 2], -1)
    picture, view = picture.astype(np.uint8), long_vivit.load(init).view
    ours = pixels.shrink(picture, view.pixels, view.scaling)
    processor = CLIPImageProcessor(
        size={'shortest_edge': view.pixels}, crop_size=view.pixels, do_normalize=False
    )
    theirs = processor(picture, return_tensors='np')['pixel_values'][0].transpose(1, 2, 0) * 255
    difference = float(np.abs(ours - theirs).mean())
    return towers.Row('384 x 256 to 224, in grey levels', 'pixels', difference, 0.25)


def save(model, place, shard='5GB'):
    """The model's folder, as it lies on the hub, without a tokenizer."""
    model.save_pretrained(place, max_shard_size=shard)
    pixels = {'image_mean': MEAN, 'image_std': STD}
    (place / 'preprocessor_config.json').write_text(json.dumps(pixels))
    return place


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


def fixture(folder):
    """See `run.py`: a CLIP of 600 tokens, the bytes, the first of CLIP's merges, start and end."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(folder, [], 77, first=600)
    vision = {'hidden_size': 32, 'intermediate_size': 64, 'num_hidden_layers': 2,
              'num_attention_heads': 2, 'image_size': 16, 'patch_size': 8}  # fmt: skip
    text = {'hidden_size': 24, 'intermediate_size': 96, 'num_hidden_layers': 2,
            'num_attention_heads': 3, 'max_position_embeddings': 9, 'vocab_size': 600,
            'bos_token_id': 598, 'eos_token_id': 599}  # fmt: skip
    cfg = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    model = towers.loud(CLIPModel(cfg))
    save(model, folder)
    towers.save_fixture(folder, 16, 9, 600, lambda *given: reference(model, *given))
