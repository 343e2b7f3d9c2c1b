"""Data specs, manifests and stored data sets."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from long_vivit.inputs import manifests, sources
from long_vivit.inputs.sources import Example, open_source, parse_spec


def write_rows(path, rows):
    path.write_text('\n'.join(json.dumps(row) for row in rows) + '\n', encoding='utf-8')
    return f'videos:{path}'


def row(i=0, **fields):
    return {'video': f'{i}.mp4', 'caption': f'caption {i}', **fields}


def fault_of(spec, **kwargs):
    with pytest.raises(ValueError) as caught:
        open_source(spec, **kwargs)
    return str(caught.value)


# Specs ----------------------------------------------------------------------------------------


def test_specs():
    spec = parse_spec('videos:some/where.v2/list.jsonl#val')
    assert (spec.manifest, spec.split) == (Path('some/where.v2/list.jsonl'), 'val')
    spec = parse_spec('shape_stories/long:train[:10%]')
    assert (spec.manifest, spec.name, spec.config, spec.split) == (
        None, 'shape_stories', 'long', 'train[:10%]',
    )  # fmt: skip


@pytest.mark.parametrize(
    'spec',
    ['', 'list.jsonl', 'videos:', 'videos:list.txt', 'videos:a.jsonl#', 'stories', 'a/b/c:x'],
)
def test_what_is_no_spec(spec):
    with pytest.raises(ValueError, match='is no data spec; it must be'):
        parse_spec(spec)


# Manifests ------------------------------------------------------------------------------------


def test_manifest(tmp_path):
    rows = [
        {'video': 'a.mp4', 'caption': 'A cat.', 'start': 1, 'end': 2.5, 'label': 7, 'id': 'first'},
        {'video': '/abs/b.mp4', 'caption': ['B.', 'Bee.'], 'long_caption': 'It is a bee.'},
        {'video': '/abs/b.mp4', 'long_caption': ['x y', 'z'], 'caption': None, 'licence': 'MIT'},
    ]
    source = open_source(write_rows(tmp_path / 'm.jsonl', rows))
    assert len(source) == 3 and source.group_size == 1
    assert source[0] == Example(
        id='first', video=str(tmp_path / 'a.mp4'), captions=('A cat.',), long_captions=(),
        start_s=1.0, end_s=2.5, label='7', group=0,
    )  # fmt: skip
    assert source[1].captions == ('B.', 'Bee.') and source[1].long_captions == ('It is a bee.',)
    assert source[2].captions == () and source[2].group == 2
    assert [source[i].id for i in range(3)] == ['first', '/abs/b.mp4', '/abs/b.mp4~2']
    assert source[1].video == '/abs/b.mp4'


def test_several_captions_in_csv(tmp_path):
    rows = [['a.mp4', '["a man dances", "a man"]'], ['b.mp4', '[1] is no list']]
    with open(tmp_path / 'm.csv', 'w', newline='') as file:
        csv.writer(file).writerows([['video', 'caption'], *rows])
    source = open_source(f'videos:{tmp_path}/m.csv')
    assert source[0].captions == ('a man dances', 'a man')
    assert source[1].captions == ('[1] is no list',)
    (tmp_path / 'm.jsonl').write_text(json.dumps({'video': 'a.mp4', 'caption': rows[0][1]}))
    assert open_source(f'videos:{tmp_path}/m.jsonl')[0].captions == (rows[0][1],)  # as written
    (tmp_path / 'twice.csv').write_text('video,caption,caption\na.mp4,a man dances,a man\n')
    message = fault_of(f'videos:{tmp_path}/twice.csv')
    assert 'column caption is there more than once' in message


def test_csv_equals_jsonl(tmp_path):
    rows = [row(i, start=i, end=i + 1.5, label='x, "y"', split='val') for i in range(3)]
    with open(tmp_path / 'm.csv', 'w', newline='', encoding='utf-8-sig') as file:
        writer = csv.DictWriter(file, [*rows[0], 'id'])
        writer.writeheader()
        writer.writerows(rows)
    from_csv = open_source(f'videos:{tmp_path}/m.csv#val')
    from_json = open_source(write_rows(tmp_path / 'm.jsonl', rows) + '#val')
    assert [from_csv[i] for i in range(3)] == [from_json[i] for i in range(3)]
    assert from_csv.fingerprint == from_json.fingerprint


def test_all_faults_of_a_manifest_at_once(tmp_path):
    path = tmp_path / 'm.jsonl'
    path.write_text(
        '\n'.join(
            [
                '{"video": "a.mp4", "caption": "fine", "id": "twice"}',
                '',
                '{"video": "a.mp4", "captions": "x"}',
                '{"video": 3, "caption": "x", "strat": 1}',
                'not json',
                '["a.mp4", "x"]',
                '{"video": "a.mp4", "caption": ["x", " "], "start": -1}',
                '{"video": "a.mp4", "caption": "x", "start": 3, "end": 3, "id": "twice"}',
                '{"video": "a.mp4", "caption": "x", "end": "soon", "label": ""}',
            ]
        )
    )
    lines = fault_of(f'videos:{path}').splitlines()
    assert lines[0] == f'{path} has 11 faults:'
    for line in (
        "  line 3: captions: no such field; did you mean 'caption'?",
        "  line 4: strat: no such field; did you mean 'start'?",
        '  line 4: video: must be the path of a file, is 3; fields: video, caption, strat',
        '  line 6: must be an object {...}, is list',
        "  line 7: caption: must be a text or a list of texts, none of them empty, is ['x', ' ']",
        '  line 7: start: must be seconds, 0 or more, is -1',
        '  line 8: end: 3.0 must be greater than start = 3.0',
        "  line 8: id: 'twice' is already the id of line 1",
        "  line 9: end: must be seconds, 0 or more, is 'soon'",
        "  line 9: label: must be a text that is not empty, is ''",
    ):
        assert line in lines
    assert any(line.startswith('  line 5: is not JSON') for line in lines)
    assert [int(line.split()[1][:-1]) for line in lines[1:]] == sorted(
        int(line.split()[1][:-1]) for line in lines[1:]
    )


def test_many_faults_are_counted_not_listed(tmp_path):
    spec = write_rows(tmp_path / 'm.jsonl', [{'caption': 'x'}] * 80)
    lines = fault_of(spec).splitlines()
    assert len(lines) == 2 + manifests.MAX_FAULTS
    assert lines[-1] == '  ... and 30 more'


@pytest.mark.parametrize(
    ('name', 'meant'),
    [
        ('captions', 'caption'),
        ('long_captions', 'long_caption'),
        ('LongCaption', 'long_caption'),
        ('Caption', 'caption'),
        ('strat', 'start'),
        ('start_s', 'start'),
        ('start_time', 'start'),
        ('end_seconds', 'end'),
        ('ends', 'end'),
        ('vidoe', 'video'),
        ('labels', 'label'),
        *((name, None) for name in manifests.FIELDS),
        *((name, None) for name in ('duration_s', 'licence', 'upstream_captions', 'kind', 'note')),
        *((name, None) for name in ('idx', 'video_id', 'url', 'fps', 'text', 'send', 'frames')),
    ],
)
def test_near_misses(name, meant):
    assert manifests.near_miss(name) == meant


def test_text_that_a_stage_needs(tmp_path):
    spec = write_rows(tmp_path / 'm.jsonl', [row(0), {'video': 'a.mp4', 'caption': None}])
    assert 'line 2: caption: is missing' in fault_of(spec, text='caption')
    assert 'line 1: long_caption: is missing' in fault_of(spec, text='long_caption')
    assert fault_of(spec).count('is missing') == 1
    for text, hinted in (('caption', False), ('any', False), ('long_caption', True)):
        assert ('--config.stages.long.text=any' in fault_of(spec, text=text)) == hinted
    assert open_source(spec, text='')[1].captions == ()
    assert "must be one of 'caption'" in fault_of(spec, text='captions')
    rows = [row(0, split='train', long_caption='Long.'), row(1, split='val'), row(2, split=3)]
    spec = write_rows(tmp_path / 'n.jsonl', rows)
    assert len(open_source(spec + '#train', text='long_caption')) == 1  # others' texts are theirs
    for line, split in ((2, '#val'), (3, '#3')):
        message = fault_of(spec + split, text='long_caption')
        assert f'line {line}: long_caption: is missing' in message and 'one fault' in message


def test_splits(tmp_path):
    rows = [row(0, split='train'), row(1, split='val'), row(2, split='train'), row(3)]
    spec = write_rows(tmp_path / 'm.jsonl', rows)
    assert len(open_source(spec)) == 4
    train = open_source(spec + '#train')
    assert [train[i].id for i in range(len(train))] == ['0.mp4', '2.mp4']
    assert "no row has split 'tset'; there are train, val." in fault_of(spec + '#tset')
    none = write_rows(tmp_path / 'n.jsonl', [row(0)])
    assert 'no row has a split: leave out the #.' in fault_of(none + '#train')


def test_groups_lie_together(tmp_path):
    rows = [row(0, group='b'), row(1, group='a'), row(2, group='a'), row(3, group='b')]
    source = open_source(write_rows(tmp_path / 'm.jsonl', rows))
    assert source.group_size == 2
    assert [source[i].id for i in range(4)] == ['0.mp4', '3.mp4', '1.mp4', '2.mp4']
    assert [source[i].group for i in range(4)] == [0, 0, 1, 1]


def test_a_group_lies_within_a_split(tmp_path):
    """The same name in another split is another group, whether or not splits are read together."""
    rows = [row(i, group=i // 2 % 3, split='test' if i > 5 else 'train') for i in range(10)]
    spec = write_rows(tmp_path / 'm.jsonl', rows)
    source = open_source(spec)
    assert source.group_size == 2
    assert [source[i].group for i in range(10)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert len(open_source(f'{spec}#test')) == 4


def test_uneven_groups_are_refused(tmp_path):
    rows = [row(0, group=1), row(1, group=1), row(2, group=2), row(3), row(4, group=3, split='x')]
    message = fault_of(write_rows(tmp_path / 'm.jsonl', rows + [row(5, group=3), row(6, group=4)]))
    assert "line 3: group: '2' has 1 rows, others have" in message or "'1' has 2 rows" in message
    assert 'line 4: group: is missing; either all rows have a group or none' in message


def test_fingerprint_knows_content_not_place(tmp_path):
    (tmp_path / 'other').mkdir()
    rows = [row(i) for i in range(3)]
    here = open_source(write_rows(tmp_path / 'm.jsonl', rows))
    there = open_source(write_rows(tmp_path / 'other/list.jsonl', rows))
    changed = open_source(write_rows(tmp_path / 'n.jsonl', [row(0), row(1), row(2, label='x')]))
    assert here.fingerprint == there.fingerprint != changed.fingerprint


def test_files_that_are_no_manifest(tmp_path):
    assert 'no such manifest' in fault_of(f'videos:{tmp_path}/none.jsonl')
    (tmp_path / 'empty.jsonl').write_text('\n\n')
    assert 'the file has no rows' in fault_of(f'videos:{tmp_path}/empty.jsonl')
    (tmp_path / 'latin.jsonl').write_bytes(b'{"video": "a"}\n{"caption": "caf\xe9"}\n')
    assert 'line 2 is not UTF-8' in fault_of(f'videos:{tmp_path}/latin.jsonl')
    (tmp_path / 'cells.csv').write_text('video,caption\na.mp4,x\nb.mp4,x,y\nc.mp4\n')
    message = fault_of(f'videos:{tmp_path}/cells.csv')
    assert 'line 3: must have 2 cells' in message and 'line 4: must have 2 cells' in message
    (tmp_path / 'folder.jsonl').mkdir()
    assert 'cannot be read' in fault_of(f'videos:{tmp_path}/folder.jsonl')


texts = st.text(min_size=1, max_size=20).filter(lambda s: s.strip())


@given(
    st.lists(
        st.fixed_dictionaries(
            {'video': texts, 'caption': texts | st.lists(texts, min_size=1, max_size=3)},
            optional={
                'long_caption': texts,
                'start': st.floats(0, 100),
                'end': st.floats(101, 1e6),
                'label': texts,
            },
        ),
        min_size=1,
        max_size=6,
    )
)
def test_what_goes_in_comes_out(tmp_path_factory, rows):
    """Any text in JSON lines, line separators inside strings too; ids never repeat."""
    path = tmp_path_factory.getbasetemp() / 'any.jsonl'
    for ascii_only in (True, False):
        path.write_text(
            '\n'.join(json.dumps(r, ensure_ascii=ascii_only) for r in rows), encoding='utf-8'
        )
        source = open_source(f'videos:{path}')
        assert len({source[i].id for i in range(len(source))}) == len(source) == len(rows)
        for given_row, example in zip(rows, (source[i] for i in range(len(rows))), strict=True):
            caption = given_row['caption']
            wanted = (caption,) if isinstance(caption, str) else tuple(caption)
            assert example.captions == wanted
            assert example.start_s == given_row.get('start')
            assert example.label == given_row.get('label')


def test_real_manifest(clips):
    source = open_source(f'videos:{clips}/manifest.jsonl', text='long_caption')
    assert len(source) == 30
    assert all(os.path.exists(source[i].video) for i in range(len(source)))


# Stored data sets -----------------------------------------------------------------------------


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """A small TFDS data set, stored without TensorFlow."""
    import tensorflow_datasets as tfds

    from tests.small_dataset import SmallSet

    folder = tmp_path_factory.mktemp('built')
    for config in ('single', 'twins'):
        builder = SmallSet(data_dir=folder, config=config, file_format='array_record')
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(register_checksums=False)
        )
    return folder


def test_stored(built):
    source = open_source('small_set/single:train', data_dir=built)
    assert len(source) == 6 and source.group_size == 1
    assert source[1] == Example(
        id='train 1', video=b'\x00video 1', captions=('Caption 1, café.',),
        long_captions=('Long 1.',), label=None, group=1,
    )  # fmt: skip


def test_stored_twins_lie_together(built):
    source = open_source('small_set/twins:train', data_dir=built)
    assert source.group_size == 2
    assert [source[i].group for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert len(open_source('small_set/twins:train[:4]', data_dir=built)) == 4
    for cut in ('train[:3]', 'train[1:5]'):
        message = fault_of(f'small_set/twins:{cut}', data_dir=built)
        assert 'cuts a group of 2 near-twins; cut at multiples of 2.' in message


def test_stored_groups_of_three(built, monkeypatch):
    """Groups are as large as they are, not pairs or nothing."""
    monkeypatch.setattr(
        sources.Stored, '__getitem__', lambda self, i: Example(str(i), b'', group=i // 3)
    )
    assert open_source('small_set/single:train', data_dir=built).group_size == 3
    assert open_source('small_set/single:train[:3]', data_dir=built).group_size == 3
    message = fault_of('small_set/single:train[:4]', data_dir=built)
    assert 'cuts a group of 3 near-twins; cut at multiples of 3.' in message


@pytest.mark.parametrize('part', ['[:4', '[:abc]', '[4]', '[:600]', '[:2]+tset[:2]', '[:0]'])
def test_parts_of_a_split_that_are_none(built, part):
    message = fault_of(f'small_set/single:train{part}', data_dir=built)
    assert f'train{part}: ' in message
    assert 'the split is empty' in message or 'train: 6' in message


@pytest.mark.parametrize('damage', ['cut', 'gone'])
def test_a_damaged_file_of_records(built, tmp_path, damage):
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    (file,) = tmp_path.glob('small_set/single/*/*train*array_record*')
    if damage == 'gone':
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])
    message = fault_of('small_set/single:train', data_dir=tmp_path)
    assert message.startswith('small_set/single:train: ') and 'again' in message


def test_stored_faults(built):
    assert "no split 'tset'; there are test, train." in fault_of(
        'small_set/single:tset', data_dir=built
    )
    message = fault_of('small_set/triple:train', data_dir=built)
    assert 'not built (there is single, twins)' in message
    assert (
        f'run `python -m long_vivit.build_data small_set --config=triple --data_dir={built}`'
        in message
    )
    assert 'run `python -m long_vivit.build_data nothing`' in fault_of('nothing/x:train')
    assert 'no long_caption' in fault_of(
        'small_set/twins:train', data_dir=built, text='long_caption'
    )


def test_stored_newest_version_and_fingerprint(built, tmp_path):
    first = open_source('small_set/single:train', data_dir=built)
    shutil.copytree(built / 'small_set', tmp_path / 'small_set')
    copied = tmp_path / 'small_set/single'
    again = open_source('small_set/single:train', data_dir=tmp_path)
    assert again.fingerprint == first.fingerprint
    assert open_source('small_set/single:test', data_dir=built).fingerprint != first.fingerprint
    (copied / '1.0.0').rename(copied / '1.9.0')
    (copied / '1.10.0').mkdir()
    (copied / '1.10.0/dataset_info.json').write_text('{}')  # newest by number, not by letters
    message = fault_of('small_set/single:train', data_dir=tmp_path)
    assert f'{copied / "1.10.0"}: cannot be read' in message and 'build it again' in message
