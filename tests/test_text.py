"""The tokenizer: what it keeps, what it cuts, and what it says when a file is wrong."""

import json
import subprocess
import sys
import zlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from long_vivit.inputs import text

TEXTS = ['a red circle slides left', 'a blue star then grows', 'a red star grows'] * 3


@pytest.fixture(scope='module')
def tokenizer():
    return text.train_tokenizer(TEXTS, 1000)


def test_rows_are_start_text_end_pad(tokenizer):
    tokens = tokenizer.encode(['a red star', ''], 8)
    assert tokens.ids.shape == (2, 8)
    assert {a.dtype for a in (tokens.ids, tokens.lengths, tokens.num_tokens)} == {np.dtype('i4')}
    assert tokens.lengths.tolist() == tokens.num_tokens.tolist() == [5, 2]
    assert tokens.ids[0, 0] == text.START and tokens.ids[0, 4] == text.END
    assert tokens.ids[1].tolist() == [text.START, text.END, *[text.PAD] * 6]
    assert (tokens.ids[0, 5:] == text.PAD).all()


def test_a_cut_keeps_end_and_is_counted(tokenizer):
    whole = tokenizer.encode(['a red circle slides left'], 9)
    cut = tokenizer.encode(['a red circle slides left'], 5)
    assert whole.num_cut == 0 and cut.num_cut == 1
    assert cut.ids[0, :4].tolist() == whole.ids[0, :4].tolist()
    assert cut.ids[0, 4] == text.END
    assert cut.lengths.tolist() == [5] and cut.num_tokens.tolist() == [7]
    assert tokenizer.encode(['a red circle slides left'], 2).ids.tolist() == [[1, 2]]


def test_a_known_word_is_one_token_wherever_it_stands(tokenizer):
    first, later = tokenizer.encode(['star red', 'red star'], 4).ids
    assert first[1] == later[2] and first[2] == later[1]


def test_special_tokens_cannot_be_written_by_a_user(tokenizer):
    ids = tokenizer.encode(['<end> <pad> <start>'], 64).ids[0]
    assert (ids == text.END).sum() == 1 and (ids == text.START).sum() == 1
    assert tokenizer.decode(ids) == '<end> <pad> <start>'


@hypothesis.given(st.text())
def test_any_text_is_spelled(tokenizer, words):
    tokens = tokenizer.encode([words], 4096)
    assert tokens.num_cut == 0
    assert tokenizer.decode(tokens.ids[0]) == text.clean(words)


@pytest.mark.parametrize(
    ('given', 'wanted'),
    [
        ('  A  Red\n\tCircle ', 'a red circle'),
        ('cafe\u0301', 'caf\u00e9'),
        ('schÃ¶n', 'schön'),
        ('R&amp;B', 'r&b'),
        ('\u0130', 'i\u0307'),
    ],
)
def test_clean(given, wanted):
    assert text.clean(given) == wanted


def test_half_a_surrogate_pair_is_a_text_like_others(tokenizer):
    """As JSON holds it: it must not end a run at the step that draws it."""
    half = json.loads(r'"a red \ud83d circle"')
    assert tokenizer.encode([half], 32).lengths[0] > 4
    assert text.text_key(half) == text.text_key(half.upper())
    assert text.text_key(half) != text.text_key('a red circle')
    whole = 'a red \U0001f600 circle'
    assert text.text_key(whole) == np.uint32(zlib.crc32(whole.encode())).astype(np.int32)


def test_saved_and_loaded_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / 'tokenizer.json')
    again = text.Tokenizer.load(tmp_path / 'tokenizer.json')
    assert again.vocab_size == tokenizer.vocab_size
    assert again.to_json() == tokenizer.to_json()
    np.testing.assert_array_equal(again.encode(TEXTS, 9).ids, tokenizer.encode(TEXTS, 9).ids)
    assert [p.name for p in tmp_path.iterdir()] == ['tokenizer.json']


def test_training_is_deterministic(tokenizer):
    assert text.train_tokenizer(TEXTS, 1000).to_json() == tokenizer.to_json()
    assert text.train_tokenizer(TEXTS, 270).vocab_size == 270


def test_wrong_files_are_named(tmp_path):
    path = tmp_path / 'tokenizer.json'
    with pytest.raises(ValueError, match=r'tokenizer\.json: no tokenizer there.*build_data'):
        text.Tokenizer.load(path)
    path.write_text('{"model": 1')
    with pytest.raises(ValueError, match=r'tokenizer\.json: not a tokenizer.*data\.tokenizer'):
        text.Tokenizer.load(path)
    content = json.loads(text.train_tokenizer(TEXTS, 300).to_json())
    content['added_tokens'] = []
    content['model']['vocab'] = {
        token.replace('<end>', '<eos>'): i for token, i in content['model']['vocab'].items()
    }
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r'tokenizer\.json: the tokens .*None'):
        text.Tokenizer.load(path)


def test_wrong_arguments_are_named(tokenizer):
    with pytest.raises(ValueError, match='got one str'):
        tokenizer.encode('a red circle', 8)
    with pytest.raises(ValueError, match='text 1 is NoneType'):
        tokenizer.encode(['a', None], 8)
    with pytest.raises(ValueError, match='text_length is 1'):
        tokenizer.encode(['a'], 1)
    with pytest.raises(ValueError, match='at least 259'):
        text.train_tokenizer(TEXTS, 100)
    with pytest.raises(ValueError, match='no texts'):
        text.train_tokenizer(['', ' '], 300)


def test_no_texts_give_no_rows(tokenizer):
    tokens = tokenizer.encode([], 8)
    assert tokens.ids.shape == (0, 8) and tokens.lengths.shape == (0,)


def test_imports_neither_jax_nor_tensorflow():
    code = (
        'import sys, long_vivit.inputs.text; '
        'print([m for m in ("jax", "tensorflow", "tensorflow_datasets") if m in sys.modules])'
    )
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == '[]'
