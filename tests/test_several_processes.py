"""One run by several processes, killed and gone on with on other meshes, ends as one process does.

The processes are real and talk over loopback; their devices are fake.
"""

import signal

import numpy as np
import pytest

from long_vivit.checkpoints import read_flat
from long_vivit.writers import read_jsonl
from tests import several, tiny_run

# Runs the command. One video is broken for whoever reads it; a process may send itself a signal, at
# a step or before the first.
COMMAND = """
import os, runpy, sys
from long_vivit import loop
from long_vivit.inputs import pipeline, video
broken, process, place, number = sys.argv.pop(1).split(':')
def read_frames(*others, name, read_frames=video.read_frames, **options):
    if name in broken.split(','):
        raise video.VideoError('truncated', 'sabotage', name)
    return read_frames(*others, name=name, **options)
def hit(here):
    if (os.environ.get('JAX_PROCESS_ID'), str(here)) == (process, place):
        os.kill(os.getpid(), int(number))
def note(self, step, *others, note=loop.Loop.note):
    note(self, step, *others)
    hit(step)
def go(self, *others, go=loop.Loop.go):
    hit('start')
    return go(self, *others)
video.read_frames, loop.Loop.note, loop.Loop.go = read_frames, note, go
runpy.run_module('long_vivit.train', run_name='__main__', alter_sys=True)
"""
STEPS = 8
CHANGES = {
    'run': ('short',),
    'stages__short__steps': STEPS,
    'stages__short__batch': 8,
    'checkpoint__every': 2,
    'log__every': 1,
    'eval__allow_broken': True,
    'optim__eps': 1e-2,  # see mesh_steps
}


BROKEN = 'short-train-000003a', 'short-test-000002b'


@pytest.fixture
def run(tiny_stories, quick_compilation):
    """run(workdir, mesh, processes, devices, hit) -> the processes, started."""

    def run(workdir, mesh, *, processes=1, devices=1, hit='none:0:0'):
        flags = tiny_run.flags(tiny_stories, workdir, mesh=mesh, **CHANGES)
        command = ['-c', COMMAND, f'{",".join(BROKEN)}:{hit}', *flags]
        if processes > 1:
            command.append('--multihost')
        return several.start(command, processes=processes, devices=devices, cache=quick_compilation)

    return run


def close(one, other):
    """Whether the numbers in two JSON values agree within 1e-5, and all else is equal."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return (
        one == pytest.approx(other, rel=1e-5, abs=1e-5) if isinstance(one, float) else one == other
    )


def test_killed_and_stopped_on_other_meshes_and_hosts(run, tmp_path):
    """Process 1 of 2 is killed, 2 of 4 is told to stop before its first step, 0 of 2 at the last
    one, and 2 others end what is left.

    With seq=2,tensor=2 over four processes of one device each, all of them read the same rows.
    """
    unbroken, workdir = tmp_path / 'unbroken', tmp_path / 'run'
    ((status, output),) = several.finish(run(unbroken, 'data=-1'))
    assert status == 0, output

    killed = run(workdir, 'data=-1,seq=2', processes=2, devices=4, hit=f'1:5:{signal.SIGKILL:d}')
    assert killed[1].wait(240) == -signal.SIGKILL
    killed[0].kill()  # as launchers do: it waits for the dead one
    ((_, output), _) = several.finish(killed)
    assert 'short on 4 x CPU (data=2 x seq=2, 2 processes)' in output
    at = max(tiny_run.checkpoints(workdir, 'short'))
    assert 2 <= at <= 4

    early = f'2:start:{signal.SIGTERM:d}'  # heard of at the first step, answered at the second
    stopped = run(workdir, 'seq=2,tensor=2', processes=4, devices=4, hit=early)
    found = several.finish(stopped)
    assert [status for status, _ in found] == [128 + signal.SIGTERM] * 4, found
    assert f'short: goes on from step {at}' in found[0][1]
    assert f'SIGTERM: saved short at step {at + 2}; the same command' in found[0][1]
    quiet = [line for line in found[3][1].splitlines() if not line.startswith('[Gloo]')]
    assert quiet == []  # only the first process writes to the screen
    assert max(tiny_run.checkpoints(workdir, 'short')) == at + 2

    late = f'0:{STEPS}:{signal.SIGTERM:d}'  # too late for the loop: heard of behind the stage
    stopped = run(workdir, 'dcn=2,fsdp=-1', processes=2, devices=4, hit=late)
    found = several.finish(stopped)
    assert [status for status, _ in found] == [128 + signal.SIGTERM] * 2, found
    assert f'short: goes on from step {at + 2}' in found[0][1]
    assert f'SIGTERM: saved short at step {STEPS}; the same command' in found[0][1]
    assert 'short: scoring' not in found[0][1]

    found = several.finish(run(workdir, 'data=2,fsdp=-1', processes=2, devices=4))
    assert [status for status, _ in found] == [0, 0], found

    here, there = (read_flat(tiny_run.checkpoints(w, 'short')[STEPS]) for w in (workdir, unbroken))
    assert here.keys() == there.keys()
    for name, leaf in there.items():
        np.testing.assert_allclose(here[name], leaf, rtol=0, atol=1e-5, err_msg=name)
    here, there = tiny_run.curves(workdir), tiny_run.curves(unbroken)
    assert [line['step'] for line in here] == list(range(1, STEPS + 1))
    assert all(map(close, here, there)), (here, there)  # each step saw the same batch
    here, there = (read_jsonl(w / 'broken.jsonl') for w in (workdir, unbroken))
    assert here == there and here[0]['id'] == BROKEN[0]
    here, there = (tiny_run.results(w)['short'] for w in (workdir, unbroken))
    for key in tiny_run.MEASURED:
        here.pop(key, None), there.pop(key, None)
    assert close(here, there), (here, there)
    assert here['protocol']['missing_videos'] == 1
