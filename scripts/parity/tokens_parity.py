"""CLIP's tokenizer: the same numbers as open_clip's and as transformers' on 200 strings.

open_clip's cleans as OpenAI's does: mojibake, HTML entities, spaces, lower case. transformers' does
not read entities, so it is given the text that we have cleaned; and it sees no s in the long s of
"'ſ", as open_clip's does, so that string is not held against it. Texts that spell a special token
are not among the 200: there OpenAI's takes what a user typed for the end of the text; see
tests/test_foreign_text.py.
"""

import json

import numpy as np
import towers
from opened import open_clip
from strings import strings
from transformers import CLIPTokenizer

from long_vivit.inputs.foreign_text import CLIP_MARKS, clip_clean
from long_vivit.inputs.text import Tokenizer


def save_tokenizer(folder, texts, length, used=None, first=0):
    """CLIP's vocab.json and merges.txt into a folder -> the texts' ids [n, length] by open_clip.

    used: the merges to save; None is all. first: the size of a vocabulary that has the first merges
    only; 0 is CLIP's.
    """
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    merges = list(tokenizer.bpe_ranks) if used is None else used
    merges = merges[: first - 514] if first else merges
    made = {''.join(pair) for pair in merges}
    vocab = {w: i for w, i in tokenizer.encoder.items() if i < 512 or w in made}
    end = first or len(tokenizer.encoder)
    vocab |= dict(zip(CLIP_MARKS, (end - 2, end - 1), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'vocab.json').write_text(json.dumps(vocab))
    lines = ['#version: 0.2', *(' '.join(pair) for pair in merges)]
    (folder / 'merges.txt').write_text('\n'.join(lines) + '\n')
    return tokenizer(texts, context_length=length).numpy()


def check(folder):
    """See `run.py`."""
    texts = strings()
    ids, long_ids = (save_tokenizer(folder / 'files', texts, length) for length in (77, 248))
    theirs = CLIPTokenizer.from_pretrained(folder / 'files')
    theirs.save_pretrained(folder / 'json')
    for name in ('vocab.json', 'merges.txt'):
        (folder / 'json' / name).unlink(missing_ok=True)
    both = [text for text in texts if "'ſ" not in text]
    cleaned = theirs([clip_clean(text) for text in both])['input_ids']
    places = {
        'vocab.json, merges.txt': folder / 'files',
        'tokenizer.json': folder / 'json',
        'merges of OpenAI': open_clip.tokenizer.default_bpe(),
    }
    for name, place in places.items():
        ours = Tokenizer.load(place)
        for length, wanted in ((77, ids), (248, long_ids)):
            differ = (ours.encode(texts, length).ids != wanted).any(1).sum()
            size = f'{name}, {len(texts)} strings to {length}'
            yield towers.Row(size, 'ids of open_clip', differ, 0)
        got = ours.encode(both, 4096)
        whole = [row[:n].tolist() for row, n in zip(got.ids, got.lengths, strict=True)]
        differ = sum(a != b for a, b in zip(whole, cleaned, strict=True))
        yield towers.Row(f'{name}, {len(both)} strings whole', 'ids of transformers', differ, 0)
    again = folder / 'tokenizer.json'
    ours.save(again)
    differ = np.sum(Tokenizer.load(again).encode(texts, 77).ids != ids)
    yield towers.Row(f'saved and loaded, {len(texts)} strings to 77', 'ids of open_clip', differ, 0)


class Asked(dict):
    """Ranks of merges; remembers which were applied: those that are asked for with `in`."""

    def __init__(self, ranks):
        super().__init__(ranks)
        self.used = set()

    def __contains__(self, pair):
        found = super().__contains__(pair)
        self.used |= {pair} if found else set()
        return found


def fixture(folder):
    """See `run.py`: the strings, their ids, and those of CLIP's merges that they need.

    A merge that no string applies changes none of them: byte pairs are merged by rank, and a pair
    of lower rank that is left out was never the first.
    """
    texts, tokenizer = strings(), open_clip.tokenizer.SimpleTokenizer()
    ranks = tokenizer.bpe_ranks = Asked(tokenizer.bpe_ranks)
    for text in texts:
        tokenizer.encode(text)
    used = sorted(ranks.used, key=dict(ranks).get)
    ids = save_tokenizer(folder, texts, 77, used)
    rows = [row[: row.argmax() + 1].tolist() for row in ids]
    (folder / 'ids.json').write_text(json.dumps({'texts': texts, 'ids': rows}) + '\n')
