"""Tokenizers of others: CLIP's numbers, what users type, and what a work directory keeps of them.

The strings and their numbers are of `scripts/parity/run.py tokens --fixtures`.
"""

import gzip
import json
from pathlib import Path

import pytest
import tokenizers

from long_vivit.inputs import foreign_text
from long_vivit.inputs.text import Tokenizer

FIXTURES = Path(__file__).parent / 'fixtures'
START, END = 49406, 49407


@pytest.fixture(scope='module')
def clip():
    return Tokenizer.load(FIXTURES / 'tokens')


def test_numbers_of_the_reference_on_200_strings(clip):
    known = json.loads((FIXTURES / 'tokens' / 'ids.json').read_text())
    tokens = clip.encode(known['texts'], 77)
    assert len(known['texts']) == 200
    for text, row, length, wanted in zip(
        known['texts'], tokens.ids, tokens.lengths, known['ids'], strict=True
    ):
        assert row[:length].tolist() == wanted, text
        assert not row[length:].any()


def test_a_text_is_framed_cut_and_counted(clip):
    tokens = clip.encode(['', 'a photo of a cat', 'a photo of a cat' * 9], 9)
    assert (clip.start, clip.end, clip.pad, clip.vocab_size) == (START, END, 0, END + 1)
    assert tokens.ids[0, :3].tolist() == [START, END, 0]
    assert tokens.ids[2, -1] == END and tokens.num_cut == 1
    assert tokens.num_tokens[2] > tokens.lengths[2] == 9
    assert clip.decode(tokens.ids[1]) == 'a photo of a cat'


def test_special_tokens_that_a_user_types_are_text(clip):
    ids = clip.encode(['<|endoftext|> a cat <|startoftext|>'], 64).ids[0]
    assert (ids == END).sum() == 1 and (ids == START).sum() == 1
    assert clip.decode(ids) == '<| endoftext |> a cat <| startoftext |>'


def test_what_is_saved_needs_nothing_else(clip, tmp_path):
    texts = ['A dog &amp; a cat!', '東京', '<|endoftext|>']
    clip.save(tmp_path / 'tokenizer.json')
    for place in (tmp_path / 'tokenizer.json', tmp_path):
        again = Tokenizer.load(place)
        assert again.scheme is foreign_text.CLIP
        assert again.to_json() == clip.to_json()
        assert (again.encode(texts, 9).ids == clip.encode(texts, 9).ids).all()


def test_other_peoples_normalisers_do_not_matter(clip, tmp_path):
    """Releases of transformers write different ones into tokenizer.json; the numbers are CLIP's."""
    content = json.loads(clip.to_json())
    content['normalizer'] = {'type': 'Replace', 'pattern': {'String': 'a'}, 'content': 'b'}
    content['model']['merges'] = [' '.join(pair) for pair in content['model']['merges']]
    (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path).to_json() == clip.to_json()


def test_openais_file_of_merges(clips, tmp_path):
    """The whole vocabulary from its merges; the file lies beside the repository, with the clips."""
    file = clips.parent / 'annotations' / 'clip' / 'bpe_simple_vocab_16e6.txt.gz'
    if not file.is_file():
        pytest.skip('needs the merges of CLIP in ../shared/data/annotations')
    known = json.loads((FIXTURES / 'tokens' / 'ids.json').read_text())
    whole = Tokenizer.load(file)
    tokens = whole.encode(known['texts'], 77)
    assert whole.vocab_size == 49408
    for row, length, wanted in zip(tokens.ids, tokens.lengths, known['ids'], strict=True):
        assert row[:length].tolist() == wanted
    short = tmp_path / 'bpe_simple_vocab_16e6.txt.gz'
    short.write_bytes(gzip.compress(b'"bpe_simple_vocab"\na b\n'))
    with pytest.raises(ValueError, match='1 merges, CLIP has 48894'):
        Tokenizer.load(tmp_path)


def test_siglips_vocabulary_has_no_start_and_is_padded(tmp_path):
    words = {word: i for i, word in enumerate(['<pad>', '<eos>', '<bos>', '<unk>', 'a', 'cat'])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='<unk>'))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    (tmp_path / 'tokenizer.json').write_text(model.to_str())
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode(['A cat', 'a cat a cat'], 4).ids.tolist() == [
        [4, 5, 1, 0],
        [4, 5, 4, 1],
    ]
    assert tokenizer.encode(['a'], 4).lengths.tolist() == [2]


@pytest.mark.parametrize(
    ('files', 'said'),
    [
        ({}, 'no tokenizer there: no tokenizer.json, no vocab.json with merges.txt'),
        ({'merges.txt': '#version\na b\n', 'vocab.json': '{"a": 0}'}, 'lacks <.startoftext.> and'),
        ({'tokenizer.json': '{"model": {}}'}, 'not a tokenizer file'),
        ({'tokenizer.json': '[]'}, 'not a tokenizer file'),
    ],
)
def test_what_is_no_tokenizer_is_named(files, said, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        Tokenizer.load(tmp_path)
