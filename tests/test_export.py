"""Weights out: what is written is what is read again, and what cannot be CLIP's is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from einops import rearrange
from safetensors.numpy import load_file
from tokenizers.pre_tokenizers import ByteLevel

from long_vivit import export, inference, recipe
from long_vivit.inputs.foreign_text import CLIP, CLIP_MARKS, clip_model
from long_vivit.inputs.text import Tokenizer, train_tokenizer
from long_vivit.names import flatten, unflatten
from long_vivit.weights import clip, clip_out, pairs, rows
from tests import tiny_run
from tests.tiny_models import FAST

CLIPS = {'activation': 'quick_gelu', 'norm_epsilon': 1e-5}
AS_CLIP = {
    'model__video__pool': 'cls', 'model__video__norm_input': True, 'model__text__kind': 'causal',
    **{f'model__{tower}__{name}': x for tower in ('video', 'text') for name, x in CLIPS.items()},
}  # fmt: skip


@pytest.fixture(scope='module')
def tokenizer():
    """CLIP's kind, that knows hardly a word."""
    symbols = sorted(ByteLevel.alphabet())
    words = [*symbols, *(f'{symbol}</w>' for symbol in symbols), 're', 'red</w>', *CLIP_MARKS]
    vocab = {word: number for number, word in enumerate(words)}
    return Tokenizer(clip_model(vocab, [('r', 'e'), ('re', 'd</w>')]), CLIP)


@pytest.fixture(scope='module')
def words():
    """One of our own."""
    return train_tokenizer(['a red circle', 'a blue square'], 270)


def like_of(run, stage, tokenizer):
    return jax.eval_shape(lambda: recipe.model(run, stage, tokenizer.vocab_size, jax.random.key(0)))


def loaded_as(tokenizer, **fields):
    """A `Loaded` of the tiny run with random values in every parameter."""
    run = tiny_run.resolved('nowhere', 'nowhere', **fields)
    stage = run.stages[1]
    like, rng = like_of(run, stage, tokenizer), np.random.default_rng(0)
    params = {
        name: np.float32(0.3 * rng.standard_normal(leaf.shape) + name.endswith('scale'))
        for name, leaf in flatten(like).items()
    }
    params = {name: jnp.asarray(leaf) for name, leaf in params.items()}
    view = recipe.eval_view(run, stage)
    return inference.Loaded(unflatten(like, params), view, tokenizer, run, stage)


@pytest.fixture
def model_of(monkeypatch):
    """Lets the command load a model of such fields -> that model."""

    def make(tokenizer, **fields):
        loaded = loaded_as(tokenizer, **fields)
        monkeypatch.setattr(inference, 'load', lambda *_, **__: loaded)
        return loaded

    return make


def run_export(form, out):
    return export.main(['--checkpoint', 'runs/mine', '--format', form, '--out', str(out)])


def test_all_parameters_and_what_they_mean_are_written(model_of, words, tmp_path):
    loaded = model_of(words, model__video__activation='gelu_erf', model__text__mlp_width=24)
    assert run_export('safetensors', tmp_path / 'out') == 0
    stored = load_file(tmp_path / 'out/model.safetensors')
    params = flatten(loaded.model)
    assert stored.keys() == params.keys() and len(stored) > 30
    for name, leaf in params.items():
        np.testing.assert_array_equal(stored[name], leaf)
        assert stored[name].shape == leaf.shape and stored[name].dtype == np.float32
    config = json.loads((tmp_path / 'out/config.json').read_text())
    assert (config['format'], config['version'], config['embed']) == ('long_vivit', 1, 16)
    assert config['video'] == {
        'width': 16, 'depth': 1, 'heads': 2, 'mlp_width': 64, 'activation': 'gelu_erf',
        'norm_epsilon': 1e-6, 'grid': [2, 2, 2], 'patch': 16, 'tubelet': 2, 'pool': 'mean',
        'cls_repeat': True, 'norm_input': False, 'positions': 'split', 'head': True,
    }  # fmt: skip
    assert (
        config['text']['positions'] == 'learned'
        and config['text']['mlp_width'] == 24
        and config['text']['length'] == 16
    )
    assert config['text']['vocab'] == words.vocab_size and config['text']['kind'] == 'bidirectional'
    assert config['input']['frames'] == 4 and config['input']['sampler'] == 'mid'
    assert config['tokens'] == {'start': 1, 'end': 2, 'pad': 0}
    again = Tokenizer.load(tmp_path / 'out/tokenizer.json')
    assert again.to_json() == words.to_json()
    with pytest.raises(ValueError, match='--out: .*out exists; name a folder that does not'):
        run_export('safetensors', tmp_path / 'out')


