"""What is saved comes back bit for bit, on any mesh, whatever happens to the run that saves it."""

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from long_vivit import checkpoints
from long_vivit.checkpoints import CheckpointError, Checkpoints, read_flat, read_info, restore

ROOT = pathlib.Path(__file__).resolve().parent.parent


def arrays(step=0):
    """Every kind of leaf a train state has, and values that a careless round trip would change."""
    rng = np.random.default_rng(step)
    odd = np.array([0.0, -0.0, np.inf, -np.inf, 1e-45, 3.4e38], np.float32)
    nan = np.array([0x7FC00001, 0xFFC12345], np.uint32).view(np.float32)
    return {
        'step': jnp.int32(step),
        'key': jax.random.key_data(jax.random.key(step)),
        'model/odd': np.concatenate([odd, nan]),
        'model/kernel': jnp.asarray(rng.standard_normal((8, 16)), jnp.float32),
        'model/half': jnp.asarray(rng.standard_normal((16, 3)), jnp.bfloat16),
        'opt/adam/count': np.int32(step),
        'opt/seen': np.arange(5) + 2**40,
        'opt/flags': np.array([True, False]),
    }


def like(flat, sharding=None):
    return {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding) for k, v in flat.items()}


def assert_same_bits(got, want):
    assert got.keys() == want.keys()
    for name in want:
        a, b = np.asarray(got[name]), np.asarray(want[name])
        assert (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes()), name


