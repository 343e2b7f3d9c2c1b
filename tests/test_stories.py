"""The built-in stories are built where they are wanted and missing, and only there."""

import types

import pytest

from configs import sweep as recipes
from long_vivit import children, stories, sweep
from long_vivit.sweeps import grid
from tests import tiny_run


@pytest.fixture
def build(monkeypatch):
    """The build, left out: `folders` that were asked for, `status` that it ends with."""
    found = types.SimpleNamespace(folders=[], status=0)

    def run(arguments):
        assert arguments[:4] == ['-m', 'long_vivit.build_data', 'shape_stories', '--data_dir']
        found.folders.append(arguments[4])
        return found.status

    monkeypatch.setattr(children, 'run', run)
    return found


def test_a_missing_folder_is_built(build, tmp_path):
    said = []
    stories.build_missing(tiny_run.resolved(tmp_path, tmp_path / 'run'), said.append)
    assert build.folders == [str(tmp_path)]
    assert str(tmp_path / 'shape_stories') in said[0]


def test_what_is_there_is_left_alone_even_if_it_is_of_no_use(build, tmp_path):
    (tmp_path / 'shape_stories').mkdir()
    (tmp_path / 'shape_stories' / 'tokenizer.json').touch()
    stories.build_missing(tiny_run.resolved(tmp_path, tmp_path / 'run'), print)
    assert build.folders == []


def test_a_build_that_was_stopped_goes_on(build, tmp_path):
    """The tokenizer is what it leaves last."""
    (tmp_path / 'shape_stories' / 'image' / '1.0.0').mkdir(parents=True)
    stories.build_missing(tiny_run.resolved(tmp_path, tmp_path / 'run'), print)
    assert build.folders == [str(tmp_path)]


def test_a_run_on_other_data_builds_nothing(build, tmp_path):
    other = {f'stages__image__{key}': 'videos:clips.jsonl' for key in ('train', 'eval')}
    mine = tmp_path / 'tokenizer.json'
    mine.touch()
    run = tiny_run.resolved(
        tmp_path, tmp_path / 'run', run=('image',), data__tokenizer=str(mine), **other
    )
    stories.build_missing(run, print)
    assert build.folders == []


def test_their_tokenizer_is_built_where_none_is_named(build, tmp_path):
    """The first command on one's own videos, in a fresh clone."""
    said, other = [], {f'stages__image__{key}': 'videos:clips.jsonl' for key in ('train', 'eval')}
    run = tiny_run.resolved(tmp_path, tmp_path / 'run', run=('image',), **other)
    stories.build_missing(run, said.append)
    assert build.folders == [str(tmp_path)]
    assert 'for its tokenizer' in said[0]


def test_a_build_that_fails_ends_the_run(build, tmp_path):
    build.status = 1
    with pytest.raises(ValueError, match=r'data\.dir: .*shape_stories could not be built'):
        stories.build_missing(tiny_run.resolved(tmp_path, tmp_path / 'run'), print)


def test_a_sweep_builds_them_once_before_its_jobs_do(build, tmp_path, monkeypatch):
    cfg = recipes.get_config('tiny')
    cfg.workdir, cfg.base.data.dir = str(tmp_path / 'sweep'), str(tmp_path)
    for flag, value in (('JOBS', 2), ('TABLE', False), ('MEMORY', False)):
        monkeypatch.setattr(sweep, flag, types.SimpleNamespace(value=value))
    build.status = 1  # so that it goes no further
    with pytest.raises(ValueError, match='shape_stories could not be built'):
        sweep.main(grid.read(cfg))
    assert build.folders == [str(tmp_path)]
    assert not any(tmp_path.glob('sweep/cells/*'))