@pytest.mark.parametrize(
    ('tubelet', 'backbone'), [(1, 'joint'), (2, 'joint'), (1, 'frames'), (2, 'frames')]
)
def test_a_clip_that_is_read_again_embeds_the_same(
    tubelet, backbone, model_of, tokenizer, tmp_path, capsys
):
    """The bias of the patches and, with tubelets of one frame, the first time are in the places;
    but not of frame-level encoders, which read no times."""
    loaded = model_of(
        tokenizer, **AS_CLIP, model__video__tubelet=tubelet, model__text__length=40,
        model__video__backbone=backbone, stages__short__mask_kind='frame',
    )  # fmt: skip
    model = loaded.model
    assert run_export('clip', tmp_path / 'out') == 0
    shown = capsys.readouterr().out
    assert 'left out: tubelets and times' in shown and 'texts of 40 tokens' in shown
    found = clip.describe(tmp_path / 'out')
    assert (found.pixels, found.text_length, found.vocab) == (32, 40, tokenizer.vocab_size)
    params, _ = clip.read(tmp_path / 'out')
    for name, leaf in flatten(model).items():
        if name.startswith(('text/', 'video/trunk', 'video/head', 'log_scale')):
            np.testing.assert_array_equal(params[name], leaf, err_msg=name)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (3, 32, 32, 3), np.uint8)
    patches = rearrange(images, 'b (h p) (w q) c -> b (h w) (p q c)', p=16, q=16)
    where = np.broadcast_to([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]], (3, 4, 3))
    encode = jax.jit(lambda model: model.video(patches, where), compiler_options=FAST)
    image = as_image(loaded, params)
    np.testing.assert_allclose(encode(image), encode(model), atol=2e-6)
    stored = load_file(tmp_path / 'out/model.safetensors')
    assert stored['vision_model.embeddings.patch_embedding.weight'].shape == (16, 3, 16, 16)
    assert stored['logit_scale'].shape == ()


def as_image(loaded, params):
    """The parameters in the model of the run's stage of images; what they lack is zero."""
    like = like_of(loaded.run, loaded.run.stages[0], loaded.tokenizer)
    others = {name: np.zeros(x.shape, x.dtype) for name, x in flatten(like).items()}
    return unflatten(like, {name: params.get(name, x) for name, x in others.items()})


def test_tensors_out_are_the_tensors_in_bit_for_bit():
    sizes = pairs.Sizes(rows.Tower(8, 2, 2, 24), rows.Tower(6, 3, 3, 24), 4, 3, 7, 11, 5, 'gelu')
    table = pairs.transformers_rows(sizes)
    rng = np.random.default_rng(0)
    given = {
        part.theirs: np.asarray(rng.standard_normal(part.shape), np.float32)
        for row in table for part in row.parts
    }  # fmt: skip
    ours = {}
    for row in table:
        ours[row.ours] = np.empty(row.shape, np.float32)
        for part in row.parts:
            value = given[part.theirs]
            ours[row.ours][part.at] = part.turn(value) if part.turn else value
    back = clip_out.told(table, ours)
    assert back.keys() == given.keys()
    for name, value in given.items():
        assert back[name].shape == value.shape and np.array_equal(back[name], value), name


def test_pixels_unfolded_are_pixels_folded_backwards():
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((48, 5)).astype(np.float32)
    theirs, bias = clip_out.unfold_pixels(kernel, pairs.MEAN, pairs.STD)
    again, left = rows.fold_pixels(theirs, bias, pairs.MEAN, pairs.STD)
    np.testing.assert_allclose(again, kernel, rtol=1e-6)
    np.testing.assert_allclose(left, 0, atol=1e-5)
    pixels = rng.integers(0, 256, (16, 3)).astype(np.float64)
    x = ((pixels / 255 - pairs.MEAN) / pairs.STD).ravel()
    np.testing.assert_allclose(x @ theirs + bias, (pixels / 127.5 - 1).ravel() @ kernel, atol=1e-5)


