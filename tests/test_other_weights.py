"""SigLIP 2 and ViViT: equal to their references, and refused where they are not what they say.

tests/fixtures/{siglip2,vivit} are tiny models of transformers, with what it makes of drawn frames
and some texts (scripts/parity/run.py siglip2 vivit --fixtures).
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import long_vivit
from configs import base
from long_vivit import config, interpolate, start, weights
from long_vivit.inputs.text import Tokenizer, train_tokenizer

FIXTURES = Path(__file__).parent / 'fixtures'


@pytest.fixture
def folder(request, tmp_path):
    """A copy of the tiny model of the test's family."""
    return shutil.copytree(FIXTURES / request.param, tmp_path / request.param)


@pytest.fixture(scope='module')
def words(tmp_path_factory):
    """A tokenizer of ours, for a model that has no texts of its own."""
    file = tmp_path_factory.mktemp('words') / 'tokenizer.json'
    train_tokenizer(['some words'], 300).save(file)
    return file


def reference(family):
    return dict(np.load(FIXTURES / family / 'reference.npz'))


def change(folder, **fields):
    """Fields of config.json, by path with __ for the dots."""
    content = json.loads((folder / 'config.json').read_text())
    for path, value in fields.items():
        *sections, key = path.split('__')
        here = content
        for section in sections:
            here = here[section]
        here[key] = value
    (folder / 'config.json').write_text(json.dumps(content))


def test_siglip_is_its_reference():
    wanted, loaded = reference('siglip2'), long_vivit.load(f'siglip2:{FIXTURES / "siglip2"}')
    z = loaded.encode_video(wanted['frames'][:, None])
    with pytest.warns(UserWarning, match='4 of 5 texts have more than the 9 tokens'):
        z_text = loaded.encode_text(wanted['texts'].tolist())
    np.testing.assert_allclose(z, wanted['image'], atol=2e-6)
    np.testing.assert_allclose(z_text, wanted['text'], atol=2e-6)
    scale, bias = np.exp(float(loaded.model.log_scale[...])), float(loaded.model.logit_bias[...])
    np.testing.assert_allclose(scale * z @ z_text.T + bias, wanted['logits'], atol=2e-4)
    assert np.abs(z[0] - z[1]).max() > 0.01 < np.abs(z_text[0] - z_text[1]).max()
    assert loaded.run.loss.kind == 'sigmoid' and scale <= loaded.run.loss.max_scale


def test_a_still_video_is_its_frame():
    wanted = reference('siglip2')
    video = long_vivit.load(f'siglip2:{FIXTURES / "siglip2"}', frames=16, tubelet=2)
    z = video.encode_video(np.repeat(wanted['frames'][:, None], 16, 1))
    np.testing.assert_allclose(z, wanted['image'], atol=1e-5)


@pytest.mark.parametrize('folder', ['siglip2'], indirect=True)
def test_its_tokenizer_gives_the_ids_of_the_reference(folder):
    """As it is saved now, and as it lies beside the released weights: without lower case."""
    wanted = reference('siglip2')
    file = folder / 'tokenizer.json'
    for lower in (True, False):
        fields = json.loads(file.read_text(encoding='utf-8'))
        if not lower:
            fields['normalizer'] = fields['normalizer']['normalizers'][-1]
            file.write_text(json.dumps(fields), encoding='utf-8')
        tokenizer = Tokenizer.load(folder)
        found = tokenizer.encode(wanted['texts'].tolist(), 9)
        np.testing.assert_array_equal(found.ids, wanted['ids'])
        # Letter by letter; and what no letter can be is no failure.
        upper = tokenizer.encode(['ΟΔΟΣ', '\ud800'], 9).ids
        np.testing.assert_array_equal(upper, tokenizer.encode(['οδοσ', '?'], 9).ids)


@pytest.mark.parametrize('folder', ['siglip2'], indirect=True)
def test_a_siglip_that_this_model_cannot_be_is_refused(folder):
    init = f'siglip2:{folder}'
    change(folder, vision_config__vision_use_head=False, text_config__projection_size=24,
           text_config__hidden_act='silu')  # fmt: skip
    with pytest.raises(ValueError) as error:
        weights.describe(init)
    for line in ('vision_use_head is False', '24, not the width 32', "hidden_act is 'silu'"):
        assert line in str(error.value)
    change(folder, model_type='siglip2')
    with pytest.raises(ValueError, match='NaFlex'):
        weights.describe(init)


@pytest.mark.parametrize('folder', ['siglip2'], indirect=True)
def test_a_tensor_that_is_missing_is_named(folder):
    tensors = load_file(folder / 'model.safetensors')
    del tensors['vision_model.head.probe']
    save_file(tensors, folder / 'model.safetensors')
    with pytest.raises(ValueError, match=r'1 fault\(s\):\n  vision_model.head.probe .*missing'):
        weights.describe(f'siglip2:{folder}')


