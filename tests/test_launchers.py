"""What the launchers would run: each is given a command of the cluster's that only takes notes."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / 'scripts').glob('*.sh'))
FLAGS = ['--config=configs/long.py:large', "--config.workdir=/shared/it's mine"]
NOTES = """#!/bin/sh
{ printf '%s\\0' "$(basename "$0")" "$@"; printf '\\n'; } >> "$NOTES"
exit "${STATUS:-0}"
"""


@pytest.fixture
def launch(tmp_path):
    """launch(script, arguments, environment) -> the finished process, [words of each command]."""
    for name in ('gcloud', 'srun', 'scontrol', 'xpk'):
        (tmp_path / name).write_text(NOTES)
        (tmp_path / name).chmod(0o755)
    notes = tmp_path / 'notes'

    def launch(script, arguments, **environment):
        path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
        done = subprocess.run(
            ['bash', ROOT / 'scripts' / script, *arguments],
            env={'PATH': path, 'NOTES': str(notes), **environment},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        lines = notes.read_text().split('\0\n')[:-1] if notes.exists() else []
        return done, [line.split('\0') for line in lines]

    return launch


def trained(command):
    """The flags that long_vivit.train gets from a shell command."""
    words = shlex.split(command)
    place = words.index('long_vivit.train')
    assert words[place - 1 : place + 2] == ['-m', 'long_vivit.train', '--multihost']
    return words[place + 2 : place + 2 + len(FLAGS)]


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda script: script.name)
def test_each_is_sound_and_explains_itself(script, launch):
    assert os.access(script, os.X_OK)
    assert subprocess.run(['bash', '-n', script]).returncode == 0
    done, noted = launch(script.name, ['--help'])
    assert done.returncode == 0 and script.name in done.stdout and 'set -e' not in done.stdout
    wrong, noted = launch(script.name, ['a', 'b'])
    assert wrong.returncode == 2 and done.stdout.strip() in wrong.stderr and not noted


def test_tpu_starts_all_workers_with_the_same_flags(launch):
    done, ((name, *words),) = launch('tpu.sh', ['pod', 'eu-west4-b', 'train', *FLAGS])
    assert done.returncode == 0, done.stderr
    assert [name, *words[:7]] == [
        'gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'pod', '--zone=eu-west4-b', '--worker=all'
    ]  # fmt: skip
    assert trained(words[7].removeprefix('--command=')) == FLAGS


def test_tpu_sets_up_and_stops(launch):
    _, noted = launch('tpu.sh', ['pod', 'zone', 'setup'])
    assert [words[4] for words in noted] == ['scp', 'ssh']
    assert all('--worker=all' in words for words in noted)
    done, noted = launch('tpu.sh', ['pod', 'zone', 'stop'])
    assert 'kill -TERM' in noted[-1][-1] and '--worker=all' in noted[-1]
    done, _ = launch('tpu.sh', ['pod', 'zone', 'trian'])
    assert done.returncode == 2 and "no action 'trian'" in done.stderr


JOB = {'SLURM_JOB_ID': '7', 'SLURM_GPUS_ON_NODE': '4', 'SLURM_NTASKS_PER_NODE': '4'}


PYTHON = """#!/bin/sh
echo "$*" >> "$NOTES"
case "$*" in
  -c*) exit "$TOO_OLD" ;;
  *venv*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
esac
"""


@pytest.mark.parametrize('too_old', [0, 1])
def test_tpu_setup_brings_a_python_where_that_of_the_image_is_too_old(launch, too_old, tmp_path):
    """The command of the workers is run, with a Python that only takes notes."""
    _, (_, (*_, command)) = launch('tpu.sh', ['pod', 'zone', 'setup'])
    worker, notes = tmp_path / 'worker', tmp_path / 'notes_of_python'
    worker.mkdir()
    (worker / 'python3').write_text(PYTHON)
    (worker / 'python3').chmod(0o755)
    subprocess.run(['tar', '-czf', 'long_vivit.tar.gz', 'python3'], cwd=worker, check=True)
    path = f'{worker}{os.pathsep}{os.environ["PATH"]}'
    environment = {'PATH': path, 'NOTES': str(notes), 'TOO_OLD': str(too_old)}
    command = ['bash', '-c', command.removeprefix('--command=')]
    subprocess.run(command, cwd=worker, env=environment, check=True)
    asked, *made, installed = notes.read_text().splitlines()
    assert installed == '-m pip install -q -r requirements.txt jax[tpu]'
    assert made[-1].endswith(' .venv')
    if too_old:
        assert made[0] == '--version' and made[1] == '-m pip install -q --user uv'
        assert '-m uv venv' in made[2] and '--python 3.12' in made[2]
    else:
        assert made == ['-m venv .venv']


def test_slurm_starts_a_process_for_each_gpu(launch):
    done, ((name, *words),) = launch('slurm.sh', FLAGS, **JOB, SLURM_CPUS_PER_TASK='12')
    assert done.returncode == 0 and name == 'srun', done.stderr
    wanted = {'--ntasks-per-node=4', '--cpus-per-task=12', '--kill-on-bad-exit=1'}
    assert wanted | {'--gpu-bind=none'} < set(words)
    assert trained(shlex.join(words)) == FLAGS
    _, (_, (_, *words)) = launch('slurm.sh', FLAGS, **JOB)  # none were asked for
    assert '--cpus-per-task=1' in words


def test_slurm_wants_a_task_for_each_gpu(launch):
    done, noted = launch('slurm.sh', FLAGS, **JOB | {'SLURM_NTASKS_PER_NODE': '2'})
    assert done.returncode == 2 and not noted
    assert '4 GPUs on a node and 2 tasks; submit with --ntasks-per-node=4' in done.stderr
    done, _ = launch('slurm.sh', ['--help'])
    assert '--ntasks-per-node=8 --cpus-per-task=12 --gpus-per-node=8' in done.stdout


def test_slurm_queues_again_what_was_stopped_and_nothing_else(launch):
    done, noted = launch('slurm.sh', FLAGS, **JOB, STATUS='2')
    assert done.returncode == 2 and len(noted) == 1
    done, noted = launch('slurm.sh', FLAGS, **JOB, STATUS='143')
    assert noted[-1] == ['scontrol', 'requeue', '7']


def test_xpk_submits_a_workload(launch):
    arguments = ['cluster', 'mine', 'v5litepod-256', '2', *FLAGS]
    done, ((name, *words),) = launch('xpk.sh', arguments, IMAGE='image', STORAGE='disk')
    assert done.returncode == 0, done.stderr
    assert [name, *words[:2]] == ['xpk', 'workload', 'create']
    assert {
        '--cluster=cluster', '--workload=mine', '--tpu-type=v5litepod-256', '--num-slices=2',
        '--base-docker-image=image', '--storage=disk', f'--script-dir={ROOT}', '--max-restarts=50',
    } < set(words)  # fmt: skip
    assert trained(words[-1].removeprefix('--command=')) == FLAGS
    done, _ = launch('xpk.sh', ['cluster', 'mine', 'v5litepod-256', 'two'], IMAGE='image')
    assert done.returncode == 2 and "'two' is no number of slices" in done.stderr
