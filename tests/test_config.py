"""Configurations: what is refused and how, what a Run holds, and the command line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import base, long, short
from long_vivit import command_line, config, weights, workdir
from long_vivit.inputs import patches

ROOT = Path(__file__).parent.parent


def with_data(size=''):
    cfg = long.get_config(size)
    cfg.data.train = 'videos:mine.jsonl'
    return cfg


def faults_of(cfg):
    with pytest.raises(ValueError) as caught:
        config.check(cfg)
    return str(caught.value)


def test_every_field_of_base_has_its_comment():
    """Each line `'name': value,` also says what is allowed, except where a section begins."""
    lines = (ROOT / 'configs/base.py').read_text().splitlines()
    fields = [line for line in lines if re.match(r" +'\w+': ", line)]
    sections = [line for line in fields if re.search(r"(\{|\(\)|\{'image'.*),?$", line)]
    assert len(sections) == 10
    assert not [line for line in fields if line not in sections and ',  # ' not in line]


@pytest.mark.parametrize('make', [long.get_config, short.get_config])
def test_recipes_pass_and_survive_json(make):
    for size in ('', 'base', 'large'):
        cfg = make(size)
        cfg.data.train = 'videos:mine.jsonl'
        run = config.resolve(cfg)
        text = config.to_json(run)
        assert config.from_json(text) == run
        assert config.to_json(config.from_json(text)) == text


def test_unknown_size_is_refused():
    with pytest.raises(ValueError, match="'huge' is no size; use 'base', 'large'"):
        long.get_config('huge')


def test_run_holds_plain_values():
    run = config.resolve(with_data('large'))
    assert [stage.name for stage in run.stages] == ['image', 'short', 'long']
    assert {stage.train for stage in run.stages} == {'videos:mine.jsonl'}
    assert (run.model.video.width, run.model.video.depth, run.model.video.heads) == (1024, 24, 16)
    assert run.stages[2].frames == 256 and run.stages[2].last_layers == 4
    assert vars(run.loss)['temperature'] == 0.07


def test_each_stage_keeps_its_own_data_unless_overridden():
    cfg = long.get_config()
    cfg.data.eval = 'videos:mine.csv#val'
    run = config.resolve(cfg)
    assert run.stages[1].train == 'shape_stories/short:train'
    assert {stage.eval for stage in run.stages} == {'videos:mine.csv#val'}


def test_run_is_read_only_and_names_the_nearest_field():
    run = config.resolve(with_data())
    with pytest.raises(AttributeError, match='read-only'):
        run.stages[0].frames = 2
    with pytest.raises(AttributeError, match='read-only'):
        del run.seed
    with pytest.raises(AttributeError, match="nearest: 'frames'"):
        run.stages[0].frame  # noqa: B018


def test_run_order_and_comma_words():
    cfg = with_data()
    cfg.run = ('short, image',)
    assert [stage.name for stage in config.resolve(cfg).stages] == ['short', 'image']


def test_all_faults_in_one_error():
    cfg = with_data()
    cfg.seed = -1
    cfg.run = ('image', 'long', 'lnog', 'image')
    cfg.init = 'no/such/place'
    cfg.stages.image.train = 'imagenet'
    cfg.stages.long.update(mask_kind='checker', text_length=2)
    cfg.stages.short.frames = -7  # not in run: not this run's business
    lines = faults_of(cfg).splitlines()
    assert lines[0] == 'the configuration has 7 faults:'
    for line in (
        'seed: -1 is not allowed; it must be at least 0.',
        "run: 'lnog' is no stage; it must be one of image, long, short.",
        "run: 'image' appears twice; each stage is taught once.",
        "init: 'no/such/place' does not exist; it must be a path or ''.",
        'stages.long.text_length: 2 is not allowed; it must be at least 3.',
    ):
        assert f'  {line}' in lines
    assert any(
        line.startswith("  stages.image.train: 'imagenet' is no data spec") for line in lines
    )
    assert any('one of random, slice, tube, frame' in line for line in lines)


@pytest.mark.parametrize(
    ('path', 'value', 'words'),
    [
        (
            'stages.short.pixels',
            60,
            'stages.short.pixels: 60 is not divisible by',
        ),
        ('stages.short.frames', 15, 'use 1 for images'),
        ('mesh', 'dat=2', "mesh: 'dat' in 'dat=2' is no axis; nearest: data"),
        ('mesh', 'data=-1,seq=0', 'the size of an axis must be at least 1, or -1'),
        ('stages.short.mask_rate', 0.96, 'from 0 to 0.95'),
        ('stages.short.mask_rate', float('nan'), 'from 0 to 0.95'),
        ('stages.image.mask_rate', 0.94, 'of 16 patches leaves less than one; it must be at most'),
        ('stages.long.warmup_steps', 500, 'must be less than stages.long.steps = 500'),
        ('stages.short.last_layers', 5, 'of an encoder with 4 layers'),
        ('stages.image.last_layers', 2, 'would leave the layers below as they were drawn'),
        ('stages.short.tune', 'adaptors', 'one of all, none, last:K, first:K, or some of adapters'),
        ('stages.short.tune', 'first:5', "tune: 'first:5' of an encoder with 4 layers"),
        ('stages.short.tune', 'lora+stem', 'but model.video.lora_rank = 0: there is nothing'),
        ('stages.image.tune', 'head', 'would leave the other parameters as they were drawn'),
        ('stages.short.text_tower', 'train ', 'one of train, frozen'),
        ('stages.image.text_tower', 'frozen', 'would leave the other parameters as they were'),
        ('model.video.adapter_width', 8, "put 'adapters' into the tune of a stage"),
        ('model.video.lora_rank', 8, 'but no stage of run trains it'),
        ('model.video.lora_rank', -1, 'at least 0'),
        ('stages.long.image_ratio', 0.5, 'set both'),
        ('stages.long.image_train', 'videos:images.csv', 'set both'),
        ('stages.short.eval_sampler', 'rand_seg', 'it must be one of mid'),
        ('stages.short.sampler', 'middle', 'it must be one of mid, rand_seg'),
        (
            'model.video.heads',
            3,
            'width: 128 is not divisible by model.video.heads = 3',
        ),
        ('model.text.heads', 0, 'at least 1'),
        ('model.video.width', 0, "0 with size 'custom'"),
        ('model.video.size', 'B', "128 contradicts size 'B', which has 768"),
        ('model.video.pool', 'max', 'one of mean, cls, map'),
        ('model.video.backbone', 'divided', 'one of joint, factorised, factorised_encoder, frames'),
        ('model.video.frame_pool', 'max', 'one of mean, attention, temporal'),
        ('model.video.temporal_depth', 0, 'at least 1'),
        ('model.video.frame_pool', 'attention', "of backbone 'frames' only, and model.video."),
        ('model.video.activation', 'relu', 'one of gelu, gelu_erf, quick_gelu'),
        ('model.video.norm_epsilon', 0.0, 'greater than 0'),
        ('model.video.mlp_width', -1, 'at least 0'),
        ('model.video.positions', 'table', 'one of split, joint'),
        ('model.text.kind', 'both', 'one of bidirectional, causal, padded'),
        ('model.text.activation', 'relu', 'one of gelu, gelu_erf, quick_gelu'),
        ('model.text.norm_epsilon', 0.0, 'greater than 0'),
        ('model.text.mlp_width', -1, 'at least 0'),
        ('model.from_init', True, "'' names no family of weights; it must be FAMILY:PATH"),
        ('init', 'clip:', "'clip:' names no path; it must be clip:PATH"),
        ('init', 'clip:none', "'none' does not exist"),
        ('init', 'clop:none', 'FAMILY:PATH (FAMILY one of clip, '),
        ('model.attention', 'flash', 'one of auto, blockwise, dense, cudnn, splash'),
        ('model.sequence', 'rings', 'one of auto, ulysses, ring'),
        ('model.video.size', 'XL', 'one of Ti, S, B, L, custom'),
        ('loss.max_scale', 10.0, 'below the first scale'),
        ('loss.kind', 'siglip', 'one of nce, sigmoid'),
        ('loss.form', 'chunked', 'one of auto, dense, tiled, ring'),
        ('loss.tile', 0, 'at least 1'),
        ('loss.bias', float('nan'), 'a finite number'),
        ('stages.short.micro_batch', -1, 'at least 0'),
        ('stages.short.micro_batch', 5, 'does not divide stages.short.batch = 32'),
        ('optim.eps', 0.0, 'greater than 0'),
        ('optim.clip', float('inf'), '0 (never) or more'),
        ('data.tokenizer', 'none.json', 'does not exist'),
        ('data.train', 'videos:mine.txt', 'is no data spec'),
        ('workdir', '', 'the path of a folder'),
        ('run', (), 'must name some of'),
    ],
)
def test_refused(path, value, words):
    cfg = with_data()
    section, _, name = path.rpartition('.')
    target = cfg
    for part in filter(None, section.split('.')):
        target = target[part]
    target[name] = value
    message = faults_of(cfg)
    assert words in message
    assert path in message or path == 'model.video.size'


def test_a_head_that_is_missing_must_not_be_needed():
    cfg = with_data()
    cfg.model.video.head = False
    config.check(cfg)
    cfg.model.embed = 64
    assert 'model.embed = 64 is not the width 128' in faults_of(cfg)
    cfg.model.video.update(size='S', width=0, depth=0, heads=0)
    cfg.model.embed = 384
    config.check(cfg)


def test_padded_text_is_as_long_as_its_table():
    cfg = with_data()
    cfg.run, cfg.model.text.kind = ('long',), 'padded'
    config.check(cfg)
    cfg.stages.long.text_length = 100
    assert "less than model.text.length = 212, but model.text.kind 'padded'" in faults_of(cfg)
    cfg.model.text.length = 0
    config.check(cfg)


DESCRIBED = {
    'model.video.width': 64, 'model.video.heads': 4, 'model.video.depth': 3,
    'model.video.activation': 'quick_gelu', 'model.video.norm_input': True, 'loss.kind': 'sigmoid',
}  # fmt: skip


@pytest.fixture
def described(monkeypatch, tmp_path):
    """A config whose `init` tells of DESCRIBED."""
    monkeypatch.setattr(weights, 'describe', lambda init: weights.Described(DESCRIBED))
    cfg = base.get_config()
    cfg.data.train, cfg.run = 'videos:mine.jsonl', ('short',)
    cfg.init, cfg.model.from_init = f'clip:{tmp_path}', True
    return cfg


def test_the_architecture_comes_from_the_weights(described):
    described.model.video.width = 64  # what they say as well
    before = described.to_json()
    run = config.resolve(described)
    for path, value in DESCRIBED.items():
        assert dict(config.flat(run))[path] == value, path
    assert run.model.embed == 512  # of which they say nothing
    assert described.to_json() == before
    described.model.from_init = False
    assert 'model.video.depth: 0 with size' in faults_of(described)


def test_a_field_that_contradicts_the_weights_is_refused(described):
    described.model.video.update(depth=12, activation='gelu_erf')
    message = faults_of(described)
    assert len(message.splitlines()) == 3
    for line in (
        'model.video.depth: 12, but clip:{} has 3; leave it at its default 0',
        "model.video.activation: 'gelu_erf', but clip:{} has 'quick_gelu'; leave it at its default",
    ):
        assert line.format(described.init.removeprefix('clip:')) in message


def test_what_the_weights_complain_of_is_a_fault_beside_others(described, monkeypatch):
    def complain(init):
        raise ValueError(f'{init}: no config.json')

    monkeypatch.setattr(weights, 'describe', complain)
    described.seed = -1
    message = faults_of(described)
    assert 'model.from_init: clip:' in message and ': no config.json' in message
    assert 'seed: -1 is not allowed' in message


def test_families_by_name():
    assert weights.split('clip:a/b:c') == ('clip', 'a/b:c')
    assert weights.split('runs/long') is weights.split('gs://bucket/run') is None
    with pytest.raises(ValueError, match="'runs/long' names no family of weights"):
        weights.describe('runs/long')


def test_a_ring_has_no_room_for_another_attention():
    cfg = with_data()
    cfg.model.update(attention='cudnn', sequence='ring')
    assert "model.sequence: 'ring'" in faults_of(cfg)
    cfg.model.attention = 'blockwise'
    config.resolve(cfg)


def test_missing_data_is_named_for_each_stage():
    message = faults_of(long.get_config('base'))
    for name in ('image', 'short', 'long'):
        assert f'stages.{name}.train: names no data' in message


def test_label_smoothing_is_of_nce_only():
    cfg = with_data()
    cfg.loss.label_smoothing = 0.1
    config.check(cfg)
    cfg.loss.kind = 'sigmoid'
    assert 'loss.label_smoothing: 0.1 is of loss.kind nce only' in faults_of(cfg)


def test_a_bad_field_hides_no_fault_beside_it():
    cfg = with_data()
    cfg.stages.long.update(mask_rate=1.5, frames=7, pixels=60)
    cfg.stages.short.update(frames=0, pixels=60)
    message = faults_of(cfg)
    assert len(message.splitlines()) == 6
    for field in ('long.mask_rate', 'long.frames', 'long.pixels', 'short.frames', 'short.pixels'):
        assert f'  stages.{field}: ' in message


@pytest.mark.parametrize('kind', patches.KINDS)
def test_whatever_mask_rate_passes_can_be_drawn(kind):
    cfg = with_data()
    for rate in (0.5, 0.9, 0.93, patches.MAX_RATE, 0.96, 0.999):
        cfg.stages.short.update(mask_kind=kind, mask_rate=rate)
        try:
            config.check(cfg)
        except ValueError:
            continue
        assert len(patches.choose(kind, (8, 4, 4), rate, np.random.default_rng(0)))


@pytest.mark.parametrize('kind', ['slice', 'tube', 'frame'])
def test_masks_that_keep_exactly_one_unit_pass(kind):
    cfg = with_data()
    units = {'slice': 16, 'tube': 16, 'frame': 8}[kind]
    cfg.stages.short.update(mask_kind=kind, mask_rate=1 - 1 / units)
    config.check(cfg)
    cfg.stages.short.mask_rate = 1 - 0.9 / units
    assert 'leaves less than one' in faults_of(cfg)


def test_each_backbone_takes_the_masks_that_make_sense_for_it():
    """The others are refused with a reason and what works, but not where nothing is left out."""
    takes = {
        'joint': {'random', 'slice', 'tube', 'frame'},
        'factorised': {'tube', 'frame'},
        'factorised_encoder': {'slice', 'tube', 'frame'},
        'frames': {'slice', 'tube', 'frame'},
    }
    for backbone, kinds in takes.items():
        for kind in patches.KINDS:
            cfg = with_data()
            cfg.model.video.backbone = backbone
            cfg.stages.long.update(mask_kind=kind, mask_rate=0.75)
            cfg.stages.short.update(mask_kind=kind, mask_rate=0.0)
            cfg.stages.image.update(mask_kind='random', mask_rate=0.5)  # one slice: of no account
            if kind in kinds:
                config.check(cfg)
                continue
            (_, line) = faults_of(cfg).splitlines()
            assert line.startswith(f"  stages.long.mask_kind: {kind!r}, but model.video.backbone '")
            works = [word for word in patches.KINDS if word in kinds]
            assert line.endswith(f'use {" or ".join(works)}, or mask_rate 0.')


def test_what_a_backbone_cannot_take_is_named():
    cfg = with_data()
    cfg.model.video.update(backbone='frames', positions='joint', pool='cls', cls_repeat=False)
    cfg.model.video.tubelet = 1
    cfg.stages.short.update(mask_kind='tube', mask_rate=0.5)
    cfg.stages.long.update(mask_kind='frame', image_train='videos:i.jsonl', image_ratio=0.5)
    cfg.eval.images = 'videos:images.jsonl'
    message = faults_of(cfg)
    assert message.startswith('the configuration has 3 faults:')
    assert "model.video.positions: 'joint' has no place apart from its times" in message
    assert 'model.video.cls_repeat: False, but with model.video.backbone' in message
    assert (
        'stages.short.mask_kind: ' in message and 'images (image_ratio, eval.images) loo' in message
    )
    cfg.model.video.update(tubelet=2, positions='split', cls_repeat=True)
    config.check(cfg)


def test_last_layers_may_come_first_from_a_checkpoint(tmp_path):
    cfg = with_data()
    cfg.stages.image.last_layers = 2
    cfg.init = str(tmp_path)
    config.check(cfg)


def test_what_a_stage_trains_is_said_once():
    cfg = with_data()
    cfg.stages.long.update(last_layers=2, tune='first:2')
    assert 'last_layers: 2 is short for tune = last:2, but stages.long.tune is' in faults_of(cfg)
    cfg.stages.long.update(last_layers=0, tune='none', text_tower='frozen')
    assert 'leaves nothing to teach' in faults_of(cfg)
    cfg.stages.long.update(tune='adapters+stem', text_tower='train')
    cfg.model.video.adapter_width = 8
    config.check(cfg)
    cfg.run = ('long',)
    assert 'would leave the other parameters as they were drawn' in faults_of(cfg)


def test_adapters_may_come_with_the_start(tmp_path):
    cfg = with_data()
    cfg.model.video.adapter_width, cfg.init = 8, str(tmp_path)
    config.check(cfg)


def test_base_refuses_new_names_but_takes_new_stages():
    cfg = with_data()
    with pytest.raises(AttributeError, match='nope'):
        cfg.model.nope = 1
    with pytest.raises(KeyError, match='mask_rate'):
        base.stage(mask_rte=0.5)
    with pytest.raises(TypeError, match='frames'):
        base.stage(frames='many')
    cfg.stages.medium = base.stage(frames=32, pixels=64)
    cfg.run = ('medium',)
    assert config.resolve(cfg).stages[0].frames == 32


def test_a_stage_of_other_fields_is_refused():
    cfg = with_data()
    cfg.stages.short = {'frames': 16.0, 'frmaes': 3}
    message = faults_of(cfg)
    assert 'stages.short.frmaes: no such field' in message
    assert 'stages.short.frames: 16.0 is of type float; it must be int' in message
    assert 'stages.short.pixels: is missing' in message


def test_warmup_follows_steps_until_it_is_set():
    stage = base.stage(steps=500)
    assert stage.warmup_steps == 50
    stage.steps = 1000
    assert stage.warmup_steps == 100
    stage.warmup_steps = 7
    stage.steps = 2000
    assert stage.warmup_steps == 7


def test_difference():
    old, new = with_data(), with_data()
    assert config.difference(new, old) == []
    new.seed = 3
    new.stages.long.mask_rate = 0.5
    assert config.difference(new, old) == ['seed: 0 -> 3', 'stages.long.mask_rate: 0.75 -> 0.5']
    assert config.difference(config.resolve(new), config.resolve(old)) == config.difference(
        new, old
    )
    new.run = ('image',)
    lines = config.difference(config.resolve(new), config.resolve(old))
    assert 'stages.long.mask_rate: 0.75 -> absent' in lines


def test_fields_that_came_after_a_run_was_begun_stand_at_their_defaults():
    now = config.resolve(with_data())
    stored = json.loads(config.to_json(now))
    del stored['data']['scaling'], stored['model']['text']['keep'], stored['stages'][2]['sentences']
    before = config.from_json(json.dumps(stored))
    gained = {'data.scaling', 'model.text.keep', 'stages.long.sentences'}
    assert config.came_later(now, before) == gained
    whole = config.came_later(config.Run(base=now), config.Run(base=before), below='base.')
    assert whole == {f'base.{path}' for path in gained}
    assert workdir.changed_fields(now, before) == []
    other = with_data()
    other.data.scaling = 'bicubic'
    assert workdir.changed_fields(config.resolve(other), before) == [
        "data.scaling: absent -> 'bicubic'"
    ]
    del stored['stages'][2], stored['optim']
    fewer = config.from_json(json.dumps(stored))
    assert config.came_later(now, fewer) == gained - {'stages.long.sentences'}


def test_errors_from_inside_libraries_are_bugs():
    def caught(call):
        try:
            call()
        except Exception as error:
            return command_line.is_user_error(error)

    import jax

    assert caught(lambda: config.check(long.get_config('base')))
    assert not caught(lambda: np.zeros(3).reshape(2))
    assert not caught(lambda: jax.jit(lambda x: x.reshape(7, 7))(np.zeros(3)))
    assert not caught(lambda: {}['x'])


COMMAND = '''
"""Shows a configuration."""
from long_vivit import command_line
def run(run):
    print(run.run, run.stages[-1].train, run.stages[-1].lr, run.log.tensorboard, run.workdir)
command_line.main(run, default='configs/long.py')
'''


def command(*words):
    done = subprocess.run(
        [sys.executable, '-c', COMMAND, *words], capture_output=True, text=True, cwd=ROOT
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def test_command_line_overrides():
    code, out, err = command(
        '--config.data.train=videos:a/b.jsonl#x', '--config', 'configs/short.py:base',
        '--config.stages.short.lr', '1', '--config.log.tensorboard', '--config.run=short',
    )  # fmt: skip
    assert (code, err) == (0, '')
    assert out == "('short',) videos:a/b.jsonl#x 1.0 True runs/short_base"


def test_the_configuration_of_a_run_is_one_for_the_command_line(tmp_path):
    """With changes; what it lacks is told, not filled in."""
    file = tmp_path / 'config.json'
    file.write_text(config.to_json(config.resolve(with_data('base'))))
    code, out, err = command(
        '--config.stages.short.lr=0.5', f'--config={file}', '--config.run=short',
        '--config.data.train=videos:other.jsonl',
    )  # fmt: skip
    assert (code, err) == (0, '')
    assert out == "('short',) videos:other.jsonl 0.5 False runs/long_base"
    code, _, err = command(f'--config={file}', '--config.stages.short.lrr=0.5')
    assert code == 2 and 'no field --config.stages.short.lrr; nearest: stages.short.lr' in err
    code, _, err = command(f'--config={file}:word')
    assert code == 2 and 'takes no word' in err
    file.write_text(file.read_text().replace('"max_bad_steps": 20,', ''))
    code, _, err = command(f'--config={file}')
    assert code == 2 and 'max_bad_steps: is missing' in err


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (
            ['--config.stages.long.mask_rte=0.5', '--config.mask_rate=1'],
            'error: no field --config.stages.long.mask_rte; nearest: stages.long.mask_rate\n'
            '  no field --config.mask_rate; nearest: stages.image.mask_rate, '
            'stages.long.mask_rate, stages.short.mask_rate',
        ),
        (
            ['--config=configs/lnog.py'],
            'error: --config=configs/lnog.py: no such file; configs',
        ),
        (['--config=configs/long.py:bse'], "error: configs/long.py:bse: 'bse' is no size; use"),
        (
            [
                '--config.stages.long.steps=many',
                '--config.seed=1.5',
                '--config.stages.long.lr=x',
                '--config.log.tensorboard=maybe',
                '--config.workdri=x',
            ],
            'error: --config.stages.long.steps=many: must be a whole number\n'
            '  --config.seed=1.5: must be a whole number\n'
            '  --config.stages.long.lr=x: must be a number\n'
            '  --config.log.tensorboard=maybe: must be True or False\n'
            '  no field --config.workdri; nearest: workdir',
        ),
        (  # and what is wrong with the fields that were understood
            [
                '--config.stages.long.mask_rte=0.5',
                '--config.stages.long.batch=1',
                '--config.seed=x',
                '--config.stages.long.mask_rate=2',
            ],
            'error: no field --config.stages.long.mask_rte; nearest: stages.long.mask_rate\n'
            '  --config.seed=x: must be a whole number\n'
            '  the configuration has 2 faults:\n'
            '  stages.long.mask_rate: 2.0 is not allowed; it must be from 0 to 0.95.\n'
            '  stages.long.batch: 1 is not allowed; it must be at least 2.',
        ),
        (['--config.stages.long=1'], 'error: --config.stages.long is a section; set one of'),
        (['--seed=1'], 'error: no flag --seed; nearest: seed (as --config.PATH)'),
        (['--config.stages.long.batch=1'], 'stages.long.batch: 1 is not allowed; it must be at'),
        (['more'], "error: 'more': not understood"),
    ],
)
def test_command_line_refusals_are_clean(words, message):
    code, out, err = command(*words)
    assert (code, out) == (2, '')
    assert message in err
    assert 'Traceback' not in err


def test_command_line_help():
    code, out, _ = command('--help')
    assert code == 0
    assert '--config=FILE[:WORD]' in out and 'configs/base.py' in out


def test_images_of_the_built_in_stories_are_not_mixed_into_ones_own_data():
    """The README's first command on one's own videos."""
    cfg = long.get_config()
    assert config.resolve(cfg).stages[1].image_train.startswith('shape_stories/image')
    cfg.data.train = 'videos:mine.jsonl'
    short = config.resolve(cfg).stages[1]
    assert (short.train, short.image_train, short.image_ratio) == ('videos:mine.jsonl', '', 0.0)
    cfg.stages.short.image_train = 'videos:images.jsonl'
    short = config.resolve(cfg).stages[1]
    assert (short.image_train, short.image_ratio) == ('videos:images.jsonl', 0.1)
    cfg.data.train, cfg.stages.short.image_train = (
        'shape_stories/short:train',
        'shape_stories/image:train',
    )
    assert config.resolve(cfg).stages[1].image_ratio == 0.1
