"""Decode-once shards: the same frames at the same times, whole or absent, nothing lost unsaid."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from data.clips import build, parts, shrink
from long_vivit import build_data
from long_vivit.inputs import pipeline, samplers, video
from long_vivit.inputs.sources import open_source
from tests.test_video import encode, number_of, spoil

PIXELS, FPS = 32, 4
SETTINGS = shrink.Settings(PIXELS, str(FPS), 'raw', 60.0, 0.1)


def at(sampler, num_frames, fps=None, seed=0):
    """choose() for read_frames."""
    rng = np.random.default_rng(seed)
    return lambda a, b: samplers.SAMPLERS[sampler](a, b, num_frames, rng=rng, fps=fps)


@pytest.fixture(scope='module')
def films():
    """Files by name, of every kind that makes times hard."""
    gaps = np.cumsum([0] + [40, 40, 200, 33, 90] * 9).tolist()
    return {
        'b_frames.mp4': encode(num_frames=83, bf=3, g=30),
        'gaps.mkv': encode(container='matroska', num_frames=len(gaps), ticks=gaps),
        'slow.mp4': encode(num_frames=7, rate=2),
        'late.ts': encode(container='mpegts', num_frames=50, muxing={'output_ts_offset': '5'}),
        'still.mp4': encode(num_frames=1),
    }


@pytest.fixture(scope='module')
def manifest(films, tmp_path_factory):
    """A manifest of them and of two broken ones."""
    folder = tmp_path_factory.mktemp('films')
    rows = []
    for i, (name, file) in enumerate(films.items()):
        (folder / name).write_bytes(file)
        rows.append({'video': name, 'caption': [f'Film {i}.', f'Café {i}.'], 'label': f'kind {i}'})
    rows[1] |= {'long_caption': 'A long text.', 'id': 'second'}
    rows.insert(2, {'video': 'b_frames.mp4', 'start': 0.5, 'end': 2.3, 'caption': 'A part.'})
    (folder / 'page.mp4').write_bytes(b'<html>not found</html>')
    rows.insert(1, {'video': 'page.mp4', 'caption': 'x'})
    rows.append({'video': 'none.mp4', 'caption': 'x'})
    path = folder / 'films.jsonl'
    path.write_text('\n'.join(json.dumps(row) for row in rows), encoding='utf-8')
    return path


def make(manifest, folder, **options):
    """Builds; returns the folder of the shards and what was said."""
    said = []
    options = {'pixels': PIXELS, 'fps': str(FPS), 'rows_per_shard': 3, 'workers': 1} | options
    path = build.build(folder, manifest=manifest, say=said.append, **options)
    return path, '\n'.join(said)


@pytest.fixture(scope='module')
def built(manifest, tmp_path_factory):
    folder = tmp_path_factory.mktemp('built')
    return folder, *make(manifest, folder)


def pairs(manifest, folder, name='films'):
    """(example of the manifest, the same of the shards)."""
    stored = open_source(f'clips/{name}:train', data_dir=folder)
    originals = open_source(f'videos:{manifest}')
    originals = {originals[i].id: originals[i] for i in range(len(originals))}
    return [(originals[stored[i].id], stored[i]) for i in range(len(stored))]


def shown(example, choose, **options):
    return video.read_frames(
        example.video, choose, pixels=PIXELS, start=example.start_s, end=example.end_s, **options
    )


def test_texts_labels_ids_and_order_survive(manifest, built):
    found = pairs(manifest, built[0])
    assert [original.id for original, _ in found] == [
        'b_frames.mp4', 'second', 'b_frames.mp4@0.5-2.3', 'slow.mp4', 'late.ts', 'still.mp4',
    ]  # fmt: skip
    for original, stored in found:
        for field in ('captions', 'long_captions', 'label'):
            assert getattr(stored, field) == getattr(original, field)
        assert stored.start_s is None and isinstance(stored.video, bytes)


def test_every_step_keeps_the_frame_at_its_centre_and_the_seconds_are_the_same(manifest, built):
    for original, stored in pairs(manifest, built[0]):
        ranges = []

        def choose(start_s, end_s, ranges=ranges):
            ranges.append(end_s - start_s)
            return shrink.centres(start_s, end_s, SETTINGS.rate)

        wanted, found = shown(original, choose), shown(stored, choose)
        assert ranges[0] == pytest.approx(ranges[1], abs=1e-9)
        np.testing.assert_array_equal(found.frames, wanted.frames, err_msg=original.id)
        assert found.num_missing == 0


@pytest.mark.parametrize('sampler', ['fps', 'first_fps'])
def test_samplers_at_the_stored_rate_find_the_same_frames(manifest, built, sampler):
    for original, stored in pairs(manifest, built[0]):
        if original.id == 'still.mp4':
            continue
        info = video.probe(original.video)
        num_frames = int((original.end_s or info.duration_s) - (original.start_s or 0)) * FPS
        wanted, found = (shown(e, at(sampler, num_frames, FPS)) for e in (original, stored))
        np.testing.assert_array_equal(found.frames, wanted.frames, err_msg=original.id)


def test_any_time_finds_a_frame_at_most_half_a_step_away(manifest, built):
    """Of random times in each film, against all frames of the original in that neighbourhood."""
    half = 0.5 / FPS + 1e-5
    for original, stored in pairs(manifest, built[0]):
        found = shown(stored, at('rand_seg', 9))
        for frame, time_s in zip(found.frames, found_times(stored, 9), strict=True):

            def near(start_s, end_s, time_s=time_s):
                times = start_s + time_s + np.linspace(-half, half, 41)
                return np.clip(times, start_s, np.nextafter(end_s, start_s))

            around = shown(original, near).frames
            assert (around == frame).all(axis=(1, 2, 3)).any(), (original.id, time_s)


def found_times(example, num_frames):
    """The times that `at('rand_seg', num_frames)` asks for."""
    times = []
    choose = at('rand_seg', num_frames)

    def noting(start_s, end_s):
        times.extend(choose(start_s, end_s))
        return times

    shown(example, noting)
    return times


def test_the_pipeline_takes_them(built):
    view = pipeline.View(
        frames=4, pixels=PIXELS, patch=16, tubelet=2, sampler='mid', fps=1.0, mask_kind='tube',
        mask_rate=0.5, text='caption', text_length=8,
    )  # fmt: skip
    source = open_source('clips/films:train[:50%]', data_dir=built[0], text='any')
    for i in range(len(source)):
        patches, _, error = pipeline.load_video(source[i], view, np.random.default_rng(0))
        assert error is None and patches.any()


def test_the_broken_are_named_and_counted(built):
    _, path, said = built
    ledger = [json.loads(line) for line in (path / 'broken.jsonl').read_text().splitlines()]
    assert [(line['id'], line['reason']) for line in ledger] == [
        ('page.mp4', 'cannot-open'), ('none.mp4', 'not-found'),
    ]  # fmt: skip
    assert '2 of 8 videos are left out (1 cannot-open, 1 not-found)' in said
    assert '6 videos' in said and str(path / 'broken.jsonl') in said


def test_a_broken_twin_takes_its_group_along(films, tmp_path):
    rows = [{'video': f'{i}.mp4', 'caption': 'x', 'group': i // 2} for i in range(6)]
    for row in rows:
        (tmp_path / row['video']).write_bytes(films['slow.mp4'])
    (tmp_path / '3.mp4').write_bytes(b'')
    path = tmp_path / 'twins.jsonl'
    path.write_text('\n'.join(json.dumps(row) for row in rows))
    shards, _ = make(path, tmp_path, rows_per_shard=1)  # a group is not cut, however small
    source = open_source('clips/twins:train', data_dir=tmp_path)
    assert source.group_size == 2
    assert [source[i].id for i in range(4)] == ['0.mp4', '1.mp4', '4.mp4', '5.mp4']
    ledger = [json.loads(line) for line in (shards / 'broken.jsonl').read_text().splitlines()]
    assert [(x['id'], x['reason']) for x in ledger] == [
        ('2.mp4', parts.GROUP_BROKEN), ('3.mp4', 'cannot-open'),
    ]  # fmt: skip


def contents(path):
    return {f.name: f.read_bytes() for f in path.iterdir() if 'array_record' in f.name}


def test_a_killed_build_goes_on_and_ends_in_the_same_bytes(manifest, built, tmp_path, monkeypatch):
    def stop(what, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(manifest, tmp_path, progress=stop)
    folder = tmp_path / 'clips/films/1.0.0.parts'
    assert [f.name for f in sorted(folder.glob('*.json'))] == ['settings.json', 'train-000000.json']
    assert not (tmp_path / 'clips/films/1.0.0').exists()
    (folder / '.train-000001.array_record.0123').write_bytes(b'half')  # of a worker that was killed
    decoded = []
    read = shrink.shrink
    monkeypatch.setattr(shrink, 'shrink', lambda path, *a: decoded.append(path) or read(path, *a))
    path, said = make(manifest, tmp_path)
    assert len(decoded) == 5 and 'going on: 3 of 8 videos are done' in said
    assert contents(path) == contents(built[1])
    assert not folder.exists()


def test_two_processes_give_the_same_bytes(manifest, built, tmp_path):
    path, _ = make(manifest, tmp_path, workers=2)
    assert contents(path) == contents(built[1])


def test_beam_gives_the_same_bytes(manifest, built, tmp_path):
    pytest.importorskip('apache_beam')
    path, said = make(manifest, tmp_path, beam='--runner=DirectRunner --direct_num_workers=2')
    assert contents(path) == contents(built[1])
    assert '2 of 8 videos are left out' in said


def test_without_beam_it_says_what_to_install(manifest, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'apache_beam', None)
    with pytest.raises(ValueError, match=r'requirements-beam\.txt'):
        make(manifest, tmp_path, beam='')


def test_what_is_complete_is_left_alone_and_another_is_refused(manifest, built):
    before = contents(built[1])
    assert 'complete, left as it is' in make(manifest, built[0])[1]
    with pytest.raises(ValueError, match=r'pixels is 32, wanted 16.*--overwrite'):
        make(manifest, built[0], pixels=16)
    assert contents(built[1]) == before


def test_another_half_built_one_is_refused_and_replaced_when_asked(manifest, tmp_path):
    def stop(what, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(manifest, tmp_path, progress=stop)
    with pytest.raises(ValueError, match=r'1\.0\.0\.parts holds something else.*fps is 4'):
        make(manifest, tmp_path, fps='2')
    assert 'going on' not in make(manifest, tmp_path, fps='2', overwrite=True)[1]


def test_splits_of_the_manifest_become_splits(films, tmp_path):
    rows = [{'video': 'a.mp4', 'id': str(i), 'split': 'ab'[i % 2]} for i in range(5)]
    (tmp_path / 'a.mp4').write_bytes(films['slow.mp4'])
    path = tmp_path / 'list.jsonl'
    path.write_text('\n'.join(json.dumps(row) for row in rows))
    make(path, tmp_path)
    for split, ids in (('a', '024'), ('b', '13')):
        source = open_source(f'clips/list:{split}', data_dir=tmp_path, text='')
        assert [source[i].id for i in range(len(source))] == list(ids)
    path.write_text('\n'.join(json.dumps(row) for row in [*rows, {'video': 'a.mp4'}]))
    with pytest.raises(ValueError, match='split: is missing'):
        make(path, tmp_path, configs=('other',))


def test_windows_do_not_show(films, monkeypatch, tmp_path):
    """Long videos are decoded some frames at a time, with the same result."""
    (tmp_path / 'a.mp4').write_bytes(films['b_frames.mp4'])
    whole = shrink.shrink(str(tmp_path / 'a.mp4'), None, None, SETTINGS)
    windows_of(3, monkeypatch)
    assert shrink.shrink(str(tmp_path / 'a.mp4'), None, None, SETTINGS) == whole
    assert whole.num_frames == 14 and whole.seconds == pytest.approx(83 / 25)


def test_pictures_are_scaled_as_asked_for(films, manifest, built, tmp_path):
    (tmp_path / 'a.mp4').write_bytes(films['b_frames.mp4'])
    how = {name: dataclasses.replace(SETTINGS, scaling=name) for name in ('bilinear', 'bicubic')}
    one, two = (shrink.shrink(str(tmp_path / 'a.mp4'), None, None, how[name]) for name in how)
    assert one == shrink.shrink(str(tmp_path / 'a.mp4'), None, None, SETTINGS) != two
    with pytest.raises(ValueError, match='--scaling is lanczos; it must be bilinear or bicubic'):
        dataclasses.replace(SETTINGS, scaling='lanczos').check()
    with pytest.raises(ValueError, match='scaling is bilinear, wanted bicubic'):
        make(manifest, built[0], scaling='bicubic')
    (file,) = built[0].glob('clips/*/*/metadata.json')
    text = file.read_text()
    stored = json.loads(text)
    assert stored.pop('scaling') == 'bilinear'
    file.write_text(json.dumps(stored))  # as it was before one could choose
    assert 'complete' in make(manifest, built[0])[1]
    file.write_text(text)


def windows_of(steps, monkeypatch):
    monkeypatch.setattr(shrink, 'WINDOW_BYTES', steps * 3 * PIXELS**2)


@pytest.fixture(scope='module')
def spoilt(tmp_path_factory):
    """spoilt(*numbers) -> a film of 132 frames, 4 a second, each of which stands alone.

    The frames of these numbers are damaged.
    """
    folder = tmp_path_factory.mktemp('spoilt')
    file = encode(num_frames=132, rate=FPS, g=1, bf=0)

    def spoilt(*numbers):
        path, damaged = folder / 'a.mp4', file
        for number in numbers:
            damaged = spoil(damaged, number)
        path.write_bytes(damaged)
        return str(path)

    return spoilt


def stored_numbers(shrunk):
    """Which frame of the film each step shows."""
    found = video.read_frames(
        shrunk.file, lambda a, b: shrink.centres(a, b, SETTINGS.rate), pixels=PIXELS,
        end=shrunk.seconds,
    )  # fmt: skip
    return [number_of(frame) for frame in found.frames]


def test_what_may_be_missing_is_a_share_of_the_video(spoilt, monkeypatch):
    """Not of a window: one bad frame among the four of the last was a quarter of it."""
    windows_of(128, monkeypatch)
    found = shrink.shrink(spoilt(130), None, None, SETTINGS)
    assert found.num_missing == 1
    assert stored_numbers(found) == [*range(130), 129, 131]
    share = dataclasses.replace(SETTINGS, max_missing=0.02)  # 2 of 132
    assert shrink.shrink(spoilt(3, 130), None, None, share).num_missing == 2
    with pytest.raises(video.VideoError, match='a.mp4: damaged: 3 of 132 frames could not be sh'):
        shrink.shrink(spoilt(3, 7, 130), None, None, share)
    with pytest.raises(video.VideoError, match='damaged: 132 of 132 frames could not be shown'):
        shrink.shrink(spoilt(*range(132)), None, None, SETTINGS)


def test_a_window_without_a_good_frame_shows_its_neighbours(spoilt, monkeypatch):
    """The one before it, and at the beginning the one behind it."""
    windows_of(4, monkeypatch)
    path = spoilt(*range(4), *range(8, 12), *range(128, 132))
    found = shrink.shrink(path, None, None, SETTINGS)
    assert found.num_missing == 12
    assert stored_numbers(found) == [4] * 5 + [5, 6, 7] + [7] * 4 + [*range(12, 128)] + [127] * 4
    assert found.seconds == 33


def test_a_video_has_one_time_limit_for_all_its_windows(spoilt, monkeypatch):
    now, read = [0.0], video.read_frames

    def slow(path, choose, **options):
        def slowly(*ends):
            now[0] += 7
            return choose(*ends)

        return read(path, slowly, **options)

    windows_of(44, monkeypatch)
    monkeypatch.setattr(video, 'read_frames', slow)
    monkeypatch.setattr('time.monotonic', lambda: now[0])
    limit = dataclasses.replace(SETTINGS, time_limit_s=22.0)
    assert shrink.shrink(spoilt(), None, None, limit).num_frames == 132
    now[0] = 0.0
    with pytest.raises(video.VideoError, match='too-slow: not done after time_limit_s = 20 sec'):
        shrink.shrink(spoilt(), None, None, dataclasses.replace(limit, time_limit_s=20.0))


def test_equal_steps_are_stored_once(films, tmp_path):
    """A film of 2 frames a second at 4: as many frames as it has, and one more for its end."""
    (tmp_path / 'a.mp4').write_bytes(films['slow.mp4'])
    assert shrink.shrink(str(tmp_path / 'a.mp4'), None, None, SETTINGS).num_frames == 8


def test_a_video_too_large_for_a_record_is_broken(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(shrink, 'MAX_BYTES', 1 << 15)
    path, said = make(manifest, tmp_path)
    assert 'too-large' in said and (path / 'broken.jsonl').read_text().count('--codec=jpeg') == 2


def test_jpeg_is_smaller_and_close(clips, tmp_path):
    """More than 38 dB on a real clip; data/README.md says 38.7 dB, of 30 together."""
    settings = {c: shrink.Settings(128, '2', c, 60.0, 0.0) for c in ('raw', 'jpeg')}
    path = str(clips / 'hitting_baseball.mp4')
    found = {c: shrink.shrink(path, None, None, s) for c, s in settings.items()}
    assert len(found['raw'].file) > 5 * len(found['jpeg'].file)
    raw, jpeg = (
        video.read_frames(f.file, at('fps', 20, 2), pixels=128, end=f.seconds).frames
        for f in found.values()
    )
    error = np.square(raw.astype(float) - jpeg).mean()
    assert 38 < 10 * np.log10(255**2 / error) < 60


@pytest.mark.parametrize(
    'options,words',
    [
        (['--fps=0'], '--fps is 0'),
        (['--fps=fast'], '--fps is fast'),
        (['--pixels=33'], '--pixels is 33; it must be an even number'),
        (['--manifest=none.jsonl'], 'no such manifest'),
        (['--rows_per_shard=0'], 'must be 1 or more'),
        (['--config=a/b'], "--config is 'a/b'"),
    ],
)
def test_faults_of_the_command_line(manifest, tmp_path, capsys, options, words):
    base = ['clips', f'--manifest={manifest}', '--pixels=32', '--fps=4', f'--data_dir={tmp_path}']
    assert build_data.main([*base, *options]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
