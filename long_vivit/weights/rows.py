"""How other people's tensors become our parameters: a row for each parameter, and what they share.

A family lists its rows from the sizes in its config; `check` holds them against the names and
shapes of a checkpoint's header, and `read` fills them, one tensor at a time.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange

from long_vivit.weights.files import Tensors


class Part(NamedTuple):
    """One of their tensors and its place in one of our parameters."""

    theirs: str
    shape: tuple[int, ...]
    turn: Callable[[np.ndarray], np.ndarray] | None = None  # None: as it is
    at: tuple[int | slice, ...] = ()  # index into our parameter; () is the whole


class Row(NamedTuple):
    """One of our parameters: float32, made of their tensors."""

    ours: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


class Tower(NamedTuple):
    """The sizes of a transformer: width d, blocks, heads m, and the width of its MLPs."""

    width: int
    depth: int
    heads: int
    mlp: int

    def fields(self, name: str, activation: str, epsilon: float, **others: Any) -> dict[str, Any]:
        """The tower `name` in the paths of configs/base.py, and `others` beside it."""
        found = {
            'width': self.width,
            'depth': self.depth,
            'heads': self.heads,
            'mlp_width': 0 if self.mlp == 4 * self.width else self.mlp,
            'activation': activation,
            'norm_epsilon': epsilon,
        }
        return {f'model.{name}.{field}': value for field, value in (found | others).items()}


def one(ours: str, theirs: str, shape: Sequence[int], pattern: str = '', **sizes: int) -> Row:
    """A parameter that is one of their tensors, of `shape`, its dims rearranged by `pattern`."""
    shape = tuple(shape)
    turn = (lambda x: rearrange(x, pattern, **sizes)) if pattern else None
    turned = turn(np.broadcast_to(np.float32(0), shape)).shape if turn else shape
    return Row(ours, turned, (Part(theirs, shape, turn),))


def stacked(rows: Sequence[Sequence[Row]]) -> Iterable[Row]:
    """The rows of each block -> rows of the stacked blocks, with a leading depth dim."""
    for same in zip(*rows, strict=True):
        parts = tuple(
            part._replace(at=(layer, *part.at))
            for layer, row in enumerate(same)
            for part in row.parts
        )
        yield Row(same[0].ours, (len(rows), *same[0].shape), parts)


def check(rows: Sequence[Row], tensors: Tensors, ignored: Callable[[str], bool]) -> list[str]:
    """Holds the rows against the header; returns a line for what is `ignored` and there.

    Raises ValueError: one message with each tensor that is missing (and the nearest there is), of
    another shape than the config says, or that no row uses.
    """
    wanted = {part.theirs: part.shape for row in rows for part in row.parts}
    there = tensors.shapes
    unused = [name for name in there if name not in wanted and not ignored(name)]
    faults = []
    for name, shape in wanted.items():
        if name not in there:
            near = difflib.get_close_matches(name, unused, 1)
            hint = f'; nearest: {near[0]}' if near else ''
            faults.append(f'{name} {list(shape)}: missing{hint}')
        elif there[name] != shape:
            faults.append(f'{name}: {list(there[name])} in the file, {list(shape)} by the config')
    faults += [f'{name} {list(there[name])}: no use for it' for name in unused]
    if faults:
        head = f'{tensors.path}: not the weights that its config describes, {len(faults)} fault(s):'
        raise ValueError('\n  '.join([head, *faults]))
    left = [name for name in there if name not in wanted]
    return [f'{name}: left out, holds nothing that was learnt' for name in left]


def read(rows: Sequence[Row], tensors: Tensors) -> dict[str, np.ndarray]:
    """{our name: float32 array}; a parameter is made once and filled in place."""
    params = {}
    for row in rows:
        params[row.ours] = np.empty(row.shape, np.float32)
        for part in row.parts:
            value = tensors.read(part.theirs)
            params[row.ours][part.at] = value if part.turn is None else part.turn(value)
    return params


def norm(ours: str, theirs: str, width: int) -> list[Row]:
    """A LayerNorm as PyTorch names it."""
    return [
        one(f'{ours}/scale', f'{theirs}.weight', (width,)),
        one(f'{ours}/bias', f'{theirs}.bias', (width,)),
    ]


def linear(ours: str, theirs: str, num_in: int, num_out: int, *, bias: bool = True) -> list[Row]:
    """A linear layer as PyTorch keeps it, [out, in]."""
    rows = [one(f'{ours}/kernel', f'{theirs}.weight', (num_out, num_in), 'o i -> i o')]
    return rows + [one(f'{ours}/bias', f'{theirs}.bias', (num_out,))] * bias


def qkv(ours: str, theirs: Mapping[str, int], tower: Tower) -> list[Row]:
    """Query, key and value of an attention: {their stem: 0, 1 or 2} where they are apart, as in
    Transformers, or {stem: -1} where they are one tensor, as in OpenAI's."""
    d, m = tower.width, tower.heads
    f = d // m
    parts, biases = [], []
    for stem, number in theirs.items():
        weight, bias = f'{stem}weight', f'{stem}bias'
        if number < 0:
            turn = lambda x: rearrange(x, '(s m f) d -> d s m f', s=3, m=m)  # noqa: E731
            flat = lambda x: rearrange(x, '(s m f) -> s m f', s=3, m=m)  # noqa: E731
            parts.append(Part(weight, (3 * d, d), turn))
            biases.append(Part(bias, (3 * d,), flat))
        else:
            turn = lambda x: rearrange(x, '(m f) d -> d m f', m=m)  # noqa: E731
            flat = lambda x: rearrange(x, '(m f) -> m f', m=m)  # noqa: E731
            parts.append(Part(weight, (d, d), turn, (slice(None), number)))
            biases.append(Part(bias, (d,), flat, (number,)))
    return [
        Row(f'{ours}/qkv', (d, 3, m, f), tuple(parts)),
        Row(f'{ours}/qkv_bias', (3, m, f), tuple(biases)),
    ]


