"""The build of the built-in set: complete or absent, never mixed up, without TensorFlow."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from array_record.python import array_record_module

from data.shape_stories import build, world
from data.shape_stories import shape_stories_dataset_builder as builders
from long_vivit import build_data
from long_vivit.inputs import text

TINY = {'train': 8, 'test': 4}


@pytest.fixture(scope='module')
def built(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp('built')
    build.build_tiny(folder, **TINY)
    return folder


@pytest.fixture
def copy(built, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(built, tmp_path / 'built'))


def read(folder, name, split):
    builder = builders.Builder(data_dir=folder, config=name, file_format='array_record')
    return builder.as_data_source(split=split)


def test_everything_is_there_and_in_order(built):
    for name in build.CONFIGS:
        setting = world.SETTINGS[name]
        for split, size in TINY.items():
            records = list(read(built, name, split))
            assert len(records) == size
            assert [r['group'] for r in records] == [i // setting.twins for i in range(size)]
            assert len({r['id'] for r in records}) == size
            assert all(isinstance(r['video'], bytes) for r in records)
            assert all(bool(r['long_caption']) == (name == 'long') for r in records)
    assert sorted(p.name for p in built.iterdir()) == ['shape_stories']
    assert text.Tokenizer.load(built / 'shape_stories' / 'tokenizer.json').vocab_size > 400


def test_a_small_build_is_the_beginning_of_a_larger_one(built, tmp_path):
    build.build(tmp_path, ['short'], sizes={'train': 4, 'test': 4}, workers=1)
    small, large = read(tmp_path, 'short', 'train'), read(built, 'short', 'train')
    assert [small[i] for i in range(4)] == [large[i] for i in range(4)]
    tokenizers = [d / 'shape_stories' / 'tokenizer.json' for d in (tmp_path, built)]
    assert tokenizers[0].read_bytes() == tokenizers[1].read_bytes()


def test_a_record_can_be_read_without_its_neighbours(built):
    for file in built.rglob('*array_record*'):
        reader = array_record_module.ArrayRecordReader(str(file))
        assert 'group_size:1' in reader.writer_options_string()


def test_what_is_complete_is_left_alone(built):
    before = {p: p.stat().st_mtime_ns for p in built.rglob('*') if p.is_file()}
    said = []
    build.build(built, sizes=TINY, workers=1, say=said.append)
    after = {p: p.stat().st_mtime_ns for p in built.rglob('*') if p.is_file()}
    assert before == after
    assert len(said) == 4 and all('complete' in line for line in said)


def test_another_size_or_seed_is_refused_and_replaced_only_when_asked(copy):
    with pytest.raises(ValueError, match=r'image.*train is 8, wanted 8000.*--overwrite'):
        build.build(copy)
    with pytest.raises(ValueError, match='seed is 2024, wanted 1'):
        build.build(copy, sizes=TINY, seed=1)
    build.build(copy, ['image'], sizes={'train': 6, 'test': 2}, workers=1, overwrite=True)
    assert len(read(copy, 'image', 'train')) == 6
    assert len(read(copy, 'short', 'train')) == 8


def test_files_that_are_older_than_a_field_stand_at_its_default(copy):
    (file,) = copy.glob('shape_stories/short/*/metadata.json')
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in stored.items() if k != 'opening'}))
    build.build(copy, ['short'], sizes=TINY, workers=1)
    file.write_text(json.dumps(stored | {'opening': 2}))
    with pytest.raises(ValueError, match='opening is 2, wanted 0'):
        build.build(copy, ['short'], sizes=TINY)


def test_episodes_are_built_where_they_are_asked_for(copy):
    assert not (copy / 'shape_stories' / 'episodes').exists()
    build.build(copy, ['episodes'], sizes=TINY, workers=1)
    records = list(read(copy, 'episodes', 'train'))
    assert [r['group'] for r in records] == list(range(TINY['train']))
    assert all(r['caption'] and r['long_caption'] for r in records)


def test_damage_is_found_and_repaired_when_asked(copy):
    (file,) = copy.glob('shape_stories/short/*/*-test.array_record*')
    file.unlink()
    with pytest.raises(ValueError, match=r'short.*-test\.array_record.* is missing'):
        build.build(copy, sizes=TINY)
    build.build(copy, sizes=TINY, workers=1, overwrite=True)
    assert len(read(copy, 'short', 'test')) == 4
    (file,) = copy.glob('shape_stories/short/*/*-test.array_record*')
    file.write_bytes(b'nothing')
    with pytest.raises(ValueError, match='damaged'):
        build.build(copy, sizes=TINY)
    (info,) = copy.glob('shape_stories/image/*/dataset_info.json')
    info.unlink()
    with pytest.raises(ValueError, match='image.*unreadable'):
        build.build(copy, sizes=TINY)
    build.build(copy, sizes=TINY, workers=1, overwrite=True)
    assert len(read(copy, 'image', 'test')) == 4


def test_another_tokenizer_is_refused(copy):
    path = copy / 'shape_stories' / 'tokenizer.json'
    text.train_tokenizer(['something else'] * 3, 300).save(path)
    with pytest.raises(ValueError, match=r'tokenizer\.json is another tokenizer'):
        build.build(copy, sizes=TINY)


def test_an_interrupted_build_leaves_nothing(tmp_path):
    def stop(what, done, total):
        if (what, done) == ('short test', 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.build(tmp_path, ['image', 'short'], sizes=TINY, workers=1, progress=stop)
    assert len(read(tmp_path, 'image', 'train')) == 8
    assert not list(tmp_path.glob('shape_stories/short/*'))
    build.build(tmp_path, ['image', 'short'], sizes=TINY, workers=1)
    assert len(read(tmp_path, 'short', 'train')) == 8


def test_a_full_disk_is_said_before_work_starts(tmp_path, monkeypatch):
    monkeypatch.setitem(build.FILM_BYTES, 'image', 10**15)
    with pytest.raises(OSError, match='MB are needed'):
        build.build(tmp_path, sizes=TINY)
    assert not list(tmp_path.glob('shape_stories/*/*'))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            {'configs': ['longer']},
            'no configuration longer; there are image, short, long, episodes',
        ),
        ({'scale': 0}, 'scale is 0'),
        ({'workers': 0}, 'workers is 0'),
        ({'sizes': {'train': 3, 'test': 2}}, 'even'),
        ({'sizes': {'train': 4}}, 'wanted train and test'),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        build.build(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_command_says_what_exists(capsys):
    with pytest.raises(SystemExit) as stop:
        build_data.main(['shape_storys'])
    assert stop.value.code == 2
    assert 'there are: clips, shape_stories' in capsys.readouterr().err


def test_command_builds_without_tensorflow_or_jax(tmp_path):
    code = (
        'import sys; from long_vivit import build_data; '
        f'code = build_data.main(["shape_stories", "--data_dir", {str(tmp_path)!r}, "--config", '
        '"image", "--scale", "0.001", "--workers", "1"]); '
        'print([m for m in ("jax", "tensorflow") if m in sys.modules]); sys.exit(code)'
    )
    root = pathlib.Path(build_data.__file__).parents[1]
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'built (8 train, 1 test' in done.stdout
    assert done.stdout.strip().endswith('[]')
    assert done.stderr == ''


def test_command_names_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    assert build_data.main(['shape_stories', '--data_dir', str(tmp_path / 'file' / 'x')]) == 1
    assert f'cannot build into {tmp_path}' in capsys.readouterr().err


def test_command_shows_faults_without_a_traceback(built, capsys):
    assert build_data.main(['shape_stories', '--data_dir', str(built), '--scale', '2']) == 2
    assert 'train is 8, wanted 16000' in capsys.readouterr().err
