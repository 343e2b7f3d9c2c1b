"""What an installation holds."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_workers_elsewhere_can_import_all_of_it_and_no_built_data_goes_along(tmp_path):
    setuptools = pytest.importorskip('setuptools')
    folders = [
        file.parent.relative_to(ROOT)
        for top in ('long_vivit', 'configs', 'data', 'tests', 'scripts')
        for file in (ROOT / top).rglob('*.py')
        if 'built' not in file.parts
    ]
    for folder in [*folders, Path('data/built/shape_stories/long/1.0.0'), Path('runs/long')]:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    wanted = {'.'.join(folder.parts) for folder in folders}
    wanted = {name for name in wanted if name.split('.')[0] not in ('tests', 'scripts')}
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())
    find = project['tool']['setuptools']['packages']['find']
    found = setuptools.find_namespace_packages(str(tmp_path), **find)  # what pyproject.toml means
    assert set(found) == wanted
    assert 'data.clips' in found and 'configs' in found
