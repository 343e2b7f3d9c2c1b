"""Sentences of long captions, some of them at random, and how the pipeline draws them."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from long_vivit.inputs import sentences
from long_vivit.inputs.pipeline import Examples, Order, View, read_text
from long_vivit.inputs.sources import Example, open_source
from long_vivit.inputs.text import Tokenizer

VIEW = View(
    frames=4, pixels=16, patch=8, tubelet=2, sampler='mid', fps=1.0, mask_kind='tube',
    mask_rate=0.0, text='long_caption', text_length=64,
)  # fmt: skip
LONG = 'One goes. Two stops! Does three stay? Four ends.'
EXAMPLE = Example('a', b'', captions=('Short one. And two.',), long_captions=(LONG,))


@pytest.mark.parametrize(
    ('text', 'parts'),
    [
        (LONG, ['One goes.', 'Two stops!', 'Does three stay?', 'Four ends.']),
        ('a cat', ['a cat']),
        ('  a cat... sits.\n\n It is 3.5 kg ', ['a cat...', 'sits.', 'It is 3.5 kg']),
        ('一只猫。它坐着！', ['一只猫。', '它坐着！']),
        ('...', ['...']),
        ('', ['']),
    ],
)
def test_split(text, parts):
    assert sentences.split(text) == parts


def test_each_sentence_and_each_number_of_them_is_as_likely():
    rng = np.random.default_rng(0)
    counts, seen, num = Counter(), Counter(), 4000
    for _ in range(num):
        drawn = sentences.split(sentences.sample(LONG, rng))
        assert [part for part in sentences.split(LONG) if part in drawn] == drawn  # in order
        counts[len(drawn)] += 1
        seen.update(drawn)
    np.testing.assert_allclose([counts[n] / num for n in (1, 2, 3, 4)], 0.25, atol=0.03)
    np.testing.assert_allclose([seen[s] / num for s in sentences.split(LONG)], 0.625, atol=0.03)


def test_only_long_captions_are_sampled():
    sample = replace(VIEW, sentences='sample')

    def drawn(view, example=EXAMPLE):
        return {read_text(example, view, np.random.default_rng(seed)) for seed in range(40)}

    assert drawn(VIEW) == {LONG}
    assert len(drawn(sample)) > 5
    assert drawn(replace(sample, text='any')) == drawn(sample)
    assert drawn(replace(sample, text='caption')) == set(EXAMPLE.captions)
    assert drawn(replace(sample, text='any'), replace(EXAMPLE, long_captions=())) == set(
        EXAMPLE.captions
    )
    assert drawn(sample.evaluation('mid')) == {LONG}


def test_a_draw_is_a_function_of_the_place_and_the_patches_are_those_of_all(tiny_stories):
    """The rest of an example is as without sampling; epochs differ."""
    source = open_source('shape_stories/long:train', data_dir=tiny_stories)
    tokenizer = Tokenizer.load(tiny_stories / 'shape_stories' / 'tokenizer.json')
    view = replace(VIEW, text_length=256, sampler='rand_seg', mask_rate=0.5, text='long_caption')
    order = Order(len(source), source.group_size, (0,))

    def at(view, place):
        return Examples(source, order, view, tokenizer, (0, 3))[place]

    sample, places = replace(view, sentences='sample'), (0, 3, 64)
    shorter = 0
    for place in places:
        one, again, whole = at(sample, place), at(sample, place), at(view, place)
        np.testing.assert_array_equal(one['tokens'], again['tokens'])
        np.testing.assert_array_equal(one['patches'], whole['patches'])
        np.testing.assert_array_equal(one['where'], whole['where'])
        shorter += one['lengths'] < whole['lengths']
    assert shorter
    lengths = {at(sample, place)['lengths'] for place in range(12)}
    assert len(lengths) > 3
