"""Files that survive a kill at any byte."""

import contextlib
import json
import math
import os
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from long_vivit import writers


@pytest.fixture
def opened():
    with contextlib.ExitStack() as stack:
        yield lambda path: stack.enter_context(writers.JsonlWriter(path))


ORDER = ('image', 'short', 'long')


def steps():
    """What an unbroken run writes: (stage, step, metrics)."""
    for i, stage in enumerate(ORDER):
        for step in range(5, 25, 5):
            yield stage, step, {'loss': 1 / (i + step), 'seen': step * 8}
        yield stage, 20, {'kind': 'eval', 'text_to_video': {'recall_at_1': 0.5}}


def run(path, after=None, until=None):
    with writers.JsonlWriter(path) as writer:
        place = (-1, 0)
        if after:
            writer.truncate(*after, ORDER)
            place = (ORDER.index(after[0]), after[1])
        for i, (stage, step, metrics) in enumerate(steps()):
            if (ORDER.index(stage), step) > place and (until is None or i < until):
                writer.write(stage, step, metrics)


def test_lines(tmp_path):
    with writers.JsonlWriter(tmp_path / 'new' / 'metrics.jsonl') as writer:
        values = {'loss': np.float32(0.5), 'n': np.int64(3), 'ok': True, 'at': np.array(2.0)}
        writer.write('short', np.int32(20), values)
        text = writer.path.read_text()  # there before the file is closed
    assert text == '{"stage": "short", "step": 20, "loss": 0.5, "n": 3, "ok": true, "at": 2.0}\n'
    assert writers.read_jsonl(writer.path)[0]['loss'] == 0.5
    assert writers.read_jsonl(tmp_path / 'none.jsonl') == []


def test_jax_scalars_are_plain():
    jnp = pytest.importorskip('jax.numpy')
    assert writers.plain({'a': jnp.float32(0.25), 'b': jnp.bfloat16(1), 'c': jnp.arange(2)}) == {
        'a': 0.25, 'b': 1.0, 'c': [0, 1],
    }  # fmt: skip


def test_non_finite_numbers_stay_valid_json(opened, tmp_path):
    writer = opened(tmp_path / 'm.jsonl')
    writer.write('short', 1, {'a': math.nan, 'b': np.float32('inf'), 'c': [-math.inf]})

    def refuse(name):
        raise AssertionError(name)

    row = json.loads(writer.path.read_text(), parse_constant=refuse)
    assert (row['a'], row['b'], row['c']) == ('nan', 'inf', ['-inf'])
    assert math.isnan(float(row['a']))
    assert float(row['b']) == math.inf


def test_what_json_cannot_hold_is_refused(opened, tmp_path):
    writer = opened(tmp_path / 'm.jsonl')
    with pytest.raises(TypeError, match='bytes cannot be written'):
        writer.write('short', 1, {'video': b'...'})
    with pytest.raises(ValueError, match="'step'"):
        writer.write('short', 1, {'step': 2})
    assert writer.path.read_text() == ''


