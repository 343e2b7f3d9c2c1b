"""Going on from weights that know images: scored before and after, and weights in between."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import long_vivit
from long_vivit import evaluate, export, interpolate, stills, train
from long_vivit.checkpoints import read_flat
from long_vivit.names import flatten
from tests import tiny_run

IMAGES = 'shape_stories/image:test'
EVAL = {'eval__images': IMAGES, 'eval__ablations': False}


@pytest.fixture(scope='module', autouse=True)
def cache(quick_compilation, one_device):
    """All runs here share what is compiled for the first one."""


@pytest.fixture(scope='module')
def start(tiny_stories, tmp_path_factory):
    """The work directory of a model of images."""
    workdir = tmp_path_factory.mktemp('start') / 'run'
    assert train.train(tiny_run.resolved(tiny_stories, workdir, run=('image',))) == 0
    return workdir


@pytest.fixture(scope='module')
def end(start, tiny_stories, tmp_path_factory):
    """A model of videos that started from it, with a running mean."""
    workdir = tmp_path_factory.mktemp('end') / 'run'
    assert train.train(end_run(start, workdir, tiny_stories)) == 0
    return workdir


def end_run(start, workdir, data_dir, **changes):
    fields = {'run': ('long',), 'optim__ema': 0.5, 'stages__long__lr': 1e-2, **EVAL, **changes}
    return tiny_run.resolved(data_dir, workdir, init=str(start), **fields)


def test_images_are_scored_before_the_first_step_and_after_a_stage(end, capsys):
    results = json.loads((end / 'results.json').read_text())
    before, stage = results['before']['images'], results['stages']['long']
    assert json.loads((end / 'before.json').read_text()) == results['before']
    for images in (before, stage['images']):
        protocol = images['protocol']
        assert (protocol['data'], protocol['frames'], protocol['text']) == (IMAGES, 1, 'caption')
        assert images['scores']['ordered']['text_to_video']['num_queries'] == 32
    assert stage['images']['scores'] != before['scores']
    assert evaluate.main(['--checkpoint', str(end), '--images', '--json']) == 0
    again = json.loads(capsys.readouterr().out)['stages']['long']
    assert again['scores'] == stage['images']['scores']


def test_what_was_scored_before_is_what_the_stage_starts_from(start, end, tiny_stories, tmp_path):
    """A stage of images that starts from the same weights, and must score as their own stage."""
    run = tiny_run.resolved(
        tiny_stories, tmp_path / 'run', run=('image',), init=str(start), stages__image__steps=2,
        stages__image__eval='', **EVAL,
    )  # fmt: skip
    assert train.train(run) == 0
    before = tiny_run.results(start)['image']['scores']['ordered']
    found = json.loads((Path(run.workdir) / 'before.json').read_text())['images']
    assert found['scores']['ordered'] == before


def test_going_on_keeps_what_was_scored_before(start, end, tiny_stories, capsys):
    stored = (end / 'before.json').stat().st_mtime_ns
    assert train.train(end_run(start, end, tiny_stories)) == 0
    assert (end / 'before.json').stat().st_mtime_ns == stored
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row[:1] in (['images'], ['after'])][0][:2] == [
        'images',
        'before',
    ]
    assert ['after', 'long'] in [row[:2] for row in rows]


def test_the_row_of_before_is_of_the_images_that_are_scored(
    start, end, tiny_stories, tmp_path, capsys, monkeypatch
):
    """eval.images may change when a run goes on: the row of others is not shown as theirs."""
    workdir = Path(shutil.copytree(end, tmp_path / 'run'))
    run = end_run(start, workdir, tiny_stories, eval__images=f'{IMAGES}[:16]')

    def gone(*_):
        raise ValueError('init: it is gone')

    with monkeypatch.context() as patch:
        patch.setattr(stills.start, 'start_params', gone)
        assert train.train(run) == 0
    assert 'before' not in json.loads((workdir / 'results.json').read_text())
    shown = capsys.readouterr().out
    assert f'which was without {IMAGES}[:16]; now it cannot be: init: it is gone' in shown
    assert train.train(run) == 0
    assert f'now it is, from {start} as it is today' in capsys.readouterr().out
    found = json.loads((workdir / 'results.json').read_text())['before']['images']
    assert found['protocol']['data'] == f'{IMAGES}[:16]' and found['protocol']['videos'] == 16
    assert train.train(run) == 0
    assert 'before the first step' not in capsys.readouterr().out


def test_both_kinds_of_weights_are_scored_side_by_side(start, end, capsys):
    asked = ['--checkpoint', str(end), '--ordered_only', '--json', '--weights']
    assert evaluate.main([*asked, 'both']) == 0
    both = json.loads(capsys.readouterr().out)['stages']
    assert list(both) == ['long mean', 'long raw']
    assert both['long raw']['protocol']['weights'] == 'raw'
    stored = json.loads((end / 'results.json').read_text())['stages']['long']
    assert both['long mean']['scores']['ordered'] == stored['scores']['ordered']
    flat = read_flat(end / 'stages/long/checkpoints')
    for weights, name in (('raw', 'model'), ('mean', 'ema'), ('', 'ema')):
        model = flatten(long_vivit.load(end, which=weights).model)
        for key, leaf in model.items():
            np.testing.assert_array_equal(leaf, flat[f'{name}/{key}'])
    assert not np.array_equal(flat['model/video/head/kernel'], flat['ema/video/head/kernel'])
    with pytest.raises(ValueError, match='has no running mean; it was taught with optim.ema=0'):
        long_vivit.load(start, which='mean')


def test_a_run_is_given_out_with_the_weights_asked_for(end, tmp_path, capsys):
    flat = read_flat(end / 'stages/long/checkpoints')
    for weights, name in (('raw', 'model'), ('mean', 'ema')):
        out = tmp_path / weights
        asked = ['--checkpoint', str(end), '--format', 'safetensors', '--out', str(out)]
        assert export.main([*asked, '--weights', weights]) == 0
        for key, leaf in load_file(out / 'model.safetensors').items():
            np.testing.assert_array_equal(leaf, flat[f'{name}/{key}'])
    config = json.loads((tmp_path / 'mean/config.json').read_text())
    assert config['source'] == {'checkpoint': str(end), 'stage': 'long'}
    assert config['video']['grid'] == [4, 2, 2] and config['input']['text_length'] == 32
    assert 'scripts/torch_twin.py runs it' in capsys.readouterr().out


def test_between_is_exact_at_both_ends():
    rng = np.random.default_rng(0)
    start, end = ({'x': rng.normal(size=99).astype(np.float32)} for _ in range(2))
    np.testing.assert_array_equal(interpolate.between(start, end, 0.0)['x'], start['x'])
    np.testing.assert_array_equal(interpolate.between(start, end, 1.0)['x'], end['x'])
    quarter = interpolate.between(start, end, 0.25)['x']
    np.testing.assert_allclose(quarter, 0.75 * start['x'] + 0.25 * end['x'], rtol=1e-6)
    assert quarter.dtype == np.float32


@pytest.mark.parametrize('alpha', [0.1, 0.3])
def test_what_did_not_change_is_the_same_bits_in_between(alpha):
    rng = np.random.default_rng(0)
    start, moved = (rng.normal(size=999).astype(np.float32) for _ in range(2))
    end = np.where(np.arange(999) % 2, start, moved)
    assert (np.float32(1 - alpha) * start + np.float32(alpha) * start != start).any()
    found = interpolate.between({'x': start}, {'x': end}, alpha)['x']
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[1::2], start[1::2])
    assert (found[::2] != start[::2]).any()


def test_alphas_are_scored_and_written(start, end, tmp_path, capsys):
    out = tmp_path / 'mixed'
    asked = ['--start', str(start), '--end', str(end), '--alpha', '0,0.5,1', '--out', str(out)]
    asked += ['--data', 'shape_stories/long:test', '--images', IMAGES]
    assert interpolate.main([*asked, '--json']) == 0
    shown = json.loads(capsys.readouterr().out)['stages']
    assert list(shown) == ['long', 'still images']
    assert list(shown['long']['scores']) == ['alpha 0', 'alpha 0.5', 'alpha 1']
    stored = json.loads((end / 'results.json').read_text())['stages']['long']
    assert shown['long']['scores']['alpha 1'] == stored['scores']['ordered']
    assert shown['still images']['scores']['alpha 1'] == stored['images']['scores']['ordered']

    half, whole = long_vivit.load(out / '0.5'), long_vivit.load(end)
    assert half.stage == whole.stage and half.run.run == ('long',)
    one, two = (flatten(loaded.model) for loaded in (half, whole))
    first = read_flat(start / 'stages/image/checkpoints', 'model')
    kernel = first['model/video/trunk/blocks/up/kernel']
    other = np.asarray(two['video/trunk/blocks/up/kernel'])
    np.testing.assert_allclose(
        one['video/trunk/blocks/up/kernel'], (kernel + other) / 2, rtol=1e-6, atol=1e-8
    )
    inflated = np.concatenate([first['model/video/image_embed/kernel'] / 2] * 2)
    np.testing.assert_array_equal(
        flatten(long_vivit.load(out / '0').model)['video/tubelet_embed/kernel'], inflated
    )
    assert evaluate.main(['--checkpoint', str(out / '0.5'), '--ordered_only', '--json']) == 0
    again = json.loads(capsys.readouterr().out)['stages']['long']
    assert again['scores']['ordered'] == shown['long']['scores']['alpha 0.5']
    note = json.loads((out / '0.5/results.json').read_text())['stages']['long']['interpolated']
    assert note == {'start': str(start), 'end': str(end), 'stage': 'long', 'alpha': 0.5}
    with pytest.raises(ValueError, match='--out: .*/mixed/0 exists; name a folder that does not'):
        interpolate.main(asked)


def test_a_table_for_people_and_a_run_that_starts_in_between(start, end, tiny_stories, tmp_path,
                                                             capsys):  # fmt: skip
    out = tmp_path / 'half'
    asked = ['--start', str(start), '--end', str(end), '--out', str(out), '--images', IMAGES]
    assert interpolate.main(asked) == 0
    text = capsys.readouterr().out
    assert 'start: video/tubelet_embed/kernel: inflate of video/image_embed/kernel' in text
    assert 'still images  alpha 0.5' in text and f'wrote {out}' in text
    run = tiny_run.resolved(tiny_stories, tmp_path / 'on', run=('long',), init=str(out),
                            stages__long__eval='')  # fmt: skip
    assert train.train(run) == 0


def test_what_cannot_be_mixed_is_refused(start, end, tmp_path):
    common = ['--start', str(start), '--end', str(end)]
    with pytest.raises(ValueError, match='--out: name a folder to write, or data to score'):
        interpolate.main(common)
    for words, wrong in (('0.5,x', 'x'), ('1.5', '1.5'), ('0,0.0', '0.0'), ('nan', 'nan')):
        with pytest.raises(ValueError, match=f"'{wrong}' must be a number from 0"):
            interpolate.main([*common, '--alpha', words, '--out', str(tmp_path / 'out')])
    other = tmp_path / 'other'
    other.mkdir()
    for name in ('config.json', 'tokenizer.json'):
        (other / name).write_bytes((Path(start) / name).read_bytes())
    model = json.loads((other / 'tokenizer.json').read_text())
    model['model']['merges'] = model['model']['merges'][:-1]
    (other / 'tokenizer.json').write_text(json.dumps(model))
    asked = ['--start', str(other), '--end', str(end), '--out', str(tmp_path / 'out')]
    with pytest.raises(ValueError, match='another tokenizer than --end'):
        interpolate.main(asked)
    with pytest.raises(ValueError, match='no finished stage to start from'):
        (other / 'tokenizer.json').write_bytes((Path(start) / 'tokenizer.json').read_bytes())
        interpolate.main(asked)
