"""From a CLIP checkpoint to long videos: configs/clip_long.py, what it refuses and starts as."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

import long_vivit
from configs import clip_long
from long_vivit import config, evaluate, interpolate, start, train
from long_vivit.names import flatten
from tests.test_weights import narrow_heads, openai_names, state  # noqa: F401

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
        for init, said in (('', 'model.from_init: init: '), (f'clip:{FIXTURE}/no', 'init: ')):
            cfg.init = init
            with pytest.raises(ValueError) as error:
                config.resolve(cfg)
            head, *faults = str(error.value).splitlines()
            assert head == 'the configuration has one fault:' and len(faults) == 1, faults
            assert faults[0].startswith(f'  {said}')
        cfg.init = f'clip:{FIXTURE}'
        cfg.loss.components = 8  # the tiny CLIP's embeddings have 16
        run = config.resolve(cfg)
        assert [stage.text_length for stage in run.stages] == [77, 248]
        assert (run.model.video.pool, run.model.video.width) == ('cls', 32)
        assert (run.model.text.kind, run.model.text.activation) == ('causal', 'quick_gelu')
    with pytest.raises(ValueError, match="'huge' is no size"):
        clip_long.get_config('huge')


def long_clip(folder):
    """Long-CLIP's two tables in a folder of the tiny CLIP -> the table that is made of them."""
    shutil.copytree(FIXTURE, folder)
    tables = np.random.default_rng(0).standard_normal((2, 248, 24)).astype('f4')
    names = ('positional_embedding', 'positional_embedding_res')
    both = openai_names(state()) | dict(zip(names, tables, strict=True))
    save_file(both, folder / 'model.safetensors')
    return np.concatenate([tables[0, :20], tables[1, 20:]])


@pytest.mark.usefixtures('narrow_heads')
def test_long_clips_table_comes_through_both_stages(tmp_path, tiny_stories):
    """The short stage reads 77 rows of it; that leaves the others for the long one."""
    table = long_clip(tmp_path / 'longclip')
    lengths = {'stages__short__text_length': 77, 'stages__long__text_length': 248}
    init = f'longclip:{tmp_path}/longclip'
    run = resolved(tmp_path / 'run', tiny_stories, init=init, **lengths)
    assert run.model.text.length == 248
    params, lines = start.start_params(run, run.stages[0], None, 600)
    np.testing.assert_array_equal(params['text/positions'], table)
    params, more = start.shaped(run, run.stages[1], params, 600)
    np.testing.assert_array_equal(params['text/positions'], table)
    assert not any('text/positions' in line for line in (*lines[2:], *more) if 'rows 0' not in line)


def test_a_first_stage_of_shorter_texts_loses_no_row(tmp_path, tiny_stories):
    """Of 9 rows 5 are read at first: the table has those of the longest stage from the start."""
    length = {'stages__short__text_length': 5}
    run = resolved(tmp_path / 'run', tiny_stories, **length)
    assert run.model.text.length == 20
    params, lines = start.start_params(run, run.stages[0], None, 600)
    assert params['text/positions'].shape == (20, 24)
    assert '  text/positions: stretch of text/positions [9, 24] -> [20, 24]' in lines
    alone = resolved(tmp_path / 'run', tiny_stories, run=('short',), **length, loss__components=0,
                     loss__short_weight=0.0)  # fmt: skip
    assert alone.model.text.length == 9
    rotary = {'model__text__positions': 'rotary', 'model__text__keep': -1}
    assert resolved(tmp_path / 'run', tiny_stories, **length, **rotary).model.text.length == 0
    as_is = resolved(tmp_path / 'run', tiny_stories)
    assert as_is.model.text.length == 0  # nothing is cut: from stage to stage, as ever


def test_rows_that_would_be_lost_are_a_fault_where_the_fields_are_set_by_hand():
    cfg = clip_long.get_config()
    cfg.init, cfg.data.train, cfg.loss.components = f'clip:{FIXTURE}', 'videos:none.jsonl', 8
    cfg.model.from_init = False
    cfg.model.video.update(width=32, depth=2, heads=2)
    cfg.stages.short.text_length = 5
    with pytest.raises(ValueError) as error:
        config.resolve(cfg)
    assert 'one fault' in str(error.value)
    assert 'leaves the first 5 of the 9 rows' in str(error.value)
    assert 'set model.text.length=248.' in str(error.value)
    cfg.model.text.length = 248
    config.resolve(cfg)


NEW_PARTS = {
    'adapters': {'model__video__adapter_width': 3, 'stages__short__tune': 'adapters+stem'},
    'factorised': {'model__video__backbone': 'factorised'},
    'temporal': {'model__video__backbone': 'frames', 'model__video__frame_pool': 'temporal'},
    'bias': {'loss__kind': 'sigmoid', 'loss__label_smoothing': 0.0},
}  # what CLIP has not


@pytest.mark.parametrize('name', NEW_PARTS)
def test_weights_are_mixed_from_where_training_started(name, tmp_path, tiny_stories):
    """`interpolate --start clip:PATH` has what the first step had, in every bit."""
    run = resolved(
        tmp_path / 'run', tiny_stories, run=('short',), loss__short_weight=0.0, loss__components=0,
        stages__short__mask_kind='tube', **NEW_PARTS[name],
    )  # fmt: skip
    stage = run.stages[0]
    wanted, _ = start.start_params(run, stage, None, 600)
    end = SimpleNamespace(run=run, stage=stage, tokenizer=SimpleNamespace(vocab_size=600))
    args = SimpleNamespace(start=run.init, drop=[], json=True)
    found = interpolate.from_start(args, end)
    assert found.keys() == wanted.keys()
    for leaf, value in found.items():
        np.testing.assert_array_equal(value, wanted[leaf], err_msg=leaf)


def test_images_to_mix_in_must_have_the_texts_that_are_read(tmp_path, tiny_stories):
    """Said when they are opened, not at the step that first draws one."""
    rows = tmp_path / 'images.jsonl'
    rows.write_text(json.dumps({'video': 'a.png', 'long_caption': 'A red circle. It grows.'}))
    (tmp_path / 'a.png').write_bytes(b'')
    mixed = {'image_train': f'videos:{rows}', 'image_ratio': 0.5}
    mixed = {f'stages__short__{name}': value for name, value in mixed.items()}
    run = resolved(tmp_path / 'run', tiny_stories, **mixed)
    with pytest.raises(ValueError, match='line 1: caption: is missing'):
        train.open_sources(run, run.stages[0])
    mixed |= {'stages__short__text': 'long_caption', 'stages__short__eval': ''}
    mixed |= {'stages__short__train': 'shape_stories/long:train'}
    run = resolved(tmp_path / 'run', tiny_stories, **mixed)
    assert len(train.open_sources(run, run.stages[0])['images']) == 1


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


def test_pictures_that_are_scaled_otherwise_are_told_of(tmp_path, tiny_stories):
    run = resolved(tmp_path / 'run', tiny_stories, data__scaling='bilinear')
    told = 'pictures: scaled bilinear, those that these weights know were bicubic (data.scaling)'
    assert f'  {told}' in start.start_params(run, run.stages[0], None, 600).lines
    run = resolved(tmp_path / 'run', tiny_stories)
    assert 'pictures' not in ' '.join(start.start_params(run, run.stages[0], None, 600).lines)


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
