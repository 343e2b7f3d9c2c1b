"""Decoding 16, 128 and 256 frames of a minute of 360p H.264: ours, a PyAV loop, decord, torchcodec.

    make bench BENCH=decoding                  # in .venv-bench, which has the other readers
    python scripts/bench/decoding.py --film a.mp4 b.mp4

Makes two clips (640 x 360, 30 frames a second, 3 B frames; a key frame every 250 and every 30
frames), drawn or joined from the frames of other films, and reads uniformly spread frames, each
reader in a process of its own with one decoder thread, in turn. All give centre-cropped squares of
256 pixels: ours, the loop, torchcodec by its own transforms, decord by scaling to 455 x 256 and
slicing. `torchcodec whole` is shown beside them: it leaves the frames at 640 x 360, which is the
least torchcodec can be asked for. A reader that cannot be imported is named and left out. Ours must
equal the loop to the bit, or the script fails.

torchcodec wants FFmpeg's libraries by their plain names. PyAV's wheel for Linux has them by others:
its process finds links to them, so that all readers but decord decode with the same FFmpeg. Where
PyAV has none of its own, torchcodec takes the system's.
"""

import argparse
import hashlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import av
import numpy as np

from long_vivit.inputs import pixels, samplers, video
from scripts.bench.rows import header, record, record_argument, table

SIDE, COUNTS, KEYS, SECONDS, RATE = 256, (16, 128, 256), (250, 30), 60, 30
WIDTH, HEIGHT = 640, 360
# The last gives larger frames, so it is not compared with ours.
READERS = ('ours', 'pyav loop', 'decord', 'torchcodec', 'torchcodec whole')
RIVALS = ('decord', 'torchcodec')


def make_clip(path: Path, every: int, pictures) -> None:
    """A minute of `pictures` as H.264 with a key frame at each `every`-th."""
    with av.open(str(path), 'w') as out:
        names = {'g': str(every), 'bf': '3', 'crf': '23', 'sc_threshold': '0'}
        stream = out.add_stream('libx264', rate=RATE, options=names)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, 'yuv420p'
        for picture in itertools.islice(pictures, SECONDS * RATE):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, 'rgb24')))
        out.mux(stream.encode())


