"""What scripts of scripts/bench record in RESULTS.md, and that the rest of it stays.

And that our row of step.py, which takes the trainer's own step, does so after the trainer changed.
"""

import argparse
import math
import re

import pytest

from scripts.bench import rows, step, step_ours

BY_HAND = '# Results\n\nProse.\n\n## step.py\n\n| by hand | 1 |\n\n## Latest: no heading of ours\n'
LINES = ('note', '  16 frames', rows.header('row', 's'), rows.table('ours', 1.5))


@pytest.fixture
def results(tmp_path, monkeypatch):
    """record(script, lines, words...) -> RESULTS.md after it, a file of the tmp folder."""
    file = tmp_path / 'RESULTS.md'
    file.write_text(BY_HAND)
    monkeypatch.setattr(rows, 'RESULTS', file)
    monkeypatch.chdir(rows.ROOT)

    def record(script, lines=LINES, *words):
        monkeypatch.setattr('sys.argv', [f'scripts/bench/{script}.py', '--record', *words])
        rows.record(iter(lines), True, 'numpy', 'no-such-package')
        return file.read_text()

    record.file = file
    return record


def test_the_first_section_comes_after_what_is_by_hand(results):
    text = results('step', LINES, '--rows', 'ours 75%')
    assert text.startswith(
        BY_HAND + f'\n{rows.HEADING}\n\n{rows.INTRODUCTION}\n\n## Latest: step\n'
    )
    section = text.partition('## Latest: step\n')[2]
    versions = r'20\d\d-\d\d-\d\d, \d+ cores \(.+\), Python 3\.\d+\.\d+, numpy \d+\.\d+\.\d+\.'
    assert re.match(f'\n{versions}\n\n', section) and 'no-such-package' not in section
    assert section.endswith(
        "\n\n    python scripts/bench/step.py --rows 'ours 75%'\n\n    note\n      16 frames\n\n"
        '| row | s |\n|---|---|\n| ours | 1.5 |\n'
    )


def test_a_section_is_replaced_and_the_others_stay(results):
    for script in ('step', 'loss', 'loss_2'):
        before = results(script)
    new = rows.header('row', 's'), rows.table('ours', 2)
    after = results('loss', new)
    assert after.count('## Latest: loss\n') == after.count(rows.HEADING) == 1
    old = before.split('## Latest: ')
    found = after.split('## Latest: ')
    assert [found[i] for i in (0, 1, 2, 4)] == [old[i] for i in (0, 1, 2, 4)]
    assert '| ours | 2 |' in found[3] and '| ours | 1.5 |' not in found[3]
    assert results('loss', new) == after


@pytest.mark.parametrize('lines', [(), ('note',), ('note', rows.header('row', 's'))])
def test_nothing_is_not_recorded(results, lines):
    with pytest.raises(ValueError, match='step: no row was measured'):
        results('step', lines)
    assert results.file.read_text() == BY_HAND


def test_half_a_run_is_not_recorded(results):
    def lines():
        yield from LINES
        raise RuntimeError('no more')

    with pytest.raises(RuntimeError):
        results('step', lines())
    assert results.file.read_text() == BY_HAND


def test_two_tables_in_a_row_stay_two():
    lines = '\n'.join([*LINES[2:], *LINES[2:]]).splitlines()
    assert rows.markdown(lines) == '\n\n'.join(2 * ['| row | s |\n|---|---|\n| ours | 1.5 |'])


def test_no_path_of_the_machine_is_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(rows.ROOT / 'tests')
    (tmp_path / 'film.mp4').touch()
    words = ['--film', str(tmp_path / 'film.mp4'), 'conftest.py', f'--out={tmp_path}/x', '../runs']
    script = str(rows.ROOT / 'scripts/bench/step.py')
    assert rows.command([script, *words, '--shapes', '4,512', '--record']) == (
        'python scripts/bench/step.py --film PATH/film.mp4 tests/conftest.py --out=PATH/x runs '
        '--shapes 4,512'
    )


def test_without_asking_nothing_is_written(results, capsys):
    parser = argparse.ArgumentParser()
    rows.record_argument(parser)
    rows.record(LINES, parser.parse_args([]).record)
    assert results.file.read_text() == BY_HAND
    assert capsys.readouterr().out == '\n'.join(LINES) + '\n'


def test_our_row_takes_the_trainers_step(monkeypatch):
    monkeypatch.setattr(step_ours, 'keep_freed_memory', lambda: None)  # it is for the whole process
    size = step.Size(frames=4, clips=2, pixels=16, patch=8, width=16, depth=2, heads=2, embed=8)
    once, facts = step_ours.make('75% full', size)
    first, second = once(), once()
    assert math.isfinite(first) and second < first
    assert facts['temporary_mib'] > 0 and facts['device'] == 'cpu'


def test_the_first_step_of_a_turn_and_the_first_turn_do_not_count(monkeypatch):
    """Rows take turns; a turn is the mean of its steps but the first."""
    turns = []

    class Worker:
        """A row whose steps take 1, 2, 3, ... seconds."""

        def __init__(self, row, frames):
            self.row, self.taken = row, -1
            self.stdin, self.stdout = self, self

        def write(self, line):
            turns.append(self.row)

        def readline(self):
            self.taken += 1
            if not self.taken:
                return '{"device": "d"}'
            return f'{{"seconds": {self.taken}, "peak_mib": {self.taken}}}'

        def flush(self):
            pass

        close = wait = flush

    monkeypatch.setattr(step, 'start', Worker)
    found = step.measure(['a', 'b'], 16, rounds=2, steps=2)
    assert turns == ['a'] * 3 + ['b'] * 3 + ['a'] * 3 + ['b'] * 3 + ['a'] * 3 + ['b'] * 3
    assert found['a'] == {'device': 'd', 'seconds': [5.5, 8.5], 'peak_mib': 9}