def test_all_that_is_not_clips_in_one_error(model_of, words, tmp_path):
    model_of(words, model__video__positions='joint', model__text__head_bias=True,
             loss__kind='sigmoid')  # fmt: skip
    with pytest.raises(ValueError) as caught:
        run_export('clip', tmp_path / 'out')
    lines = str(caught.value).splitlines()
    assert lines[0] == 'this model is not a CLIP, 7 point(s) stand against it:'
    for line in (
        "model.video.pool: is 'mean', CLIP has 'cls'",
        'model.video.norm_input: is False, CLIP has True',
        "model.video.positions: is 'joint', CLIP has 'split'",
        "model.text.kind: is 'bidirectional', CLIP has 'causal'",
        'model.text.head_bias: is True, CLIP has False',
    ):
        assert f'  {line}' in lines
    assert any('loss.kind' in line for line in lines)
    assert any('data.tokenizer: is one of Long ViViT' in line for line in lines)
    assert not (tmp_path / 'out').exists()


def test_words_that_are_not_clips_are_not_written_as_clips(model_of, tmp_path):
    """A causal text tower with Gemma's vocabulary, whose end token is not 2 either; and CLIP's own
    words with an end that Transformers would look for elsewhere."""
    special = ['<pad>', '<eos>', '<bos>', '<unk>']
    vocab = {word: i for i, word in enumerate([*special, 'a', 'cat'])}
    gemma = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token='<unk>'))
    gemma.save(str(tmp_path / 'tokenizer.json'))
    gemma = Tokenizer.load(tmp_path / 'tokenizer.json')
    assert gemma.scheme.name == 'SigLIP 2' and gemma.end != clip_out.LEGACY_END
    model_of(gemma, **AS_CLIP)
    with pytest.raises(ValueError, match='1 point.*\n  data.tokenizer: is one of SigLIP 2'):
        run_export('clip', tmp_path / 'out')
    symbols = ['!', CLIP_MARKS[0], CLIP_MARKS[1]]
    early = clip_model({word: number for number, word in enumerate(symbols)}, [])
    model_of(Tokenizer(early, CLIP), **AS_CLIP)
    with pytest.raises(ValueError, match='1 point.*\n.*its end token has the number 2'):
        run_export('clip', tmp_path / 'out')


@pytest.mark.parametrize(
    ('backbone', 'frame_pool', 'depth'),
    [('factorised', 'mean', None), ('factorised_encoder', 'mean', 3), ('frames', 'attention', 0)],
)
def test_other_backbones_are_told_and_are_no_clip(
    backbone, frame_pool, depth, model_of, tokenizer, tmp_path, capsys
):
    model_of(
        tokenizer, **AS_CLIP, model__video__backbone=backbone, model__video__temporal_depth=3,
        model__video__frame_pool=frame_pool,
    )  # fmt: skip
    with pytest.raises(ValueError, match=f'1 point.*\n.*model.video.backbone: is {backbone!r}'):
        run_export('clip', tmp_path / 'out')
    assert run_export('safetensors', tmp_path / 'out') == 0
    assert f'has no backbone {backbone!r} and cannot run it' in capsys.readouterr().out
    video = json.loads((tmp_path / 'out/config.json').read_text())['video']
    assert video['backbone'] == backbone and video.get('temporal_depth') == depth
    if depth is not None:
        pool = 'temporal' if backbone == 'factorised_encoder' else frame_pool
        assert video['frame_pool'] == pool


def test_the_tokenizer_goes_with_clip(model_of, tokenizer, tmp_path):
    model_of(tokenizer, **AS_CLIP)
    assert run_export('clip', tmp_path / 'out') == 0
    again = Tokenizer.load(tmp_path / 'out')
    texts = ['Red', 'a  RED fox!', '']
    one, two = again.encode(texts, 9), tokenizer.encode(texts, 9)
    np.testing.assert_array_equal(one.ids, two.ids)
    np.testing.assert_array_equal(one.num_tokens, two.num_tokens)
    config = json.loads((tmp_path / 'out/config.json').read_text())
    assert config['text_config']['eos_token_id'] == tokenizer.end == tokenizer.vocab_size - 1
    processor = json.loads((tmp_path / 'out/preprocessor_config.json').read_text())
    assert processor['crop_size'] == {'height': 32, 'width': 32}
    assert processor['image_mean'] == list(pairs.MEAN)
    assert processor['resample'] == 2  # bilinear, as this run
