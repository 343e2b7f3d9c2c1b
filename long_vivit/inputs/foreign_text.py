"""Tokenizers of others, from the files that lie beside their weights, and how they clean a text.

A scheme is told from the special tokens of a tokenizer.json, so that a copy of that one file in a
work directory says all.
"""

from __future__ import annotations

import dataclasses
import gzip
import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import ftfy
import tokenizers
from tokenizers import models, pre_tokenizers

# CLIP's words: contractions, runs of letters, single digits, runs of anything else but spaces.
# Without its alternatives for the special tokens: typed by a user they are text like other text.
WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CLIP_MERGES = 'bpe_simple_vocab_16e6.txt'
CLIP_MARKS = ('<|startoftext|>', '<|endoftext|>')
NUM_CLIP_MERGES = 49152 - 256 - 2  # so many of OpenAI's file are used


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How a family frames a text: `start, text, end, pad ...`.

    Attributes:
      start, end, pad: special tokens by what they are called in the vocabulary; start '' is none,
        pad '' is the number 0 (CLIP pads with it, though it is the token '!' as well).
      clean: what is done to a text first.
      besides: tokens that the vocabulary has and that are not used.
    """

    name: str
    start: str
    end: str
    pad: str
    clean: Callable[[str], str]
    besides: tuple[str, ...] = ()

    def marks(self) -> list[str]:
        """The tokens by which its vocabulary is known."""
        return [mark for mark in (self.start, self.end, self.pad, *self.besides) if mark]


def clip_clean(text: str) -> str:
    """CLIP's cleaning: mojibake repaired, HTML entities read (twice), single spaces, lower case."""
    if not (text.isascii() and text.isprintable() and '&' not in text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return ' '.join(text.split()).lower()


def lower_letters(text: str) -> str:
    """Lower case letter by letter, as the `tokenizers` library has it: a Σ is no other at the end
    of a word. Half a surrogate pair, which is no letter, becomes a question mark."""
    return ''.join(map(str.lower, text.encode(errors='replace').decode()))


CLIP = Scheme('CLIP', *CLIP_MARKS, '', clip_clean)
SCHEMES = (
    CLIP,
    # Gemma's vocabulary as SigLIP 2 was taught with it: lower case, no start, an end, padding.
    Scheme('SigLIP 2', '', '<eos>', '<pad>', lower_letters, ('<bos>',)),
)


def clip_model(vocab: dict[str, int], merges: Sequence[tuple[str, str]]) -> tokenizers.Tokenizer:
    """CLIP's byte-pair encoding: the last symbol of a word carries '</w>'.

    Raises ValueError where a special token is missing.
    """
    if lost := [mark for mark in CLIP_MARKS if mark not in vocab]:
        raise ValueError(f'the vocabulary lacks {" and ".join(lost)}')
    model = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab, merges=list(merges), end_of_word_suffix='</w>', unk_token=CLIP_MARKS[1],
            continuing_subword_prefix='', fuse_unk=False,
        )
    )  # fmt: skip
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior='removed', invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    model.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.ByteLevel(), tokenizers.decoders.Replace('</w>', ' ')]
    )
    model.add_special_tokens([tokenizers.AddedToken(mark, special=True) for mark in CLIP_MARKS])
    return model


def read_folder(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer that lies in a folder of weights.

    tokenizer.json; else CLIP's vocab.json and merges.txt; else OpenAI's file of merges.
    Raises ValueError where there is none, or none that can be read.
    """
    if (folder / 'tokenizer.json').is_file():
        return read_json(folder / 'tokenizer.json')
    if (folder / 'merges.txt').is_file() and (folder / 'vocab.json').is_file():
        vocab = json.loads((folder / 'vocab.json').read_text(encoding='utf-8'))
        return clip_model(vocab, _merges((folder / 'merges.txt').read_text(encoding='utf-8')))
    for name in (f'{CLIP_MERGES}.gz', CLIP_MERGES):
        if (folder / name).is_file():
            return read_merges(folder / name)
    raise ValueError(
        f'{folder}: no tokenizer there: no tokenizer.json, no vocab.json with merges.txt, no '
        f'{CLIP_MERGES}.gz. Put one there, or set data.tokenizer'
    )


def read_merges(file: Path) -> tokenizers.Tokenizer:
    """CLIP's tokenizer from OpenAI's bpe_simple_vocab_16e6.txt, packed with gzip or not.

    The vocabulary follows from the merges: the bytes, the bytes at the end of a word, what each
    merge makes, start and end. Raises ValueError where it is too short to be that file.
    """
    raw = file.read_bytes()
    text = (gzip.decompress(raw) if file.suffix == '.gz' else raw).decode('utf-8')
    merges = _merges(text)[:NUM_CLIP_MERGES]
    if len(merges) < NUM_CLIP_MERGES:
        raise ValueError(f'{file}: {len(merges)} merges, CLIP has {NUM_CLIP_MERGES}')
    # The order of GPT-2: printable bytes first, then the others.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [*alphabet, *(f'{symbol}</w>' for symbol in alphabet)]
    words = [*symbols, *(left + right for left, right in merges), *CLIP_MARKS]
    return clip_model({word: number for number, word in enumerate(words)}, merges)


def _merges(text: str) -> list[tuple[str, str]]:
    """The pairs of a file of merges; its first line tells the version."""
    lines = text.split('\n')
    lines = lines[1:] if lines[0].startswith(('#version', '"bpe')) else lines
    return [(left, right) for left, _, right in (line.partition(' ') for line in lines) if right]


def read_json(file: Path) -> tokenizers.Tokenizer:
    """A tokenizer.json of the `tokenizers` library; CLIP's is made anew from what it holds.

    What others write beside the vocabulary differs from release to release of their library (how
    words are split, what is normalised); the vocabulary and the merges are CLIP's in all of them.
    """
    try:
        text = file.read_text(encoding='utf-8')
        model = json.loads(text).get('model', {})
        if model.get('end_of_word_suffix') == '</w>' and CLIP_MARKS[0] in model['vocab']:
            pairs = (pair.split(' ') if isinstance(pair, str) else pair for pair in model['merges'])
            return clip_model(model['vocab'], [tuple(pair) for pair in pairs])
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(
            f'{file}: not a tokenizer file of the `tokenizers` library ({error}). '
            'Set data.tokenizer to another file.'
        ) from error
