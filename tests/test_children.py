"""Processes end with the one that started them: by Ctrl-C, politely or not at all politely."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A shell that starts a job in the background has it ignore Ctrl-C, and what that starts as well.
HEEDS = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
RUNS = """
from long_vivit import children
children.run(['-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'])
"""
WORKS = """
import concurrent.futures, multiprocessing, os, time
from long_vivit import children

if __name__ == '__main__':
    context = multiprocessing.get_context('spawn')
    pool = concurrent.futures.ProcessPoolExecutor(1, context, children.as_worker, (os.getpid(),))
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""


def there(pid):
    """Whether a process runs: one that has ended and was not waited for does not."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize('code', [RUNS, WORKS], ids=['a command', 'a worker'])
def test_nothing_outlives_its_parent(code, number, tmp_path):
    file = tmp_path / 'parent.py'
    file.write_text(HEEDS + code)
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    with subprocess.Popen(
        [sys.executable, str(file)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=environment, start_new_session=True,
    ) as parent:  # fmt: skip
        child = int(parent.stdout.readline())
        try:
            assert there(child)
            parent.send_signal(number)
            until = time.monotonic() + 30
            while there(child) and time.monotonic() < until:
                time.sleep(0.02)
            assert not there(child)
        finally:
            parent.kill()


def test_a_command_that_ends_by_itself_gives_its_status():
    from long_vivit import children

    assert children.run(['-c', 'raise SystemExit(7)']) == 7
