"""scripts/bench/gpu.py where there is no GPU: its rows are made all the same, and say so."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from scripts.bench import gpu, gpu_rows, precision, rows

# A Python without what only reads videos and texts; then gpu.py as a process of a row.
LESS = """
import runpy, sys
class Lacking:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *rest):
        lacking = name.partition('.')[0] in {lacking}
        return None if lacking else self.finder.find_spec(name, *rest)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Lacking, sys.meta_path)
sys.argv = ['gpu.py', '--child', {ask!r}]
runpy.run_path({script!r}, run_name='__main__')
"""


@pytest.fixture
def printed(monkeypatch, capsys):
    """printed(words...) -> the lines of the script, whose rows are made in this process, once."""
    known = {}

    def child(ask):
        key = json.dumps(ask)
        known[key] = known[key] if key in known else gpu_rows.measured(ask)
        return known[key]

    monkeypatch.setattr(gpu, 'child', child)
    monkeypatch.setattr(gpu_rows, 'keep_freed_memory', lambda: None)  # it is for a whole process

    def printed(*words):
        common = ['--sizes', 'tiny', '--frames', '4', '--batch', '2', '--steps', '2']
        monkeypatch.setattr('sys.argv', ['gpu.py', *words, *common])
        gpu.main()
        return capsys.readouterr().out.splitlines()

    return printed


def cells(line):
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_each_part_has_its_rows_and_none_passes_for_a_figure(printed):
    first, product, *lines = printed('--remat', 'full')
    assert 'THE FIGURES MEAN NOTHING' in first and product.startswith('CPU: no figure: a bfloat16')
    tables = [line for line in lines if line.startswith('|') and not line.startswith('|---')]
    heads = [line for line in tables if cells(line)[-1] == 'device']
    assert [cells(line)[0] for line in heads] == list(gpu.PARTS)
    found = [cells(line) for line in tables if line not in heads]
    assert len(found) == 1 + 1 + 3 + 2
    ratio = found.pop(4)
    assert ratio[2] == '0% / 75%' and float(ratio[6].removesuffix(' x')) > 0
    assert all(row[-1] == 'CPU: no figure' for row in found)
    assert [row[2:4] for row in found[:4]] == [['75%', '8']] * 3 + [['0%', '32']]
    for row in found[:4]:
        before, after = map(float, row[11].split(' to '))
        assert after < before
    patches, frames = (float(row[2]) for row in found[4:])
    assert 3 < frames / patches < 4  # a quarter, and where they are from


def test_what_does_not_fit_or_breaks_is_a_row(printed, monkeypatch):
    def fails(**_):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')

    monkeypatch.setattr(gpu_rows, 'stepped', fails)
    lines = printed('masking')
    assert [cells(line)[6] for line in lines[-2:]] == ['does not fit'] * 2
    assert len({len(cells(line)) for line in lines[3:]}) == 1
    monkeypatch.undo()
    monkeypatch.setattr(gpu.subprocess, 'run', lambda *_, **__: subprocess.CompletedProcess([], 1))
    assert gpu.child({})['failed'] == 'ended with status 1, see above'


def test_an_unknown_part_is_refused(printed, capsys):
    with pytest.raises(SystemExit):
        printed('mfus')
    assert 'mfus: no such part; there are mfu, hour' in capsys.readouterr().err


def test_a_row_needs_nothing_that_reads_videos():
    """JAX's own libraries and ml_collections are enough."""
    lacking = {'av', 'ftfy', 'grain', 'tokenizers', 'tensorflow_datasets', 'array_record'}
    ask = {'what': 'bus', 'size': 'tiny', 'frames': 4, 'mask_rate': 0.75, 'batch': 2, 'rounds': 1}
    code = LESS.format(lacking=lacking, ask=json.dumps(ask), script=gpu.__file__)
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=rows.ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    where, patch, frame = 3 * 4, 2 * 16 * 16 * 3, 64 * 64 * 3
    wanted = [2 * 8 * (where + patch), 2 * (8 * where + 4 * frame)]
    assert json.loads(done.stdout)['bytes'] == wanted


def test_float32_is_float32_in_both_libraries(monkeypatch):
    """On what rounds by itself; on a CPU nothing is set, so nothing changes."""
    before = jax.config.jax_default_matmul_precision
    precision.of_jax()
    assert jax.config.jax_default_matmul_precision == before
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    try:
        precision.of_jax()
        one = jax.make_jaxpr(lambda x: x @ x)(np.ones((2, 2), np.float32))
        assert 'HIGHEST' in str(one)
    finally:
        jax.config.update('jax_default_matmul_precision', before)

    class Torch:
        """What is set of the module."""

        asked = []
        set_float32_matmul_precision = staticmethod(asked.append)

        class cuda:
            there = False
            is_available = classmethod(lambda cls: cls.there)

        class backends:
            class cudnn:
                allow_tf32 = True

    precision.of_torch(Torch)
    assert not Torch.asked and Torch.backends.cudnn.allow_tf32
    Torch.cuda.there = True
    precision.of_torch(Torch)
    assert Torch.asked == ['highest'] and not Torch.backends.cudnn.allow_tf32
