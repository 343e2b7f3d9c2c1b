"""The rows of step.py that a user of torch would take: ViViT, VideoMAE, open_clip's ViT."""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.nn import functional

from scripts.bench import precision
from scripts.parity import torchvision_ops  # noqa: F401  lets torchvision be imported

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
MODELS = {  # row: where its model is; named in full, since transformers imports only when asked
    'vivit': ('transformers.models.vivit.modeling_vivit', 'VivitModel'),
    'videomae': ('transformers.models.videomae.modeling_videomae', 'VideoMAEModel'),
    'open_clip': ('open_clip.transformer', 'VisionTransformer'),
}


def load(row):
    """Imports all that the row needs -> the class of its model."""
    package, name = MODELS[row.partition(' ')[0]]
    return getattr(importlib.import_module(package), name)


def vivit(size, attention):
    """transformers' ViViT -> (module, frames [b, t, 3, h, w] -> its CLS token [b, d])."""
    from transformers import VivitConfig

    config = VivitConfig(
        image_size=size.pixels, num_frames=size.frames,
        tubelet_size=[size.tubelet, size.patch, size.patch], hidden_size=size.width,
        num_hidden_layers=size.depth, num_attention_heads=size.heads,
        intermediate_size=4 * size.width, attn_implementation=attention or 'sdpa',
    )  # fmt: skip
    model = load('vivit')(config, add_pooling_layer=False)
    return model, lambda frames: model(pixel_values=frames).last_hidden_state[:, 0]


def videomae(size, rate):
    """transformers' VideoMAE -> (module, frames -> the mean of its tokens [b, d]).

    With a rate of 75% the encoder sees a quarter of the tubelets, the same in each clip.
    """
    from transformers import VideoMAEConfig

    config = VideoMAEConfig(
        image_size=size.pixels, patch_size=size.patch, num_frames=size.frames,
        tubelet_size=size.tubelet, hidden_size=size.width, num_hidden_layers=size.depth,
        num_attention_heads=size.heads, intermediate_size=4 * size.width, use_mean_pooling=False,
        attn_implementation='sdpa',
    )  # fmt: skip
    model = load('videomae')(config)
    masked = None
    if rate:
        count = size.frames // size.tubelet * (size.pixels // size.patch) ** 2
        masked = torch.zeros(count, dtype=torch.bool, device=DEVICE)
        masked[torch.randperm(count)[: round(count * float(rate.strip('%')) / 100)]] = True
        masked = masked.expand(size.clips, count)
    return model, lambda frames: model(frames, bool_masked_pos=masked).last_hidden_state.mean(1)


def open_clip(size, _):
    """open_clip's ViT on each frame, and the mean over the frames -> (module, [b, d])."""
    model = load('open_clip')(
        image_size=size.pixels, patch_size=size.patch, width=size.width, layers=size.depth,
        heads=size.heads, mlp_ratio=4.0, output_dim=size.width,
    )  # fmt: skip
    return model, lambda frames: model(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).mean(1)


def make(how, size):
    """how: 'vivit', 'vivit eager', 'videomae', 'videomae 75%', 'open_clip' -> (step, facts)."""
    precision.of_torch(torch)
    torch.manual_seed(0)
    name, _, how = how.partition(' ')
    video, encode = {'vivit': vivit, 'videomae': videomae, 'open_clip': open_clip}[name](size, how)
    head = torch.nn.Linear(size.width, size.embed, bias=False)
    scale = torch.nn.Parameter(torch.tensor(1 / 0.07, device=DEVICE).log())
    model = torch.nn.ModuleList([video, head]).to(DEVICE).train()
    optimiser = torch.optim.AdamW([*model.parameters(), scale], lr=1e-4, fused=True)
    shape = size.clips, size.frames, 3, size.pixels, size.pixels
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    texts = torch.eye(size.clips, size.embed, device=DEVICE)
    labels = torch.arange(size.clips, device=DEVICE)

    def once():
        optimiser.zero_grad(set_to_none=True)
        z = functional.normalize(head(encode(pixels.to(DEVICE).float() / 127.5 - 1)), dim=-1)
        logits = scale.exp() * z @ texts.T
        entropy = functional.cross_entropy
        loss = (entropy(logits, labels) + entropy(logits.T, labels)) / 2
        loss.backward()
        optimiser.step()
        if DEVICE == 'cuda':
            torch.cuda.synchronize()
        return float(loss.detach())

    device = torch.cuda.get_device_name() if DEVICE == 'cuda' else DEVICE
    return once, {'params': sum(p.numel() for p in model.parameters()), 'device': device}


def device_peak():
    """Bytes that the device held at once; None where it is the host."""
    return torch.cuda.max_memory_allocated() if DEVICE == 'cuda' else None
