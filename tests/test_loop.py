"""The line of the curves and of the log, and whose memory it tells."""

import io
from types import SimpleNamespace

import jax
import pytest

from long_vivit.config import Run
from long_vivit.loop import Loop
from long_vivit.perf import Meter
from long_vivit.progress import Progress
from long_vivit.writers import JsonlWriter, read_jsonl
from tests.test_window import WATCH, batch


@pytest.mark.parametrize('counted', [True, False])
def test_device_memory_is_in_the_line_and_in_the_curves(counted, tmp_path, monkeypatch):
    """Of the fullest device; where the backend does not count it, neither says anything of it."""
    peaks = [3 * 2**30, 5 * 2**30]
    stats = [{'peak_bytes_in_use': peak} if counted else None for peak in peaks]
    devices = [SimpleNamespace(memory_stats=lambda stat=stat: stat) for stat in stats]
    monkeypatch.setattr(jax, 'local_devices', lambda: devices)
    ledger, shown = SimpleNamespace(count=lambda stage: 0), io.StringIO()
    with JsonlWriter(tmp_path / 'metrics.jsonl') as curves:
        run = Run(max_bad_steps=1)
        tools = SimpleNamespace(writers=[curves], broken=ledger, bad_steps=ledger, run=run)
        loop = Loop(Run(name='long', text_length=77), tools, {}, saved=None, step=None)
        loop.bar, loop.meter = Progress('long', 10, stream=shown), Meter(10)
        loop.window.add(3, batch('videos', 0), WATCH | {'recall': 0.5}, 4)
        loop.due = 3, loop.window
        loop.report()
    (line,) = read_jsonl(tmp_path / 'metrics.jsonl')
    assert (line['stage'], line['step'], line['loss']) == ('long', 3, 1.0)
    assert line.get('device_peak_bytes') == (peaks[1] if counted else None)
    assert shown.getvalue().startswith('long    3/10  loss  1.000')
    assert ('mem 5.0 GiB' in shown.getvalue()) == counted and 'mem 3' not in shown.getvalue()
