"""The second, short text from the configuration to the curves of a run."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from configs import long
from long_vivit import config, flops, recipe, sharding, stage_loss, train
from long_vivit.inputs import short_text
from long_vivit.inputs.pipeline import HOST_ONLY, Batches
from long_vivit.inputs.sources import Example, open_source
from long_vivit.inputs.text import Tokenizer, text_key
from long_vivit.window import Window
from long_vivit.writers import read_jsonl
from tests import tiny_run

TWO = {
    'loss__short_weight': 0.5, 'loss__components': 3, 'stages__long__short_text': 'caption',
    'stages__long__short_length': 12, 'run': ('long',),
}  # fmt: skip


@pytest.mark.parametrize(
    ('text', 'wanted'),
    [
        ('A dog runs. It barks.', 'A dog runs'),
        ('A dog\nruns.\n\nIt barks.', 'A dog runs'),
        ('A dog runs!  Then what? ', 'A dog runs'),
        ('One sentence only.', 'One sentence only'),
        ('at 2.5 metres, a.b.c', 'at 2.5 metres, a.b.c'),
        ('Dr. No waves. He leaves.', 'Dr'),
        ('... and then. No', '... and then. No'),
        ('一只狗在跑。它叫。', '一只狗在跑'),
        ('...', '...'),
    ],
)
def test_first_sentences(text, wanted):
    assert short_text.first_sentence(text) == wanted


def test_a_caption_is_drawn_or_missed():
    example = Example('film', b'', ('a', 'b'), ('Long. Text.',))
    drawn = [
        short_text.pick(example, 'caption', 'Long. Text.', np.random.default_rng(i))
        for i in range(40)
    ]
    assert {'a', 'b'} == set(drawn) and 8 < drawn.count('a') < 32
    assert short_text.pick(example, 'first_sentence', 'Long. Text.', None) == 'Long'
    with pytest.raises(ValueError, match="film: has no caption; .* 'first_sentence'"):
        short_text.pick(dataclasses.replace(example, captions=()), 'caption', 'Long.', None)


@pytest.mark.parametrize('kind', short_text.KINDS)
def test_a_batch_with_short_texts(kind, tiny_stories, tmp_path):
    """They come beside what is there without them, which stays as it is to the last bit."""
    source = open_source('shape_stories/long:train', data_dir=tiny_stories)
    tokenizer = Tokenizer.load(tiny_stories / 'shape_stories/tokenizer.json')
    changes = TWO | {'stages__long__short_text': kind}
    run = tiny_run.resolved(tiny_stories, tmp_path, **changes)
    plain = tiny_run.resolved(tiny_stories, tmp_path, run=('long',))
    batch, other = (
        Batches(recipe.examples(one, one.stages[0], source, tokenizer), 8, 2)[1]
        for one in (run, plain)
    )
    assert batch.keys() - other.keys() == {
        'short_tokens', 'short_lengths', 'short_key', 'short_cut'
    }  # fmt: skip
    for key, value in other.items():
        np.testing.assert_array_equal(batch[key], value, err_msg=key)
    came = {key: (x.shape, x.dtype) for key, x in batch.items() if key not in HOST_ONLY}
    like = recipe.batch_like(run, run.stages[0])
    assert came == {k: (x.shape, x.dtype) for k, x in like.items()}
    for i, index in enumerate(batch['video_key']):
        example = source[int(index)]
        text = example.captions[0]
        if kind == 'first_sentence':
            text = example.long_captions[0].split('. ')[0]
        tokens = tokenizer.encode([text], 12)
        np.testing.assert_array_equal(batch['short_tokens'][i], tokens.ids[0])
        assert batch['short_lengths'][i] == tokens.lengths[0]
        assert batch['short_key'][i] == text_key(text)
        assert batch['short_cut'][i] == (tokens.num_tokens[0] > 12)
    assert batch['short_cut'].any()


def test_a_source_must_have_what_short_texts_are_taken_from(tmp_path, tiny_stories):
    file = tmp_path / 'm.jsonl'
    rows = ['{"video": "0.mp4", "long_caption": "Long."}']
    rows.append('{"video": "1.mp4", "long_caption": "Long.", "caption": "short"}')
    file.write_text('\n'.join(rows))
    for kind in ('', 'first_sentence'):
        open_source(f'videos:{file}', text='long_caption', short_text=kind)
    with pytest.raises(ValueError, match='one fault.*\n  line 1: caption: is missing'):
        open_source(f'videos:{file}', text='long_caption', short_text='caption')
    open_source('shape_stories/long:train', data_dir=tiny_stories, short_text='caption')


def faults_of(**changes):
    cfg = long.get_config()
    cfg.update_from_flattened_dict({path.replace('__', '.'): x for path, x in changes.items()})
    try:
        config.check(cfg)
    except ValueError as error:
        return str(error)
    return ''


WEIGHED = {'loss__short_weight': 1.0, 'stages__long__short_text': 'first_sentence'}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({}, ''),
        (WEIGHED, ''),
        (WEIGHED | {'loss__components': 32}, ''),
        (WEIGHED | {'stages__long__text': 'caption'}, ''),
        ({'loss__short_weight': -1.0}, 'loss.short_weight: -1.0 is not allowed'),
        ({'loss__short_weight': float('nan')}, 'loss.short_weight: nan is not allowed'),
        ({'loss__components': -1}, 'loss.components: -1 is not allowed'),
        ({'loss__basis_gradient': 'none'}, 'one of full, stop'),
        ({'loss__components_scope': 'device'}, 'one of global, local'),
        (WEIGHED | {'stages__long__short_text': 'summary'}, "'' (none), caption or first_sentence"),
        (WEIGHED | {'stages__long__short_length': 2}, 'stages.long.short_length: 2 is not allowed'),
        ({'loss__short_weight': 1.0}, 'no stage of run has a short_text'),
        (WEIGHED | {'run': ('image',)}, 'no stage of run has a short_text'),
        ({'loss__components': 4}, 'loss.components: 4 without short texts'),
        ({'stages__long__short_text': 'caption'}, 'for nothing with loss.short_weight = 0'),
        (WEIGHED | {'loss__components': 128}, 'model.embed = 128'),
        (
            WEIGHED | {'stages__long__text': 'caption', 'stages__long__short_text': 'caption'},
            'both branches would read the same',
        ),
        (WEIGHED | {'stages__long__short_length': 300}, 'is more than model.text.length = 212'),
        (
            WEIGHED | {'stages__long__short_length': 213, 'model__text__length': 0},
            'is more than stages.long.text_length = 212',
        ),
    ],
)
def test_fields(changes, message):
    found = faults_of(**changes)
    assert message in found and ('one fault' in found) == bool(message)


def test_what_a_run_says_of_it(tmp_path):
    def said(devices=1, **changes):
        run = tiny_run.resolved(tmp_path, tmp_path, **TWO | changes)
        with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:devices])):
            return stage_loss.in_words(run, run.stages[0]), stage_loss.warning(run, run.stages[0])

    start = 'nce loss, dense, 0.5 times that of the short texts'
    assert said() == (f'{start} against 3 components of 8 pairs', '')
    assert said(loss__components=0) == (start, '')
    words, warning = said(loss__components=7, loss__basis_gradient='stop')
    assert words == f'{start} against 7 components of 8 pairs, basis held fixed'
    assert warning == (
        'loss.components: 8 pairs have no more than 7 components, so that keeping 7 leaves nothing '
        'out and short texts are compared with the whole videos; set stages.long.batch to 9 or '
        'more, or loss.components below 7'
    )
    assert said(loss__components=6)[1] == ''
    plain = tiny_run.resolved(tmp_path, tmp_path)
    assert stage_loss.warning(plain, plain.stages[2]) == ''
    if jax.device_count() < 8:
        return
    words, warning = said(4, loss__components_scope='local', loss__components=1)
    assert words == f'{start} against 1 components of 2 pairs on each of 4 devices'
    assert 'loss.components: 2 pairs on a device have no more than 1 components' in warning
    ways = (
        "stages.long.batch to 12 or more, or loss.components_scope to 'global', or loss.components "
    )
    assert warning.endswith(ways + 'to 0')
    assert said(4, loss__components=1)[1] == ''
    hopeless = said(4, loss__components_scope='local', loss__components=7)[1]
    assert "'global'" not in hopeless and 'stages.long.batch to 36 or more' in hopeless


def test_the_plan_sees_the_second_text(tmp_path):
    """In the arrays that the step takes and in the FLOPs."""
    run = tiny_run.resolved(tmp_path, tmp_path, **TWO)
    plain = tiny_run.resolved(tmp_path, tmp_path, run=('long',))
    (stage,), (other,) = run.stages, plain.stages
    of_batch = {'batch': 8, 'num_patches': 8, 'patch_values': 2 * 16 * 16 * 3}
    more = recipe.step_flops(run, stage, **of_batch) - recipe.step_flops(plain, other, **of_batch)
    tower, nothing = flops.Tower(16, 1, 12, 1), flops.Tower(0, 0, 0, 0)
    shapes = {'batch': 8, 'num_patches': 0, 'patch_values': 0, 'embed': 16}
    assert more == flops.training_step(nothing, tower, **shapes)
    init, step = recipe.training(run, stage, 20)
    _, watch = jax.eval_shape(step, jax.eval_shape(init), recipe.batch_like(run, stage))
    assert {'loss_short', 'recall_short', 'removed'} <= watch.keys()


def test_cut_short_texts_are_counted_apart():
    def batch(source, cut, short_cut=None):
        cuts = {'cut': np.array(cut)} | ({'short_cut': np.array(short_cut)} if short_cut else {})
        return {'id': list('abcd'), 'error': [None] * 4, 'source': [source] * 4, **cuts}

    watch = {'loss': 1.0, 'skipped': 0.0, 'lr': 0.1}
    window = Window()
    window.add(1, batch('videos', [1, 1, 0, 0], [0, 0, 0, 1]), watch, 4)
    window.settle()
    window = Window.from_info(window.to_info())
    window.add(2, batch('videos', [1, 0, 0, 0], [0, 0, 0, 0]), watch, 4)
    window.add(3, batch('images', [0, 0, 0, 0], [1, 1, 1, 1]), watch, 4)
    window.settle()
    line = window.line()
    assert line['cut_texts'] == 3 / 12 and line['cut_texts_videos'] == 3 / 8
    assert (line['cut_short_texts_videos'], line['cut_short_texts_images']) == (1 / 8, 1)
    stage = config.frozen({'name': 'long', 'text_length': 9, 'short_length': 5})
    assert window.cuts(stage)['videos/short'] == (
        '12% of the short texts of videos are longer than stages.long.short_length=5 tokens and '
        'are cut there'
    )
    plain = Window()
    plain.add(1, batch('videos', [0] * 4), watch, 4)
    plain.settle()
    assert not [key for key in plain.line() if 'short' in key] and plain.cuts(stage) == {}


def test_a_run_of_two_branches(tiny_stories, tmp_path, quick_compilation, one_device, capsys):
    """With images mixed in: said at the start, in the curves, and taught."""
    workdir = tmp_path / 'run'
    run = tiny_run.resolved(
        tiny_stories, workdir, **TWO,
        stages__long__image_train='shape_stories/image:train', stages__long__image_ratio=0.25,
        log__every=1, stages__long__eval='',
    )  # fmt: skip
    assert train.train(run) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        'long: nce loss, dense, 0.5 times that of the short texts against 3 components of 8 pairs'
    ) in lines
    assert not [line for line in lines if 'loss.components' in line]
    assert [line for line in lines if 'stages.long.short_length=12 tokens and are cut' in line]
    shown = [
        line for line in lines if re.search(r'loss +[\d.]+  short +[\d.]+  removed +\d+%', line)
    ]
    curves = read_jsonl(workdir / 'metrics.jsonl')
    assert len(shown) == len(curves) == 5
    for line in curves:
        assert line['loss_short'] > 0 and 0 <= line['recall_short'] <= 1
        assert 1e-3 < line['removed'] < 0.9 and line['skipped'] == 0
        assert 0.5 * line['loss_short'] < line['loss']
        (share,) = [value for key, value in line.items() if key.startswith('cut_short_texts_')]
        assert 0 <= share <= 1
    with_images = [line['tokens_per_s'] / line['clips_per_s'] for line in curves[1:]]
    assert len({round(x) for x in with_images}) == 2
