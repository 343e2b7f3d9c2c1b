"""ViViT as Hugging Face's transformers has it: the class token's output, in both namings."""

import numpy as np
import opened  # noqa: F401  lets torchvision be imported, which transformers asks for
import torch
import towers
from safetensors.torch import load_file, save_file
from transformers import VivitConfig, VivitForVideoClassification, VivitModel

import long_vivit
from long_vivit.inputs import patches
from long_vivit.inputs.text import train_tokenizer

SIZES = {  # name: sizes, whether it has a head for classes, whether its names are those before 5
    'B-like/16x2, 64 px, 8 frames': ({}, True, True),
    '16x4, 96 px, 16 frames, gelu, MLP 3 d': (
        {'image_size': 96, 'num_frames': 16, 'tubelet_size': [4, 16, 16], 'mlp': 3, 'act': 'gelu'},
        False, False,
    ),
    '14x1, 70 px, 6 frames, eps 1e-5': (
        {'image_size': 70, 'num_frames': 6, 'tubelet_size': [1, 14, 14], 'eps': 1e-5}, False, True,
    ),
    'S-like/16x2, 112 px, 32 frames, 6 layers': (
        {'image_size': 112, 'num_frames': 32, 'width': 384, 'heads': 6, 'layers': 6}, True, False,
    ),
}  # fmt: skip
OLD = {  # parts of names since transformers 5, and what they were before
    'layers.': 'encoder.layer.', 'attention.o_proj': 'attention.output.dense',
    'attention.q_proj': 'attention.attention.query', 'attention.k_proj': 'attention.attention.key',
    'attention.v_proj': 'attention.attention.value', 'mlp.fc1': 'intermediate.dense',
    'mlp.fc2': 'output.dense',
}  # fmt: skip


def config(image_size=64, num_frames=8, tubelet_size=(2, 16, 16), width=128, heads=2, layers=3,
           mlp=4, act='gelu_fast', eps=1e-6):  # fmt: skip
    """The VivitConfig of a size."""
    return VivitConfig(
        image_size=image_size, num_frames=num_frames, tubelet_size=list(tubelet_size),
        hidden_size=width, num_attention_heads=heads, num_hidden_layers=layers,
        intermediate_size=mlp * width, hidden_act=act, layer_norm_eps=eps, num_labels=5,
    )  # fmt: skip


def save(model, folder, before_5):
    """The model as save_pretrained writes it, its tensors in the names of one time or the other."""
    model.save_pretrained(folder)
    file = folder / 'model.safetensors'
    tensors = load_file(file)
    for new, old in OLD.items():
        there, wanted = (new, old) if before_5 else (old, new)
        tensors = {name.replace(there, wanted): x for name, x in tensors.items()}
    save_file(tensors, file)
    return model


def check(folder):
    """See `run.py`."""
    folder.mkdir(parents=True, exist_ok=True)
    words = folder / 'tokenizer.json'
    train_tokenizer(['no text is read'], 300).save(words)
    for number, (size, (fields, with_classes, before_5)) in enumerate(SIZES.items()):
        place, cfg = folder / str(number), config(**fields)
        kind = VivitForVideoClassification if with_classes else VivitModel
        model = save(towers.loud(kind(cfg), number), place, before_5)
        frames = np.stack([
            towers.images(cfg.num_frames, cfg.image_size, seed=10 * number + i) for i in range(3)
        ])  # fmt: skip
        loaded = long_vivit.load(f'vivit:{place}', tokenizer=words)
        z = towers.encode_frames(loaded, frames)
        assert towers.gap(z[0], z[1]) > 0.01, 'videos that look the same compare nothing'
        head = np.asarray(loaded.model.video.head.kernel[...], np.float64)
        wanted = towers.unit(reference(model, frames) @ head)
        yield towers.Row(size, 'video', towers.gap(z, wanted))
        yield from still(size, f'vivit:{place}', words, model, frames[:, 0])


def fixture(folder):
    """See `run.py`: a ViViT with a head for classes, in the names of before transformers 5."""
    cfg = config(image_size=16, num_frames=4, tubelet_size=(2, 8, 8), width=32, layers=2, mlp=2)
    model = save(towers.loud(VivitForVideoClassification(cfg)), folder, before_5=True)
    frames = np.stack([towers.images(4, 16, seed=i) for i in range(3)])
    np.savez_compressed(
        folder / 'reference.npz', frames=frames,
        video=reference(model, frames).astype(np.float32),
    )  # fmt: skip


def still(size, init, words, model, images):
    """An image's token, before the blocks, is that of the video that shows it still."""
    image = long_vivit.load(init, frames=1, tubelet=0, tokenizer=words)
    r = model.config.tubelet_size[0]
    clips = np.repeat(images[:, None], model.config.num_frames, 1)
    with torch.no_grad():
        stem = getattr(model, 'vivit', model).embeddings.patch_embeddings
        theirs = stem(torch.from_numpy(pixels_of(clips)))
    count = theirs.shape[1] * r // model.config.num_frames
    side = model.config.tubelet_size[1]
    where = patches.choose('tube', image.view.grid, 0.0, None)
    cut = np.stack([patches.patchify(one[None], where, 1, side) for one in images])
    ours = image.model.video.image_embed(cut.astype(np.float32) / 127.5 - 1)
    theirs = theirs[:, :count].numpy()  # of values that go to 100 and more with these weights
    gap = towers.gap(ours, theirs) / np.abs(theirs).max()
    yield towers.Row(size, 'patch of a still', gap, 1e-5)


def pixels_of(frames):
    """uint8 [b, t, h, w, 3] -> float32 [b, t, 3, h, w] from -1 to 1."""
    return np.ascontiguousarray((frames / 127.5 - 1).transpose(0, 1, 4, 2, 3), np.float32)


def reference(model, frames):
    """The class token's output, float64 [b, d]."""
    with torch.no_grad():
        out = getattr(model, 'vivit', model)(torch.from_numpy(pixels_of(frames)))
    return out.last_hidden_state[:, 0].double().numpy()
