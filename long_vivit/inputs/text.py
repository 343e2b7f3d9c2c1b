"""Text to token numbers: a byte-pair tokenizer in one JSON file, and its trainer.

Numbers are laid out as `start, text, end, pad ...`; see `START`, `END`, `PAD`.
"""

import dataclasses
import os
import pathlib
import tempfile
import unicodedata
import zlib
from collections.abc import Iterable, Sequence

import ftfy
import numpy as np
import tokenizers

PAD, START, END = 0, 1, 2
SPECIAL = ('<pad>', '<start>', '<end>')
SMALLEST = len(SPECIAL) + 256  # a vocabulary that can spell every byte


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Encoded texts.

    Attributes:
      ids: int32 [n, l], START first, END last, then PAD.
      lengths: int32 [n], real tokens per row with START and END, 2 to l.
      num_tokens: int32 [n], what `lengths` would be were l unlimited: larger where text was cut.
    """

    ids: np.ndarray
    lengths: np.ndarray
    num_tokens: np.ndarray

    @property
    def num_cut(self) -> int:
        """How many texts did not fit."""
        return int((self.num_tokens > self.lengths).sum())


class Tokenizer:
    """Turns texts into token numbers. Made by `Tokenizer.load` or `train_tokenizer`."""

    def __init__(self, model: tokenizers.Tokenizer):
        # '<end>' written by a user is text, not the end.
        model.encode_special_tokens = True
        model.no_padding()
        model.no_truncation()
        self._model = model

    @classmethod
    def load(cls, path: str | os.PathLike) -> 'Tokenizer':
        """Reads a file written by `save`.

        Raises:
          ValueError: the file is missing, is no tokenizer, or lacks the special tokens.
        """
        path = pathlib.Path(path)
        if not path.is_file():
            raise ValueError(
                f'{path}: no tokenizer there. Set data.tokenizer to a file that exists, or build '
                'the built-in one: python -m long_vivit.build_data shape_stories'
            )
        try:
            model = tokenizers.Tokenizer.from_str(path.read_text(encoding='utf-8'))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(
                f'{path}: not a tokenizer file of the `tokenizers` library ({error}). '
                'Set data.tokenizer to another file.'
            ) from error
        found = [model.token_to_id(token) for token in SPECIAL]
        if found != [PAD, START, END]:
            raise ValueError(
                f'{path}: the tokens {", ".join(SPECIAL)} have the numbers {found}, wanted '
                f'{[PAD, START, END]}. Set data.tokenizer to a file made by train_tokenizer.'
            )
        return cls(model)

    def save(self, path: str | os.PathLike) -> None:
        """Writes one JSON file, whole or not at all.

        Raises:
          OSError: the folder is missing or cannot be written.
        """
        path = pathlib.Path(path)
        handle, draft = tempfile.mkstemp(prefix=f'.{path.name}.', dir=path.parent)
        try:
            with open(handle, 'w', encoding='utf-8') as file:
                file.write(self.to_json())
            os.chmod(draft, 0o644)  # mkstemp's files are private
            os.replace(draft, path)
        except BaseException:
            pathlib.Path(draft).unlink(missing_ok=True)
            raise

    def to_json(self) -> str:
        """The text of the file; equal for equal tokenizers."""
        return self._model.to_str(pretty=True)

    @property
    def vocab_size(self) -> int:
        """Number of token numbers, the special ones included."""
        return self._model.get_vocab_size()

    def encode(self, texts: Sequence[str], length: int) -> Tokens:
        """Token numbers of each text, cut or padded to `length`.

        Args:
          texts: n texts; each is cleaned first (see `clean`).
          length: l, tokens per row with START and END, at least 2. A text that is too long
            loses its last tokens; END is kept.

        Raises:
          ValueError: `texts` is not a sequence of str, or `length` is below 2.
        """
        if length < 2:
            raise ValueError(f'text_length is {length}, wanted 2 or more: start and end count')
        encoded = self._encode(texts)
        ids = np.full((len(encoded), length), PAD, np.int32)
        num_tokens = np.empty(len(encoded), np.int32)
        for row, numbers in enumerate(encoded):
            kept = numbers[: length - 2]
            ids[row, 0] = START
            ids[row, 1 : 1 + len(kept)] = kept
            ids[row, 1 + len(kept)] = END
            num_tokens[row] = len(numbers) + 2
        return Tokens(ids, np.minimum(num_tokens, np.int32(length)), num_tokens)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if isinstance(texts, str):
            raise ValueError(f'wanted a sequence of texts, got one str: {texts!r:.60}')
        texts = list(texts)
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f'text {i} is {type(text).__name__}, wanted str: {text!r:.60}')
        batch = self._model.encode_batch_fast(
            [clean(text) for text in texts], add_special_tokens=False
        )
        return [item.ids for item in batch]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a row of `ids`, without START, END and PAD; for showing."""
        return self._model.decode([int(i) for i in ids], skip_special_tokens=True).strip()


def clean(text: str) -> str:
    """Repairs mojibake, lower-cases, composes accents (NFC), and leaves single spaces."""
    # ftfy changes nothing in printable ASCII but entities, and it is slow.
    if not (text.isascii() and text.isprintable() and '&' not in text):
        text = ftfy.fix_text(text)
    text = unicodedata.normalize('NFC', text.lower())
    return ' '.join(text.split())


def text_key(text: str) -> np.int32:
    """int32 that equal texts share (a checksum: two of 65,536 captions may collide)."""
    return np.uint32(zlib.crc32(text.strip().lower().encode())).astype(np.int32)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of the texts (Sennrich et al. 2016, arXiv 1508.07909).

    It spells any text: what is not in its vocabulary falls apart into bytes. Few different words
    give fewer tokens than asked for; see `Tokenizer.vocab_size`.

    Args:
      texts: what to learn from; cleaned first.
      vocab_size: the most token numbers, at least 259 (3 special ones and 256 bytes).

    Raises:
      ValueError: `vocab_size` is too small, or there are no texts.
    """
    if vocab_size < SMALLEST:
        raise ValueError(f'vocab_size is {vocab_size}, wanted at least {SMALLEST}')
    texts = [clean(text) for text in texts]
    if not any(texts):
        raise ValueError('no texts to train a tokenizer on')
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    # The leading space makes the first word the same token as everywhere else.
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return Tokenizer(model)
