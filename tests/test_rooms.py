"""The import rules of the house, read from the syntax trees: nothing is imported to check them.

commands                      train, evaluate, ...: nothing imports them
rooms                         state, checkpoints, inputs, config, ...: may import each other
small pure pieces             models, losses, metrics, optim, ...: import only each other
"""

import ast
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_LINES, MAX_FUNCTION_LINES = 300, 60

COMMANDS = {'train', 'evaluate', 'inspect_data', 'build_data', 'plan', 'interpolate', 'export'}
COMMANDS |= {'train_tokenizer', 'sweep'}  # and all else that runs as __main__
PURE = {'models', 'losses', 'metrics', 'ranking', 'bootstrap', 'names', 'optim', 'sharding', 'axes'}
PURE |= {'adam', 'grad_cache', 'flops', 'chips', 'rates', 'recut', 'trained', 'tuning'}
ONLY = {  # library -> the modules that may import it
    'orbax': {'long_vivit.checkpoints'},
    'grain': {'long_vivit.inputs.pipeline'},
    'ml_collections': {'long_vivit.config', 'long_vivit.command_line', 'configs'},
    'tensorflow': set(),
    'matplotlib': {'long_vivit.sweeps.drawing'},
    'torch': {'long_vivit.weights.files'},  # for .pt files, when one is named
}
NEVER = {  # module -> libraries and modules that it may not import
    'long_vivit.models': {'optax', 'long_vivit.inputs', 'long_vivit.config', 'configs', 'absl'},
    'long_vivit.inputs.video': {'jax', 'flax'},
    'long_vivit.inputs.text': {'jax', 'flax'},
    'long_vivit.inputs.foreign_text': {'jax', 'flax'},
    'long_vivit.weights': {'jax', 'flax', 'optax', 'configs', 'long_vivit.config'},
    'long_vivit.inputs.patches': {'jax', 'flax'},
    'long_vivit.inputs.samplers': {'jax', 'flax'},
    'long_vivit.inputs.motion': {'jax', 'flax'},
    'long_vivit.inputs.tubes': {'jax', 'flax'},
    'long_vivit.inputs.looks': {'jax', 'flax'},
    'long_vivit.inputs.sources': {'jax', 'flax'},
    'long_vivit.inputs': {'optax', 'long_vivit.models', 'long_vivit.config', 'configs'},
    'long_vivit.metrics': {'jax', 'flax'},
    'long_vivit.config': {'jax', 'flax'},
    'long_vivit.sweep': {'jax', 'flax', 'long_vivit.estimate', 'long_vivit.recipe'},
    'long_vivit.sweeps.jobs': {'jax', 'flax'},  # it starts processes and holds no devices
    'data': {'jax', 'flax', 'tensorflow'},
    'configs': {'jax', 'flax', 'long_vivit'},
}


def within(module, package):
    return module == package or module.startswith(package + '.')


def room_of(module):
    """'models' of 'long_vivit.models.video'; '' for the package itself and for other packages."""
    package, _, rest = module.partition('.')
    return rest.split('.')[0] if package == 'long_vivit' else ''


