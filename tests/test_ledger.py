"""Each broken example once, whatever interrupts the run."""

import concurrent.futures
import contextlib
import math

import numpy as np
import pytest

from long_vivit import ledger, writers


@pytest.fixture
def opened():
    with contextlib.ExitStack() as stack:
        yield lambda kind, path: stack.enter_context(kind(path))


def test_counts_each_example_once_per_reason(opened, tmp_path):
    book = opened(ledger.Ledger, tmp_path / 'broken.jsonl')
    assert book.add('short', 3, 'a', 'truncated', 'ends after 2 of 10 s')
    assert not book.add('short', 90, 'a', 'truncated', 'again, in the next epoch')
    assert book.add('short', 4, 'b', 'truncated')
    assert book.add('long', 5, 'a', 'too-slow')
    assert book.counts() == {'truncated': 2, 'too-slow': 1}
    assert len(book) == 3
    assert writers.read_jsonl(book.path)[0] == {
        'stage': 'short', 'step': 3, 'id': 'a', 'reason': 'truncated',
        'detail': 'ends after 2 of 10 s',
    }  # fmt: skip


def test_a_resumed_run_goes_on_counting(opened, tmp_path):
    path = tmp_path / 'broken.jsonl'
    opened(ledger.Ledger, path).add('short', 3, 'a', 'truncated')
    with open(path, 'a') as file:
        file.write('{"stage": "short", "st')  # killed here
    book = opened(ledger.Ledger, path)
    assert not book.add('short', 3, 'a', 'truncated')
    assert book.add('short', 4, 'b', 'not-found')
    assert book.counts() == {'truncated': 1, 'not-found': 1}
    assert [row['id'] for row in writers.read_jsonl(path)] == ['a', 'b']


def test_summary(opened, tmp_path):
    book = opened(ledger.Ledger, tmp_path / 'broken.jsonl')
    assert book.summary() == 'No broken examples.'
    assert not (tmp_path / 'broken.jsonl').exists()
    book.add('short', 1, 'clip-7', 'cannot-open')
    assert book.summary().startswith('1 broken example left out (')
    for i in range(1200):
        book.add('short', 1, f'clip-{i}', 'truncated')
    head, first, second = book.summary().splitlines()
    assert head.startswith('1,201 broken examples left out (')
    assert first.split() == ['1,200', 'truncated', 'first:', 'clip-0']
    assert second.split() == ['1', 'cannot-open', 'first:', 'clip-7']


def test_threads(opened, tmp_path):
    book = opened(ledger.Ledger, tmp_path / 'broken.jsonl')
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        news = list(pool.map(lambda i: book.add('s', i, f'{i % 50}', 'r', 'x' * 500), range(800)))
    assert sum(news) == len(book) == 50
    assert len(writers.read_jsonl(book.path)) == 50


def test_bad_steps(opened, tmp_path):
    path = tmp_path / 'bad_steps.jsonl'
    book = opened(ledger.BadSteps, path)
    assert book.summary().startswith('No steps')
    assert book.add('short', np.int64(7), ['a', 'b'], np.float32('nan'), math.inf)
    assert not opened(ledger.BadSteps, path).add('short', 7, ['a', 'b'], math.nan, math.inf)
    assert writers.read_jsonl(path) == [
        {'stage': 'short', 'step': 7, 'loss': 'nan', 'grad_norm': 'inf', 'ids': ['a', 'b']}
    ]
    assert book.summary().startswith('1 step with a non-finite loss')
    assert book.add('long', 7, [], math.nan, 1.0)
    assert len(book) == 2


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / 'b.jsonl').write_text('nonsense\n{}\n')
    with pytest.raises(ValueError, match='line 1 is not a JSON object'):
        ledger.Ledger(tmp_path / 'b.jsonl')
