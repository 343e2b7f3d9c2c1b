"""Rows of the text positions that a stretched table keeps: the same bits through a whole run."""

import shutil

import numpy as np
import pytest

from configs import long
from long_vivit import config, long_text, train
from long_vivit.checkpoints import read_flat
from tests import tiny_run

pytestmark = pytest.mark.usefixtures('one_device', 'quick_compilation')
TABLE, MEAN, KEEP = 'model/text/positions', 'ema/text/positions', 5
CHANGES = {
    'run': ('short', 'long'), 'model__text__keep': KEEP, 'optim__weight_decay': 0.5,
    'optim__ema': 0.5, 'stages__short__steps': 2, 'stages__long__steps': 4,
    'stages__short__eval': '', 'stages__long__eval': '', 'stages__long__text_buckets': (16, 24),
    'stages__long__sentences': 'sample',
}  # fmt: skip


def run_of(data_dir, workdir, **changes):
    return tiny_run.resolved(data_dir, workdir, **CHANGES | changes)


def tables(workdir, stage):
    """{step: the text's positions} of a stage's checkpoints."""
    saved = tiny_run.checkpoints(workdir, stage)
    return {step: read_flat(path)[TABLE] for step, path in saved.items()}


@pytest.fixture(scope='module')
def taught(tiny_stories, tmp_path_factory, one_device, quick_compilation):
    workdir = tmp_path_factory.mktemp('kept') / 'run'
    assert train.train(run_of(tiny_stories, workdir)) == 0
    return workdir


def test_kept_rows_never_change_and_the_others_do(taught):
    start = read_flat(tiny_run.checkpoints(taught, 'short')[2])[MEAN]  # what the stage starts from
    of_long = tables(taught, 'long')
    assert start.shape == (16, 16) and of_long[4].shape == (32, 16)
    for table in of_long.values():
        np.testing.assert_array_equal(table[:KEEP], start[:KEEP])
    assert (of_long[2][KEEP:] != of_long[4][KEEP:]).any(axis=1).all()
    flat = read_flat(tiny_run.checkpoints(taught, 'long')[4])
    np.testing.assert_array_equal(flat[MEAN][:KEEP], start[:KEEP])
    moments = [name for name in flat if name.endswith('mu/text/positions')]
    assert [flat[name].shape for name in moments] == [(32 - KEEP, 16)]


def test_the_stage_that_starts_from_nothing_trains_all_rows(taught, tiny_stories):
    run = run_of(tiny_stories, taught)
    assert long_text.kept_rows(run, run.stages[0]) == {}
    assert long_text.kept_rows(run, run.stages[1]) == {'text/positions': KEEP}
    flat = read_flat(tiny_run.checkpoints(taught, 'short')[2])
    moments = [name for name in flat if name.endswith('mu/text/positions')]
    assert [flat[name].shape for name in moments] == [(16, 16)]


@pytest.mark.parametrize(('family', 'kept'), [('clip', {'text/positions': KEEP}), ('vivit', {})])
def test_rows_that_weights_of_others_lack_are_all_trained(family, kept, taught, tiny_stories):
    """A ViViT has no texts: they are drawn. No folder is asked for it, which may be gone."""
    run = run_of(tiny_stories, taught)
    run = config.Run(**(vars(run) | {'init': f'{family}:gone'}))
    assert long_text.kept_rows(run, run.stages[0]) == kept
    assert long_text.kept_rows(run, run.stages[1]) == {'text/positions': KEEP}


def test_a_stopped_run_goes_on_with_the_same_rows_frozen(taught, tiny_stories, tmp_path):
    """As if it had never been stopped, to the last bit."""
    copied = shutil.copytree(taught, tmp_path / 'copy')
    (copied / 'stages/long/finished.json').unlink()
    shutil.rmtree(tiny_run.checkpoints(copied, 'long')[4])
    assert train.train(run_of(tiny_stories, copied)) == 0
    for step in (2, 4):
        here, there = (tiny_run.checkpoints(w, 'long')[step] for w in (copied, taught))
        assert tiny_run.differing(here, there) == []


def test_another_run_from_its_checkpoint_keeps_them_too(taught, tiny_stories, tmp_path, capsys):
    """What the released code of Long-CLIP loses; and here the table is stretched once more."""
    run = run_of(
        tiny_stories, tmp_path / 'run', run=('long',), init=str(taught),
        stages__long__text_length=40, stages__long__steps=3,
    )  # fmt: skip
    assert train.train(run) == 0
    before, after = (tables(w, 'long') for w in (taught, tmp_path / 'run'))
    mean = read_flat(tiny_run.checkpoints(taught, 'long')[4])[MEAN]
    np.testing.assert_array_equal(after[3][:KEEP], mean[:KEEP])
    np.testing.assert_array_equal(after[3][:KEEP], before[4][:KEEP])
    assert after[3].shape == (40, 16)
    assert (
        'text/positions: stretch of text/positions [32, 16] -> [40, 16]' in capsys.readouterr().out
    )


def test_rotary_positions_leave_the_table_behind(taught, tiny_stories, tmp_path, capsys):
    run = run_of(
        tiny_stories, tmp_path / 'run', run=('long',), init=str(taught), model__text__keep=0,
        model__text__positions='rotary', stages__long__steps=2, optim__ema=0.0,
    )  # fmt: skip
    assert train.train(run) == 0
    lines = capsys.readouterr().out
    assert 'model.text.positions is rotary: where words stood is to be learnt anew' in lines
    assert 'text/positions [32, 16]: dropped, as asked' in lines
    assert TABLE not in read_flat(tiny_run.checkpoints(tmp_path / 'run', 'long')[2])


# The configuration --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('changes', 'fault'),
    [
        ({'model.text.stretch': 'interpolate', 'model.text.keep': 20}, 'model.text.keep: 20 rows'),
        ({'model.text.positions': 'rotary', 'model.text.keep': 20}, 'model.text.keep: 20 rows of'),
        ({'model.text.positions': 'rotary'}, 'model.text.length: 212 rows of a table'),
        (
            {'model.text.positions': 'rotary', 'model.text.length': 0, 'model.text.width': 6},
            'model.text.heads: 2 of 3 values each',
        ),
        (
            {'model.text.kind': 'padded', 'stages.long.text_buckets': (32,)},
            r'stages.long.text_buckets: \(32,\), but model.text.kind',
        ),
        ({'stages.long.text_buckets': (2, 77)}, 'stages.long.text_buckets: .* at least 3'),
        ({'stages.long.sentences': 'some'}, 'stages.long.sentences: .* one of all, sample'),
        ({'model.text.keep': -2}, 'model.text.keep: -2 is not allowed'),
    ],
)
def test_what_does_not_go_together_is_said(changes, fault):
    fields = long.get_config()
    fields.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=fault):
        config.check(fields)


def test_how_a_table_is_stretched_by_the_configuration(tiny_stories, tmp_path):
    for changes, keep in (
        ({'model__text__keep': -1}, None), ({'model__text__keep': 0}, 0), ({}, KEEP),
        ({'model__text__keep': -1, 'model__text__stretch': 'interpolate'}, 0),
    ):  # fmt: skip
        assert long_text.stretch_keep(run_of(tiny_stories, tmp_path, **changes)) == keep
    run = run_of(tiny_stories, tmp_path, model__text__keep=-1)
    assert long_text.kept_rows(run, run.stages[1]) == {}
