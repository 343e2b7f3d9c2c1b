"""CLIP's tokenizer: the same numbers as open_clip's and as transformers' on 200 strings.

open_clip's cleans as OpenAI's does: mojibake, HTML entities, spaces, lower case. transformers' does
not read entities, so it is given the text that we have cleaned; and it does not see an s in the
long s of "'ſ", as open_clip's does, so that string is not held against it. Texts that spell a special token
are not among the 200: there OpenAI's takes what a user typed for the end of the text; see
tests/test_foreign_text.py.
"""

import json
import random

import numpy as np
import towers
from opened import open_clip
from transformers import CLIPTokenizer

from long_vivit.inputs.foreign_text import clip_clean
from long_vivit.inputs.text import Tokenizer

TEXTS = [
    'a photo of a cat', 'A dog &amp; a man, dancing!', '', 'naïve café — 東京 🗼',
    'A woman opens the door, walks in, puts her bag on the table and waits. ' * 3,
]  # fmt: skip
ODD = [
    ' ', '\n\t', '!', '!?', "it's 1234", "they'll've WE'RE i'm he'd don't", '&lt;b&gt;bold&lt;/b&gt;',
    '&amp;amp;amp;', '&#39;quoted&#x27; &nbsp; &copy; &eacute;', 'schÃ¶n fÃ¼r â€œdichâ€\x9d', '“curly” ‘quotes’…',
    'ﬁne ﬂow ½ ² Ⅷ', 'İstanbul ıI ǅ ß ẞ', "'ſ ſtop 's 'S 'LL", 'e\u0301 n\u0303 A\u030a', '日本語のテキスト', '한국어 텍스트',
    'Привет, мир!', 'שלום עולם', 'مرحبا بالعالم ١٢٣', 'สวัสดีชาวโลก', 'नमस्ते दुनिया', '👩‍👩‍👧‍👦 family', '🤣🤣🤣!!!', '🇩🇪🇫🇷',
    'a\u200bb\ufeffc\u00adx', 'tab\tnew\nline\r\nend', '\x00\x1b[31mred\x07', 'x' * 300, '1' * 90, '.' * 150,
    'ab' * 200, '<start_of>', '<|x|>', 'https://example.org/a?b=c&d=e#f', 'me@example.org', '#hashtag @user', '$5.00 €7,50 £3',
    'C++ & C# > F#', 'snake_case camelCase kebab-case', '\U0001d4d0\U0001d4d1', '\ud800 lone', '...well... ok?!', '(a) [b] {c}',
    '5 o\'clock at 10:30pm', 'rock\'n\'roll', '½ cup + ¾ tsp', '٣٤ ५६', 'a/b\\c|d', '~`^', 'ÀÉÎÕÜ àéîõü', 'Æ Œ æ œ Ø ø',
    '∑∞≈≠ π', '→ ← ↑', '™®©', 'ￆￇ ｆｕｌｌ ｗｉｄｔｈ', '\u2028line\u2029para', 'A' * 77 + ' B', 'word ' * 100, 'Q: why? A: because.',
]  # fmt: skip


def strings():
    """200 of them: odd ones, and draws of words, signs, entities, scripts and emoji."""
    rng = random.Random(0)
    words = 'A the man woman Dog cat runs OPENS door red blue street at in with hello World'.split()
    signs = [', ', '. ', '! ', ' & ', ' &amp; ', ' - ', "'s ", ' 42 ', ' 😀 ', ' é ', ' 東京 ', '/', '&quot;', '…']
    drawn = []
    while len(drawn) < 200 - len(TEXTS) - len(ODD):
        parts = [rng.choice(words) + rng.choice([' ', ' ', *signs]) for _ in range(rng.randint(1, 60))]
        drawn.append(''.join(parts))
    return TEXTS + ODD + drawn


def save_tokenizer(folder, texts, length):
    """CLIP's vocab.json and merges.txt into a folder -> ids [n, length] of the texts by open_clip's."""
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    marks = {'<start_of_text>': '<|startoftext|>', '<end_of_text>': '<|endoftext|>'}
    vocab = {marks.get(word, word): number for word, number in tokenizer.encoder.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'vocab.json').write_text(json.dumps(vocab))
    merges = ['#version: 0.2', *(' '.join(pair) for pair in tokenizer.bpe_ranks)]
    (folder / 'merges.txt').write_text('\n'.join(merges) + '\n')
    return tokenizer(texts, context_length=length).numpy()


def check(folder):
    """See `run.py`."""
    texts, places = strings(), {}
    assert len(texts) == 200, len(texts)
    ids = save_tokenizer(folder / 'files', texts, 77)
    long_ids = save_tokenizer(folder / 'files', texts, 248)
    theirs = CLIPTokenizer.from_pretrained(folder / 'files')
    theirs.save_pretrained(folder / 'json')
    for name in ('vocab.json', 'merges.txt'):
        (folder / 'json' / name).unlink(missing_ok=True)
    places['vocab.json, merges.txt'] = folder / 'files'
    places['tokenizer.json'] = folder / 'json'
    places['merges of OpenAI'] = open_clip.tokenizer.default_bpe()
    both = [text for text in texts if "'ſ" not in text]
    cleaned = theirs([clip_clean(text) for text in both])['input_ids']
    for name, place in places.items():
        ours = Tokenizer.load(place)
        for length, wanted in ((77, ids), (248, long_ids)):
            differ = (ours.encode(texts, length).ids != wanted).any(1).sum()
            yield towers.Row(f'{name}, 200 strings to {length}', 'ids of open_clip', differ, 0)
        got = ours.encode(both, 4096)
        whole = [row[:n].tolist() for row, n in zip(got.ids, got.lengths, strict=True)]
        differ = sum(a != b for a, b in zip(whole, cleaned, strict=True))
        yield towers.Row(f'{name}, {len(both)} strings whole', 'ids of transformers', differ, 0)
    again = folder / 'tokenizer.json'
    ours.save(again)
    differ = np.sum(Tokenizer.load(again).encode(texts, 77).ids != ids)
    yield towers.Row('saved and loaded, 200 strings to 77', 'ids of open_clip', differ, 0)
