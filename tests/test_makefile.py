"""What make says where the environment is not what was asked for."""

import os
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
        # The tests may run under a make of their own, whose words are not for this one.
        mine = ('MAKEFLAGS', 'MAKEOVERRIDES', 'MFLAGS', 'PYTHON')
        env = {name: value for name, value in os.environ.items() if name not in mine}
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)

    return make


def test_another_python_than_that_of_the_environment_is_refused(make, tmp_path):
    done = make('3.9', f'PYTHON={sys.executable}')
    assert done.returncode != 0
    words = f'venv has Python 3.9, and PYTHON={sys.executable} is {HERE}'
    assert words in done.stderr and 'VENV=' in done.stderr
    done = make('3.9', f'PYTHON={tmp_path / "none"}')
    assert done.returncode != 0 and 'no working Python' in done.stderr


def test_the_same_python_or_none_that_is_named_goes_on(make):
    assert make(HERE, f'PYTHON={sys.executable}').returncode == 0
    assert make('3.9').returncode == 0