def imports_of(tree, module, is_package):
    """Full names of all that a module imports, anywhere in it; for type checks only as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                up = node.level - is_package
                here = module.split('.')[: len(module.split('.')) - up]
                base = '.'.join([*here, base] if base else here)
            yield base
            for alias in node.names:  # `from package import module`
                yield f'{base}.{alias.name}'


def faults_of(root):
    """A line for each rule broken under `root`."""
    files = [f for room in ('long_vivit', 'configs', 'data') for f in (root / room).rglob('*.py')]
    sources = {f: f.read_text(encoding='utf-8') for f in files if 'built' not in f.parts}
    commands = COMMANDS | {f.stem for f, text in sources.items() if "\nif __name__ == '__m" in text}
    for file, text in sources.items():
        relative = file.relative_to(root)
        is_package = file.name == '__init__.py'
        module = '.'.join((relative.parent if is_package else relative.with_suffix('')).parts)
        tree = ast.parse(text)
        if relative.parts[0] == 'long_vivit':
            yield from length_faults(relative, text, tree)
        for name in sorted(set(imports_of(tree, module, is_package))):
            yield from (f'{relative}: {fault}' for fault in import_faults(module, name, commands))


def import_faults(module, name, commands):
    """Rules that `module` breaks by importing `name`."""
    here, there = room_of(module), room_of(name)
    if there in commands and here != there:
        yield f'imports the command {name}'
    if here in PURE and there and there not in PURE:
        yield f'is a pure piece and imports {name}'
    for library, allowed in ONLY.items():
        if within(name, library) and not any(within(module, place) for place in allowed):
            yield f'imports {name}, which only {", ".join(sorted(allowed)) or "nobody"} may'
    for place, refused in NEVER.items():
        if within(module, place) and any(within(name, one) for one in refused):
            yield f'imports {name}, which {place} may not'


def length_faults(relative, text, tree):
    """Files and functions too long to read, and the file that collects everything."""
    lines = text.count('\n')
    if lines > MAX_LINES:
        yield f'{relative}: {lines} lines, at most {MAX_LINES}'
    if relative.stem in ('utils', 'util', 'helpers', 'common'):
        yield f'{relative}: give each thing in it a room of its own'
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f'{relative}: {node.name} has {length} lines, at most {MAX_FUNCTION_LINES}'


def test_the_house_keeps_its_rules():
    faults = list(faults_of(ROOT))
    assert not faults, '\n' + '\n'.join(faults)


def test_the_house_is_seen():
    """The rule above is worth nothing where it looks at no files."""
    seen = {str(f.relative_to(ROOT)) for f in (ROOT / 'long_vivit').rglob('*.py')}
    assert {'long_vivit/config.py', 'long_vivit/inputs/sources.py'} <= seen


BAD = {
    'long_vivit/models/video.py': 'import optax',
    'long_vivit/models/text.py': 'from long_vivit import config',
    'long_vivit/models/dual.py': 'def late():\n    from ..inputs import video',
    'long_vivit/losses.py': 'from long_vivit.state import State',
    'long_vivit/inputs/sources.py': 'import jax.numpy as jnp',
    'long_vivit/inputs/text.py': 'import grain.python',
    'long_vivit/retrieval.py': 'from long_vivit.train import loop',
    'long_vivit/state.py': 'import orbax.checkpoint',
    'long_vivit/perf.py': 'from . import evaluate',
    'long_vivit/sweep.py': "from long_vivit import sweep_two\nif __name__ == '__main__':\n    1",
    'long_vivit/writers.py': 'from ml_collections import ConfigDict',
    'long_vivit/utils.py': '',
    'long_vivit/planner.py': 'x = 1\n' * (MAX_LINES + 1),
    'long_vivit/warm_start.py': 'def f():\n' + '    x = 1\n' * MAX_FUNCTION_LINES,
    'data/set/builder.py': 'import tensorflow as tf',
    'configs/new.py': 'import long_vivit.config',
}


@pytest.mark.parametrize('path', BAD)
def test_each_rule_can_fail(path, tmp_path):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(BAD[path])
    (tmp_path / 'long_vivit').mkdir(exist_ok=True)
    (tmp_path / 'long_vivit/sweep_two.py').write_text("\nif __name__ == '__main__':\n    1\n")
    faults = list(faults_of(tmp_path))
    assert faults and all(fault.startswith(path) for fault in faults)


def test_what_is_allowed_passes(tmp_path):
    good = {
        'long_vivit/train.py': 'from long_vivit import checkpoints, config\nimport optax',
        'long_vivit/checkpoints.py': 'import orbax.checkpoint as ocp\nfrom . import names',
        'long_vivit/config.py': 'from ml_collections import ConfigDict\nfrom configs import base',
        'long_vivit/inputs/pipeline.py': 'import grain\nfrom . import video',
        'long_vivit/inputs/video.py': 'from . import samplers',
        'long_vivit/models/video.py': 'from long_vivit.models import layers\nimport jax',
        'long_vivit/trainer.py': 'import orbaxlike, tensorflow_datasets',
        'configs/base.py': 'from ml_collections import ConfigDict',
    }
    for path, text in good.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert list(faults_of(tmp_path)) == []


@pytest.mark.parametrize('folder', ['long_vivit', 'configs', 'data', 'tests'])
def test_files_are_utf8_without_tabs(folder):
    for file in (ROOT / folder).rglob('*.py'):
        with tokenize.open(file) as opened:
            assert '\t' not in opened.read(), file
