"""The two encoders in PyTorch, in one file: loads what `long_vivit.export --format safetensors`
writes, with torch and safetensors and nothing else of this project: a video tower of joint
attention, with or without adapters, and a text tower. Other backbones are refused.

    python -m long_vivit.export --checkpoint runs/mine --format safetensors --out mine
    >>> from torch_twin import load
    >>> twin = load('mine')
    >>> z_video = twin.encode_video(frames)        # uint8 [b, t, h, w, 3] -> float32 [b, e]
    >>> z_text = twin.encode_text(ids, lengths)    # int64 [b, l], [b]     -> float32 [b, e]

Its config.json says how many frames of how many pixels it was taught with; tokenizer.json gives the
token numbers, framed as its `tokens` say. Logits are exp(log_scale) * cosine (+ logit_bias).

Names in model.safetensors and here (L layers, d width, m heads of f values, e joint width):

    model.safetensors                                     here
    video/image_embed/kernel [p*q*c, d]                   video.image_embed.weight [d, p*q*c]
    video/tubelet_embed/kernel [r*p*q*c, d]               video.tubelet_embed.weight [d, r*p*q*c]
    video/positions/space [h, w, d], time [t, d]          the same, with dots
    video/positions/joint [t, h, w, d], video/cls [d]     the same, with dots
    video/norm_input/{scale, bias} [d]                    video.norm_input.{weight, bias}
    TOWER/trunk/blocks/norm_1/{scale, bias} [L, d]        TOWER.trunk.blocks.I.norm_1.{weight, bias}
    TOWER/trunk/blocks/attention/qkv [L, d, 3, m, f]      ... .attention.qkv.weight [3*m*f, d]
    TOWER/trunk/blocks/attention/qkv_bias [L, 3, m, f]    ... .attention.qkv.bias [3*m*f]
    TOWER/trunk/blocks/attention/out [L, m, f, d]         ... .attention.out.weight [d, m*f]
    TOWER/trunk/blocks/attention/out_bias [L, d]          ... .attention.out.bias
    TOWER/trunk/blocks/{up, down}/kernel [L, i, o]        ... .{up, down}.weight [o, i]
    video/trunk/blocks/adapter/{narrow, widen}/...        video.trunk.blocks.I.adapter...., likewise
    TOWER/trunk/norm/{scale, bias} [d]                    TOWER.trunk.norm.{weight, bias}
    video/map/probe [d], attention, norm, up, down        video.map.probe ..., as in a block
    TOWER/head/kernel [d, e], text/head/bias              TOWER.head.weight [e, d], bias
    text/embed [v, d], text/positions [l, d]              text.embed.weight, text.positions
    log_scale [], logit_bias []                           the same
A patch vector is (frame, row, column, channel) with the frame slowest, of values 0 to 255.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

ACTIVATIONS = {
    'gelu': lambda x: F.gelu(x, approximate='tanh'),
    'gelu_erf': F.gelu,
    'quick_gelu': lambda x: x * torch.sigmoid(1.702 * x),
}
VIDEO = {'width', 'depth', 'heads', 'mlp_width', 'activation', 'norm_epsilon', 'adapter_width'}
VIDEO |= {'grid', 'patch', 'tubelet', 'pool', 'cls_repeat', 'norm_input', 'positions', 'head'}


def load(folder):
    """The twin of the model exported to `folder`, in evaluation mode, float32.

    Raises ValueError: no such video tower here; RuntimeError: not the tensors of its config.json.
    """
    folder = Path(folder)
    config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    twin = Twin(config)
    twin.load_state_dict(renamed(load_file(folder / 'model.safetensors')))
    return twin.eval()


def renamed(flat):
    """{name in model.safetensors: tensor} -> the state dict of `Twin`; see the table above."""
    state = {}
    for name, value in flat.items():
        name = name.replace('/', '.')
        for layer, part in enumerate(value) if '.blocks.' in name else [('', value)]:
            key, tensor = one(name.replace('.blocks.', f'.blocks.{layer}.'), part)
            state[key] = tensor
    return state


def one(name, value):
    """(name, tensor) of one tensor of one layer."""
    stem, _, last = name.rpartition('.')
    if last == 'qkv':
        return f'{name}.weight', value.flatten(1).T.contiguous()
    if last == 'out':
        return f'{name}.weight', value.flatten(0, 1).T.contiguous()
    if last in ('qkv_bias', 'out_bias'):
        return f'{stem}.{last.removesuffix("_bias")}.bias', value.flatten()
    if last in ('kernel', 'scale'):
        return f'{stem}.weight', value.T.contiguous() if last == 'kernel' else value
    if name == 'text.embed':
        return 'text.embed.weight', value
    return name, value


class Twin(nn.Module):
    """Videos and texts as unit vectors in one space. config: the folder's config.json."""

    def __init__(self, config):
        super().__init__()
        if others := {name: x for name, x in config['video'].items() if name not in VIDEO}:
            raise ValueError(f'the video tower has {others}, which this file cannot run')
        self.config = config
        self.video = VideoEncoder(config['video'], config['embed'])
        self.text = TextEncoder(config['text'], config['embed'])
        self.log_scale = nn.Parameter(torch.zeros(()))
        if config['logit_bias']:
            self.logit_bias = nn.Parameter(torch.zeros(()))

    def encode_video(self, frames):
        """uint8 [b, t, h, w, 3], RGB, square -> float32 [b, e]. One frame is a still image."""
        return self.video(*self.video.patchify(frames))

    def encode_text(self, ids, lengths):
        """Token numbers int [b, l] and how many of each row are real int [b] -> float32 [b, e]."""
        return self.text(ids, lengths)


