"""Backbones in a run: what a stage starts from, what it costs, what the mesh may split."""

import jax
import numpy as np
import pytest

import long_vivit
from long_vivit import estimate, hardware, recipe, start
from long_vivit.names import below, flatten
from tests import tiny_run
from tests.test_flops import products

pytestmark = pytest.mark.usefixtures('quick_compilation')

VOCAB = 20
BACKBONES = {
    'factorised': {'backbone': 'factorised'},
    'factorised cls': {'backbone': 'factorised', 'pool': 'cls'},
    'encoder': {'backbone': 'factorised_encoder', 'temporal_depth': 3},
    'mean map': {'backbone': 'frames', 'pool': 'map'},
    'attention': {'backbone': 'frames', 'frame_pool': 'attention'},
    'temporal cls': {'backbone': 'frames', 'frame_pool': 'temporal', 'pool': 'cls'},
}


def run_of(name, tmp_path, **more):
    fields = {f'model__video__{field}': x for field, x in BACKBONES.get(name, {}).items()}
    return tiny_run.resolved(tmp_path, tmp_path, model__video__depth=2, **fields | more)


def fresh(run, stage):
    """A stage's fresh parameters, flat."""
    key = recipe.stage_key(run, stage)
    made = jax.jit(lambda: recipe.model(run, stage, VOCAB, key), compiler_options={
        'xla_backend_optimization_level': 0})  # fmt: skip
    return {name: np.asarray(leaf) for name, leaf in flatten(made()).items()}


@pytest.mark.parametrize(
    ('name', 'kind'), [*((name, 'tube') for name in BACKBONES), ('factorised', 'frame')]
)
def test_every_product_is_counted(name, kind, tmp_path):
    """Of the step that is trained, with and without a mask, on videos and on images among them."""
    run = run_of(name, tmp_path, stages__short__mask_kind=kind, stages__long__last_layers=1)
    for stage in run.stages[1:]:
        init, step = recipe.training(run, stage, VOCAB)
        batch = recipe.batch_like(run, stage)
        b, k, values = batch['patches'].shape
        count = recipe.step_flops(run, stage, batch=b, num_patches=k, patch_values=values)
        traced = jax.jit(step).trace(jax.eval_shape(init), batch)
        assert products(traced.jaxpr.jaxpr) == count
    still = recipe.view(run, run.stages[1], image=True)
    batch['patches'] = jax.ShapeDtypeStruct((b, 4, still.patch**2 * 3), 'uint8')
    batch['where'] = jax.ShapeDtypeStruct((b, 4, 3), 'int32')
    traced = jax.jit(step).trace(jax.eval_shape(init), batch)
    count = recipe.step_flops(run, stage, batch=b, num_patches=4, patch_values=still.patch**2 * 3)
    assert products(traced.jaxpr.jaxpr) == count


@pytest.mark.parametrize(
    ('name', 'tune'),
    [
        ('factorised', 'temporal'), ('factorised', 'temporal+adapters+lora'),
        ('encoder', 'temporal'), ('encoder', 'stem'), ('temporal cls', 'temporal+head'),
        ('attention', 'temporal'), ('attention', 'adapters'), ('mean map', 'head'),
        ('factorised', 'first:1'), ('encoder', 'first:1'),
    ],
)  # fmt: skip
def test_every_product_is_counted_of_what_is_trained(name, tune, tmp_path):
    sizes = {'adapters': 'adapter_width', 'lora': 'lora_rank'}
    fields = {f'model__video__{x}': 4 for word, x in sizes.items() if word in tune}
    run = run_of(name, tmp_path, stages__long__tune=tune, **fields)
    stage = run.stages[2]
    init, step = recipe.training(run, stage, VOCAB)
    batch = recipe.batch_like(run, stage)
    b, k, values = batch['patches'].shape
    count = recipe.step_flops(run, stage, batch=b, num_patches=k, patch_values=values)
    traced = jax.jit(step).trace(jax.eval_shape(init), batch)
    # `layers.activated` keeps the input of `down` only, and computes what goes into its pair again.
    width, depth, rank = (getattr(run.model.video, x) for x in ('width', 'depth', 'lora_rank'))
    again = depth * 2 * b * k * 4 * width * rank
    assert products(traced.jaxpr.jaxpr) == count + again


def test_rates_of_one_stage_are_slices_of_one_model(tmp_path):
    """Masked later, or no longer: the patches of each rate make the slices that there are."""
    fields = {'stages__long__mask_rate': 0.0, 'stages__long__mask_schedule': '0.5=0.5'}
    run = run_of('encoder', tmp_path, **fields)
    stage = run.stages[2]
    model = jax.eval_shape(lambda: recipe.model(run, stage, VOCAB, jax.random.key(0)))
    for rate in (0.0, 0.5):
        patches = recipe.batch_like(run, stage, rate)['patches']
        assert model.video.num_slices(patches) == model.video.positions.grid[0]


