"""Stages that see their videos otherwise, from the configuration to the scores."""

import jax
import numpy as np
import pytest

import long_vivit
from configs import long
from long_vivit import config, estimate, hardware, recipe, train
from long_vivit.inputs import looks
from long_vivit.inputs.pipeline import HOST_ONLY, Batches
from long_vivit.inputs.sources import open_source
from long_vivit.inputs.text import Tokenizer
from tests import tiny_run
from tests.test_sequence import mesh_of

TUBES = '4x16x16/4x16x16+2x8x8/2x8x8@0x4x4+1x16x16/2x16x16'
WAYS = {
    'tubes': {'tubes': TUBES, 'mask_kind': 'random', 'mask_rate': 0.4},
    'motion': {'mask_kind': 'motion', 'mask_rate': 0.5},
    'budget': {'token_budget': 6, 'mask_rate': 0.0, 'mask_kind': 'random', 'fps': 0.5},
    'coarse time': {'tubelet': 4},
    'coarse space': {'patch': 32, 'mask_rate': 0.0},
}


@pytest.fixture(scope='module', autouse=True)
def cache(quick_compilation, one_device):
    return quick_compilation


def tiny(data_dir, workdir, changes=None, **others):
    """The tiny run with a short stage that is changed."""
    own = {f'stages__short__{field}': value for field, value in (changes or {}).items()}
    return tiny_run.resolved(data_dir, workdir, **own, **others)


@pytest.mark.parametrize('way', WAYS)
def test_the_shapes_foretold_are_those_of_a_batch(way, tiny_stories, tmp_path):
    """And the step takes them; its FLOPs go by the patches that there are."""
    run = tiny(tiny_stories, tmp_path, WAYS[way])
    stage = run.stages[1]
    source = open_source(stage.train, data_dir=tiny_stories)
    tokenizer = Tokenizer.load(tiny_stories / 'shape_stories/tokenizer.json')
    examples = recipe.examples(run, stage, source, tokenizer)
    batch = Batches(examples, batch=stage.batch, steps=9)[3]
    again = Batches(examples, batch=stage.batch, steps=9)  # as one that goes on makes it
    jax.tree.map(
        np.testing.assert_array_equal,
        *({k: one[k] for k in ('patches', 'where')} for one in (batch, again[3])),
    )
    arrays = {key: x for key, x in batch.items() if key not in HOST_ONLY}
    came = jax.tree.map(lambda x: (x.shape, x.dtype), arrays)
    like = recipe.batch_like(run, stage)
    assert came == jax.tree.map(lambda x: (x.shape, x.dtype), like)
    init, step = recipe.training(run, stage, tokenizer.vocab_size)
    _, watch = jax.eval_shape(step, jax.eval_shape(init), like)
    assert watch['loss'].shape == ()
    k, values = looks.patches_of(batch)
    sizes = [(x.shape[1], x.shape[2]) for x in jax.tree.leaves(arrays['patches'])]
    assert k * values == pytest.approx(k / sum(n for n, _ in sizes) * sum(n * v for n, v in sizes))
    assert way == 'budget' or k == sum(n for n, _ in sizes)
    assert estimate.mean_flops(run, stage) > 0