def test_vivit_is_its_reference(words):
    """The class token's output, by way of the head, which is fresh."""
    wanted, init = reference('vivit'), f'vivit:{FIXTURES / "vivit"}'
    found = weights.describe(init)
    assert (found.vocab, found.pixels, found.frames) == (0, 16, 4)
    loaded = long_vivit.load(init, tokenizer=words)
    z = loaded.encode_video(wanted['frames'])
    tokens = wanted['video'] @ np.asarray(loaded.model.video.head.kernel[...])
    np.testing.assert_allclose(z, tokens / np.linalg.norm(tokens, axis=1, keepdims=True), atol=2e-6)
    assert np.abs(z[0] - z[1]).max() > 0.01


@pytest.mark.parametrize('folder', ['vivit'], indirect=True)
def test_both_namings_are_read(folder):
    """With the head for classes as it was before transformers 5, and the bare model since."""
    stem = {f'video/tubelet_embed/{name}': None for name in ('kernel', 'bias')}
    before, lines = weights.read(f'vivit:{folder}', stem)
    assert [line.split(':')[0] for line in lines] == ['classifier.bias', 'classifier.weight']
    tensors = load_file(folder / 'model.safetensors')
    for new, old in (
        ('layers.', 'encoder.layer.'), ('attention.o_proj', 'attention.output.dense'),
        ('attention.q_proj', 'attention.attention.query'), ('mlp.fc1', 'intermediate.dense'),
        ('attention.k_proj', 'attention.attention.key'), ('mlp.fc2', 'output.dense'),
        ('attention.v_proj', 'attention.attention.value'),
    ):  # fmt: skip
        tensors = {name.replace(old, new): x for name, x in tensors.items()}
    tensors = {name.removeprefix('vivit.'): x for name, x in tensors.items()}
    assert 'layers.0.attention.q_proj.weight' in tensors
    save_file(tensors, folder / 'model.safetensors')
    since, _ = weights.read(f'vivit:{folder}', stem)
    assert since.keys() == before.keys()
    for name, value in since.items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    for name in stem:  # an image stage has no use for them, and is told
        params, lines = weights.read(f'vivit:{folder}', {})
        assert name not in params and any(line.startswith(name) for line in lines)


def test_what_of_a_vivit_starts_afresh_is_told(words):
    cfg = base.get_config()
    cfg.init, cfg.model.from_init = f'vivit:{FIXTURES / "vivit"}', True
    cfg.run, cfg.data.train, cfg.data.tokenizer = ('short',), 'videos:none.jsonl', str(words)
    cfg.stages.short.update(frames=8, pixels=32)
    run = config.resolve(cfg)
    params, lines = start.start_params(run, run.stages[0], None, 300)
    text = '\n'.join(lines)
    assert 'classifier.weight: left out, of a head for classes' in text
    assert 'video/head/, text/, log_scale, logit_bias: afresh' in text
    assert 'video/positions/joint: resize of video/positions/joint [2, 2, 2, 32]' in text
    assert params['video/positions/joint'].shape == (4, 4, 4, 32)
    # What is drawn anew for weights in between is what the run drew.
    end = SimpleNamespace(run=run, stage=run.stages[0], tokenizer=SimpleNamespace(vocab_size=300))
    args = SimpleNamespace(start=run.init, drop=[], json=True)
    again = interpolate.from_start(args, end)
    assert again.keys() == params.keys()
    for name, value in again.items():
        np.testing.assert_array_equal(value, params[name], err_msg=name)


def test_an_image_starts_as_the_video_that_shows_it_still():
    stem = {f'video/tubelet_embed/{name}': None for name in ('kernel', 'bias')}
    params, _ = weights.read(f'vivit:{FIXTURES / "vivit"}', stem)
    image, tubelet = (
        (params[f'video/{name}_embed/kernel'], params[f'video/{name}_embed/bias'])
        for name in ('image', 'tubelet')
    )
    pixels = np.random.default_rng(0).uniform(-1, 1, (5, 8 * 8 * 3))
    np.testing.assert_allclose(
        pixels @ image[0] + image[1], np.tile(pixels, 2) @ tubelet[0] + tubelet[1], atol=1e-5
    )


@pytest.mark.parametrize('folder', ['vivit'], indirect=True)
def test_a_vivit_that_this_model_cannot_be_is_refused(folder):
    change(folder, qkv_bias=False, image_size=[16, 24], num_frames=5)
    with pytest.raises(ValueError) as error:
        weights.describe(f'vivit:{folder}')
    for line in ('qkv_bias is False', 'image_size is [16, 24]', 'num_frames is 5'):
        assert line in str(error.value)
