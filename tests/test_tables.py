"""The final table: whole words, right numbers, any results."""

import io
import json

import numpy as np
import pytest

from long_vivit import metrics, tables, writers


def unit(n, e, seed):
    z = np.random.default_rng(seed).normal(size=(n, e)).astype(np.float32)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def score(z_video, z_text, twins=True):
    n = len(z_video)
    ways = metrics.both_ways(z_video, z_text, np.arange(n))
    accuracy = metrics.twin_accuracy(z_video, z_text, np.arange(n) // 2) if twins else None
    return {**{way: one.to_dict() for way, one in ways.items()}, 'twin_accuracy': accuracy}


@pytest.fixture(scope='module')
def results():
    z, other = unit(200, 16, 0), unit(200, 16, 1)
    ordered = score(z, z)
    ordered['text_to_video']['interval'] = [0.9612, 1.0]
    protocol = {'data': 'shape_stories/short:test', 'frames': 16, 'merge_equal_captions': False}
    cost = {'steps': 1500, 'seconds': 1241.2, 'clips_per_s': 88.2, 'tokens_per_s': 45_210.0}
    cost |= {'peak_memory_bytes': 3.1e9, 'peak_memory_of': 'process', 'data_wait_share': 0.034}
    cost |= {'num_broken': 1200, 'num_bad_steps': 0}
    scores = {'ordered': ordered, 'shuffled': score(z, other), 'one_frame': score(z[:1], z[:1], 0)}
    return {
        'stages': {
            'image': {'scores': {'ordered': score(z, z, twins=False)}, 'steps': 300},
            'short': {'scores': scores, 'protocol': protocol, **cost},
            'long': {'scores': {}, 'steps': 10},
        }
    }


def test_images_before_and_after_stand_in_the_same_table():
    z, other = unit(200, 16, 0), unit(200, 16, 1)
    good, bad = ({'ordered': score(z, x, twins=False)} for x in (z, other))
    protocol = {'data': 'mine', 'frames': 1, 'pixels': 64}
    found = {
        'before': {'images': {'scores': good, 'protocol': protocol}},
        'stages': {
            'short': {'scores': {}, 'images': {'scores': good, 'protocol': protocol}},
            'long': {
                'scores': {},
                'images': {'scores': bad, 'protocol': protocol | {'pixels': 96}},
            },
        },
    }
    text = tables.results_text(found)
    shown = rows(text)
    hundred = [*['100.0', '100.0', '100.0', '1'] * 2, '-']
    assert ['images', 'before', *hundred] in shown and ['after', 'short', *hundred] in shown
    assert [row[2] for row in shown if row[:2] == ['after', 'long']] == [
        f'{100 * bad["ordered"]["text_to_video"]["recall_at_1"]:.1f}'
    ]
    assert sum(row[:1] == ['chance'] for row in shown) == 1
    sentence = 'pixels 64 (before), 64 (after short), 96 (after long)'
    assert sentence in ' '.join(text.split()) and 'data mine;' in text


def rows(text):
    return [line.split() for line in text.splitlines()]


def test_numbers(results):
    text = tables.results_text(results)
    shown = rows(text)
    assert ['short', 'in', 'order', *['100.0', '100.0', '100.0', '1'] * 2, '100.0'] in shown
    assert ['chance', *['0.5', '2.5', '5.0', '100.5'] * 2, '50.0'] in shown
    assert ['chance', *['0.5', '2.5', '5.0', '100.5'] * 2, '-'] in shown  # image: no twins
    costs = [' '.join(row) for row in shown]
    assert 'short 1,500 20:41 88 45k 3% 2.9 GiB (process) 1,200 0' in costs
    assert 'long 10 - - - - - - -' in costs
    joined = ' '.join(text.split())
    assert '200 captions look for 200 videos (R@1 95% interval 96.1 to 100.0)' in joined
    assert 'data shape_stories/short:test; frames 16; merge equal captions no' in joined


def test_nothing_is_cut_and_lines_fit(results):
    text = tables.results_text(results)
    assert '…' not in text
    assert max(map(len, text.splitlines())) <= 100
    assert all(line == line.rstrip() for line in text.splitlines())


def test_narrow_and_long_names(results):
    name = 'a_stage_with_a_name_of_some_length'
    named = {'stages': {name: results['stages']['short']}}
    text = tables.results_text(named, width=60)
    (line,) = (line for line in text.splitlines() if line.startswith(f'{name}  in order'))
    assert line.split()[-1] == '100.0'  # too wide for the page, but whole
    (line,) = (line for line in text.splitlines() if line.startswith(f'{name}  1,500'))
    assert line.split()[-2:] == ['1,200', '0']


def test_columns_are_aligned(results):
    lines = tables.results_text(results).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith('stage  frames'))
    ends = [lines[head].rindex(name) + len(name) for name in ('R@5', 'R@10', 'MedR', 'twins')]
    for line in lines[head + 2 : head + 4]:
        assert all(line[end - 1] != ' ' and line[end : end + 1] in ('', ' ') for end in ends)


def test_a_collapsed_encoder_is_named():
    z, flat = unit(20, 8, 0), np.repeat(unit(1, 8, 1), 20, axis=0)
    text = tables.results_text({'stages': {'short': {'scores': {'ordered': score(flat, z)}}}})
    assert 'short, in order: all embeddings of a side are equal' in text
    chance = ['5.0', '25.0', '50.0', '10.5'] * 2
    assert ['short', 'in', 'order', *chance, '50.0'] in rows(text)


def test_from_the_written_file(results, tmp_path):
    writers.write_json_atomic(tmp_path / 'results.json', results)
    again = json.loads((tmp_path / 'results.json').read_text())
    assert tables.results_text(again) == tables.results_text(results)


def test_without_scores():
    text = tables.results_text({'stages': {'short': {'steps': 3}}})
    assert text.startswith('Training')


def test_piped_to_a_stream_that_knows_ascii_only(results):
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding='ascii') as stream:
        tables.print_results(results, stream)
        stream.flush()
        shown = raw.getvalue().decode('ascii')
    assert '- text to video -' in shown


def test_a_terminal_gets_colour(results, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv('TERM', 'xterm-256color')
    monkeypatch.delenv('NO_COLOR', raising=False)
    stream = Terminal()
    tables.print_results(results, stream)
    assert '\x1b[1m' in stream.getvalue()