def test_adapters_and_attention_over_time_are_new_together(tmp_path):
    fields = {'model__video__adapter_width': 3, 'stages__short__tune': 'temporal+adapters+stem'}
    run = run_of('factorised', tmp_path, **fields)
    image, short, long = run.stages
    flat = fresh(run, image)
    params, lines = start.shaped(run, short, flat, VOCAB)
    assert sum('afresh' in line for line in lines if 'positions' not in line) == 2
    blocks, before = (below(one, 'video/trunk/blocks') for one in (params, flat))
    assert not blocks['adapter/widen/kernel'].any() and not blocks['temporal/gate'].any()
    np.testing.assert_array_equal(blocks['temporal/norm/scale'], before['norm_1/scale'])
    np.testing.assert_array_equal(blocks['temporal/attention/out'], before['attention/out'])
    again, lines = start.shaped(run, long, params, VOCAB)
    assert again.keys() == params.keys() and not any('afresh' in line for line in lines)


def test_a_factorised_stage_of_videos_starts_from_images(tmp_path):
    """Images have no attention over time; videos begin with each layer's own and a shut gate."""
    run = run_of('factorised', tmp_path)
    image, short, long = run.stages
    flat = fresh(run, image)
    assert not any('temporal' in name for name in flat)
    params, lines = start.shaped(run, short, flat, VOCAB)
    blocks = below(params, 'video/trunk/blocks')
    np.testing.assert_array_equal(blocks['temporal/gate'], [0, 0])
    np.testing.assert_array_equal(blocks['temporal/attention/qkv'], blocks['attention/qkv'])
    assert 'video/trunk/blocks/temporal/gate: afresh, it comes with the backbone' in lines
    taught = params | {'video/trunk/blocks/temporal/gate': np.ones(2, np.float32)}
    again, lines = start.shaped(run, long, taught, VOCAB)
    np.testing.assert_array_equal(again['video/trunk/blocks/temporal/gate'], [1, 1])
    assert not any('afresh' in line for line in lines if 'temporal' in line)


@pytest.mark.parametrize('name', ['encoder', 'attention'])
def test_layers_over_slices_come_with_the_backbone(name, tmp_path):
    """A checkpoint of joint attention lacks them: they are drawn, all else stays as it was."""
    joint, run = run_of('joint', tmp_path), run_of(name, tmp_path)
    flat = fresh(joint, joint.stages[1])
    params, lines = start.shaped(run, run.stages[1], flat, VOCAB)
    assert 'video/over_time/: afresh, it comes with the backbone' in lines
    drawn = below(fresh(run, run.stages[1]), 'video/over_time')
    assert drawn
    for leaf, value in params.items():
        if leaf.startswith('video/over_time/'):
            value = value - drawn[leaf.removeprefix('video/over_time/')]
            np.testing.assert_allclose(value, 0, atol=1e-6, err_msg=leaf)
        else:
            np.testing.assert_array_equal(value, flat[leaf], err_msg=leaf)
    with pytest.raises(ValueError, match='video/over_time/.*: only the source has it; drop it'):
        start.shaped(joint, joint.stages[1], params, VOCAB)


def test_a_mesh_must_not_split_slices(tmp_path):
    run = run_of('encoder', tmp_path, mesh='data=-1,seq=2')
    with pytest.raises(ValueError, match="mesh: seq=2 .* 'factorised_encoder' attends within"):
        hardware.mesh_of(run)
    hardware.mesh_of(run_of('encoder', tmp_path, mesh='data=2,fsdp=2,tensor=2'))


def test_images_that_look_like_frames_are_not_scored(tmp_path):
    fields = {'model__video__tubelet': 1, 'stages__short__mask_kind': 'tube'}
    run = run_of('attention', tmp_path, **fields)
    with pytest.raises(ValueError, match="model.video.tubelet: 1, .* 'frames' cannot tell"):
        recipe.image_view(run, run.stages[1])
    run = run_of('attention', tmp_path, **fields | {'stages__short__mask_kind': 'frame'})
    assert recipe.image_view(run, run.stages[1]).frames == 1


def test_the_planner_offers_a_mask_that_the_backbone_takes(tmp_path):
    fields = {'stages__short__mask_kind': 'random', 'stages__short__mask_rate': 0.0}
    for name, more in (('joint', {}), ('encoder', {'stages.short.mask_kind': 'tube'})):
        run = run_of(name, tmp_path, **fields)
        mesh = hardware.mesh_of(run)
        assert {'stages.short.mask_rate': 0.75, **more} in estimate.changes(
            run, run.stages[1], mesh
        )


def test_a_run_from_images_to_videos(tiny_stories, tmp_path, one_device):
    """With images among the videos, and loaded again."""
    from long_vivit import train

    run = tiny_run.resolved(
        tiny_stories, tmp_path / 'run', model__video__backbone='factorised',
        stages__image__eval='', stages__short__eval='', run=('image', 'short'),
        stages__short__image_train='shape_stories/image:train', stages__short__image_ratio=0.5,
        stages__image__steps=2, stages__short__steps=3,
    )  # fmt: skip
    assert train.train(run) == 0
    loaded = long_vivit.load(tmp_path / 'run')
    gate = np.asarray(flatten(loaded.model)['video/trunk/blocks/temporal/gate'])
    assert np.all(gate != 0)  # it was trained
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
    assert loaded.encode_video(frames).shape == (2, 16)
