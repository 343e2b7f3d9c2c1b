"""Frames by time: clips whose frames carry their number are encoded here and read back."""

import concurrent.futures
import fractions
import io
import pickle
import threading

import av
import numpy as np
import pytest

from long_vivit.inputs import packets, pixels, samplers, video

SIDE = 64
CELL = 16


def picture(number: int, width: int = SIDE, height: int = SIDE) -> np.ndarray:
    """uint8 [height, width, 3]: 8 bits of `number` in the upper half as cells, inverted below."""
    bits = np.array([number >> i & 1 for i in range(8)])
    cells = np.concatenate([bits, 1 - bits]).reshape(4, 4)
    grid = cells.repeat(height // 4, 0).repeat(width // 4, 1)
    grid = np.pad(grid, ((0, height - grid.shape[0]), (0, width - grid.shape[1])), mode='edge')
    return np.stack([grid * 200 + 25] * 3, axis=-1).astype(np.uint8)


def number_of(frame: np.ndarray) -> int:
    """The number that `picture` drew into a square frame; fails where it cannot be read."""
    side = len(frame) // 4
    cells = [
        frame[r * side + side // 4 : (r + 1) * side - side // 4,
              c * side + side // 4 : (c + 1) * side - side // 4].mean()
        for r in range(4) for c in range(4)
    ]  # fmt: skip
    bits = np.array(cells) > 125
    assert np.array_equal(bits[:8], ~bits[8:]), 'two frames are mixed'
    return int(bits[:8] @ (1 << np.arange(8)))


def encode(
    codec='libx264',
    container='mp4',
    num_frames=50,
    *,
    ticks=None,
    rate=25,
    pix_fmt='yuv420p',
    size=(SIDE, SIDE),
    aspect=None,
    rotation=None,
    draw=picture,
    muxing=None,
    **options,
) -> bytes:
    """A clip whose n-th frame shows n, at `ticks`[n] / 1000 seconds (n / rate without it)."""
    file = io.BytesIO()
    with av.open(file, 'w', format=container, options=muxing or {}) as out:
        names = {key.replace('_', '-'): str(value) for key, value in options.items()}
        stream = out.add_stream(codec, rate=rate, options=names)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        if ticks is not None:
            stream.codec_context.time_base = fractions.Fraction(1, 1000)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(draw(number, *size), 'rgb24')
            if ticks is not None:
                frame.pts = ticks[number]
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def read(file, times, side=SIDE, **options) -> video.Frames:
    return video.read_frames(
        file, lambda start, end: np.array(times, float), pixels=side, **options
    )


def numbers(shown: video.Frames) -> list[int]:
    return [number_of(frame) for frame in shown.frames]


def mid(num_frames):
    return lambda start, end: samplers.mid(start, end, num_frames)


UNEVEN = np.cumsum(np.random.default_rng(1).integers(10, 200, 50)).tolist()
LATE = [3000 + 40 * i for i in range(50)]
KINDS = {
    'h264 with B frames': {'bf': 3, 'g': 12},
    'h264 with B frames that others refer to': {'bf': 5, 'g': 30, 'b_pyramid': 'normal'},
    'h264 open groups': {'x264_params': 'open-gop=1:bframes=3:keyint=10:min-keyint=10:scenecut=0'},
    'h264 without key frames': {'x264_params': 'intra-refresh=1:keyint=12:bframes=0'},
    'h264 uneven': {'ticks': UNEVEN, 'bf': 3, 'g': 12},
    'h264 uneven in Matroska': {'container': 'matroska', 'ticks': UNEVEN, 'bf': 3, 'g': 12},
    'h264 in AVI': {'container': 'avi', 'bf': 3, 'g': 12},
    'h264 in TS from 5 s': {
        'container': 'mpegts',
        'bf': 2,
        'g': 12,
        'muxing': {'output_ts_offset': '5'},
    },
    'h264 in MP4 from 3 s': {'ticks': LATE, 'bf': 2, 'g': 12},
    'h264 in Matroska from 3 s': {'container': 'matroska', 'ticks': LATE, 'bf': 2, 'g': 12},
    'h264 in fragments': {'bf': 2, 'g': 12, 'muxing': {'movflags': 'frag_keyframe+empty_moov'}},
    'hevc open groups': {
        'codec': 'libx265',
        'x265_params': 'open-gop=1:bframes=4:keyint=12:min-keyint=12:log-level=none',
    },
    'mpeg4 with B frames': {'codec': 'mpeg4', 'bf': 2, 'g': 12},
    'mpeg4 with B frames in AVI': {'codec': 'mpeg4', 'container': 'avi', 'bf': 2, 'g': 12},
    'mpeg2 in TS': {'codec': 'mpeg2video', 'container': 'mpegts', 'bf': 2, 'g': 12},
    'vp8 with hidden pictures': {
        'codec': 'libvpx',
        'container': 'webm',
        'g': 20,
        'auto_alt_ref': 1,
        'lag_in_frames': 16,
    },
    'vp9': {'codec': 'libvpx-vp9', 'container': 'webm', 'g': 12},
    'av1': {'codec': 'libsvtav1', 'container': 'matroska', 'g': 12},
    'mjpeg in MOV': {'codec': 'mjpeg', 'container': 'mov', 'pix_fmt': 'yuvj420p'},
    'gif': {'codec': 'gif', 'container': 'gif', 'pix_fmt': 'rgb8'},
}


@pytest.mark.parametrize('kind', KINDS)
def test_every_time_shows_its_frame(kind):
    clip = encode(**KINDS[kind])
    ticks = KINDS[kind].get('ticks')
    starts = np.arange(50) / 25 if ticks is None else (np.array(ticks) - ticks[0]) / 1000
    gaps = np.diff(starts, append=starts[-1] + (starts[-1] - starts[-2]))
    for chosen in (range(50), [3], [49], [0, 7, 8, 9, 20, 48], range(2, 50, 6), [30, 5, 5, 41]):
        chosen = np.array(chosen)
        for part in (0.0, 0.5, 0.95):  # the whole time until the next frame appears
            shown = read(clip, starts[chosen] + part * gaps[chosen])
            assert numbers(shown) == chosen.tolist()
            np.testing.assert_allclose(shown.times_s, starts[chosen], atol=1.1e-3)
            assert shown.num_missing == 0
    info = shown.info
    assert (info.num_frames, info.fault) == (50, '')
    assert info.duration_s == pytest.approx(starts[-1] + gaps[-1], abs=2e-3)
    assert info.variable_rate == (ticks is UNEVEN)
    assert info.fps == (None if info.variable_rate else pytest.approx(25, rel=1e-3))


@pytest.fixture(scope='module')
def clip():
    return encode(bf=3, g=12)


def test_bytes_and_path_give_the_same_and_twice_the_same(clip, tmp_path):
    path = tmp_path / 'a: clip,100%.mp4'  # a name that is no address
    path.write_bytes(clip)
    by_bytes, by_path = (video.read_frames(f, mid(9), pixels=40) for f in (clip, path))
    again = video.read_frames(bytearray(clip), mid(9), pixels=40)
    for other in (by_path, again):
        np.testing.assert_array_equal(by_bytes.frames, other.frames)
        np.testing.assert_array_equal(by_bytes.times_s, other.times_s)
        assert by_bytes.info == other.info
    assert by_bytes.frames.shape == (9, 40, 40, 3)
    assert by_bytes.frames.dtype == np.uint8
    assert video.probe(str(path)) == by_bytes.info == video.check_video(path)


def test_a_file_too_large_to_hold_gives_the_same(clip, monkeypatch):
    wanted = np.array([0.1, 1.9, 0.5, 0.52])
    held = read(clip, wanted)
    monkeypatch.setattr(packets, 'MAX_HELD_BYTES', 500)
    np.testing.assert_array_equal(read(clip, wanted).frames, held.frames)


def test_range_is_passed_on_and_kept_to(clip):
    asked = []

    def choose(start, end):
        asked.append((start, end))
        return samplers.mid(start, end, 5)

    shown = video.read_frames(clip, choose, pixels=SIDE, start=0.4, end=0.8)
    assert asked == [(0.4, 0.8)]
    assert numbers(shown) == [11, 13, 15, 17, 19]
    video.read_frames(clip, choose, pixels=SIDE, start=1.0, end=2.5)  # rounded annotations
    assert asked[1] == (1.0, pytest.approx(2.0))


@pytest.mark.parametrize(
    ('start', 'end', 'words'),
    [
        (2.0, None, 'start lies behind the end of the video'),
        (1.0, 9.0, 'end lies behind the end of the video'),
        (1.0, 1.0, '0 <= start < end'),
        (-1.0, 1.0, '0 <= start < end'),
        (float('nan'), None, '0 <= start < end'),
    ],
)
def test_bad_range_is_named(clip, start, end, words):
    with pytest.raises(video.VideoError, match=words) as error:
        video.read_frames(clip, mid(2), pixels=8, start=start, end=end, name='clip 7')
    assert error.value.reason == 'bad-range'
    assert str(error.value).startswith('clip 7: bad-range: ')
    assert str(error.value).endswith('the video has 2.000 s')


@pytest.mark.parametrize('times', [[], [[0.1]], [-0.5], [2.5], [float('nan')]])
def test_times_outside_the_range_are_a_bug_of_the_caller(clip, times):
    with pytest.raises(ValueError, match='choose') as error:
        read(clip, times)
    assert not isinstance(error.value, video.VideoError)


def test_options_are_checked(clip):
    for options in ({'pixels': 0}, {'pixels': 8, 'max_missing': 1.5}):
        with pytest.raises(ValueError, match='pixels must be 1 or more'):
            video.read_frames(clip, mid(2), **options)


# Pixels


def halves(number, width, height):
    """Red left, green right, and a white row at the top."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[:, : width // 2, 0] = 220
    frame[:, width // 2 :, 1] = 220
    frame[: height // 8] = 220
    return frame


def near(frame, y, x, colour):
    side = len(frame)
    return np.abs(frame[int(y * side), int(x * side)].astype(int) - colour).max() < 40


@pytest.mark.parametrize('rotation', [0, 90, 180, -90])
def test_rotation_is_undone(rotation):
    upright = encode(draw=halves, size=(64, 96), num_frames=3)
    turned = {0: 0, 90: 1, 180: 2, -90: 3}[rotation]

    def draw(number, width, height):
        size = (width, height) if turned % 2 == 0 else (height, width)
        return np.ascontiguousarray(np.rot90(halves(number, *size), -turned))

    size = (64, 96) if turned % 2 == 0 else (96, 64)
    lying = encode(draw=draw, size=size, rotation=rotation, num_frames=3)
    expected, shown = read(upright, [0.0], 48), read(lying, [0.0], 48)
    difference = np.abs(shown.frames.astype(int) - expected.frames)
    assert difference.mean() < 6
    assert (shown.info.width, shown.info.height) == (64, 96)
    assert shown.info.rotation == rotation % 360
    assert video.probe(lying) == shown.info


def test_pixels_that_are_not_square_are_stretched():
    frame = read(encode(draw=halves, size=(32, 64), aspect=2, num_frames=2), [0.0], 64).frames[0]
    assert near(frame, 0.05, 0.5, [220, 220, 220])  # nothing is cropped off
    assert near(frame, 0.5, 0.1, [220, 0, 0])
    assert near(frame, 0.5, 0.9, [0, 220, 0])
    assert pixels.square(720, 576, 64 / 45) == (405, 576)
    assert pixels.square(720, 480, 8 / 9) == (540, 480)
    assert pixels.square(1, 1000, 4.0) == (1, 4)


def test_the_centre_is_cropped():
    def bars(number, width, height):
        frame = np.zeros((height, width, 3), np.uint8)
        frame[:, width // 4 : -(width // 4)] = 220
        return frame

    frame = read(encode(draw=bars, size=(128, 64), num_frames=2), [0.0], 32).frames[0]
    assert frame.min() > 180


@pytest.mark.parametrize('size', [(63, 65), (17, 64), (2, 2)])
@pytest.mark.parametrize('pix_fmt', ['yuv420p', 'yuv444p', 'yuv420p10le', 'bgra', 'gray'])
def test_any_size_and_pixel_format(size, pix_fmt):
    def grey(number, width, height):
        return np.full((height, width, 3), 100, np.uint8)

    clip = encode('ffv1', 'matroska', 2, draw=grey, size=size, pix_fmt=pix_fmt)
    frames = read(clip, [0.0], 20).frames
    assert frames.shape == (1, 20, 20, 3)
    assert np.abs(frames.astype(int) - 100).max() <= 3


@pytest.mark.parametrize('scaling', pixels.SCALINGS)
@pytest.mark.parametrize('pix_fmt', ['yuv420p', 'yuvj422p', 'yuv444p', 'yuv420p10le'])
def test_the_quicker_way_through_planes_changes_no_bit(pix_fmt, scaling, monkeypatch):
    """Noise of every size, colour matrix and range: as FFmpeg writes rgb24 without a detour."""
    rng = np.random.default_rng(0)

    def both(width, height, side, matrix, full):
        frame = av.VideoFrame(width, height, pix_fmt)
        frame.colorspace, frame.color_range = matrix, full
        for plane in frame.planes:
            plane.update(rng.integers(0, 256, plane.buffer_size, np.uint8).tobytes())
        found = []
        for way in (pixels._planes_are_equal, lambda *_: False):
            monkeypatch.setattr(pixels, '_planes_are_equal', way)
            monkeypatch.setattr(pixels, '_kept', threading.local())
            found.append(pixels.to_rgb(frame, side, scaling=scaling))
        monkeypatch.undo()
        return found

    for size in [(64, 64, 64), (90, 64, 64), (65, 67, 64), (131, 97, 48), (320, 240, 224)]:
        for matrix, full in [(2, 0), (1, 1), (5, 2), (9, 1)]:
            np.testing.assert_array_equal(*both(*size, matrix, full))


# Broken files


def reason_of(file, **options) -> str:
    with pytest.raises(video.VideoError) as error:
        video.read_frames(file, mid(8), pixels=16, **options)
    assert error.value.reason in video.REASONS
    assert pickle.loads(pickle.dumps(error.value)).args == error.value.args
    return error.value.reason


def test_what_is_no_video_is_named(tmp_path):
    assert reason_of(tmp_path / 'nothing.mp4') == 'not-found'
    assert reason_of(tmp_path) == 'not-found'
    assert reason_of(b'') == 'cannot-open'
    assert reason_of(b'<html>not found</html>' * 50) == 'cannot-open'
    assert reason_of(np.random.default_rng(0).bytes(5000)) == 'cannot-open'
    assert reason_of(encode(container='h264')) == 'no-times'


def test_sound_alone_is_named():
    file = io.BytesIO()
    with av.open(file, 'w', format='wav') as out:
        stream = out.add_stream('pcm_s16le', rate=8000, layout='mono')
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), 's16', 'mono')
        sound.sample_rate = 8000
        out.mux(stream.encode(sound))
    assert reason_of(file.getvalue()) == 'no-video-stream'


@pytest.mark.parametrize('container', ['matroska', 'flv', 'webm', 'mp4'])
def test_a_file_cut_short_is_named_and_what_is_left_can_be_read(container):
    kind = {'codec': 'libvpx-vp9'} if container == 'webm' else {'bf': 2}
    if container == 'mp4':
        kind['muxing'] = {'movflags': 'frag_keyframe+empty_moov'}
    whole = encode(container=container, g=12, **kind)
    part = whole[: int(len(whole) * 0.7)]
    info = video.probe(part)
    assert info.fault == 'truncated' and info.detail
    assert 0.4 < info.duration_s < 1.9
    assert reason_of(part) == 'truncated'
    assert reason_of(part, end=1.99) == 'truncated'
    shown = video.read_frames(part, mid(4), pixels=SIDE, end=0.4)
    assert numbers(shown) == [1, 3, 6, 8]


def test_an_index_at_the_end_that_is_lost_is_named(clip):
    assert reason_of(clip[: len(clip) // 2]) == 'cannot-open'


def spoil(file: bytes, number: int) -> bytes:
    """The file with the packet of the frame that is `number`-th in time overwritten."""
    with av.open(io.BytesIO(file)) as opened:
        listed = sorted((p.pts, p.pos, p.size) for p in opened.demux() if p.size)
    _, position, size = listed[number]
    return file[:position] + b'\xff' * size + file[position + size :]


def test_from_an_error_on_the_rest_of_the_group_is_replaced_and_counted():
    clip = spoil(encode(g=10, bf=0, x264_params='scenecut=0'), 24)
    starts = np.arange(50) / 25
    assert reason_of(clip) == 'damaged'
    assert video.probe(clip).fault == ''  # told by decoding only
    with pytest.raises(video.VideoError, match='damaged: 6 of 50 frames'):
        read(clip, starts)
    shown = read(clip, starts, max_missing=0.12)
    assert shown.num_missing == 6
    nearest = [*range(24), 23, 23, 23, 30, 30, 30, *range(30, 50)]
    assert numbers(shown) == nearest
    np.testing.assert_allclose(shown.times_s, starts[nearest])
    assert read(clip, starts[:24], max_missing=0).num_missing == 0
    assert read(clip, starts[30:], max_missing=0).num_missing == 0
    with pytest.raises(video.VideoError, match='damaged: 2 of 2'):  # nothing good to show
        read(clip, starts[25:27], max_missing=1.0)


def test_frames_before_the_first_key_frame_are_missing():
    stream = encode(container='mpegts', g=20, bf=0, x264_params='scenecut=0')
    with av.open(io.BytesIO(stream)) as opened:
        positions = [p.pos for p in opened.demux() if p.size]
    cut = stream[:564] + stream[positions[12] :]  # the tables stay, the first 12 frames go
    assert reason_of(cut) in ('damaged', 'missing-frames')
    shown = video.read_frames(cut, mid(38), pixels=SIDE, max_missing=0.5)
    assert shown.num_missing == 8
    assert numbers(shown) == [20] * 8 + list(range(20, 50))


def test_time_is_bounded(clip):
    assert reason_of(clip, time_limit_s=1e-6) == 'too-slow'
    with pytest.raises(video.VideoError, match='too-slow'):
        video.probe(clip, time_limit_s=1e-6)
    with pytest.raises(ValueError, match='time_limit_s'):
        video.probe(clip, time_limit_s=0)


@pytest.mark.parametrize('kind', ['h264 with B frames', 'h264 in TS from 5 s', 'vp9', 'gif'])
def test_noise_in_a_file_is_an_answer_or_a_named_error(kind):
    whole = encode(**KINDS[kind])
    for seed in range(40):
        rng, noisy = np.random.default_rng(seed), bytearray(whole)
        for place in rng.integers(0 if seed % 2 else 600, len(whole), rng.integers(1, 20)):
            noisy[place] = rng.integers(256)
        try:
            shown = video.read_frames(bytes(noisy), mid(8), pixels=16, time_limit_s=5.0)
            assert shown.frames.shape == (8, 16, 16, 3)
        except video.VideoError as error:
            assert error.reason in video.REASONS


def test_several_threads_read_at_once(clip):
    files = [clip, encode(**KINDS['vp9']), encode(**KINDS['gif']), encode(size=(96, 64))]
    alone = [video.read_frames(file, mid(20), pixels=32).frames for file in files]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        jobs = [
            (i, pool.submit(video.read_frames, files[i], mid(20), pixels=32))
            for i in [0, 1, 2, 3] * 6
        ]
        for i, job in jobs:
            np.testing.assert_array_equal(job.result().frames, alone[i])


# Real clips

BROKEN = {
    'decord_corrupted.mp4': 'damaged',
    'derived_arm_wrestling_no_index.mp4': 'cannot-open',
    'derived_audio_only.webm': 'no-video-stream',
    'derived_baseball_flipped_bytes.mp4': 'damaged',
    'derived_drumming_truncated_index_first.mp4': 'truncated',
    'derived_not_a_video.mp4': 'cannot-open',
}


def test_every_real_clip_reads(clips):
    files = [f for f in sorted(clips.iterdir()) if f.suffix not in ('.json', '.jsonl', '')]
    assert len(files) == 30
    for file in files:
        info = video.check_video(file, num_frames=3)
        assert info.fault == ''
        assert video.probe(file) == info


def test_every_edge_clip_reads_or_says_why(clips):
    files = [f for f in sorted((clips / 'edge').iterdir()) if f.suffix != '.jsonl']
    assert len(files) == 26
    for file in files:
        if file.name in BROKEN:
            assert reason_of(file) == BROKEN[file.name]
        else:
            assert video.check_video(file).fault == ''


def test_phones_held_four_ways(clips):
    turns = {'0': 0, '90': 270, '180': 180, '270': 90}
    for name, turn in turns.items():
        info = video.probe(clips / 'edge' / f'keyboard_rotation_{name}.mov')
        assert info.rotation == turn
        assert (info.width, info.height) == ((320, 568) if turn % 180 else (568, 320))


NOT_INTACT = {*BROKEN, 'decord_corrupted.mp4'}


def plain_decode(file, times_s):
    """All frames, one after the other: when each is shown, and those at `times_s` as squares.

    The n-th frame to come out is shown at the n-th time: AVI files tell times in another order.
    """
    with av.open(str(file)) as opened:
        stream = opened.streams.video[0]
        stream.thread_type = 'AUTO'
        starts = np.sort([f.pts for f in opened.decode(stream)]) * float(stream.time_base)
        starts -= starts[0]
    places = np.searchsorted(starts, times_s + 1e-6, side='right') - 1
    with av.open(str(file)) as opened:
        stream = opened.streams.video[0]
        stream.thread_type = 'AUTO'
        aspect, squares, last = float(stream.sample_aspect_ratio or 1), {}, places.max()
        for number, frame in zip(range(last + 1), opened.decode(stream), strict=False):
            if number in places:
                squares[number] = pixels.to_rgb(frame, 48, aspect)
    return starts[places], np.stack([squares[place] for place in places])


@pytest.mark.parametrize('part', range(4))
def test_frames_of_every_intact_clip_equal_those_of_a_plain_sequential_decode(clips, part):
    files = [f for f in sorted(clips.glob('**/*.*')) if 'json' not in f.suffix]
    files = [f for f in files if f.name not in NOT_INTACT][part::4]
    assert len(files) > 11
    for file in files:
        shown = video.read_frames(file, mid(10), pixels=48)
        wanted = samplers.mid(0.0, shown.info.duration_s, 10)
        starts, squares = plain_decode(file, wanted)
        np.testing.assert_allclose(shown.times_s, starts, atol=1e-6, err_msg=file.name)
        np.testing.assert_array_equal(shown.frames, squares, err_msg=file.name)
