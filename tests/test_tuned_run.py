"""Adapters and LoRA through a run of three stages: what is new, kept, merged, and gone on with."""

import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import long_vivit
from long_vivit import export, interpolate, newcomers, recipe, train, tuning
from long_vivit.checkpoints import read_flat
from long_vivit.models import lora
from long_vivit.names import below, flatten, unflatten
from long_vivit.retrieval import encode_patches, encode_tokens
from tests import tiny_run

FIELDS = {
    'model__video__depth': 2, 'model__video__adapter_width': 3, 'model__video__lora_rank': 2,
    'stages__short__tune': 'adapters+lora+stem', 'stages__short__text_tower': 'frozen',
    'stages__long__tune': 'last:1', 'checkpoint__every': 1, 'log__every': 1,
    **{f'stages__{name}__eval': '' for name in tiny_run.STAGES},
    **{f'stages__{name}__steps': 2 for name in tiny_run.STAGES},
}  # fmt: skip
BLOCKS = 'video/trunk/blocks/'


@pytest.fixture(scope='module')
def taught(tiny_stories, tmp_path_factory, quick_compilation, one_device):
    """(work directory, what was printed): image whole, short by adapters and LoRA, long on top."""
    workdir = tmp_path_factory.mktemp('tuned') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr(train, 'say', lambda text: lines.append(str(text)))
        assert train.train(tiny_run.resolved(tiny_stories, workdir, **FIELDS)) == 0
    return workdir, lines


def params_of(workdir, stage, step=2):
    return below(read_flat(tiny_run.checkpoints(workdir, stage)[step]), 'model')


def test_each_stage_has_what_it_trains_and_moves_nothing_else(taught):
    workdir, lines = taught
    image, short, long = (params_of(workdir, name) for name in tiny_run.STAGES)
    new = {name for name in short if '/adapter/' in name or 'lora/' in name}
    assert short.keys() - image.keys() == new | {
        f'video/tubelet_embed/{x}' for x in ('kernel', 'bias')
    }
    assert long.keys() == {name for name in short if 'lora/' not in name}
    for name, leaf in image.items():  # whatever is not named is as the image stage left it
        if name not in ('video/positions/time', 'text/positions', 'log_scale'):
            np.testing.assert_array_equal(short[name], leaf, err_msg=name)
    assert all(short[name].any() for name in new)
    merged = lora.merged(short)
    for name, leaf in long.items():
        if name.startswith(BLOCKS):
            np.testing.assert_array_equal(leaf[:1], merged[name][:1], err_msg=name)
            assert not np.array_equal(leaf[1:], merged[name][1:]), name
    for words in (
        'short: trains', 'adapters+lora+stem; the text encoder is frozen',
        'adapters: afresh', 'lora: afresh', 'lora: merged into the weights', 'the last 1 layers',
    ):  # fmt: skip
        assert any(words in line for line in lines), words


def test_moments_are_of_what_is_trained_alone(taught):
    state = read_flat(tiny_run.checkpoints(taught[0], 'short')[2])
    moved = set(below(state, 'opt/adam/mu'))
    assert moved == {
        name for name in below(state, 'model')
        if '/adapter/' in name or 'lora/' in name or name == 'log_scale'
        or name.startswith(('video/tubelet_embed', 'video/positions/time'))
    }  # fmt: skip


def test_a_stage_with_adapters_goes_on_to_the_same_bits(taught, tiny_stories, tmp_path):
    """From its first step: the state of adapters, pairs and their moments is all there."""
    workdir = tmp_path / 'run'
    shutil.copytree(taught[0], workdir)
    shutil.rmtree(workdir / 'stages/long')
    shutil.rmtree(workdir / 'stages/short/checkpoints/2')
    (workdir / 'stages/short/finished.json').unlink()
    assert train.train(tiny_run.resolved(tiny_stories, workdir, **FIELDS)) == 0
    for stage in ('short', 'long'):
        one, two = (tiny_run.checkpoints(folder, stage)[2] for folder in (workdir, taught[0]))
        assert tiny_run.differing(one, two) == []


def test_a_loaded_model_has_its_pairs_merged(taught, tmp_path):
    """In `load`, in what `interpolate` and `export` write; CLIP has no place for adapters."""
    workdir, _ = taught
    loaded = long_vivit.load(workdir, 'short')
    wanted = lora.merged(params_of(workdir, 'short'))
    found = flatten(loaded.model)
    assert found.keys() == wanted.keys() and loaded.run.model.video.lora_rank == 0
    for name, leaf in wanted.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)
    ends = ['--start', str(workdir / 'stages/image/checkpoints'), '--end', str(workdir)]
    half = str(tmp_path / 'half')
    assert interpolate.main([*ends, '--stage', 'short', '--alpha', '1', '--out', half]) == 0
    for name, leaf in flatten(long_vivit.load(half).model).items():
        np.testing.assert_array_equal(leaf, wanted[name], err_msg=name)
    out = ['--checkpoint', str(workdir), '--format', 'clip', '--out', str(tmp_path / 'clip')]
    with pytest.raises(ValueError, match='model.video.adapter_width: is 3; CLIP has none'):
        export.main(out)


def test_what_is_exported_has_no_pairs_and_embeds_as_the_model_with_them(
    taught, tiny_stories, tmp_path, capsys
):
    """The tensors of the file in a model without LoRA, against the checkpoint's with it."""
    workdir, _ = taught
    asked = ['--checkpoint', str(workdir), '--stage', 'short', '--format', 'safetensors']
    assert export.main([*asked, '--out', str(tmp_path / 'out')]) == 0
    assert 'scripts/torch_twin.py runs it' in capsys.readouterr().out
    stored, params = load_file(tmp_path / 'out/model.safetensors'), params_of(workdir, 'short')
    assert lora.has_lora(params) and not any('lora' in name for name in stored)
    assert 'lora' not in (tmp_path / 'out/config.json').read_text()
    paired = tiny_run.resolved(tiny_stories, workdir, **FIELDS)
    plain = tuning.sized(paired, lora_rank=0)
    without = {name: leaf for name, leaf in params.items() if 'lora/' not in name}
    wanted, found, other = (
        embedded(run, flat) for run, flat in ((paired, params), (plain, stored), (plain, without))
    )
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert np.abs(other - wanted).max() > 1e-4  # pairs that were left out would be seen


def embedded(run, flat):
    """z of two videos and two texts, float32 [4, e], by the parameters in a model of `short`."""
    like = jax.eval_shape(
        lambda: recipe.model(run, run.stages[1], flat['text/embed'].shape[0], jax.random.key(0))
    )
    model, rng = unflatten(like, flat), np.random.default_rng(0)
    patches = rng.integers(0, 256, (2, 8, 2 * 16 * 16 * 3), np.uint8)
    where = np.broadcast_to(np.indices((2, 2, 2)).reshape(3, 8).T, (2, 8, 3))
    z_video = encode_patches(model, patches, where)
    z_text = encode_tokens(model, rng.integers(0, 20, (2, 16)), np.array([16, 5]))
    return np.concatenate([z_video, z_text])


def test_adapters_without_a_place_are_refused(taught, tiny_stories):
    workdir, _ = taught
    plain = tiny_run.resolved(tiny_stories, workdir, model__video__depth=2)
    flat, like = params_of(workdir, 'short'), dict.fromkeys(params_of(workdir, 'image'))
    with pytest.raises(
        ValueError, match=r'stages.long: .* set model.video.adapter_width to 3, and'
    ):
        newcomers.settled(plain, plain.stages[2], 20, flat, like)
