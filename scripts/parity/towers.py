"""What the families of `make parity` share: rows of the table, inputs, the comparison of towers."""

from typing import NamedTuple

import numpy as np
import torch

import long_vivit
from long_vivit.inputs import patches
from long_vivit.retrieval import encode_patches

LIMIT = 1e-4  # of embeddings of unit length, and of logits at a scale of 100


class Row(NamedTuple):
    """A line of the table."""

    size: str
    tower: str
    difference: float
    limit: float = LIMIT

    @property
    def failed(self):
        """True above the limit, and for NaN."""
        return not self.difference <= self.limit

    def __str__(self):
        sign = '  ABOVE' if self.failed else ''
        return f'{self.size:44} {self.tower:22} {self.difference:10.1e}  {self.limit:g}{sign}'


def loud(model, seed=0):
    """The torch model with each parameter at a value of its own, in a range that a taught one has.

    As initialised, biases are zero and norms do nothing: what is swapped would not be seen.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith('logit_scale'):
                value.fill_(np.log(100))
            elif name.endswith('logit_bias'):
                value.fill_(-10.0)
            elif name.endswith('bias'):
                value.copy_(0.2 * noise)
            elif 'norm' in name or 'ln_' in name:
                value.copy_(1 + 0.2 * noise)
            elif value.ndim > 1 and 'embedding' not in name:
                value.copy_(noise * value[0].numel() ** -0.5)
            else:
                value.copy_(0.5 * noise)
    return model.eval()


def images(count, side, seed=0):
    """uint8 [count, side, side, 3]: noise with a different mean for each image."""
    rng = np.random.default_rng(seed)
    level = rng.uniform(40, 215, (count, 1, 1, 3))
    return np.clip(level + 40 * rng.standard_normal((count, side, side, 3)), 0, 255).astype('u1')


def normalised(frames, mean, std):
    """What the reference takes: uint8 [b, h, w, 3] -> float32 [b, 3, h, w], by mean and std."""
    pixels = (frames / 255 - np.asarray(mean)) / np.asarray(std)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)


def gap(ours, theirs):
    """The largest absolute difference of two arrays of one shape."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max())


def unit(x):
    """Rows of length 1."""
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def encode_frames(loaded, frames):
    """z_video of uint8 frames [b, t, h, w, 3] as they are: no cropping, no sampling."""
    where = patches.choose(loaded.view.mask_kind, loaded.view.grid, 0.0, None)
    cut = [patches.patchify(f, where, loaded.view.tubelet, loaded.view.patch) for f in frames]
    rows = np.broadcast_to(where, (len(cut), *where.shape))
    return np.asarray(encode_patches(loaded.model, np.stack(cut), rows))


def logits(loaded, z_video, z_text):
    """The logits of all pairs, [video, text]."""
    model = loaded.model
    bias = 0.0 if model.logit_bias is None else float(model.logit_bias[...])
    return np.exp(float(model.log_scale[...])) * z_video @ z_text.T + bias


def compare(size, init, frames, texts, reference, *, still=(2, 16)):
    """Rows of one model: image, still video, text, logits.

    Args:
      frames: uint8 [b, side, side, 3]. texts: n strings.
      reference: {'image': [b, e], 'text': [n, e] or absent, 'logits': [b, n] or absent}, of unit
        length as the reference computes them.
    """
    loaded = long_vivit.load(init)
    z = encode_frames(loaded, frames[:, None])
    assert gap(z[0], z[1]) > 0.01, 'images that look the same to the model compare nothing'
    yield Row(size, 'image', gap(z, reference['image']))
    for num_frames in still:
        video = long_vivit.load(init, frames=num_frames, tubelet=2)
        still = np.repeat(frames[:1, None], num_frames, axis=1)
        yield Row(size, f'still of {num_frames} frames', gap(encode_frames(video, still), z[:1]),
                  1e-5)  # fmt: skip
    if 'text' in reference:
        ends = loaded.tokenizer.encode(texts, loaded.view.text_length).lengths
        assert ends.max() == loaded.view.text_length, 'no text reads the last rows of the table'
        z_text = loaded.encode_text(texts)
        yield Row(size, 'text', gap(z_text, reference['text']))
        if 'logits' in reference:
            yield Row(size, 'logits', gap(logits(loaded, z, z_text), reference['logits']))


def save_fixture(folder, side, length, vocab, reference):
    """What a reference makes of drawn images and tokens, beside its weights: reference.npz.

    reference: (frames uint8 [b, side, side, 3], ids [b, length]) -> dict of arrays. The last real
    token of a row is vocab - 1, the end.
    """
    rng = np.random.default_rng(0)
    lengths = np.array([length, 3, 2])
    ids = rng.integers(1, vocab - 1, (3, length))
    ids[np.arange(3), lengths - 1] = vocab - 1
    ids *= np.arange(length) < lengths[:, None]
    frames = images(3, side)
    made = reference(frames, ids)
    np.savez_compressed(folder / 'reference.npz', frames=frames, ids=ids, lengths=lengths, **made)
