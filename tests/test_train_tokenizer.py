"""The command that trains a tokenizer of one's own."""

import json

import pytest

from long_vivit import train_tokenizer
from long_vivit.inputs.text import Tokenizer
from long_vivit.inputs.text import train_tokenizer as trained_on

ROWS = [
    {'video': 'a.mp4', 'caption': ['a red star', 'a star'], 'split': 'train'},
    {'video': 'b.mp4', 'long_caption': 'a red star grows and grows', 'split': 'train'},
    {'video': 'c.mp4', 'caption': 'never seen', 'split': 'test'},
]


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / 'videos.jsonl'
    path.write_text('\n'.join(map(json.dumps, ROWS)))
    return f'videos:{path}'


def test_it_learns_from_all_texts_of_the_split(spec, tmp_path, capsys):
    out = tmp_path / 'mine.json'
    assert train_tokenizer.main([f'{spec}#train', '--out', str(out), '--vocab_size', '300']) == 0
    texts = ['a red star', 'a star', 'a red star grows and grows']
    assert Tokenizer.load(out).to_json() == trained_on(texts, 300).to_json()
    said = capsys.readouterr().out
    size = Tokenizer.load(out).vocab_size
    assert said.startswith(f'{out}: {size} tokens, learnt from 3 different texts, which have ')


def test_it_takes_the_place_of_no_file(spec, tmp_path):
    out = tmp_path / 'mine.json'
    out.write_text('{}')
    with pytest.raises(ValueError, match=r'--out=.*mine.json: is there already'):
        train_tokenizer.main([spec, '--out', str(out)])
    assert out.read_text() == '{}'
    with pytest.raises(ValueError, match='--out=.*: cannot be written'):
        train_tokenizer.main([spec, '--out', str(tmp_path / 'none' / 'mine.json')])
