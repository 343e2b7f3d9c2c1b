"""Rates by a clock that the test turns."""

import math
import subprocess
import sys
import types
from concurrent import futures

import pytest

from long_vivit import perf


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def feed(clock, waits):
    for wait in waits:
        clock.now += wait
        yield wait


def test_rates_waiting_and_time_left(clock):
    meter = perf.Meter(total=100, start=10, clock=clock)
    for _ in meter.batches(feed(clock, [0.5] * 4)):
        clock.now += 1.5
        meter.step(clips=8, tokens=1000)
    assert meter.read() == {
        'clips_per_s': 4.0, 'tokens_per_s': 500.0, 'data_wait_share': 0.25, 'eta_s': 86 * 2.0,
    }  # fmt: skip


@pytest.mark.parametrize(('ends_after', 'waited'), [(-1.0, 0.5), (0.2, 0.3), (None, 0.0)])
def test_waiting_counts_only_while_the_device_has_nothing_to_do(clock, ends_after, waited):
    """Half a second of waiting, and a step that ends so long after its begin; None: not before."""
    meter = perf.Meter(total=9, clock=clock)
    batches = meter.batches(feed(clock, [0.5, 0.5]))
    next(batches)
    meter.skip_start()
    ended = futures.Future()
    meter.at_work(ended)
    if ends_after is not None:
        ended.set_result(clock.now + ends_after)
    next(batches)
    meter.step(clips=1)
    clock.now += 1.5
    assert meter.read()['data_wait_share'] == pytest.approx(waited / 2)


def test_an_interval_forgets_the_last_and_the_time_left_follows(clock):
    meter = perf.Meter(total=10, clock=clock)
    for seconds, rate, eta in ((1.0, 8.0, 8 * 1.0), (3.0, 8 / 3, 6 * 2.0)):
        for _ in range(2):
            clock.now += seconds
            meter.step(8)
        got = meter.read()
        assert got['clips_per_s'] == pytest.approx(rate)
        assert got['eta_s'] == pytest.approx(eta)
        assert got['data_wait_share'] == 0
    assert meter.totals() == {
        'seconds': 8.0, 'clips_per_s': 4.0, 'tokens_per_s': 0.0, 'data_wait_share': 0.0,
    }  # fmt: skip


def test_utilisation_where_the_peak_is_known(clock):
    meter = perf.Meter(total=9, peak_flops=100.0, clock=clock)
    for seconds, flops in ((1.0, 80.0), (3.0, 80.0)):
        clock.now += seconds
        meter.step(clips=8, flops=flops)
    assert meter.read()['mfu'] == pytest.approx(160 / 4 / 100)
    clock.now += 4
    meter.step(clips=8, flops=40)
    assert meter.read()['mfu'] == pytest.approx(40 / 4 / 100)
    assert meter.totals()['mfu'] == pytest.approx(200 / 8 / 100)
    assert 'mfu' not in perf.Meter(total=9, clock=clock).totals()


def test_two_parts_of_a_stage_as_one():
    before = {'seconds': 10.0, 'clips_per_s': 1.0, 'mfu': 0.2, 'peak_memory_bytes': 7}
    now = {'seconds': 30.0, 'clips_per_s': 3.0, 'mfu': 0.4}
    assert perf.joined(before, now) == pytest.approx(
        {'seconds': 40.0, 'clips_per_s': 2.5, 'mfu': 0.35}
    )
    assert perf.joined({}, now) == now


def test_nothing_counted_is_nan(clock):
    assert all(math.isnan(value) for value in perf.Meter(5, clock=clock).read().values())
    clock.now += 1
    assert perf.Meter(5, clock=clock).totals()['clips_per_s'] == 0


def test_pauses_do_not_count(clock):
    meter = perf.Meter(total=4, clock=clock)
    clock.now += 2
    meter.step(8)
    with meter.pause():
        clock.now += 50
        list(meter.batches(feed(clock, [7.0])))  # scoring waits for its own data
    assert meter.read() == {
        'clips_per_s': 4.0, 'tokens_per_s': 0.0, 'data_wait_share': 0.0, 'eta_s': 6.0,
    }  # fmt: skip
    assert meter.totals()['seconds'] == 2


def test_the_first_step_can_be_left_out(clock):
    meter = perf.Meter(total=5, clock=clock)
    clock.now += 40  # compiling
    meter.step(8)
    meter.skip_start()
    clock.now += 2
    meter.step(8)
    assert meter.totals()['clips_per_s'] == 4
    assert meter.read()['eta_s'] == 3 * 2.0


def test_batches_are_passed_on_lazily(clock):
    meter = perf.Meter(total=5, clock=clock)
    source = iter(range(10))
    for batch in meter.batches(source):
        if batch == 3:
            break
    assert next(source) == 4


def test_start_up(clock):
    start = perf.StartUp(begun=998.0, clock=clock)
    for name, seconds in (('imports', 0), ('data', 1.5), ('compile', 75.25), ('data', 0.5)):
        clock.now += seconds
        start.mark(name)
    assert start.seconds == {'imports': 2.0, 'data': 2.0, 'compile': 75.25}
    assert start.summary() == 'ready after 1:19: imports 2.0 s, data 2.0 s, compile 1:15'


def test_memory_of_the_process_without_starting_jax():
    code = (
        'import sys\nfrom long_vivit import perf\nmemory = perf.peak_memory()\n'
        'assert "jax" not in sys.modules\nprint(memory.num_bytes, memory.of)'
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    num_bytes, of = out.stdout.split()
    assert of == 'process'
    assert int(num_bytes) > 5 * 2**20


@pytest.mark.parametrize(
    ('stats', 'of'),
    [
        ([None, None], 'process'),
        ([{}], 'process'),
        ([{'bytes_in_use': 5}], 'process'),
        ([{'peak_bytes_in_use': 7}, {'peak_bytes_in_use': 9}, None], 'device'),
    ],
)
def test_memory_of_the_fullest_device_where_it_is_counted(stats, of, monkeypatch):
    devices = [types.SimpleNamespace(memory_stats=lambda stat=stat: stat) for stat in stats]
    fake = types.SimpleNamespace(local_devices=lambda: devices)
    monkeypatch.setitem(sys.modules, 'jax', fake)
    memory = perf.peak_memory()
    assert memory.of == of
    assert of == 'process' or memory.num_bytes == 9
