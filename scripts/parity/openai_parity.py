"""OpenAI's own names: open_clip's plain models with QuickGELU are OpenAI's, name for name."""

import shutil

import safetensors.torch
import torch
import towers
from open_clip_parity import build, reference
from opened import open_clip
from strings import CAPTIONS

from long_vivit.weights.pairs import MEAN, STD

SIZES = {
    'Ti/32, 64 px, 77 tokens': ({'width': 128, 'patch_size': 32}, {}),
    'Ti/14, 98 px, 77 tokens': ({'width': 64, 'patch_size': 14, 'image_size': 98}, {'width': 128}),
}


def plain(vision, text):
    """A model of OpenAI's: heads 64 wide, QuickGELU."""
    vision = {'head_width': 64, **vision}
    text = {'width': 64, 'heads': text.get('width', 64) // 64, **text}
    return build({'quick_gelu': True}, vision, text)[0]


def check(folder):
    """See `run.py`."""
    for number, (size, fields) in enumerate(SIZES.items()):
        model, place = towers.loud(plain(*fields), number), folder / str(number)
        place.mkdir()
        # Numbers that lie in OpenAI's archives beside the weights.
        numbers = {'input_resolution': torch.tensor(0), 'context_length': torch.tensor(77)}
        state = model.state_dict() | numbers
        file = place / ('clip.pt' if number else 'model.safetensors')
        if number:
            torch.save(state, file)
        else:
            safetensors.torch.save_file(state, file)
        merges = open_clip.tokenizer.default_bpe()
        shutil.copy(merges, place)
        frames = towers.images(4, model.visual.image_size[0], seed=number)
        ids = open_clip.tokenizer.SimpleTokenizer()(CAPTIONS, context_length=77)
        wanted = reference(model, frames, ids, MEAN, STD)
        name = f'{size}, {file.suffix}'
        yield from towers.compare(name, f'openai:{file}', frames, CAPTIONS, wanted, still=(2,))
