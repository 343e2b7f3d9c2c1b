"""Sentences of a long caption, and some of them at random: against leaning on the first one.

Encoders taught with long captions read mostly how they open: Long-CLIP loses a fifth of its recall
where the first sentence is left out. Where any sentence may be left out, each has to count.
"""

import re

import numpy as np

MARKS = '.!?。！？'
BREAK = re.compile(r'(?<=[.!?])\s+|(?<=[。！？])\s*(?=\S)')


def split(text: str) -> list[str]:
    """The sentences of a text with their marks; one, the text itself, where there are no more.

    A sentence ends with '.', '!' or '?' before a space, or with a full stop of Chinese or Japanese;
    an abbreviation ends one, too. (Long-CLIP knows '. ' only.)
    """
    return [part for part in BREAK.split(text.strip()) if part] or [text]


def sample(text: str, rng: np.random.Generator) -> str:
    """Some sentences of a text, in their order: each number from 1 to all is as likely."""
    parts = split(text)
    count = rng.integers(1, len(parts) + 1)
    return ' '.join(parts[i] for i in np.sort(rng.permutation(len(parts))[:count]))
