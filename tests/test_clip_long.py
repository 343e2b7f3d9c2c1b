"""From a CLIP checkpoint to long videos: configs/clip_long.py, what it refuses and starts as."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import long_vivit
from configs import clip_long
from long_vivit import config, evaluate, start, train
from long_vivit.names import flatten

FIXTURE = Path(__file__).parent / 'fixtures' / 'clip'
REFERENCE = dict(np.load(FIXTURE / 'reference.npz'))
SMALL = {'pixels': 16, 'batch': 4, 'eval_batch': 16, 'steps': 2, 'warmup_steps': 0}
pytestmark = pytest.mark.usefixtures('quick_compilation', 'one_device')


def resolved(workdir, data_dir, **changes):
    """The recipe with the tiny CLIP, on the tiny stories; `changes` by path with __ for dots."""
    cfg = clip_long.get_config()
    cfg.init, cfg.workdir, cfg.data.dir = f'clip:{FIXTURE}', str(workdir), str(data_dir)
    cfg.model.video.remat, cfg.eval.ablations = 'none', False
    cfg.loss.components, cfg.model.text.keep = 2, 3  # of 3 that a batch has, of 9 rows
    for name, frames, length in (('short', 2, 9), ('long', 4, 20)):
        data = {'train': f'shape_stories/{name}:train', 'eval': f'shape_stories/{name}:test[:16]'}
        cfg.stages[name].update(frames=frames, text_length=length, short_length=9, **data, **SMALL)
    cfg.update_from_flattened_dict({path.replace('__', '.'): x for path, x in changes.items()})
    return config.resolve(cfg)


def test_the_recipe_as_it_is_has_one_fault_the_missing_init():
    for size in ('', 'large'):
        cfg = clip_long.get_config(size)
        cfg.data.train = 'videos:none.jsonl'
        with pytest.raises(ValueError) as error:
            config.resolve(cfg)
        assert 'model.from_init' in str(error.value)
        cfg.init = f'clip:{FIXTURE}'
        cfg.loss.components = 8  # the tiny CLIP's embeddings have 16
        run = config.resolve(cfg)
        assert [stage.text_length for stage in run.stages] == [77, 248]
        assert (run.model.video.pool, run.model.video.width) == ('cls', 32)
        assert (run.model.text.kind, run.model.text.activation) == ('causal', 'quick_gelu')
    with pytest.raises(ValueError, match="'huge' is no size"):
        clip_long.get_config('huge')


def test_training_starts_as_clip_and_needs_its_folder_no_more(tmp_path, tiny_stories, capsys):
    """With a rate that changes nothing a taught stage is CLIP still, however long its texts."""
    weights = shutil.copytree(FIXTURE, tmp_path / 'clip')
    still = {f'stages__{name}__lr': 1e-30 for name in ('short', 'long')}
    run = resolved(tmp_path / 'run', tiny_stories, init=f'clip:{weights}', **still)
    assert train.train(run) == 0
    said = capsys.readouterr().out
    assert 'short: starts from clip:' in said and 'afresh' not in said
    assert 'text/positions: stretch of text/positions [9, 24] -> [20, 24]' in said
    assert train.train(run) == 0
    assert 'long: finished before' in capsys.readouterr().out
    shutil.rmtree(weights)
    for stage, frames in (('short', 2), ('long', 4)):
        taught = long_vivit.load(tmp_path / 'run', stage)
        videos = np.repeat(REFERENCE['frames'][:, None], frames, axis=1)
        np.testing.assert_allclose(taught.encode_video(videos), REFERENCE['image'], atol=1e-5)
    assert taught.tokenizer.vocab_size == 600
    scores = json.loads((tmp_path / 'run' / 'results.json').read_text())['stages']
    assert scores['long']['protocol']['frames'] == 4


def test_a_stage_of_images_leaves_the_texts_as_they_are(tmp_path, tiny_stories):
    """After images the order of words is kept: it is CLIP's."""
    changes = {'stages__short__frames': 1, 'stages__short__lr': 1e-30}
    run = resolved(tmp_path / 'run', tiny_stories, **changes)
    first = start.start_params(run, run.stages[0], None, 600)
    assert not np.any(first.params['video/positions/time'])
    assert not start.taught_on_images(first.params)
    own = {'video/positions/time': np.ones((1, 4)), 'text/positions': np.ones((3, 4))}
    assert start.taught_on_images(own)


def test_weights_and_configuration_must_agree(tmp_path, tiny_stories):
    sizes = {'width': 32, 'depth': 2, 'heads': 2, 'patch': 8}
    changes = {f'model__video__{name}': size for name, size in sizes.items()}
    run = resolved(tmp_path / 'run', tiny_stories, model__from_init=False, **changes)
    with pytest.raises(ValueError) as error:
        train.train(run)
    assert "model.video.pool: 'mean', but clip:" in str(error.value)
    assert 'set model.from_init to True' in str(error.value)
    assert 'model.video.width' not in str(error.value)
    assert not (tmp_path / 'run').exists()


def test_the_tokenizer_is_that_of_the_weights_or_none(tmp_path, tiny_stories):
    weights = shutil.copytree(FIXTURE, tmp_path / 'clip')
    run = resolved(tmp_path / 'run', tiny_stories, init=f'clip:{weights}')
    assert start.tokenizer(run).vocab_size == 600
    other = str(tiny_stories / 'shape_stories' / 'tokenizer.json')
    run = resolved(tmp_path / 'run', tiny_stories, init=f'clip:{weights}', data__tokenizer=other)
    with pytest.raises(
        ValueError, match='tokens, but the weights clip:.* know 600; leave it empty'
    ):
        start.tokenizer(run)
    (weights / 'merges.txt').unlink()
    run = resolved(tmp_path / 'run', tiny_stories, init=f'clip:{weights}')
    with pytest.raises(ValueError, match='no tokenizer lies beside clip:'):
        train.train(run)


def test_weights_are_scored_as_they_are(tiny_stories, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'built').symlink_to(tiny_stories)
    given = ['--data=shape_stories/short:test[:16]', '--batch=16', '--ordered_only', '--json']
    given += [f'--checkpoint=clip:{FIXTURE}', f'--out={tmp_path}/scores.json']
    assert evaluate.main([*given, '--frames=4', '--tubelet=2']) == 0
    scored = json.loads((tmp_path / 'scores.json').read_text())['stages']['clip']
    assert scored['protocol']['frames'] == 4 and scored['protocol']['text_length'] == 9
    with pytest.raises(ValueError, match="these weights have no stage 'long'"):
        evaluate.main([*given, '--stage=long'])
    with pytest.raises(ValueError, match='frames are of FAMILY:PATH only'):
        evaluate.main(['--checkpoint=runs/none', '--frames=4'])


def test_what_weights_lack_starts_afresh_and_is_said(tmp_path, tiny_stories):
    run = resolved(tmp_path / 'run', tiny_stories, loss__kind='sigmoid', loss__label_smoothing=0.0)
    first = start.start_params(run, run.stages[0], None, 600)
    assert float(first.params['logit_bias']) == run.loss.bias
    assert '  logit_bias: afresh, these weights have none' in first.lines
    like = flatten(start.model_like(run, run.stages[0], 600))
    assert list(first.params) == list(like)
