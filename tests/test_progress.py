"""What people see: aligned lines in a file, a bar on a terminal."""

import io
import math
import re

import pytest

from long_vivit import progress

METRICS = {
    'loss': 3.21449, 'recall_at_1': 0.41, 'temperature': 0.0512, 'gap': 0.2131,
    'clips_per_s': 88.2, 'tokens_per_s': 45_210, 'data_wait_share': 0.034, 'eta_s': 80,
    'lr': 1e-3,
}  # fmt: skip


def plain(*steps, total=500, **kwargs):
    stream = io.StringIO()
    with progress.Progress('short', total, stream=stream, **kwargs) as bar:
        for step, metrics in steps:
            bar.advance(step)
            bar.log(step, metrics)
    return stream.getvalue().splitlines()


def test_a_plain_line():
    assert plain((120, METRICS)) == [
        'short  120/500  loss  3.214  r@1  41%  temp 0.051  gap  0.213    88 clips/s   45k tok/s'
        '  wait   3%  eta 1:20'
    ]


def test_lines_are_aligned():
    other = {**METRICS, 'loss': 12.1, 'recall_at_1': 1, 'gap': -0.1, 'tokens_per_s': 1e6}
    first, second = plain((5, METRICS), (500, {**other, 'clips_per_s': 1234}))
    for label in ('loss', 'r@1', 'temp', 'gap', 'clips/s', 'tok/s', 'wait', 'eta'):
        assert first.index(label) == second.index(label), (first, second)
    image, short = plain((5, METRICS), name_width=8)[0], plain((5, METRICS))[0]
    assert image.index('5/500') == short.index('5/500') + 3


def test_missing_and_non_finite_metrics():
    assert plain((1, {'loss': math.nan})) == ['short    1/500  loss    nan']
    assert plain((1, {'loss': 1.0, 'num_broken': 0, 'num_bad_steps': 2})) == [
        'short    1/500  loss  1.000  bad steps 2'
    ]
    assert plain((1, {'eta_s': math.inf, 'data_wait_share': math.nan})) == [
        'short    1/500  wait nan%  eta ?'
    ]


def test_notes():
    stream = io.StringIO()
    with progress.Progress('short', 500, stream=stream) as bar:
        bar.note('saved [step 5]')
    assert stream.getvalue() == 'saved [step 5]\n'


@pytest.mark.parametrize('columns', [40, 80, 140])
def test_terminal(columns, monkeypatch):
    monkeypatch.setenv('COLUMNS', str(columns))
    monkeypatch.setenv('TERM', 'xterm')
    stream = io.StringIO()
    with progress.Progress('short', 500, start=100, stream=stream, terminal=True) as bar:
        bar.log(120, METRICS)
        bar.note('a note [bold] with brackets that is longer than forty columns are wide')
        bar.advance(130)
    text = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', stream.getvalue())
    assert 'a note [bold] with brackets that is longer than forty columns are wide' in text
    last = re.split('[\r\n]+', text[text.rindex('short') :])
    assert '130/500' in last[0]
    assert '26%' in last[0]
    assert 'eta 1:20' in last[0]
    assert all(len(line.rstrip()) <= columns for line in last)
    shown = ' '.join(last)
    for field in progress.fields(METRICS):
        assert field in shown  # none is cut in two


@pytest.mark.parametrize(
    ('value', 'text'),
    [(0.523, '0.52'), (8.84, '8.8'), (45, '45'), (999.4, '999'), (999.9, '1.0k'),
     (4510, '4.5k'), (45_210, '45k'), (1.2e6, '1.2M'), (3.4e9, '3.4G'), (0, '0.00')],
)  # fmt: skip
def test_compact(value, text):
    assert progress.compact(value) == text


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [(0, '0:00'), (59.7, '1:00'), (750, '12:30'), (11045, '3:04:05'), (183_600, '2d 03h'),
     (math.nan, '?'), (math.inf, '?'), (-1, '?')],
)  # fmt: skip
def test_duration(seconds, text):
    assert progress.duration(seconds) == text


def test_size():
    assert progress.size(512 * 2**20) == '512 MiB'
    assert progress.size(3.25 * 2**30) == '3.2 GiB'
