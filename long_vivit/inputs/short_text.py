"""The second, short text of an example, for the branch of the loss that reads little of a video."""

import numpy as np

from long_vivit.inputs import sentences
from long_vivit.inputs.text import text_key

KINDS = ('caption', 'first_sentence')


def first_sentence(text):
    """The first sentence of a text (see `sentences.split`) without its marks, on one line.

    A text that begins with a mark, or has no other sentence, comes back whole.
    """
    text = ' '.join(text.split())
    return sentences.split(text)[0].rstrip(sentences.MARKS) or text


def pick(example, kind, text, rng):
    """The short text of an example of which `text` is the first: one of KINDS; may draw."""
    if kind == 'first_sentence':
        return first_sentence(text)
    if not example.captions:
        raise ValueError(
            f"{example.id}: has no caption; give it one, or set the stage's short_text to "
            "'first_sentence'"
        )
    return example.captions[rng.integers(len(example.captions))]


def read(example, text, view, tokenizer, rng):
    """What the View's `short_text` adds to an example: {} where it is ''.

    short_tokens int32 [short_length], short_lengths int32, short_key int32 as `text_key`, and
    short_cut bool: it is longer than short_length tokens.
    """
    if not view.short_text:
        return {}
    short = pick(example, view.short_text, text, rng)
    tokens = tokenizer.encode([short], view.short_length)
    return {
        'short_tokens': tokens.ids[0],
        'short_lengths': tokens.lengths[0],
        'short_key': text_key(short),
        'short_cut': np.bool_(tokens.num_tokens[0] > view.short_length),
    }
