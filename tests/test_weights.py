"""Weights of others: equal to their reference, and refused where they are not what they say.

tests/fixtures/clip is a tiny CLIP of transformers with what transformers makes of drawn images and
tokens (scripts/parity/run.py clip --fixtures). The other layouts are made of it here.
"""

import json
import shutil
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import long_vivit
from long_vivit import weights
from long_vivit.names import flatten
from long_vivit.retrieval import encode_tokens
from long_vivit.weights import files

FIXTURE = Path(__file__).parent / 'fixtures' / 'clip'
REFERENCE = dict(np.load(FIXTURE / 'reference.npz'))


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny CLIP."""
    return shutil.copytree(FIXTURE, tmp_path / 'clip')


def state():
    return load_file(FIXTURE / 'model.safetensors')


def change(folder, file, **fields):
    """Fields of a JSON file, by path with __ for the dots."""
    content = json.loads((folder / file).read_text())
    for path, value in fields.items():
        *sections, key = path.split('__')
        here = content
        for section in sections:
            here = here[section]
        here[key] = value
    (folder / file).write_text(json.dumps(content))


def as_reference(init, atol=2e-6):
    """Loads `init` and holds images, texts and logits against the reference."""
    loaded = long_vivit.load(init)
    z = loaded.encode_video(REFERENCE['frames'][:, None])
    ids, lengths = REFERENCE['ids'].astype('i4'), REFERENCE['lengths'].astype('i4')
    z_text = np.asarray(encode_tokens(loaded.model, ids, lengths))
    np.testing.assert_allclose(z, REFERENCE['image'], atol=atol)
    np.testing.assert_allclose(z_text, REFERENCE['text'], atol=atol)
    logits = np.exp(loaded.model.log_scale[...]) * z @ z_text.T
    np.testing.assert_allclose(logits, REFERENCE['logits'], atol=100 * atol)
    return loaded


def openai_names(given):
    """The tensors of transformers' CLIP in OpenAI's names."""
    found = {'logit_scale': given['logit_scale']}
    for ours, theirs in (('visual.', 'vision_model.'), ('', 'text_model.')):
        layers = range(2)
        for layer in layers:
            old = f'{theirs}encoder.layers.{layer}.'
            new = f'{ours}transformer.resblocks.{layer}.'
            for kind in ('weight', 'bias'):
                qkv = [given[f'{old}self_attn.{x}_proj.{kind}'] for x in 'qkv']
                found[f'{new}attn.in_proj_{kind}'] = np.concatenate(qkv)
                for a, b in (('self_attn.out_proj', 'attn.out_proj'), ('layer_norm1', 'ln_1'),
                             ('layer_norm2', 'ln_2'), ('mlp.fc1', 'mlp.c_fc'),
                             ('mlp.fc2', 'mlp.c_proj')):  # fmt: skip
                    found[f'{new}{b}.{kind}'] = given[f'{old}{a}.{kind}']
    for old, new in (('pre_layrnorm', 'ln_pre'), ('post_layernorm', 'ln_post')):
        for kind in ('weight', 'bias'):
            found[f'visual.{new}.{kind}'] = given[f'vision_model.{old}.{kind}']
    for kind in ('weight', 'bias'):
        found[f'ln_final.{kind}'] = given[f'text_model.final_layer_norm.{kind}']
    seen, read = 'vision_model.embeddings.', 'text_model.embeddings.'
    return found | {
        'visual.conv1.weight': given[f'{seen}patch_embedding.weight'],
        'visual.class_embedding': given[f'{seen}class_embedding'],
        'visual.positional_embedding': given[f'{seen}position_embedding.weight'],
        'visual.proj': np.ascontiguousarray(given['visual_projection.weight'].T),
        'token_embedding.weight': given[f'{read}token_embedding.weight'],
        'positional_embedding': given[f'{read}position_embedding.weight'],
        'text_projection': np.ascontiguousarray(given['text_projection.weight'].T),
    }


def test_clip_is_its_reference(folder):
    loaded = as_reference(f'clip:{folder}')
    found = weights.describe(f'clip:{folder}')
    assert (found.vocab, found.pixels, found.text_length) == (600, 16, 9)
    assert found.fields['model.video.mlp_width'] == 64 and found.fields['model.text.mlp_width'] == 0
    assert loaded.encode_text('a cat').shape == (16,)
    with pytest.warns(UserWarning, match='1 of 2 texts have more than the .* tokens'):
        loaded.encode_text(['a cat', 'a cat and ' * 99])


@pytest.mark.parametrize('frames', [2, 16, 128])
def test_a_still_video_is_its_frame(frames):
    init = f'clip:{FIXTURE}'
    video = long_vivit.load(init, frames=frames, tubelet=2)
    still = np.repeat(REFERENCE['frames'][:, None], frames, axis=1)
    np.testing.assert_allclose(video.encode_video(still), REFERENCE['image'], atol=1e-5)


def test_another_resolution_resizes_the_places(folder):
    target = flatten(long_vivit.load(f'clip:{folder}', pixels=32).model)
    assert target['video/positions/space'].shape == (4, 4, 32)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32(folder, dtype):
    save_file({name: x.astype(dtype) for name, x in state().items()}, folder / 'model.safetensors')
    params, _ = weights.read(f'clip:{folder}', {})
    assert {x.dtype for x in params.values()} == {np.dtype('f4')}
    as_reference(f'clip:{folder}', atol=2e-2)


def test_shards_are_one_model(folder):
    tensors = sorted(state().items())
    index = {}
    for number, part in enumerate((tensors[:20], tensors[20:])):
        save_file(dict(part), folder / f'{number}.safetensors')
        index |= {name: f'{number}.safetensors' for name, _ in part}
    (folder / 'model.safetensors').unlink()
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': index}))
    as_reference(f'clip:{folder}')
    save_file(dict(tensors[20:-1]), folder / '1.safetensors')
    with pytest.raises(ValueError, match='the index names visual_projection.weight, which'):
        weights.describe(f'clip:{folder}')


def test_every_tensor_at_fault_is_named_at_once(folder):
    tensors = state()
    tensors['text_model.final_layer_norm.weigth'] = tensors.pop(
        'text_model.final_layer_norm.weight'
    )
    tensors['visual_projection.weight'] = tensors['visual_projection.weight'][:, :-1].copy()
    tensors['more'] = np.zeros(3, 'f4')
    save_file(tensors, folder / 'model.safetensors')
    with pytest.raises(ValueError) as error:
        weights.describe(f'clip:{folder}')
    for line in (
        '4 fault(s)',
        'text_model.final_layer_norm.weight [24]: missing; nearest: '
        'text_model.final_layer_norm.weigth',
        'visual_projection.weight: [16, 31] in the file, [16, 32] by the config',
        'text_model.final_layer_norm.weigth [24]: no use for it',
        'more [3]: no use for it',
    ):
        assert line in str(error.value)


def test_nothing_is_read_to_describe(folder, monkeypatch):
    monkeypatch.setattr(files.Tensors, 'read', lambda *_: pytest.fail('read'))
    assert weights.describe(f'clip:{folder}').fields['model.video.width'] == 32


def test_what_is_left_out_or_assumed_is_said(folder):
    tensors = state() | {'text_model.embeddings.position_ids': np.arange(9)[None]}
    save_file(tensors, folder / 'model.safetensors')
    (folder / 'preprocessor_config.json').unlink()
    _, lines = weights.read(f'clip:{folder}', {})
    assert 'no preprocessor_config.json there' in lines[0]
    assert lines[1].startswith('text_model.embeddings.position_ids: left out')


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        ({'model_type': 'siglip'}, "model_type is 'siglip'; it must be 'clip'"),
        ({'vision_config__hidden_act': 'relu'}, "vision_config.hidden_act is 'relu'"),
        ({'vision_config__image_size': 20}, 'not a multiple of patch_size 8'),
        ({'text_config__num_hidden_layers': 3}, r'encoder.layers.2.layer_norm1.weight \[24\]: mis'),
    ],
)
def test_a_config_of_something_else_is_refused(folder, fields, said):
    change(folder, 'config.json', **fields)
    with pytest.raises(ValueError, match=said):
        weights.describe(f'clip:{folder}')


def test_files_that_cannot_be_read_are_named(folder):
    with pytest.raises(ValueError, match='init: .*nowhere. does not exist'):
        weights.describe(f'clip:{folder}/nowhere')
    (folder / 'model.safetensors').write_bytes(b'no')
    with pytest.raises(ValueError, match='model.safetensors: cannot be read as safetensors'):
        weights.describe(f'clip:{folder}')
    (folder / 'model.safetensors').unlink()
    with pytest.raises(ValueError, match='has no model.safetensors .* there: config.json'):
        weights.describe(f'clip:{folder}')
    (folder / 'config.json').write_text('{')
    with pytest.raises(ValueError, match='config.json: is no JSON'):
        weights.describe(f'clip:{folder}')


# Heads are 64 wide in OpenAI's models, so the tiny ones cannot be told from shapes alone.
@pytest.fixture
def narrow_heads(monkeypatch):
    from long_vivit.weights import openai

    monkeypatch.setattr(openai, 'HEAD_WIDTH', 16)
    as_told = openai._tower

    def tower(shapes, trunk, width):
        return as_told(shapes, trunk, width)._replace(heads=2 if width == 32 else 3)

    monkeypatch.setattr(openai, '_tower', tower)


def test_openais_names(folder, narrow_heads):
    numbers = {'context_length': np.array(9.0, 'f4')}
    save_file(openai_names(state()) | numbers, folder / 'model.safetensors')
    as_reference(f'openai:{folder}')
    as_reference(f'openai:{folder}/model.safetensors')
    save_file(state(), folder / 'model.safetensors')
    with pytest.raises(ValueError, match="no vision transformer in OpenAI's names"):
        weights.describe(f'openai:{folder}')


def test_pictures_are_scaled_as_those_that_the_weights_know(folder):
    init, file = f'clip:{folder}', 'preprocessor_config.json'
    assert long_vivit.load(init).view.scaling == 'bicubic'
    change(folder, file, resample=2)
    assert long_vivit.load(init).view.scaling == 'bilinear'
    other = open_clip_folder(folder)
    assert long_vivit.load(other).view.scaling == 'bicubic'
    change(folder, 'open_clip_config.json', preprocess_cfg__interpolation='bilinear')
    assert long_vivit.load(other).view.scaling == 'bilinear'
    change(folder, 'open_clip_config.json', preprocess_cfg__interpolation='random')
    change(folder, file, resample=1)
    for given, how in ((init, '1'), (other, "'random'")):
        told = f'pictures were scaled by {how}, which is not offered: bicubic'
        assert told in weights.read(given, {})[1]


def test_a_config_of_old_that_keeps_its_parts_in_dicts(folder):
    file = folder / 'config.json'
    config = json.loads(file.read_text())
    parts = ('text_config', 'vision_config')
    old = {f'{part}_dict': config[part] for part in parts} | dict.fromkeys(parts)
    file.write_text(json.dumps(config | old))
    as_reference(f'clip:{folder}')


def open_clip_folder(folder, **fields):
    config = {
        'model_cfg': {
            'embed_dim': 16,
            'quick_gelu': True,
            'vision_cfg': {'layers': 2, 'width': 32, 'head_width': 16, 'mlp_ratio': 2.0,
                           'image_size': 16, 'patch_size': 8},
            'text_cfg': {'layers': 2, 'width': 24, 'heads': 3, 'context_length': 9,
                         'vocab_size': 600},
        },
        'preprocess_cfg': {
            'mean': [0.48145466, 0.4578275, 0.40821073],
            'std': [0.26862954, 0.26130258, 0.27577711],
        },
    }  # fmt: skip
    (folder / 'open_clip_config.json').write_text(json.dumps(config))
    save_file(openai_names(state()), folder / 'open_clip_model.safetensors')
    change(folder, 'open_clip_config.json', **fields)
    return f'open_clip:{folder}'


def test_open_clip(folder):
    as_reference(open_clip_folder(folder))
    tensors = openai_names(state())
    text = ('transformer.', 'token_', 'positional', 'ln_final', 'text_projection')
    tensors = {f'text.{n}' if n.startswith(text) else n: x for n, x in tensors.items()}
    save_file(tensors, folder / 'open_clip_model.safetensors')
    as_reference(f'open_clip:{folder}')  # as it lies with custom_text


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('model_cfg__vision_cfg__ls_init_value', 0.1),
        ('model_cfg__vision_cfg__timm_model_name', 'vit_base'),
        ('model_cfg__vision_cfg__layers', [3, 4, 6, 3]),
        ('model_cfg__text_cfg__no_causal_mask', True),
        ('model_cfg__text_cfg__pool_type', 'last'),
        ('model_cfg__text_cfg__hf_model_name', 'roberta'),
        ('model_cfg__text_cfg__proj_type', 'none'),
        ('model_cfg__vision_cfg__act_kwargs', {'approximate': 'tanh'}),  # with quick_gelu
        ('model_cfg__multimodal_cfg', {}),
    ],
)
def test_models_of_open_clip_that_are_no_plain_clip_are_refused(folder, field, value):
    init = open_clip_folder(folder, **{field: value})
    with pytest.raises(ValueError, match=field.replace('__', '.')):
        weights.describe(init)


def test_long_clips_two_tables_become_one(folder, narrow_heads, monkeypatch):
    from long_vivit.weights import longclip

    monkeypatch.setattr(longclip, 'KEPT', 4)
    tensors = openai_names(state())
    table = tensors['positional_embedding']
    dead = np.full_like(table, 99)
    first, rest = np.concatenate([table[:4], dead[4:]]), np.concatenate([dead[:4], table[4:]])
    both = tensors | {'positional_embedding': first, 'positional_embedding_res': rest}
    save_file(both, folder / 'model.safetensors')
    as_reference(f'longclip:{folder}')
    _, lines = weights.read(f'longclip:{folder}', {})
    assert 'differ from the first table by' in lines[-1] and 'nothing' not in lines[-1]
    with pytest.raises(ValueError, match='has positional_embedding_res and is said to be merged'):
        weights.describe(f'longclip:{folder}#merged')

    save_file(tensors, folder / 'model.safetensors')
    as_reference(f'longclip:{folder}#merged')
    with pytest.raises(ValueError, match='has no positional_embedding_res.*#merged'):
        weights.describe(f'longclip:{folder}')
    with pytest.raises(ValueError, match='#merged is of longclip:PATH only'):
        weights.describe(f'openai:{folder}#merged')


def test_a_table_that_was_only_stretched_is_told_from_a_trained_one():
    from long_vivit.warm_start import stretch
    from long_vivit.weights import longclip

    table = np.random.default_rng(0).standard_normal((77, 8)).astype('f4')
    stretched = stretch(table, (248, 8), keep=20)
    assert 'stretched and untrained' in longclip.unsure(stretched)[0]
    assert longclip.unsure(stretched.astype(np.float16).astype('f4'))
    trained = stretched + 0.02 * np.random.default_rng(1).standard_normal(stretched.shape)
    assert longclip.unsure(trained) == longclip.unsure(table) == []


@pytest.mark.parametrize('family', ['clip', 'open_clip'])
def test_a_table_that_was_only_stretched_is_told_of_in_either_layout(folder, family, monkeypatch):
    from long_vivit.weights import longclip

    init = open_clip_folder(folder) if family == 'open_clip' else f'clip:{folder}'
    monkeypatch.setattr(longclip, 'unsure', lambda table: [f'a table {table.shape}'])
    assert weights.read(init, {})[1][-1] == 'a table (9, 24)'


def test_a_longer_table_in_openais_names_is_not_taken_for_clip(folder, narrow_heads):
    tensors = openai_names(state()) | {'positional_embedding': np.zeros((248, 24), 'f4')}
    save_file(tensors, folder / 'model.safetensors')
    with pytest.raises(ValueError, match='has 248 rows, CLIP has 77. Start from it as longclip:'):
        weights.describe(f'openai:{folder}')


def test_a_folder_of_torchs_files_says_to_name_one(tmp_path):
    (tmp_path / 'longclip-B.pt').write_bytes(b'')
    with pytest.raises(ValueError, match=r'Name the file, .*longclip-B\.pt, to have'):
        weights.describe(f'longclip:{tmp_path}')


def test_a_pt_file_without_torch_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    (tmp_path / 'longclip.pt').write_bytes(b'')
    with pytest.raises(ValueError, match=r'not installed here: take the extra `torch` .*\[torch\]'):
        weights.describe(f'longclip:{tmp_path}/longclip.pt')
