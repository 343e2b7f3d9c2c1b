"""Traces of some steps: which ones, what is said, what is refused."""

import jax
import pytest

from long_vivit.profiler import Profile


@pytest.fixture
def traces(monkeypatch):
    """What JAX was asked to do, in order."""
    asked = []
    monkeypatch.setattr(jax.profiler, 'start_trace', lambda folder: asked.append(str(folder)))
    monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: asked.append('stop'))
    return asked


def run(spec, traces, stages=(('image', 4), ('short', 3))):
    said = []
    with Profile(spec, 'runs/mine/profile', said.append) as profile:
        for stage, steps in stages:
            for step in range(1, steps + 1):
                with profile.step(stage, step, running=None):
                    traces.append(f'{stage} {step}')
    return said


def test_the_steps_that_were_named_are_traced(traces):
    said = run('3:3', traces)
    assert traces == [
        'image 1', 'image 2', 'runs/mine/profile', 'image 3', 'image 4', 'short 1', 'stop',
        'short 2', 'short 3',
    ]  # fmt: skip
    assert len(said) == 1
    assert said[0].startswith('profile: image step 3 to short step 1 in runs/mine/profile')


def test_a_run_that_ends_first(traces):
    said = run('6:9', traces)
    assert traces[-1] == 'stop' and 'short step 2 to short step 3' in said[0]
    assert 'nothing traced; the run took 7 steps' in run('8:1', traces)[0]


def test_each_of_several_processes_has_a_folder(traces, monkeypatch):
    """Two of one node would write one file."""
    monkeypatch.setattr(jax, 'process_count', lambda: 16)
    monkeypatch.setattr(jax, 'process_index', lambda: 9)
    (said,) = run('1:1', traces)
    assert traces[0] == 'runs/mine/profile/process_9'
    assert ' in runs/mine/profile (' in said  # of all of them


def test_no_trace_unless_asked(traces):
    assert run('', traces) == [] and 'stop' not in traces


@pytest.mark.parametrize('spec', ['3', '0:2', '2:0', 'a:b', '-1:2', '1:2:3'])
def test_other_specs_are_refused(spec):
    with pytest.raises(ValueError, match='it must be START:COUNT'):
        Profile(spec, 'profile', print)


def test_a_true_trace(tmp_path):
    quietly = Profile('1:1', tmp_path, lambda text: None)
    with quietly as profile, profile.step('image', 1, running=None):
        jax.block_until_ready(jax.numpy.ones(3) + 1)
    assert list(tmp_path.rglob('*.xplane.pb'))