def child(script, *args, **how):
    env = os.environ | {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
    return subprocess.Popen(
        [sys.executable, '-c', script, *map(str, args)],
        env=env, stdout=subprocess.PIPE, text=True, **how,
    )  # fmt: skip


@pytest.fixture(scope='module')
def one(tmp_path_factory):
    """A folder with a single checkpoint, step 7; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp('one') / 'checkpoints'
    with Checkpoints(folder) as saved:
        assert saved.latest() is None
        assert saved.save(7, arrays(7), {'stage': 'long', 'sizes': [1, 2]}, block=True)
    return folder


@pytest.fixture
def mine(one, tmp_path):
    return pathlib.Path(shutil.copytree(one, tmp_path / 'checkpoints'))


def test_every_bit_comes_back(one):
    with Checkpoints(one) as saved:
        assert saved.latest() == 7
        assert saved.info(7) == {'stage': 'long', 'sizes': [1, 2]}
        assert_same_bits(saved.restore(7, like(arrays())), arrays(7))
    assert_same_bits(read_flat(one), arrays(7))
    assert_same_bits(read_flat(one / '7'), arrays(7))
    assert read_info(one) == read_info(one / '7') == {'stage': 'long', 'sizes': [1, 2]}


def test_a_relative_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints('runs/base') as saved:
        saved.save(1, arrays())
    assert_same_bits(restore('runs/base/1', like(arrays())), arrays())
    assert_same_bits(read_flat('runs/base'), arrays())


def test_part_of_it_by_prefix(one):
    want = {name: value for name, value in arrays(7).items() if name.startswith('model/')}
    assert_same_bits(read_flat(one, 'model'), want)
    with pytest.raises(CheckpointError, match="nothing below 'mod'; it has: key, model, opt, step"):
        read_flat(one, 'mod')


def test_readable_without_this_code(one):
    """The promise of the module's docstring."""
    script = (
        'import sys, warnings, orbax.checkpoint as o; warnings.simplefilter("ignore")\n'
        'flat = o.v1.load(sys.argv[1])\n'
        'print(int(flat["step"]), sorted(flat), "long_vivit" in sys.modules)'
    )
    env = os.environ | {'PYTHONPATH': '', 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
    out = subprocess.run(
        [sys.executable, '-c', script, one / '7'],
        env=env, cwd=one, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert out.strip() == f'7 {sorted(arrays())} False'


@pytest.mark.usefixtures('eight_devices')
@pytest.mark.parametrize('back', [False, True])
def test_onto_another_mesh(tmp_path, back):
    kinds = (AxisType.Auto,)
    line = NamedSharding(jax.make_mesh((8,), ('fsdp',), axis_types=kinds), P('fsdp'))
    plane = jax.make_mesh((2, 4), ('data', 'fsdp'), axis_types=kinds * 2)
    plane = NamedSharding(plane, P('data', 'fsdp'))
    there, here = (plane, line) if back else (line, plane)
    flat = {'a': arrays()['model/kernel'], 'b': jnp.arange(64, dtype=jnp.uint32).reshape(8, 8)}
    with Checkpoints(tmp_path) as saved:
        saved.save(1, {k: jax.device_put(v, there) for k, v in flat.items()}, block=True)
        got = saved.restore(1, like(flat, here))
    assert all(value.sharding == here for value in got.values())
    assert_same_bits(got, flat)
    assert_same_bits(read_flat(tmp_path), flat)


def test_another_model_is_refused_before_reading(one, monkeypatch):
    monkeypatch.setattr(checkpoints.v1, 'load', None)  # would fail if it were called
    wanted = like(arrays())
    del wanted['model/half']
    wanted['model/full'] = jax.ShapeDtypeStruct((16, 3), jnp.float32)
    wanted['model/kernel'] = jax.ShapeDtypeStruct((8, 17), jnp.float32)
    wanted['step'] = jax.ShapeDtypeStruct((), jnp.float32)
    with pytest.raises(CheckpointError) as error:
        restore(one / '7', wanted)
    assert str(error.value).splitlines() == [
        f'the checkpoint {one}/7 is of another model, 4 difference(s):',
        '  model/full [16, 3] float32: wanted, not stored',
        '  model/half [16, 3] bfloat16: stored, not wanted',
        '  model/kernel: [8, 16] float32 stored, [8, 17] float32 wanted',
        '  step: [] int32 stored, [] float32 wanted',
    ]


def test_saving_does_not_see_what_comes_after(tmp_path):
    """A step donates the state, and the host's arrays are reused, while a save is under way."""
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x, host = jnp.zeros(500_000), np.zeros(500_000)
    with Checkpoints(tmp_path, keep=9) as saved:
        for number in range(3):
            saved.save(number, {'x': x, 'host': host})
            for _ in range(5):
                x, host[:] = step(x), host + 1
    for number in range(3):
        flat = read_flat(tmp_path / str(number))
        assert set(flat['x']) == set(flat['host']) == {5 * number}


def test_keeps_the_newest_and_the_best(tmp_path):
    metrics = {1: 0.5, 2: 0.9, 3: None, 4: 0.9, 5: 0.1, 6: None}
    with Checkpoints(tmp_path, keep=2, best=1) as saved:
        for step, metric in metrics.items():
            saved.save(step, {'x': jnp.ones(3)}, metric=metric)
        saved.wait()
        assert saved.steps() == [4, 5, 6]
    with Checkpoints(tmp_path, keep=1, best=2) as saved:  # the metrics are stored, too
        saved.save(7, {'x': jnp.ones(3)}, metric=0.3, block=True)
        assert saved.steps() == [4, 7]
    with Checkpoints(tmp_path, keep=1, best=0) as saved:
        saved.save(8, {'x': jnp.ones(3)}, metric=0.0, block=True)
        assert saved.steps() == [8]


def test_the_same_step_again_writes_nothing(mine):
    with Checkpoints(mine) as saved:
        assert saved.save(7, arrays(8)) is False
        assert_same_bits(read_flat(mine / '7'), arrays(7))


def test_half_written_is_ignored_and_swept(mine):
    for name in ('9.orbax-checkpoint-tmp/state', '8.deleted', 'notes'):
        (mine / name).mkdir(parents=True)
    shutil.copytree(mine / '7', mine / '10')  # a copy that stopped half way
    (mine / '10' / 'state' / '_METADATA').unlink()
    assert checkpoints.steps(mine) == [7]
    with Checkpoints(mine) as saved:
        assert sorted(os.listdir(mine)) == ['10', '7', 'notes']
        assert saved.latest() == 7
        with pytest.raises(CheckpointError, match=r'10: it lacks state/_METADATA, and no folder'):
            saved.restore(10, like(arrays()))
        saved.save(10, arrays(10), block=True)  # its number is free
        assert_same_bits(read_flat(mine), arrays(10))


DAMAGED = """
import sys
from long_vivit.checkpoints import CheckpointError, read_flat, restore
for read in (read_flat, lambda folder: restore(folder, {})):
    try:
        read(sys.argv[1])
    except CheckpointError as error:
        print(error)
"""


def test_damaged_data_names_the_folder(mine):
    """In a process of its own: failed reads leave tasks that complain when they are collected."""
    for file in (mine / '7' / 'state').rglob('d/*'):
        os.truncate(file, file.stat().st_size // 2)
    with child(DAMAGED, mine / '7', stderr=subprocess.DEVNULL) as process:
        lines = process.communicate(timeout=120)[0].splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(f'the checkpoint {mine}/7 cannot be read: ')
        assert line.endswith('remove this folder to go on from the one before it')


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match='none: it does not exist'):
        read_flat(tmp_path / 'none')
    with pytest.raises(CheckpointError, match='it lacks _CHECKPOINT_METADATA, state/_METADATA, '):
        read_info(tmp_path)
    assert checkpoints.steps(tmp_path / 'none') == []


def test_a_folder_of_checkpoints_is_not_a_checkpoint_to_restore(one):
    with pytest.raises(CheckpointError, match='itself, only in it'):
        restore(one, like(arrays()))


def test_an_unwritable_folder_is_found_at_once(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match=r'cannot write checkpoints to .*file/checkpoints') as error:
        Checkpoints(tmp_path / 'file' / 'checkpoints')
    assert error.value.errno == errno.ENOTDIR


def test_what_cannot_be_stored_is_said_first(tmp_path):
    bad = {
        'a': 3.0,
        'b': np.array(['x', None]),
        'c': jax.random.key(0),
        'd': np.zeros((0, 3)),
        'fine': np.ones(3),
    }
    with Checkpoints(tmp_path) as saved:
        with pytest.raises(ValueError) as error:
            saved.save(1, bad)
        for text in ('a: float is', 'b: ndarray is', 'c: a typed random key', 'd: has no elements'):
            assert text in str(error.value)
        assert 'fine' not in str(error.value)
        for info in ({'x': {1, 2}}, {1: 2}, {'x': (1, 2)}, {'x': float('nan')}):
            with pytest.raises(ValueError, match='JSON'):
                saved.save(1, arrays(), info)
        with pytest.raises(ValueError, match='metric is nan'):
            saved.save(1, arrays(), metric=float('nan'))
        with pytest.raises(ValueError, match='no arrays given'):
            saved.save(1, {})
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match='keep is 0'):
        Checkpoints(tmp_path, keep=0)


FULL = """
import json, resource, sys
import numpy as np
from long_vivit.checkpoints import Checkpoints
noise = np.random.default_rng(0).bytes
said = []
with Checkpoints(sys.argv[1], keep=1) as saved:
    saved.save(1, {'x': np.ones(3)}, block=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    saved.save(2, {'x': np.frombuffer(noise(1_000_000), np.uint8)})
    try:
        saved.wait()
    except OSError as error:
        said = [error.errno, str(error), saved.latest()]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    saved.save(2, {'x': np.ones(4)})
print(json.dumps(said))
"""


def test_a_write_that_fails_loses_nothing(tmp_path):
    """A real failed write in the background (a limit on the size of files), then room again."""
    with child(FULL, tmp_path, stderr=subprocess.PIPE) as process:
        out, noise = process.communicate(timeout=120)
    assert process.returncode == 0, noise
    number, text, latest = json.loads(out)
    assert number == errno.EFBIG
    assert f'step 2 not saved in {tmp_path}: ' in text
    assert text.endswith('step 1 is there and whole')
    assert latest == 1
    assert 'Traceback' not in noise  # said once, by us
    assert os.listdir(tmp_path) == ['2']
    assert read_flat(tmp_path)['x'].shape == (4,)


def test_a_full_disk_in_words(mine, monkeypatch):
    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Failed writing: no room [os_error_code='28']")

    with Checkpoints(mine) as saved:
        monkeypatch.setattr(checkpoints.v1, 'save_async', full)
        with pytest.raises(OSError, match='no space left on the device; step 7 is there') as error:
            saved.save(8, arrays())
        assert error.value.errno == errno.ENOSPC
        assert saved.latest() == 7


def test_the_end_of_a_run_keeps_its_own_reason(tmp_path, monkeypatch):
    class Late:
        def result(self):
            raise OSError(errno.ENOSPC, 'full')

    monkeypatch.setattr(checkpoints.v1, 'save_async', lambda *_, **__: Late())
    with pytest.raises(KeyError, match='first') as error, Checkpoints(tmp_path) as saved:
        saved.save(1, arrays())
        raise KeyError('first')
    assert 'no space left' in error.value.__notes__[0]
    with pytest.raises(OSError, match='there is none before it'), Checkpoints(tmp_path) as saved:
        saved.save(1, arrays())


KILLED = """
import sys
import numpy as np
from long_vivit.checkpoints import Checkpoints
noise = np.random.default_rng(0).bytes(2_000_000)
with Checkpoints(sys.argv[1], keep=2) as saved:
    for step in range(1, 10_000):
        x = np.frombuffer(noise, np.uint8) + np.uint8(step)
        saved.save(step, {'x': x, 'step': np.int32(step)})
        print(step, flush=True)
"""


def test_killed_at_any_time_what_is_there_is_whole(tmp_path):
    with child(KILLED, tmp_path) as process:
        for line in process.stdout:
            if int(line) == 7:
                process.send_signal(signal.SIGKILL)
                break
    base = np.frombuffer(np.random.default_rng(0).bytes(2_000_000), np.uint8)
    with Checkpoints(tmp_path, keep=2) as saved:
        assert saved.latest() >= 6  # 7 may or may not have got there
        for step in saved.steps():
            flat = read_flat(tmp_path / str(step))
            assert flat['step'] == step
            np.testing.assert_array_equal(flat['x'], base + np.uint8(step))
        assert sorted(os.listdir(tmp_path)) == sorted(map(str, saved.steps()))
        assert saved.save(saved.latest() + 1, arrays(), block=True)
