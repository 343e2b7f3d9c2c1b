"""What each way to long text is worth: narratives and summaries of the built-in long stories.

    python scripts/bench/long_text.py                     # 2 kinds of films x 4 ways x 3 seeds
    python scripts/bench/long_text.py --films episodes --ways kps --seeds 1 --steps 20

All ways go on from the same weights, for the same steps on the same long films and texts. The start
has a text tower of 77 positions, taught on images, on short films, and on long films with their
summaries and as much of their narratives as 77 tokens hold (WORKDIR/start, taught first and once;
its own scores are the first row):

    cut           texts cut at 77 tokens: what a CLIP text tower does
    interpolate   the table read at 248 even places
    kps           Long-CLIP's stretching: 20 rows stay, as they are and for good
    pcm           the same, and the summary against the main components of the videos
    both          (not by default) the same, but the summary against the videos as they are

Two kinds of films, taught and scored apart: `long`, which are known by how they begin, and
`episodes`, which all begin alike (`python -m long_vivit.build_data shape_stories --config
episodes`): 77 tokens say nothing of what tells them apart.

Scored are, over the test films: the narrative (long_caption, at most 248 tokens) and the summary
(caption), recall at 1, the mean of both ways. Behind the start summaries are taught in `pcm` and
`both` only. Each cell is a work directory WORKDIR/FILMS_WAY_SEED; what is finished is not taught
again, and one that was stopped goes on. The rows are written to WORKDIR/rows.json as well.
"""

import argparse
import itertools
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from configs import long
from long_vivit import config, inference, recipe, retrieval, train
from long_vivit.inputs.pipeline import Clips
from long_vivit.inputs.sources import open_source
from long_vivit.metrics import both_ways
from long_vivit.perf import keep_freed_memory
from long_vivit.writers import write_json_atomic
from scripts.bench.rows import header, record, record_argument, table

SHORT, LONG = 77, 248
FILMS = ('long', 'episodes')
DEFAULT = ('cut', 'interpolate', 'kps', 'pcm')
TEXTS = {'narrative': 'long_caption', 'summary': 'caption'}
WAYS = {  # way -> what differs: fields by path
    'cut': {'stages.long.text_length': SHORT},
    'interpolate': {'model.text.stretch': 'interpolate'},
    'kps': {'model.text.keep': 20},
}
SUMMARIES = {  # a second loss, of them
    'loss.short_weight': 1.0, 'stages.long.short_text': 'caption',
    'stages.long.short_length': SHORT,
}  # fmt: skip
WAYS['both'] = WAYS['kps'] | SUMMARIES
WAYS['pcm'] = WAYS['both'] | {'loss.components': 8}


def fields_of(workdir, seed):
    """The small recipe with a text tower whose table grows from stage to stage."""
    fields = long.get_config()
    fields.workdir, fields.seed = str(workdir), seed
    fields.model.text.length = 0
    fields.eval.ablations = False
    fields.stages.short.text_length = SHORT  # the image stage has 16; order is learnt afterwards
    return fields


def start(args):
    """The fields of the common start: 77 positions, images, short films, long ones."""
    fields = fields_of(args.workdir / 'start', 0)
    fields.update_from_flattened_dict(SUMMARIES)
    fields.stages.long.update(text_length=SHORT, lr=args.lr, batch=args.batch, eval='')
    for stage, steps in zip(('image', 'short', 'long'), args.start_steps, strict=True):
        fields.stages[stage].steps = steps
    return fields


def cell(films, way, seed, begun, args):
    """The fields of one way and seed on the given films, from the work directory `begun`."""
    fields = fields_of(args.workdir / f'{films}_{way}_{seed}', seed)
    fields.run, fields.init = ('long',), str(begun)
    fields.stages.long.update(
        train=f'shape_stories/{films}:train', text_length=LONG,
        steps=args.steps, lr=args.lr, batch=args.batch, eval='',
    )  # fmt: skip
    fields.update_from_flattened_dict(WAYS[way])
    return fields


def taught(fields, films):
    """{text: recall at 1} of a configuration, taught and scored where that was not done before."""
    run = config.resolve(fields)
    if train.train(run):
        raise SystemExit(f'{run.workdir}: stopped; the same command goes on')
    file = Path(fields.workdir) / f'{films}.json'
    if not file.is_file():
        write_json_atomic(file, scores(fields.workdir, films))
    return json.loads(file.read_text())


def scores(workdir, films):
    """{text: mean recall at 1 of both ways} of the model in a work directory, on the test films."""
    loaded = inference.load(workdir)
    source = open_source(f'shape_stories/{films}:test', data_dir=loaded.run.data.dir)
    clips = Clips(source, loaded.view, loaded.stage.eval_batch)
    threads = recipe.num_threads(loaded.run)
    (z_video,), broken = retrieval.embed_videos(loaded.model, clips, threads=threads)
    if broken:
        raise ValueError(retrieval.broken_message(source, broken))
    found = {}
    for name, kind in TEXTS.items():
        texts, owner = retrieval.texts_of(source, kind)
        length = loaded.view.text_length
        z_text, num_cut = retrieval.embed_texts(
            loaded.model, loaded.tokenizer, texts, length=length
        )
        ways = both_ways(z_video, z_text, owner).values()
        found[name] = sum(way.recall_at_1 for way in ways) / 2
        found[f'{name}_cut'] = num_cut
    return found


def show(films, rows, args):
    """A row for each way: mean and spread over the seeds, in percent."""
    title = f'{films}, {args.steps} steps of {args.batch}, seeds {args.seeds}'
    yield f'{title}: R@1 in percent, mean of both ways'
    yield header('way', *TEXTS, 'narratives cut')
    for way, cells in rows.items():
        parts = []
        for name in TEXTS:
            values = [100 * one[name] for one in cells]
            spread = f' +- {statistics.stdev(values):.1f}' if len(values) > 1 else ''
            parts.append(f'{statistics.mean(values):.1f}{spread}')
        yield table(way, *parts, max(one['narrative_cut'] for one in cells))


def lines(args):
    """Teaches what is not finished, then a table for each kind of films."""
    begun = start(args)
    for films in args.films:  # what is not built is said now, not when the start is taught
        open_source(f'shape_stories/{films}:test', data_dir=begun.data.dir)
    asked = {name: value for name, value in vars(args).items() if name != 'record'}
    rows = {films: {'the start': [taught(begun, films)]} for films in args.films}
    for films, seed, way in itertools.product(args.films, range(args.seeds), args.ways):
        found = taught(cell(films, way, seed, begun.workdir, args), films)
        rows[films].setdefault(way, []).append(found)
        write_json_atomic(args.workdir / 'rows.json', asked | {'rows': rows})
    for films in args.films:
        yield from show(films, rows[films], args)


def main():
    """Measures, prints, and records where --record asks for it."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--workdir', type=Path, default=Path('runs/long_text'))
    parser.add_argument('--films', nargs='+', choices=FILMS, default=FILMS)
    parser.add_argument('--ways', nargs='+', choices=WAYS, default=DEFAULT)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--steps', type=int, default=200)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--lr', type=float, default=1e-3)
    parser.add_argument('--start_steps', type=int, nargs=3, default=(120, 600, 300))
    record_argument(parser)
    args = parser.parse_args()
    keep_freed_memory()
    record(lines(args), args.record, 'jax')


if __name__ == '__main__':
    main()
