"""Reading decode-once shards against decoding the originals, and what a masked step sends.

    python scripts/bench/reading.py --manifest PATH/manifest.jsonl

Makes a minute of 360p H.264 as decoding.py does, stores it and the manifest's videos in shards, raw
and JPEG, 128 pixels at 2 frames a second, and reads 64 and 16 frames of every video in turn from
both, through the sources as training does: record, demuxing, decoding, shrinking. One thread.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from data.clips import build, shrink
from long_vivit.inputs import patches, pipeline, samplers, video
from long_vivit.inputs.sources import open_source
from scripts.bench import decoding
from scripts.bench.rows import header, record, record_argument, table

PIXELS, FPS, COUNTS = 128, 2, (64, 16)


def frames(example, count):
    """uint8 [count, PIXELS, PIXELS, 3], the centres of equal segments."""
    return video.read_frames(
        example.video, lambda a, b: samplers.mid(a, b, count), pixels=PIXELS,
        start=example.start_s, end=example.end_s, name=example.id,
    ).frames  # fmt: skip


def read(source, count):
    """Milliseconds for each example."""
    found = []
    for i in range(len(source)):
        start = time.perf_counter()
        frames(source[i], count)
        found.append(1000 * (time.perf_counter() - start))
    return np.array(found)


def decibels(original, stored, count):
    """PSNR over the steps' own frames; None where they are equal to the bit."""
    errors = []
    for i in range(len(original)):
        one, other = original[i], stored[i]
        rate = shrink.fractions.Fraction(FPS)

        def choose(a, b, rate=rate):
            return shrink.centres(a, b, rate)

        a, b = (
            video.read_frames(e.video, choose, pixels=PIXELS, start=e.start_s, end=e.end_s).frames
            for e in (one, other)
        )
        errors.append(np.square(a.astype(np.float32) - b).mean())
    error = float(np.mean(errors))
    return None if error == 0 else 10 * np.log10(255**2 / error)


def compare(name, manifest, folder, rounds):
    """A row for each codec and number of frames."""
    original = open_source(f'videos:{manifest}', text='')
    files = {original[i].video for i in range(len(original))}
    size = sum(Path(file).stat().st_size for file in files)
    for codec in ('raw', 'jpeg'):
        start = time.perf_counter()
        config = f'{name}_{codec}'
        path = build.build(
            folder, [config], manifest=manifest, pixels=PIXELS, fps=str(FPS), codec=codec, workers=1
        )
        seconds = time.perf_counter() - start
        stored = open_source(f'clips/{config}:train', data_dir=folder, text='')
        room = sum(f.stat().st_size for f in path.glob('*array_record*'))
        loss = decibels(original, stored, 64)
        loss = 'none' if loss is None else f'{loss:.1f} dB'
        for count in COUNTS:
            times = [(read(original, count), read(stored, count)) for _ in range(rounds)]
            one, other = (np.array([pair[i].sum() for pair in times]) for i in (0, 1))
            ratios = one / other
            each = np.median([a / b for a, b in times], axis=0)
            yield table(
                f'{name} ({len(original)})', codec, count, _spread(one), _spread(other),
                f'{statistics.median(ratios):.1f} x ({ratios.min():.1f} to {ratios.max():.1f}); '
                f'least of one video {each.min():.1f} x', loss,
                f'{size / 2**20:.1f} -> {room / 2**20:.1f} MiB', f'{seconds:.1f} s',
            )  # fmt: skip


def _spread(values) -> str:
    return f'{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})'


def sent(frames_, pixels, rate, batch):
    """Bytes of a step's patches and places, and of its full frames."""
    view = pipeline.View(
        frames=frames_, pixels=pixels, patch=16, tubelet=2, sampler='mid', fps=1.0,
        mask_kind='tube', mask_rate=rate, text='any', text_length=8,
    )  # fmt: skip
    where = patches.choose('tube', view.grid, rate, np.random.default_rng(0))
    kept = patches.patchify(np.zeros((frames_, pixels, pixels, 3), np.uint8), where, 2, 16)
    return batch * (kept.nbytes + where.nbytes), batch * frames_ * pixels * pixels * 3


def lines(args):
    """The table of reading, and what a step sends."""
    yield f'{PIXELS} pixels, {FPS} frames a second, one thread'
    yield header(
        'videos', 'as', 'frames', 'originals, ms', 'shards, ms', 'ratio', 'loss', 'room', 'building'
    )
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / 'minute.mp4'
        decoding.make_clip(clip, 250, decoding.drawn())
        manifest = Path(folder) / 'minute.jsonl'
        manifest.write_text(json.dumps({'video': clip.name}))
        yield from compare('minute', manifest, folder, args.rounds)
        if args.manifest:
            yield from compare('real', args.manifest, folder, args.rounds)
    yield header('64 frames, 128 pixels, batch 32, masked', 'bytes sent', 'of the full frames')
    for rate in (0.0, 0.75, 0.9):
        kept, full = sent(64, 128, rate, 32)
        yield table(f'{rate:.0%}', f'{kept:,}', f'{full:,}')


def main():
    """Measures, prints, and records where --record asks for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--manifest', help='real videos, besides the clip that is made here')
    parser.add_argument('--rounds', type=int, default=5)
    record_argument(parser)
    args = parser.parse_args()
    record(lines(args), args.record, 'av', 'array_record', 'tensorflow-datasets', 'numpy')


if __name__ == '__main__':
    main()