def blocks(ours: str, theirs: str, tower: Tower, naming: str) -> list[Row]:
    """The stacked blocks of a tower, OURS/blocks/..., from THEIRS.0. ... in the names of
    `naming`: 'openai' (CLIP as released, open_clip), 'transformers' (CLIP, SigLIP), 'vit' (ViT and
    ViViT of transformers) or 'vit before 5', as these are named in most files."""
    d, names = tower.width, NAMES[naming]
    layers = []
    for layer in range(tower.depth):
        at = f'{theirs}.{layer}.'
        out = f'{at}{names["out"]}'
        layers.append(
            [
                *norm(f'{ours}/blocks/norm_1', at + names['norm_1'], d),
                *qkv(
                    f'{ours}/blocks/attention',
                    {at + stem: number for stem, number in names['qkv'].items()},
                    tower,
                ),
                one(f'{ours}/blocks/attention/out', f'{out}.weight', (d, d), 'd (m f) -> m f d',
                    m=tower.heads),
                one(f'{ours}/blocks/attention/out_bias', f'{out}.bias', (d,)),
                *norm(f'{ours}/blocks/norm_2', at + names['norm_2'], d),
                *linear(f'{ours}/blocks/up', at + names['up'], d, tower.mlp),
                *linear(f'{ours}/blocks/down', at + names['down'], tower.mlp, d),
            ]
        )  # fmt: skip
    return list(stacked(layers))


NAMES = {
    'openai': {
        'norm_1': 'ln_1', 'norm_2': 'ln_2', 'qkv': {'attn.in_proj_': -1}, 'out': 'attn.out_proj',
        'up': 'mlp.c_fc', 'down': 'mlp.c_proj',
    },
    'vit': {
        'norm_1': 'layernorm_before', 'norm_2': 'layernorm_after',
        'qkv': {f'attention.{x}_proj.': i for i, x in enumerate('qkv')},
        'out': 'attention.o_proj', 'up': 'mlp.fc1', 'down': 'mlp.fc2',
    },
    'vit before 5': {
        'norm_1': 'layernorm_before', 'norm_2': 'layernorm_after',
        'qkv': {f'attention.attention.{x}.': i for i, x in enumerate(('query', 'key', 'value'))},
        'out': 'attention.output.dense', 'up': 'intermediate.dense', 'down': 'output.dense',
    },
    'transformers': {
        'norm_1': 'layer_norm1', 'norm_2': 'layer_norm2',
        'qkv': {f'self_attn.{x}_proj.': i for i, x in enumerate('qkv')},
        'out': 'self_attn.out_proj', 'up': 'mlp.fc1', 'down': 'mlp.fc2',
    },
}  # fmt: skip


def patches(ours: str, theirs: str, width: int, patch: int) -> Row:
    """A convolution over patches [d, c, p, q] as a kernel of patch vectors [(p q c), d]."""
    shape = (width, 3, patch, patch)
    return one(f'{ours}/kernel', f'{theirs}.weight', shape, 'd c p q -> (p q c) d')


def fold_pixels(kernel: np.ndarray, bias: np.ndarray, mean, std) -> tuple[np.ndarray, np.ndarray]:
    """The patch kernel [(p q c), d] and bias [d] for pixels from -1 to 1.

    Theirs are for (x - mean) / std with x from 0 to 1 and a mean and std for each channel.
    """
    by_channel = rearrange(kernel, '(p c) d -> p c d', c=3).astype(np.float64)
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    shift = np.einsum('pcd,c->d', by_channel, (0.5 - mean) / std)
    scaled = by_channel / (2 * std)[:, None]
    return (
        rearrange(scaled, 'p c d -> (p c) d').astype(np.float32),
        (bias + shift).astype(np.float32),
    )
