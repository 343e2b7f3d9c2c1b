"""Compiled programs kept between runs: where, whose, and that a reloaded one is the same."""

import os
import subprocess
import sys

import pytest

from tests.tiny_run import ROOT

# A program like a step: donated, with options of its own; prints whether it was found in the cache.
PROGRAM = """
import sys
import jax, jax.numpy as jnp
from jax._src import monitoring
from long_vivit import compiling
hits = []
monitoring.register_event_listener(
    lambda name, **_: hits.append(name) if name.endswith('cache_hits') else None)
setting, workdir, scale = sys.argv[1:]
print(compiling.keep_compiled(setting, workdir))
step = jax.jit(lambda s, x: s + float(scale) * jnp.sin(x @ x.T).sum(), donate_argnums=0,
               compiler_options=compiling.compiler_options())
state, x = jax.device_put((jnp.float32(1), jnp.linspace(0, 1, 999).reshape(27, 37)))
hits.clear()
out = step(state, x)
print(len(hits), state.is_deleted(), float(out).hex())
"""


def run(setting, workdir, scale='2', **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(('XLA', 'JAX_'))}
    environment |= {'JAX_PLATFORMS': 'cpu', **variables}
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, setting, str(workdir), scale], cwd=ROOT, timeout=120,
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, found = done.stdout.split('\n')[:2]
    return said, found.split()


def test_the_second_run_finds_the_program_of_the_first(tmp_path):
    """The same bits, its state donated; another program is compiled anew."""
    said, first = run('auto', tmp_path / 'one')
    assert f'{tmp_path}/.compiled/cpu-' in said
    assert first[:2] == ['0', 'True']
    _, second = run('auto', tmp_path / 'two')
    assert second == ['1', *first[1:]]
    _, other = run('auto', tmp_path / 'two', scale='3')
    assert other[0] == '0' and other[2] != first[2]


@pytest.mark.parametrize('setting', ['off', 'auto'])
def test_off_and_a_folder_that_jax_was_told_of(setting, tmp_path):
    told = tmp_path / 'told'
    said, _ = run(setting, tmp_path / 'one', JAX_COMPILATION_CACHE_DIR=str(told))
    assert said == ''
    assert not (tmp_path / '.compiled').exists()
    assert told.exists() == (setting == 'auto')
