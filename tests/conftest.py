"""What every test shares: eight fake CPU devices, the repository on the path, the real clips."""

import gc
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests import quick

# Before anything imports jax. setdefault, so that a run on real devices can say otherwise.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('XLA_FLAGS', quick.xla_flags(devices=8))
# Most of a test's time is compiling, which optimising makes three times as long.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')

import hypothesis
import pytest

# What jax traces is many small objects that live on: looking through them often finds nothing.
gc.set_threshold(200_000, 50, 100)

# The same cases each time, and none fails for the machine being busy.
hypothesis.settings.register_profile('repeatable', deadline=None, derandomize=True)
hypothesis.settings.load_profile('repeatable')


@pytest.fixture(scope='module', autouse=True)
def forgotten():
    """What a file has traced and compiled is dropped at its end: a full process is a slow one."""
    yield
    if 'jax' in sys.modules:
        sys.modules['jax'].clear_caches()
    gc.collect()


@pytest.fixture(scope='session')
def clips() -> pathlib.Path:
    """The folder of real clips that lies beside the repository; without it the test is skipped."""
    folder = ROOT.parent / 'shared' / 'data' / 'clips'
    if not folder.is_dir():
        pytest.skip('needs the real clips in ../shared/data/clips')
    return folder


@pytest.fixture(scope='session')
def eight_devices() -> None:
    """There are: always on CPU; tests that are run on real devices may have fewer."""
    import jax

    if jax.device_count() < 8:
        pytest.skip('needs eight devices')


@pytest.fixture(scope='session')
def tiny_stories(tmp_path_factory) -> pathlib.Path:
    """A data folder with a small Shape Stories: image, short and long, 64 train and 32 test."""
    from data.shape_stories import build

    folder = tmp_path_factory.mktemp('tiny_stories')
    build.build_tiny(folder)
    return folder


@pytest.fixture(scope='module')
def quick_compilation(tmp_path_factory) -> pathlib.Path:
    """Keeps compiled programs, which are not optimised, in a folder, for tests that train.

    The folder may be given to the commands that a test starts (tiny_run.child).
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    folder = tmp_path_factory.getbasetemp() / 'compiled'
    folder.mkdir(exist_ok=True)
    settings = quick.settings(folder)
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope='module')
def one_device():
    """Training and scoring in this process use one of the eight devices."""
    import jax

    from long_vivit import sharding

    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, 'make_mesh', lambda *_, **__: mesh)
        yield
