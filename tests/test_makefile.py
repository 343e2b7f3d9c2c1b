"""What make says where the environment is not what was asked for."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HERE = f'{sys.version_info[0]}.{sys.version_info[1]}'


@pytest.fixture
def make(tmp_path):
    """make(words...) -> the finished `make setup`, for an environment of the tmp folder."""
    python = tmp_path / 'venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)

    def make(version, *words):
        python.write_text(f'#!/bin/sh\necho {version}\n')
        python.chmod(0o755)
        (tmp_path / 'venv' / '.ready').touch()
        command = ['make', 'setup', f'VENV={tmp_path / "venv"}', *words]
        return run(command)

    return make


def run(command):
    """The finished command. Tests may run under a make, whose words are not for this one."""
    mine = ('MAKEFLAGS', 'MAKEOVERRIDES', 'MFLAGS', 'PYTHON')
    env = {name: value for name, value in os.environ.items() if name not in mine}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)


def test_another_python_than_that_of_the_environment_is_refused(make, tmp_path):
    done = make('3.9', f'PYTHON={sys.executable}')
    assert done.returncode != 0
    words = f'venv has Python 3.9, and PYTHON={sys.executable} is {HERE}'
    assert words in done.stderr and 'VENV=' in done.stderr
    done = make('3.9', f'PYTHON={tmp_path / "none"}')
    assert done.returncode != 0 and 'no working Python' in done.stderr


def test_what_make_bench_runs_is_there_and_recorded():
    done = run(['make', '-n', 'bench'])
    scripts = re.search(r'for name in (.+?);', done.stdout)[1].split()
    assert {'step', 'attention', 'loss', 'memory', 'decoding'} <= set(scripts)
    assert all((ROOT / f'scripts/bench/{name}.py').is_file() for name in scripts)
    assert '.venv-bench/bin/python scripts/bench/$name.py --record' in done.stdout


def test_the_same_python_or_none_that_is_named_goes_on(make):
    assert make(HERE, f'PYTHON={sys.executable}').returncode == 0
    assert make('3.9').returncode == 0