def test_a_short_clip_counts_the_patches_that_it_has(tiny_stories, tmp_path):
    """Films of 8 seconds at 0.5 frames per second: two slices of four places, of a budget of 12."""
    run = tiny(tiny_stories, tmp_path, WAYS['budget'] | {'token_budget': 12, 'frames': 8})
    stage = run.stages[1]
    view = recipe.view(run, stage)
    source = open_source(stage.train, data_dir=tiny_stories)
    tokenizer = Tokenizer.load(tiny_stories / 'shape_stories/tokenizer.json')
    batch = Batches(recipe.examples(run, stage, source, tokenizer), batch=8, steps=1)[0]
    assert batch['where'].shape == (8, 12, 3)
    real = (batch['where'][..., 0] >= 0).sum(1)
    assert (real % 4 == 0).all() and 4 <= real.mean() < 12
    assert looks.patches_of(batch)[0] == real.mean()
    assert view.grid == (4, 2, 2)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'token_budget': -1}, 'token_budget: -1 is not allowed'),
        ({'token_budget': 8}, "mask_kind: 'tube' with stages.short.token_budget = 8"),
        ({'token_budget': 129, 'mask_kind': 'random'}, 'is more than the 128 patches'),
        ({'token_budget': 8, 'mask_kind': 'random', 'unmasked_tail': 0.1}, 'nothing can be masked'),
        ({'tubes': 'tubevit', 'mask_kind': 'random'}, '8x8x8 from 0x0x0 on does not fit'),
        ({'tubes': '8x8'}, 'tubes: '),
        ({'tubes': '2x8x8/2x8x8', 'mask_rate': 0.5}, "mask_kind: 'tube' with stages.short.tubes"),
        ({'patch': 24}, 'pixels: 64 is not divisible by stages.short.patch = 24'),
        ({'tubelet': 3}, 'frames: 16 is not divisible by stages.short.tubelet = 3'),
        ({'motion_uniform': 1.5}, 'from 0 to 1'),
        ({'mask_kind': 'motions'}, 'one of random, slice, tube, frame, motion'),
    ],
)
def test_refused(changes, words):
    cfg = long.get_config()
    cfg.stages.short.update({'mask_rate': 0.0, 'mask_kind': 'tube'} | changes)
    if changes.get('tubes') == 'tubevit':
        cfg.stages.short.update(frames=4, pixels=32)
    with pytest.raises(ValueError) as caught:
        config.check(cfg)
    assert words in str(caught.value)


def test_each_kernel_must_split_over_devices(tiny_stories, tmp_path):
    run = tiny(tiny_stories, tmp_path, WAYS['tubes'] | {'mask_rate': 0.0})
    view = recipe.view(run, run.stages[1])
    assert [k for k, _ in view.shapes] == [4, 18, 8]
    faults = list(hardware.view_faults('x', view, mesh_of(seq=4)))
    assert len(faults) == 1 and faults[0].startswith('x: 18 patches')
    still = recipe.image_view(run, run.stages[1])
    assert still.tubes == () and still.token_budget == 0


def test_stages_that_cut_otherwise_teach_each_other(tiny_stories, tmp_path, capsys):
    """Images, then tubes, then a budget of coarse patches: taught, scored, loaded again."""
    changes = {
        f'stages__long__{k}': v for k, v in (WAYS['budget'] | {'patch': 32, 'tubelet': 4}).items()
    }
    changes |= {'stages__long__token_budget': 2, 'stages__long__mask_kind': 'motion'}
    run = tiny(
        tiny_stories, tmp_path / 'run', WAYS['tubes'], eval__ablations=True, stages__short__steps=2,
        stages__long__steps=2, stages__image__steps=1, stages__image__warmup_steps=0,
        stages__image__eval='', **changes,
    )  # fmt: skip
    assert train.train(run) == 0
    shown = capsys.readouterr().out
    for line in (
        'short: tubes of 4x16x16 (2), 2x8x8 (11), 1x16x16 (5)',
        '  video/tubes/2x8x8: recut of video/image_embed 1x16x16 -> 2x8x8',
        'long: 2 patches of each video, drawn by how much they change, at 0.5 frames per second; '
        'of longer ones the first 16 s',
        '  video/tubelet_embed: recut of video/image_embed 1x16x16 -> 4x32x32',
        '  video/tubes/4x16x16: left out, this stage cuts its videos otherwise',
    ):
        assert line in shown.splitlines(), line
    found = tiny_run.results(run.workdir)
    assert found['short']['protocol']['patches_kept'] == (
        'tubes of 4x16x16 (4), 2x8x8 (18), 1x16x16 (8)'
    )
    assert found['long']['protocol']['patches_kept'].startswith('drawn once for each video: 2 pat')
    assert set(found['long']['scores']) == {'ordered', 'shuffled', 'one_frame'}
    for stage in ('short', 'long'):
        loaded = long_vivit.load(run.workdir, stage)
        frames = np.random.default_rng(0).integers(0, 256, (2, 12, 32, 32, 3), np.uint8)
        z = loaded.encode_video(frames)
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(loaded.encode_video(frames[0]), z[0], atol=1e-5)