class VideoEncoder(nn.Module):
    """patches uint8 [b, k, r*p*q*c], where int [b, k, 3] (t, h, w) -> float32 [b, e], length 1."""

    def __init__(self, config, embed):
        super().__init__()
        self.config, d = config, config['width']
        pixels, tubelet = config['patch'] ** 2 * 3, config['tubelet']
        self.image_embed = nn.Linear(pixels, d)
        self.tubelet_embed = nn.Linear(tubelet * pixels, d) if tubelet > 1 else None
        self.positions = Positions(config)
        self.cls = nn.Parameter(torch.zeros(d)) if config['pool'] == 'cls' else None
        self.norm_input = nn.LayerNorm(d, config['norm_epsilon']) if config['norm_input'] else None
        self.trunk = Trunk(config)
        self.map = MapPool(config) if config['pool'] == 'map' else None
        self.head = nn.Linear(d, embed, bias=False) if config['head'] else None

    def patchify(self, frames):
        """All patches of the frames uint8 [b, t, h, w, 3] and where they came from."""
        p, b, t = self.config['patch'], *frames.shape[:2]
        r = 1 if t == 1 else self.config['tubelet']
        h, w = frames.shape[2] // p, frames.shape[3] // p
        cut = frames.reshape(b, t // r, r, h, p, w, p, 3).permute(0, 1, 3, 5, 2, 4, 6, 7)
        places = [torch.arange(size, device=frames.device) for size in (t // r, h, w)]
        where = torch.cartesian_prod(*places).expand(b, -1, -1)
        return cut.reshape(b, t // r * h * w, r * p * p * 3), where

    def forward(self, patches, where):
        is_image = patches.shape[-1] == self.image_embed.in_features
        stem = self.image_embed if is_image else self.tubelet_embed
        t, h, w = self.positions.grid
        still = is_image and (self.tubelet_embed is not None or t == 1)
        x = stem(patches.float() / 127.5 - 1) + self.positions(where, still)
        if self.cls is not None:
            again = round(x.shape[1] / (h * w)) if self.config['cls_repeat'] else 1
            x = torch.cat([self.cls.expand(len(x), max(1, again), -1), x], 1)
        if self.norm_input is not None:
            x = self.norm_input(x)
        x = self.trunk(x)
        x = self.map(x) if self.map is not None else x.mean(1) if self.cls is None else x[:, 0]
        return unit(x if self.head is None else self.head(x))


class Positions(nn.Module):
    """Tables of space and time, or one joint table."""

    def __init__(self, config):
        super().__init__()
        t, h, w = self.grid = config['grid']
        d, split = config['width'], config['positions'] == 'split'
        self.space = nn.Parameter(torch.zeros(h, w, d)) if split else None
        self.time = nn.Parameter(torch.zeros(t, d)) if split else None
        self.joint = None if split else nn.Parameter(torch.zeros(t, h, w, d))

    def forward(self, where, still):
        t, h, w = where.unbind(-1)
        if self.joint is not None:
            return self.joint.mean(0)[h, w] if still else self.joint[t, h, w]
        return self.space[h, w] if still else self.space[h, w] + self.time[t]


class TextEncoder(nn.Module):
    """Token numbers [b, l], lengths [b] -> float32 [b, e], length 1."""

    def __init__(self, config, embed):
        super().__init__()
        self.kind = config['kind']
        self.embed = nn.Embedding(config['vocab'], config['width'])
        rotary, rows = config['positions'] == 'rotary', config['length']
        self.positions = None if rotary else nn.Parameter(torch.zeros(rows, config['width']))
        self.trunk = Trunk(config, config['rotary_base'] if rotary else 0)
        self.head = nn.Linear(config['width'], embed, bias=config['head_bias'])

    def forward(self, ids, lengths):
        l = ids.shape[1]  # noqa: E741
        rows = l if self.positions is None else len(self.positions)
        if l > rows or (self.kind == 'padded' and l < rows):
            raise ValueError(f'text of {l} tokens, but the position table has {rows} rows')
        place = torch.arange(l, device=ids.device)
        real = place < lengths[:, None]
        allowed = None if self.kind == 'padded' else real[:, None, None]
        if self.kind == 'causal':
            allowed = allowed & (place <= place[:, None])
        x = self.embed(ids) if self.positions is None else self.embed(ids) + self.positions[:l]
        x = self.trunk(x, allowed)
        if self.kind == 'padded':
            x = x[:, -1]
        elif self.kind == 'causal':
            x = x[torch.arange(len(x), device=x.device), lengths - 1]
        else:
            x = (x * real[..., None]).sum(1) / lengths[:, None]
        return unit(self.head(x))


class Trunk(nn.Module):
    """Blocks and a last LayerNorm, [b, n, d] -> [b, n, d]. rotary: base of the turns, 0: none."""

    def __init__(self, config, rotary=0):
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, rotary) for _ in range(config['depth']))
        self.norm = nn.LayerNorm(config['width'], config['norm_epsilon'])

    def forward(self, x, allowed=None):
        """allowed: bool, [b, 1, 1 or n, n], which keys a query may look at; None: all."""
        for block in self.blocks:
            x = block(x, allowed)
        return self.norm(x)


class Block(nn.Module):
    """Attention, then an MLP, each on a normalised copy."""

    def __init__(self, config, rotary):
        super().__init__()
        d, epsilon = config['width'], config['norm_epsilon']
        hidden, narrow = config['mlp_width'], config.get('adapter_width', 0)
        self.norm_1, self.norm_2 = nn.LayerNorm(d, epsilon), nn.LayerNorm(d, epsilon)
        self.attention = Attention(d, config['heads'], rotary)
        self.up, self.down = nn.Linear(d, hidden), nn.Linear(hidden, d)
        self.activation = ACTIVATIONS[config['activation']]
        self.adapter = nn.ModuleDict(
            {'narrow': nn.Linear(d, narrow), 'widen': nn.Linear(narrow, d)} if narrow else {}
        )

    def forward(self, x, allowed):
        x = x + self.attention(self.norm_1(x), allowed)
        y = self.down(self.activation(self.up(self.norm_2(x))))
        if self.adapter:
            y = y + self.adapter['widen'](self.activation(self.adapter['narrow'](y)))
        return x + y


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, d, heads, rotary=0):
        super().__init__()
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.heads, self.rotary = heads, rotary

    def forward(self, x, allowed=None):
        b, n, d = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv
        if self.rotary:
            query, key = turned(query, self.rotary), turned(key, self.rotary)
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        return self.out(y.transpose(1, 2).reshape(b, n, d))


class MapPool(nn.Module):
    """Attention of a learnt probe, then an MLP: [b, n, d] -> [b, d]."""

    def __init__(self, config):
        super().__init__()
        d, hidden = config['width'], config['mlp_width']
        self.probe = nn.Parameter(torch.zeros(d))
        self.attention = Attention(d, config['heads'])
        self.norm = nn.LayerNorm(d, config['norm_epsilon'])
        self.up, self.down = nn.Linear(d, hidden), nn.Linear(hidden, d)
        self.activation = ACTIVATIONS[config['activation']]

    def forward(self, x):
        (b, _, d), own = x.shape, self.attention
        weight, bias = own.qkv.weight.reshape(3, d, d), own.qkv.bias.reshape(3, d)
        query = F.linear(self.probe.expand(b, 1, -1), weight[0], bias[0])
        key, value = (F.linear(x, weight[i], bias[i]) for i in (1, 2))
        heads = (y.reshape(b, -1, own.heads, d // own.heads).transpose(1, 2)
                 for y in (query, key, value))  # fmt: skip
        y = own.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(b, d))
        return y + self.down(self.activation(self.up(self.norm(y))))


def turned(x, base):
    """Queries or keys [b, m, n, f]: each pair (i, i + f/2) is turned by place * base^(-2 i / f)."""
    half = x.shape[-1] // 2
    frequency = base ** -(torch.arange(half, dtype=torch.float64, device=x.device) / half)
    angle = torch.arange(x.shape[-2], device=x.device)[:, None] * frequency
    cos, sin = angle.cos().float(), angle.sin().float()
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def unit(x):
    """x [..., e] scaled to length 1; a zero vector stays zero."""
    return x / x.square().sum(-1, keepdim=True).clamp_min(1e-12).sqrt()
