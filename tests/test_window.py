"""Texts that are cut, counted by source: in a line, over a stage, on several hosts."""

import json
from collections import Counter

import numpy as np
import pytest

from long_vivit import hosts, long_text, tables, window
from long_vivit.config import Run
from long_vivit.window import Window

WATCH = {'skipped': 0.0, 'loss': 1.0, 'lr': 0.1}


def batch(source, cut, rows=4, **more):
    errors = {'id': ['x'] * rows, 'error': [None] * rows, 'source': [source] * rows}
    return errors | {'cut': np.arange(rows) < cut} | more


def filled():
    found = Window()
    for step, (source, cut) in enumerate([('videos', 3), ('images', 1), ('videos', 1)]):
        found.add(step, batch(source, cut), dict(WATCH), 4)
    return found


def test_a_line_says_how_many_of_each_source():
    found = filled()
    _, _, texts = found.settle()
    assert texts == {'videos': 8, 'videos/cut': 4, 'images': 4, 'images/cut': 1}
    line = found.line()
    assert line['cut_texts'] == pytest.approx(5 / 12)
    assert line['cut_texts_videos'] == 0.5 and line['cut_texts_images'] == 0.25
    stage = Run(name='long', text_length=77)
    assert found.cuts(stage) == {
        'videos': '50% of the texts of videos are longer than stages.long.text_length=77 tokens '
        'and are cut there',
        'images': '25% of the texts of images are longer than stages.long.text_length=77 tokens '
        'and are cut there',
    }


def test_a_window_is_counted_once_through_a_checkpoint():
    found = filled()
    before = found.settle()[2]
    again = Window.from_info(json.loads(json.dumps(found.to_info())))
    assert again.settle()[2] == Counter()  # what was settled before is not news
    again.add(3, batch('videos', 4), dict(WATCH), 4)
    assert again.settle()[2] == {'videos': 4, 'videos/cut': 4}
    assert again.texts == before + Counter({'videos': 4, 'videos/cut': 4})
    assert again.line()['cut_texts_videos'] == pytest.approx(8 / 12)


def test_short_texts_are_counted_by_themselves():
    found = Window()
    found.add(0, batch('videos', 0, short_cut=np.array([True] * 3 + [False])), dict(WATCH), 4)
    found.settle()
    line = found.line()
    assert line['cut_texts'] == line['cut_texts_videos'] == 0
    assert line['cut_short_texts_videos'] == 0.75
    assert list(found.cuts(Run(name='long', text_length=77, short_length=16))) == ['videos/short']


def test_hosts_count_together(monkeypatch):
    """Each has half of the rows; what is told is of all."""
    here, there = Window(), Window()
    here.add(0, batch('videos', 2, rows=2), dict(WATCH), 4)
    there.add(0, batch('videos', 1, rows=2), dict(WATCH), 4)
    both = [here.unsettled, there.unsettled]
    monkeypatch.setattr(window.hosts, 'gathered', lambda _: both)
    assert hosts.gathered is window.hosts.gathered
    assert here.settle()[2] == {'videos': 4, 'videos/cut': 3}


def test_the_final_table_says_so():
    texts = {'videos': 4000, 'videos/cut': 12, 'images': 100, 'images/cut': 0}
    shown = tables.results_text({'stages': {'long': {'steps': 10, 'texts': texts}}})
    line = 'long: 12 of the 4,000 texts of videos (0.3%) were longer than text_length and cut there'
    assert line in ' '.join(shown.split())
    assert 'images' not in shown


# What is said of a stage before it begins ----------------------------------------------------


def run_with(**stage):
    text = Run(stretch='kps', keep=stage.pop('keep', -1))
    one = Run(**{'name': 'long', 'batch': 32, 'micro_batch': 0, 'text_length': 212} | stage)
    return Run(init='x', stages=(one,), model=Run(text=text))


def test_in_words():
    run = run_with()
    assert long_text.in_words(run, run.stages[0]) == ''
    run = run_with(text_buckets=(32, 77, 248), keep=20)
    assert long_text.in_words(run, run.stages[0]) == (
        'the first 20 rows of text/positions stay as they are; 4 group(s) of 8 texts, each read up '
        'to 32, 77 or 212 tokens'
    )


def test_tokens_read():
    stage = run_with(text_buckets=(32, 77, 248)).stages[0]
    assert long_text.tokens_read(stage, np.array([5, 32, 33, 212])) == round((64 + 77 + 212) / 4)
    assert long_text.tokens_read(run_with().stages[0], np.array([5, 32])) == 212
