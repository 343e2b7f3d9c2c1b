"""Several processes on this machine that form one JAX program, for tests."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests import quick

ROOT = Path(__file__).parent.parent


def start(arguments, *, processes, devices, cache):
    """Starts `python ARGUMENTS` in each process, of `devices` fake devices all together."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    environment = os.environ | quick.environment(cache)
    environment |= {
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': quick.xla_flags(devices // processes),
        'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
        'JAX_NUM_PROCESSES': str(processes),
    }
    return [
        subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment | {'JAX_PROCESS_ID': str(i)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(processes)
    ]  # fmt: skip


def finish(started, timeout_s=240):
    """Waits for all -> [(exit status, output)]. Those still there after an error are killed."""
    try:
        deadline = time.monotonic() + timeout_s
        outputs = [one.communicate(timeout=deadline - time.monotonic())[0] for one in started]
    finally:
        for one in started:
            if one.poll() is None:
                one.kill()
                one.wait()
    return [(one.returncode, output) for one, output in zip(started, outputs, strict=True)]
