"""Text to token numbers: a tokenizer in one JSON file, ours or that of other people's weights, and
the trainer of ours.

Numbers are laid out as `start, text, end, pad ...`; in our own vocabularies see `START`, `END`,
`PAD`.
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

from long_vivit.inputs import foreign_text
from long_vivit.inputs.foreign_text import Scheme

PAD, START, END = 0, 1, 2
SPECIAL = ('<pad>', '<start>', '<end>')
SMALLEST = len(SPECIAL) + 256  # a vocabulary that can spell every byte


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Encoded texts.

    Attributes:
      ids: int32 [n, l], the start token first (if any), the end token last, then padding.
      lengths: int32 [n], real tokens per row with start and end, at most l.
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
    """Turns texts into token numbers. Made by `Tokenizer.load` or `train_tokenizer`.

    Attributes:
      scheme: whose vocabulary it is: its special tokens, and how a text is cleaned first.
      start, end, pad: the numbers of the special tokens; start is None where there is none.
    """

    def __init__(self, model: tokenizers.Tokenizer, scheme: Scheme | None = None):
        # '<end>' written by a user is text, not the end.
        model.encode_special_tokens = True
        model.no_padding()
        model.no_truncation()
        self._model, self.scheme = model, scheme or OURS
        self.start, self.end, self.pad = numbers(model, self.scheme)

    @classmethod
    def load(cls, path: str | os.PathLike) -> 'Tokenizer':
        """Reads a file written by `save`, or what lies beside other people's weights.

        Args:
          path: a tokenizer.json; or a folder with one, or with vocab.json and merges.txt, or with
            the merges of OpenAI's CLIP (bpe_simple_vocab_16e6.txt.gz); or the latter file itself.
        Raises:
          ValueError: there is none, it cannot be read, or it lacks the special tokens.
        """
        path = pathlib.Path(path)
        if path.is_dir():
            model = foreign_text.read_folder(path)
        elif not path.is_file():
            raise ValueError(
                f'{path}: no tokenizer there. Set data.tokenizer to a file that exists, or build '
                'the built-in one: python -m long_vivit.build_data shape_stories'
            )
        elif path.suffix in ('.gz', '.txt'):
            model = foreign_text.read_merges(path)
        else:
            model = foreign_text.read_json(path)
        return cls(model, scheme_of(model, path))

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
        """One more than the largest token number; special ones count."""
        return 1 + max(self._model.get_vocab().values())

    def encode(self, texts: Sequence[str], length: int) -> Tokens:
        """Token numbers of each text, cut or padded to `length`.

        Args:
          texts: n texts; each is cleaned first, as the scheme says.
          length: l, tokens per row with the start and end tokens, at least 2. A text that is too
            long loses its last tokens; the end is kept.

        Raises:
          ValueError: `texts` is not a sequence of str, or `length` is below 2.
        """
        if length < 2:
            raise ValueError(f'text_length is {length}, wanted 2 or more: start and end count')
        encoded = self._encode(texts)
        ids = np.full((len(encoded), length), self.pad, np.int32)
        num_tokens = np.empty(len(encoded), np.int32)
        start = [] if self.start is None else [self.start]
        for row, words in enumerate(encoded):
            framed = [*start, *words[: length - 1 - len(start)], self.end]
            ids[row, : len(framed)] = framed
            num_tokens[row] = len(start) + len(words) + 1
        return Tokens(ids, np.minimum(num_tokens, np.int32(length)), num_tokens)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if isinstance(texts, str):
            raise ValueError(f'wanted a sequence of texts, got one str: {texts!r:.60}')
        texts = list(texts)
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f'text {i} is {type(text).__name__}, wanted str: {text!r:.60}')
        batch = self._model.encode_batch_fast(
            [self.scheme.clean(text) for text in texts], add_special_tokens=False
        )
        return [item.ids for item in batch]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a row of `ids`, without start, end and padding; for showing."""
        ids = [int(i) for i in ids]
        ids = ids[: ids.index(self.end)] if self.end in ids else ids  # CLIP's padding is a word too
        return self._model.decode(ids, skip_special_tokens=True).strip()


def clean(text: str) -> str:
    """Repairs mojibake, lower-cases, composes accents (NFC), and leaves single spaces."""
    # ftfy changes nothing in printable ASCII but entities, and it is slow.
    if not (text.isascii() and text.isprintable() and '&' not in text):
        text = ftfy.fix_text(text)
    text = unicodedata.normalize('NFC', text.lower())
    return ' '.join(text.split())


OURS = Scheme('Long ViViT', SPECIAL[1], SPECIAL[2], SPECIAL[0], clean)


def numbers(model: tokenizers.Tokenizer, scheme: Scheme) -> tuple[int | None, int | None, int]:
    """(start, end, pad): the numbers of the scheme's special tokens; None: none, or not there."""
    start, end = (model.token_to_id(mark) if mark else None for mark in (scheme.start, scheme.end))
    return start, end, model.token_to_id(scheme.pad) if scheme.pad else 0


def scheme_of(model: tokenizers.Tokenizer, path: pathlib.Path) -> Scheme:
    """Whose vocabulary it is, told from its special tokens. Raises ValueError: nobody's."""
    if numbers(model, OURS) == (START, END, PAD):
        return OURS
    for scheme in foreign_text.SCHEMES:
        if all(model.token_to_id(mark) is not None for mark in scheme.marks()):
            return scheme
    found = [model.token_to_id(token) for token in SPECIAL]
    others = '; '.join(f'{one.name}: {" ".join(one.marks())}' for one in foreign_text.SCHEMES)
    raise ValueError(
        f'{path}: the tokens {", ".join(SPECIAL)} have the numbers {found}, wanted '
        f'{[PAD, START, END]}, and it has not the special tokens of another family ({others}). '
        'Set data.tokenizer to a file made by train_tokenizer, or to one of these.'
    )


def text_key(text: str) -> np.int32:
    """int32 that equal texts share (a checksum: two of 65,536 captions may collide).

    Half a surrogate pair, which JSON can hold, is a character like others.
    """
    written = text.strip().lower().encode(errors='surrogatepass')
    return np.uint32(zlib.crc32(written)).astype(np.int32)


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