def drawn():
    """A drifting texture with shapes that cross it and a cut every 5 seconds, without end."""
    rng = np.random.default_rng(0)
    for number in itertools.count():
        if number % (5 * RATE) == 0:
            coarse = rng.integers(0, 256, (HEIGHT // 20, WIDTH // 20, 3), np.uint8)
            scene = coarse.repeat(20, 0).repeat(20, 1) // 2
            scene += rng.integers(0, 40, scene.shape, np.uint8)
        picture = np.roll(scene, (number, 2 * number), (0, 1))
        for i in range(4):
            x, y = (number * (3 + i) + 150 * i) % (WIDTH - 60), (number * (1 + i)) % 300
            picture[y : y + 60, x : x + 60] = 60 * i + 30
        yield picture


def filmed(files):
    """The first 10 seconds of each file, scaled to fill the picture, over and over."""
    for file in itertools.cycle(files):
        with av.open(str(file)) as container:
            for frame in itertools.islice(container.decode(video=0), 10 * RATE):
                yield frame.to_ndarray(
                    format='rgb24', width=WIDTH, height=HEIGHT, interpolation='BICUBIC'
                )


def places(count: int) -> np.ndarray:
    return samplers.mid_indices(SECONDS * RATE, count)


def ours(path, count):
    times = (places(count) + 0.5) / RATE
    return video.read_frames(path, lambda a, b: times, pixels=SIDE).frames


def pyav_loop(path, count):
    wanted, found = set(places(count).tolist()), []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                found.append(pixels.to_rgb(frame, SIDE))
    return np.stack(found)


def decord(path, count):
    import decord

    wide = round(SIDE * WIDTH / HEIGHT)
    reader = decord.VideoReader(path, num_threads=1, width=wide, height=SIDE)
    left = (wide - SIDE) // 2
    return reader.get_batch(places(count).tolist()).asnumpy()[:, :, left : left + SIDE]


def torchcodec(path, count, whole=False):
    import torch
    from torchcodec import transforms
    from torchcodec.decoders import VideoDecoder

    from scripts.parity import torchvision_ops  # noqa: F401  first: torchcodec asks for torchvision

    torch.set_num_threads(1)
    crop, scale = transforms.CenterCrop((HEIGHT, HEIGHT)), transforms.Resize((SIDE, SIDE))
    decoder = VideoDecoder(
        path, num_ffmpeg_threads=1, seek_mode='exact', dimension_order='NHWC',
        transforms=[] if whole else [crop, scale],
    )  # fmt: skip
    return decoder.get_frames_at(places(count).tolist()).data.numpy()


def torchcodec_whole(path, count):
    return torchcodec(path, count, whole=True)


def serve(name: str) -> None:
    """A reader's process: reads [path, count] from each line, answers [seconds, digest]."""
    read = globals()[name.replace(' ', '_')]
    for line in sys.stdin:
        path, count = json.loads(line)
        start = time.perf_counter()
        frames = read(path, count)
        seconds = time.perf_counter() - start
        size = (HEIGHT, WIDTH) if name.endswith('whole') else (SIDE, SIDE)
        assert frames.shape == (count, *size, 3), (name, frames.shape)
        print(json.dumps([seconds, hashlib.sha256(frames.tobytes()).hexdigest()]), flush=True)


def link_ffmpeg(folder: Path) -> dict[str, str]:
    """Links PyAV's FFmpeg, libavcodec-HASH.so.62.28.102, as libavcodec.so.62 -> the environment of
    a process that finds it; {} where PyAV's wheel has none.
    """
    libraries = Path(av.__file__).parents[1] / 'av.libs'
    found = sorted(libraries.glob('lib*.so.*')) if libraries.is_dir() else []
    for file in found:
        plain = re.fullmatch(r'(lib(?:av|sw)\w+)-\w+(\.so\.\d+)\.[\d.]+', file.name)
        if plain:
            (folder / ''.join(plain.groups())).symlink_to(file)
    before = os.environ.get('LD_LIBRARY_PATH', '')
    paths = [str(folder), str(libraries), *([before] if before else [])]
    return {'LD_LIBRARY_PATH': os.pathsep.join(paths)} if found else {}


class Reader:
    def __init__(self, name: str, environment: dict[str, str]):
        command = [sys.executable, __file__, '--serve', name]
        pipe, environment = subprocess.PIPE, os.environ | environment
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environment
        )

    def __call__(self, path, count):
        try:
            self.process.stdin.write(json.dumps([str(path), count]) + '\n')
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):
            return None


def main():
    """Measures, prints, and records where --record asks for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--film', type=Path, nargs='+', help='films to make the clips of')
    parser.add_argument('--serve', help=argparse.SUPPRESS)
    record_argument(parser)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    record(lines(args), args.record, 'av', 'decord', 'torchcodec', 'torch', 'numpy')


def lines(args):
    """The clips, who cannot be imported, and a row for each clip and number of frames."""
    with tempfile.TemporaryDirectory() as folder:
        clips = {every: Path(folder) / f'key{every}.mp4' for every in KEYS}
        for every, path in clips.items():
            make_clip(path, every, filmed(args.film) if args.film else drawn())
            yield f'key frame every {every}: {path.stat().st_size / 2**20:.1f} MiB'
        linked = link_ffmpeg(Path(folder))
        readers = {
            name: Reader(name, linked if name.startswith('torchcodec') else {}) for name in READERS
        }
        for name in list(readers):  # the first call imports
            if readers[name](clips[KEYS[0]], 16) is None:
                yield f'{name}: cannot be imported here, left out'
                del readers[name]
        yield f'PyAV decodes with FFmpeg {av.ffmpeg_version_info}'
        yield header('key every', 'frames', *readers, 'ours against the best other')
        for every, path in clips.items():
            for count in COUNTS:
                yield _row(every, count, path, readers, args.rounds)


def _row(every, count, path, readers, rounds) -> str:
    times = {name: [] for name in readers}
    for _ in range(rounds):
        digests = {}
        for name, read in readers.items():
            seconds, digests[name] = read(path, count)
            times[name].append(1000 * seconds)
        assert digests['ours'] == digests['pyav loop'], 'ours differs from a sequential decode'
    middle = {name: statistics.median(found) for name, found in times.items()}
    cells = [f'{middle[n]:.0f} ({min(t):.0f} to {max(t):.0f})' for n, t in times.items()]
    best = min((n for n in middle if n in RIVALS), key=middle.get, default=None)
    ratio = f'{middle[best] / middle["ours"]:.2f} x {best}' if best else 'none there'
    return table(every, count, *cells, ratio)


if __name__ == '__main__':
    main()
