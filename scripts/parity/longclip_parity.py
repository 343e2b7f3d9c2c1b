"""Long-CLIP: OpenAI's names and two tables of positions, each used in rows of its own.

The forward pass of the release, written down here: x = words + table * first + table_res * rest.
It is open_clip's model with the table that this sum amounts to; the file has the two.
"""

import shutil

import safetensors.torch
import torch
import towers
from open_clip_parity import reference
from openai_parity import plain
from opened import open_clip
from strings import CAPTIONS

from long_vivit.weights.pairs import MEAN, STD

ROWS, KEPT = 248, 20


def check(folder):
    """See `run.py`."""
    for number, vision in enumerate(({'width': 128}, {'width': 64, 'patch_size': 8})):
        model = towers.loud(plain(vision, {'context_length': ROWS}), number)
        first = torch.zeros(ROWS, 1)
        first[:KEPT] = 1
        one, two = (torch.randn(ROWS, 64, generator=torch.manual_seed(i)) for i in (5, 6))
        with torch.no_grad():
            model.positional_embedding.copy_(one * first + two * (1 - first))
        state = model.state_dict()
        state |= {'positional_embedding': one, 'positional_embedding_res': two}
        file = folder / f'{number}' / ('longclip.pt' if number else 'longclip.safetensors')
        file.parent.mkdir()
        if number:
            # As PyTorch saved before 1.6, which cannot be mapped; openai_parity has the other.
            torch.save(state, file, _use_new_zipfile_serialization=False)
        else:
            safetensors.torch.save_file(state, file)
        shutil.copy(open_clip.tokenizer.default_bpe(), file.parent)
        frames = towers.images(4, 64, seed=number)
        ids = open_clip.tokenizer.SimpleTokenizer()(CAPTIONS, context_length=ROWS)
        wanted = reference(model, frames, ids, MEAN, STD)
        size = f'Ti/{model.visual.patch_size[0]}, {ROWS} tokens, {file.suffix}'
        yield from towers.compare(size, f'longclip:{file}', frames, CAPTIONS, wanted, still=(128,))
