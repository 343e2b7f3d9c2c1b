"""CLIP in the names of OpenAI's own release, where there is no config: sizes come from shapes.

PATH is a file, .safetensors or (through PyTorch) .pt, or a folder with model.safetensors. The heads
are 64 wide, as in all of OpenAI's models. The tokenizer is taken from the folder: tokenizer.json,
vocab.json and merges.txt, or OpenAI's bpe_simple_vocab_16e6.txt.gz.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from long_vivit.weights import Described, pairs, rows, tokenizer_of
from long_vivit.weights.files import Tensors, open_tensors

HEAD_WIDTH = 64
# Numbers beside the weights of OpenAI's archives, not parameters.
NUMBERS = re.compile(r'input_resolution|context_length|vocab_size')
LONG = 77  # rows of CLIP's position table; one with more was made longer by somebody


def describe(path: Path) -> Described:
    """See `weights.describe`."""
    tensors = open_tensors(path)
    sizes = sizes_of(tensors)
    refuse_long(tensors, sizes)
    rows.check(pairs.openai_rows(sizes), tensors, NUMBERS.fullmatch)
    return described(path, sizes)


def read(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """See `weights.read`."""
    tensors = open_tensors(path)
    sizes = sizes_of(tensors)
    refuse_long(tensors, sizes)
    table = pairs.openai_rows(sizes)
    lines = rows.check(table, tensors, NUMBERS.fullmatch)
    return pairs.finish(rows.read(table, tensors), sizes), lines


def described(path: Path, sizes: pairs.Sizes) -> Described:
    """What CLIPs in OpenAI's names say of themselves."""
    return sizes.described(tokenizer_of(path if path.is_dir() else path.parent))


def sizes_of(tensors: Tensors) -> pairs.Sizes:
    """Sizes from shapes; QuickGELU and an epsilon of 1e-5, as OpenAI's code has them.

    Raises ValueError where a tensor that tells a size is missing or no ViT's.
    """
    shapes = tensors.shapes
    telling = {
        'visual.conv1.weight': 4, 'visual.positional_embedding': 2, 'visual.proj': 2,
        'token_embedding.weight': 2, 'positional_embedding': 2,
        'visual.transformer.resblocks.0.mlp.c_fc.weight': 2,
        'transformer.resblocks.0.mlp.c_fc.weight': 2,
    }  # fmt: skip
    wrong = [name for name, dims in telling.items() if len(shapes.get(name, ())) != dims]
    if wrong:
        raise ValueError(
            f"{tensors.path}: no vision transformer in OpenAI's names (ResNets are not read): "
            f'{", ".join(wrong)} missing or of another number of dims'
        )
    image, words = shapes['visual.conv1.weight'], shapes['token_embedding.weight']
    return pairs.Sizes(
        video=_tower(shapes, 'visual.transformer', image[0]),
        text=_tower(shapes, 'transformer', words[1]),
        patch=image[3],
        side=math.isqrt(shapes['visual.positional_embedding'][0] - 1),
        length=shapes['positional_embedding'][0],
        vocab=words[0],
        embed=shapes['visual.proj'][1],
        activation='quick_gelu',
    )


def _tower(shapes: dict, trunk: str, width: int) -> rows.Tower:
    numbers = {
        int(found[1])
        for name in shapes
        if (found := re.match(rf'{re.escape(trunk)}\.resblocks\.(\d+)\.', name))
    }
    mlp = shapes[f'{trunk}.resblocks.0.mlp.c_fc.weight'][0]
    return rows.Tower(width, len(numbers), max(1, width // HEAD_WIDTH), mlp)


def refuse_long(tensors: Tensors, sizes: pairs.Sizes) -> None:
    """Raises ValueError for a table of text positions that is longer than CLIP's.

    It is Long-CLIP's, whose second table is what was trained, or a copy that lost it.
    """
    if sizes.length > LONG:
        raise ValueError(
            f'{tensors.path}: positional_embedding has {sizes.length} rows, CLIP has {LONG}. Start '
            'from it as longclip:PATH, which merges the two tables of Long-CLIP; if it has one '
            'table that is merged already, as longclip:PATH#merged'
        )