@settings(max_examples=60)
@given(data=st.data())
def test_a_resumed_run_equals_an_unbroken_one(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp('run')
    whole, broken = folder / 'whole.jsonl', folder / 'broken.jsonl'
    run(whole)
    run(broken, until=data.draw(st.integers(0, 15), label='lines written'))
    content = broken.read_bytes()
    cut = data.draw(st.integers(0, len(content)), label='bytes left by the kill')
    broken.write_bytes(content[:cut])
    written = writers.read_jsonl(broken)
    i = data.draw(st.integers(0, len(written)), label='lines before the checkpoint')
    # A checkpoint is saved after the lines of its step are.
    after = (written[i - 1]['stage'], written[i - 1]['step']) if i else (ORDER[0], 0)
    if i < len(written) and (written[i]['stage'], written[i]['step']) == after:
        i += 1
    if after[1] == 20 and i and 'kind' not in written[i - 1]:
        return  # the end of a stage is saved after it was scored
    run(broken, after=after)
    assert broken.read_bytes() == whole.read_bytes()


def test_truncate_counts_and_keeps_the_step_itself(tmp_path):
    run(tmp_path / 'm.jsonl')
    with writers.JsonlWriter(tmp_path / 'm.jsonl') as writer:
        assert writer.truncate('long', 20, ORDER) == 0
        assert writer.truncate('short', 12, ORDER) == 3 + 5
        assert [row['step'] for row in writers.read_jsonl(writer.path)][-2:] == [5, 10]
        assert writer.truncate('image', 0, ORDER) == 7
    assert (tmp_path / 'm.jsonl').read_bytes() == b''


def test_another_runs_file_is_refused(opened, tmp_path):
    run(tmp_path / 'm.jsonl')
    writer = opened(tmp_path / 'm.jsonl')
    with pytest.raises(ValueError, match='stages image, short, not long'):
        writer.truncate('short', 5, ('image', 'short'))
    assert len(writers.read_jsonl(writer.path)) == 15


def test_a_torn_line_is_removed_before_anything_is_added(opened, tmp_path):
    path = tmp_path / 'm.jsonl'
    path.write_text('{"stage": "short", "step": 1}\n{"stage": "sho')
    assert writers.read_jsonl(path) == [{'stage': 'short', 'step': 1}]
    opened(path).write('short', 2, {})
    assert [row['step'] for row in writers.read_jsonl(path)] == [1, 2]
    path.write_bytes(b'{"stage": "short", "step": 1}\n\0\0\0\0\n')
    opened(path).write('short', 2, {})
    assert [row['step'] for row in writers.read_jsonl(path)] == [1, 2]


def test_damage_in_the_middle_is_named_not_skipped(tmp_path):
    path = tmp_path / 'm.jsonl'
    path.write_text('{"stage": "short", "step": 1}\n{"sta\n{"stage": "short", "step": 3}\n')
    with pytest.raises(ValueError, match='line 2 is not a JSON object'):
        writers.JsonlWriter(path)


def test_a_killed_process_loses_at_most_the_line_it_was_writing(tmp_path):
    code = (
        'import sys; from long_vivit import writers\n'
        'w = writers.JsonlWriter(sys.argv[1])\n'
        'for step in range(10**9): w.write("short", step, {"loss": 0.5})\n'
    )
    path = tmp_path / 'm.jsonl'
    with subprocess.Popen([sys.executable, '-c', code, str(path)]) as process:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and (not path.exists() or path.stat().st_size < 10_000):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    rows = writers.read_jsonl(path)
    assert [row['step'] for row in rows] == list(range(len(rows)))
    assert len(rows) > 100


# ---- results.json


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'new' / 'results.json'
    writers.write_json_atomic(path, {'recall': np.float64(0.5), 'loss': math.nan})
    assert json.loads(path.read_text()) == {'recall': 0.5, 'loss': 'nan'}
    with pytest.raises(TypeError):
        writers.write_json_atomic(path, {'recall': object()})
    assert json.loads(path.read_text())['recall'] == 0.5
    assert os.listdir(path.parent) == ['results.json']


def test_json_survives_a_failed_replace(tmp_path, monkeypatch):
    path = tmp_path / 'results.json'
    writers.write_json_atomic(path, {'recall': 1})

    def full(*_):
        raise OSError('no space left')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match='no space'):
        writers.write_json_atomic(path, {'recall': 2})
    assert json.loads(path.read_text()) == {'recall': 1}
    assert os.listdir(tmp_path) == ['results.json']


# ---- TensorBoard


def test_missing_tensorboard_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorboardX', None)
    with pytest.raises(ValueError, match='python -m pip install tensorboardX'):
        writers.TensorBoardWriter(tmp_path)


def events(folder):
    """Yields the events of a folder's files in the order they were written."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content, at = path.read_bytes(), 0
        while at < len(content):  # length, its checksum, the event, its checksum
            (length,) = struct.unpack_from('<Q', content, at)
            yield Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length


def test_tensorboard(tmp_path):
    pytest.importorskip('tensorboardX')
    for first in (1, 3):  # the second run goes on from step 2 of 4
        with writers.TensorBoardWriter(tmp_path) as writer:
            for step in range(first, 5):
                metrics = {'loss': np.float32(step), 'eval': {'r': 0.5}, 'note': 'text'}
                writer.write('short', step, metrics)
    seen, curve = set(), {}
    for event in events(tmp_path / 'short'):
        if event.WhichOneof('what') == 'session_log':
            curve = {step: v for step, v in curve.items() if step < event.step}
        for value in event.summary.value:
            seen.add(value.tag)
            if value.tag == 'loss':
                assert event.step not in curve
                curve[event.step] = value.simple_value
    assert seen == {'loss', 'eval/r'}
    assert curve == {1: 1, 2: 2, 3: 3, 4: 4}
