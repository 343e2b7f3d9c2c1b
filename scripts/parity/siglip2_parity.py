"""SigLIP 2 of one resolution as Hugging Face's transformers has it, and its kind of tokenizer."""

import json
from pathlib import Path

import numpy as np
import opened  # noqa: F401  lets torchvision be imported, which transformers asks for
import tokenizers
import torch
import towers
from strings import CAPTIONS, TEXTS, strings
from transformers import Siglip2Tokenizer, SiglipConfig, SiglipModel

from long_vivit.inputs.text import Tokenizer

SIZES = {  # name: sizes of the two towers; So400m has MLPs that are not four times as wide
    'B-like/16, 64 px, 64 tokens': {},
    'B-like/16, 96 px, 32 tokens, mean 0.4': {'image_size': 96, 'length': 32, 'mean': 0.4},
    'So400m-like/14, 70 px, MLP 3.74 d, 64 tokens': {
        'image_size': 70, 'patch_size': 14, 'mlp': 3.74, 'heads': 4,
    },
    'giant-like/16, 128 px, text narrower, 5 layers': {
        'image_size': 128, 'width': 160, 'heads': 5, 'text_width': 96, 'layers': 5, 'act': 'gelu',
    },
}  # fmt: skip


def config(vocab, *, image_size=64, patch_size=16, length=64, width=128, heads=2, mlp=4.0,
           text_width=0, layers=3, act='gelu_pytorch_tanh', mean=0.5):  # fmt: skip
    """The SiglipConfig of a size."""
    text_width = text_width or width
    same = {'num_hidden_layers': layers, 'hidden_act': act}
    vision = {'hidden_size': width, 'intermediate_size': int(mlp * width), 'image_size': image_size,
              'num_attention_heads': heads, 'patch_size': patch_size}  # fmt: skip
    text = {'hidden_size': text_width, 'intermediate_size': int(mlp * text_width),
            'num_attention_heads': 3 if text_width % 3 == 0 else 2, 'vocab_size': vocab,
            'max_position_embeddings': length, 'projection_size': width}  # fmt: skip
    return SiglipConfig(text_config=text | same, vision_config=vision | same)


def tokenizer(texts, vocab_size=900):
    """A tokenizer of Gemma's kind, as SigLIP 2 has it, its merges learnt from the texts.

    Bytes stand for what is not in the vocabulary; a text is lower-cased and ends with <eos>.
    """
    special = ['<pad>', '<eos>', '<bos>', '<unk>', '<mask>', *(f'<0x{i:02X}>' for i in range(256))]
    learner = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token='<unk>', byte_fallback=True))
    learner.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Lowercase(), tokenizers.normalizers.Replace(' ', '▁')]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, limit_alphabet=40, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())['model']
    made = Siglip2Tokenizer(
        vocab=model['vocab'], merges=[tuple(pair) for pair in model['merges']],
        padding_side='right',
    )  # fmt: skip
    made.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single='$A <eos>', special_tokens=[('<eos>', made.eos_token_id)]
    )
    return made


def ids_of(made, texts, length):
    """int64 [n, length], as the model card says to make them."""
    found = made(texts, padding='max_length', max_length=length, truncation=True)
    return np.asarray(found['input_ids'], np.int64)


def without_lower_case(folder):
    """tokenizer.json as it lies beside the released weights: the library lower-cases, not it."""
    file = folder / 'tokenizer.json'
    fields = json.loads(file.read_text(encoding='utf-8'))
    fields['normalizer'] = {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'}
    file.write_text(json.dumps(fields), encoding='utf-8')


def readable():
    """200 strings: the library refuses half a surrogate pair, so another stands for that one."""
    return ['ΟΔΟΣ Σ ΣΑΣ, ΚΟΣΜΟΣ.' if '\ud800' in text else text for text in strings()]


def check_tokens(made, folder):
    """Rows of the tokenizer: the strings in both forms of the file."""
    texts = readable()
    made.save_pretrained(folder)
    for name in ('as saved', 'without lower case'):
        if name != 'as saved':
            without_lower_case(folder)
        ours = Tokenizer.load(folder)
        for length in (64, 32):
            wrong = (ours.encode(texts, length).ids != ids_of(made, texts, length)).any(1).sum()
            size = f'tokenizer.json {name}, {len(texts)} strings to {length}'
            yield towers.Row(size, 'ids of transformers', wrong, 0)


def check(folder):
    """See `run.py`."""
    made = tokenizer(readable())
    yield from check_tokens(made, folder / 'tokens')
    for number, (size, fields) in enumerate(SIZES.items()):
        model = save(folder / str(number), made, fields, number)
        frames = towers.images(4, model.config.vision_config.image_size, seed=number)
        yield from towers.compare(
            size, f'siglip2:{folder / str(number)}', frames, CAPTIONS,
            reference(model, made, frames, CAPTIONS, fields.get('mean', 0.5)),
        )  # fmt: skip


def fixture(folder):
    """See `run.py`: a SigLIP of few hundred tokens, with what it makes of two texts."""
    made = tokenizer(TEXTS, 320)
    fields = {'image_size': 16, 'patch_size': 8, 'length': 9, 'width': 32, 'text_width': 24,
              'layers': 2, 'mlp': 2.0, 'mean': 0.4}  # fmt: skip
    model, frames = save(folder, made, fields, 0), towers.images(3, 16)
    texts = np.array(TEXTS)
    np.savez_compressed(
        folder / 'reference.npz', frames=frames, texts=texts, ids=ids_of(made, TEXTS, 9),
        **reference(model, made, frames, TEXTS, 0.4),
    )  # fmt: skip


def save(folder: Path, made, fields, seed):
    """A model with random weights, saved as Hugging Face does -> the model."""
    model = towers.loud(SiglipModel(config(len(made), **fields)), seed)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    mean = {'image_mean': [fields.get('mean', 0.5)] * 3, 'image_std': [0.5] * 3}
    (folder / 'preprocessor_config.json').write_text(json.dumps(mean))
    return model


def reference(model, made, frames, texts, mean):
    """Embeddings and logits as SiglipModel computes them."""
    ids = ids_of(made, texts, model.config.text_config.max_position_embeddings)
    pixels = towers.normalised(frames, [mean] * 3, [0.5] * 3)
    with torch.no_grad():
        out = model(input_ids=torch.from_numpy(ids), pixel_values=torch.from_numpy(pixels))
    return {
        'image': out.image_embeds.numpy(), 'text': out.text_embeds.numpy(),
        'logits': out.logits_per_image.numpy(),
    }  # fmt: skip
