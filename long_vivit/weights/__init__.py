"""Other people's weights as the start of a model of ours: `--config.init=FAMILY:PATH`.

A file for each family. What a family says of the architecture is read from its small JSON files
and from the headers of its tensors (`describe`); the tensors come later, one at a time (`read`).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# A file of this folder each.
FAMILIES = ('clip', 'open_clip', 'openai', 'longclip', 'siglip2', 'vivit')
TEXTLESS = ('vivit',)  # of a video tower alone: the text tower is drawn
MERGED = '#merged'  # longclip:PATH#merged says that the two tables of positions were made one
# What a configuration may have no use for, and why.
NEEDLESS = {
    'logit_bias': 'loss.kind has none',
    'video/tubelet_embed/kernel': 'a stage of images has no tubelets',
    'video/tubelet_embed/bias': 'a stage of images has no tubelets',
}


class Described(NamedTuple):
    """What weights say before they are read.

    Attributes:
      fields: the architecture in the paths of configs/base.py, {'model.video.width': 768, ...}.
      tokenizer: a path for `Tokenizer.load`; '' where the family has no text, or no tokenizer lies
        beside the weights.
      vocab: the token numbers that they know; 0 where the family has no text.
      loss: the loss.kind that they were taught with.
      pixels, frames, text_length: what the weights were made for; 0: the family does not say.
      scaling: data.scaling of the pictures that they were taught with.
    """

    fields: dict[str, Any]
    tokenizer: str = ''
    vocab: int = 0
    loss: str = 'nce'
    pixels: int = 0
    frames: int = 1
    text_length: int = 0
    scaling: str = 'bilinear'


def split(init: str) -> tuple[str, str] | None:
    """'clip:PATH' -> ('clip', 'PATH'); None where `init` has no family before a colon.

    What is said of the weights behind the path (MERGED) is no part of it.
    """
    family, colon, path = init.partition(':')
    return (family, path.removesuffix(MERGED)) if colon and family in FAMILIES else None


def describe(init: str) -> Described:
    """What the weights of FAMILY:PATH say of themselves; no tensor is read.

    Raises ValueError: no family, no weights, or weights that their config does not describe, with
    every tensor that is missing, of another shape or without a use.
    """
    family, path = _family(init)
    return family.describe(path)


def read(init: str, target: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], list[str]]:
    """{our name: float32 array} of the weights of FAMILY:PATH, in their own shapes.

    What `warm_start` then makes of them: other grids, tubelets, lengths of text.

    Args:
      target: {our name: anything with .shape}, the model that will start so. What it has no use
        for by its configuration (NEEDLESS) is left out, and a line says so.
    Returns:
      the parameters, and lines for people. Memory: the parameters and one tensor.
    Raises ValueError as `describe` does.
    """
    family, path = _family(init)
    params, lines = family.read(path)
    for name, why in NEEDLESS.items():
        if name in params and name not in target:
            value = params.pop(name)
            lines.append(f'{name} {list(value.shape) or value}: left out, {why}')
    return params, lines


def _family(init: str):
    found = split(init)
    if found is None:
        raise ValueError(
            f'init: {init!r} names no family of weights; it must be FAMILY:PATH with one of '
            + ', '.join(FAMILIES)
        )
    name, path = found
    if not Path(path).exists():
        raise ValueError(f'init: {path!r} does not exist')
    said = MERGED if init.endswith(MERGED) else ''
    if said and name != 'longclip':
        raise ValueError(f'init: {init!r}: {MERGED} is of longclip:PATH only')
    return importlib.import_module(f'long_vivit.weights.{name}'), Path(path + said)


def tokenizer_of(folder: Path) -> str:
    """The folder itself where a tokenizer of others lies in it, else ''."""
    files = ('tokenizer.json', 'merges.txt', 'bpe_simple_vocab_16e6.txt.gz')
    return str(folder) if any((folder / name).is_file() for name in files) else ''
