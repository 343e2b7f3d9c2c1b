"""What `long_vivit.export --format clip` writes, as Transformers loads it.

CLIPs of random weights are taken in (stretched to 248 tokens, inflated to tubelets), every
parameter is moved as training would, and the folder written is loaded by CLIPModel, CLIPTokenizer
and the image processor: their embeddings against ours.
"""

import jax.numpy as jnp
import numpy as np
import torch
import towers
from clip_parity import config
from strings import CAPTIONS
from tokens_parity import save_tokenizer
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

import long_vivit
from long_vivit.inputs.foreign_text import clip_clean
from long_vivit.names import flatten, unflatten
from long_vivit.weights import clip_out, flat

CASES = {  # name: (sizes of the model taken in, how it is looked at here)
    '64 px, 77 tokens, as taken in': ({}, {}, 0.0),
    '64 px, 77 tokens, moved': ({}, {}, 0.1),
    '96 px, 248 tokens, tubelets of 2, moved': (
        {'patch_size': 16, 'image_size': 96}, {'text_length': 248, 'frames': 4, 'tubelet': 2}, 0.1,
    ),
    '70 px, gelu, MLP 3.5 d, frames of 1, moved': (
        {'patch_size': 14, 'image_size': 70, 'act': 'gelu', 'mlp': 3.5}, {'frames': 4}, 0.1,
    ),
}  # fmt: skip


def moved(model, share, seed=0):
    """The model with noise in every parameter but the temperature."""
    rng = np.random.default_rng(seed)
    found = {
        name: leaf if name == 'log_scale' or not share
        else leaf + jnp.asarray(share * rng.standard_normal(leaf.shape), jnp.float32)
        for name, leaf in flatten(model).items()
    }  # fmt: skip
    return unflatten(model, found)


def image_embeddings(loaded, frames):
    """z_video of uint8 images [b, side, side, 3], by the image stem."""
    h, w = loaded.model.video.positions.grid[1:]
    one = loaded.view.__class__(**(vars(loaded.view) | {'frames': 1, 'tubelet': 1}))
    assert one.grid == (1, h, w)
    still = loaded.__class__(loaded.model, one, loaded.tokenizer, loaded.run, loaded.stage)
    return towers.encode_frames(still, frames[:, None])


def check(folder):
    """See `run.py`."""
    for number, (size, (sizes, look, share)) in enumerate(CASES.items()):
        place, out = folder / str(number), folder / f'{number}-out'
        given = towers.loud(CLIPModel(config(**sizes)), number)
        given.save_pretrained(place)
        save_tokenizer(place, CAPTIONS, 77)
        loaded = long_vivit.load(f'clip:{place}', **look)
        model = moved(loaded.model, share, number)
        loaded = loaded.__class__(model, loaded.view, loaded.tokenizer, loaded.run, loaded.stage)
        params = {name: np.asarray(leaf) for name, leaf in flatten(model).items()}
        clip_out.write(out, params, flat.architecture(model), loaded.tokenizer, loaded.view.scaling)
        yield from compare(size, out, loaded)
        if not share:
            theirs = CLIPModel.from_pretrained(out).state_dict()
            far = (
                towers.gap(theirs[name], tensor)
                for name, tensor in given.state_dict().items()
                if 'class_embedding' not in name and 'vision_model.embeddings.pos' not in name
            )
            yield towers.Row(size, 'tensors, out of in', max(far), 1e-6)


def compare(size, out, loaded):
    """Rows of one folder."""
    model, info = CLIPModel.from_pretrained(out, output_loading_info=True)
    yield towers.Row(size, 'names amiss', sum(len(names) for names in info.values()), 0)
    images = towers.images(4, loaded.view.pixels, seed=1)
    pixels = AutoImageProcessor.from_pretrained(out)(list(images), return_tensors='pt')
    texts = [clip_clean(text) for text in CAPTIONS]  # theirs does not read HTML entities
    words = AutoTokenizer.from_pretrained(out)(
        texts, padding=True, truncation=True, return_tensors='pt'
    )
    with torch.no_grad():
        theirs = model.eval()(**words, **pixels)
    z_image, z_text = image_embeddings(loaded, images), loaded.encode_text(CAPTIONS)
    yield towers.Row(size, 'image', towers.gap(z_image, theirs.image_embeds))
    yield towers.Row(size, 'text', towers.gap(z_text, theirs.text_embeds))
    scale = np.exp(float(loaded.model.log_scale[...]))
    logits = towers.logits(loaded, z_image, z_text) / scale
    yield towers.Row(size, 'logits / scale', towers.gap(logits, theirs.logits_per_image / scale))
