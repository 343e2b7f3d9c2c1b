"""Between the weights a run started from and those it ended with: to learn without forgetting.

    python -m long_vivit.interpolate --start clip:PATH --end runs/mine --alpha 0.5 --out runs/half
    python -m long_vivit.interpolate --start runs/image --end runs/mine --alpha 0,0.25,0.5,0.75,1 \
        --data videos:PATH/val.jsonl --images videos:PATH/images.jsonl

Each weight becomes (1 - alpha) * start + alpha * end (WiSE-FT, arXiv 2109.01903): in between there
is often a model that keeps what the start knew of images and has most of what the end learnt. The
start's weights are first brought into the end's shapes, as a run that starts from them would (text
positions stretched, the patch kernel inflated). With --data or --images each alpha is scored and
the table shows them all. The work directory written is one that `evaluate`, `long_vivit.load` and
`--config.init` read; of several alphas each goes to OUT/ALPHA. Pick alpha on a validation set.

Exit status: 0, or 2 where an argument, a checkpoint or a video is at fault.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from long_vivit import (
    command_line,
    hardware,
    inference,
    recipe,
    retrieval,
    start,
    tuning,
    weights,
)
from long_vivit.checkpoints import Checkpoints, steps
from long_vivit.config import Run
from long_vivit.inputs.sources import open_source
from long_vivit.names import flatten, unflatten
from long_vivit.tables import print_results
from long_vivit.workdir import Workdir, writable
from long_vivit.writers import plain, write_json_atomic


def parse(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m long_vivit.interpolate', description=__doc__.split('\n')[0]
    )
    add = parser.add_argument
    add('--start', required=True, metavar='INIT', help='what the run started from, as its init')
    add('--end', required=True, metavar='WORKDIR', help='the work directory of the run')
    add('--stage', default='', help='a finished stage of it (default: the last one)')
    add('--weights', default='', choices=('mean', 'raw'), help="the end's (default: as evaluate)")
    add('--alpha', default='0.5', metavar='X[,X...]', help='0 = the start, 1 = the end')
    add('--drop', action='append', default=[], metavar='REGEX', help='leave out of the start')
    add('--out', default='', metavar='WORKDIR', help='a folder that does not exist yet')
    add('--data', default='', metavar='SPEC', help="score on it, as the end's stage would")
    add('--images', default='', metavar='SPEC', help='score on it as still images')
    add('--text', choices=('caption', 'long_caption', 'any'), help="default: the stage's own")
    add('--batch', type=int, default=0, help="videos at once (default: the stage's eval_batch)")
    add('--allow_broken', action='store_true', help='score the videos that can be read')
    add('--json', action='store_true', help='print JSON and nothing else')
    return parser.parse_args(argv)


def main(argv=None):
    """Interpolates, scores, writes what the command line names -> exit status."""
    args = parse(argv)
    alphas = read_alphas(args.alpha)
    if not (args.out or args.data or args.images):
        raise ValueError('--out: name a folder to write, or data to score with --data or --images')
    places = {a: Path(args.out, a) if len(alphas) > 1 else Path(args.out) for a in alphas}
    for place in places.values() if args.out else ():
        if place.exists():
            raise ValueError(f'--out: {place} exists; name a folder that does not')
    end = inference.load(args.end, args.stage, args.weights)
    target = flatten(end.model)
    begun = from_start(args, end)
    scored = {}
    for word, alpha in alphas.items():
        mixed = between(begun, target, alpha)
        scored[word] = score(args, end, unflatten(end.model, mixed))
        if args.out:
            write(places[word], args, end, alpha, mixed, scored[word])
    show(args, end, scored)
    if args.out and not args.json:
        for place in places.values():
            print(f"wrote {place}; the model: long_vivit.load('{place}')")
    return 0


def read_alphas(words):
    """'0,0.5' -> {'0': 0.0, '0.5': 0.5}. Raises ValueError: no numbers from 0 to 1, or twice."""
    found = {}
    for word in words.split(','):
        try:
            alpha = float(word)
        except ValueError:
            alpha = -1.0
        if not 0 <= alpha <= 1 or alpha in found.values():
            raise ValueError(
                f'--alpha={words}: {word!r} must be a number from 0 (the start) to 1 (the end), '
                'each once, with commas between them'
            )
        found[word.strip()] = alpha
    return found


def between(begun, end, alpha):
    """{name: float32}, (1 - alpha) * begun + alpha * end; alpha 0 and 1 give the bits of either."""
    one, other = np.float32(1 - alpha), np.float32(alpha)

    def mixed(x, y):
        # What did not change stays: (1 - alpha) * x + alpha * x is not x in float32.
        return np.where(x == y, y, one * x + other * y)

    return {name: mixed(np.asarray(begun[name]), np.asarray(end[name])) for name in end}


def from_start(args, end):
    """The start's parameters in the names and shapes of the end's; says what was adapted.

    Raises ValueError as `weights.read` and `warm_start` do.
    """
    run, stage, vocab, drop = end.run, end.stage, end.tokenizer.vocab_size, tuple(args.drop)
    if weights.split(args.start):
        params, lines = start.of_others(args.start, run, stage, vocab, drop)
    else:
        same_tokenizer(args.start, end)
        params, lines = start.shaped(run, stage, start.init_params(args.start), vocab, drop)
    for line in lines if not args.json else ():
        print(f'start: {line}')
    return params


def same_tokenizer(path, end):
    """Raises ValueError where the start, one of our runs, had other words than the end."""
    folder = Path(path).absolute()
    for place in (folder, *folder.parents[:4]):  # WORKDIR/stages/NAME/checkpoints/STEP
        file = place / 'tokenizer.json'
        if file.is_file() and (place / 'config.json').is_file():
            if file.read_text(encoding='utf-8') != end.tokenizer.to_json():
                raise ValueError(
                    f'--start: {path} was taught with another tokenizer than --end; words would '
                    'be mixed with other words'
                )
            return


def score(args, end, model):
    """{'videos' and 'images', where asked for: scores and protocol}."""
    run, stage, found = end.run, end.stage, {}
    mesh = hardware.make_mesh('--end', 'data=-1')
    video_view = replace(end.view, text=args.text or end.view.text)
    image_view = recipe.image_view(run, stage)
    looks = {'videos': (args.data, video_view), 'images': (args.images, image_view)}
    for what, (spec, view) in looks.items():
        if not spec:
            continue
        found[what] = retrieval.score(
            model, open_source(spec, data_dir=run.data.dir, text=view.text), view, end.tokenizer,
            batch=args.batch or stage.eval_batch, threads=recipe.num_threads(run),
            allow_broken=args.allow_broken or run.eval.allow_broken,
            mesh=hardware.fitting_to_score(mesh, run, view),
        )  # fmt: skip
    return found


def write(place, args, end, alpha, params, scored):
    """A work directory with the stage alone, finished."""
    own = {'workdir': str(place), 'run': (end.stage.name,), 'stages': (end.stage,)}
    has = {'adapter_width': 0, 'lora_rank': 0} | tuning.parts(end.run, end.stage)
    run = Run(**(vars(tuning.sized(end.run, **has)) | own))
    workdir = Workdir(place)
    step = steps(Workdir(args.end).checkpoints(end.stage.name))[-1]
    source = {'start': args.start, 'end': args.end, 'stage': end.stage.name, 'alpha': alpha}
    result = {'scores': {}, 'protocol': {}} | scored.get('videos', {}) | {'interpolated': source}
    if 'images' in scored:
        result['images'] = scored['images']
    with writable(place):
        workdir.open(run, end.tokenizer.to_json())
        try:
            arrays = {f'model/{name}': leaf for name, leaf in params.items()}
            with Checkpoints(workdir.checkpoints(end.stage.name)) as saved:
                saved.save(step, arrays, {'interpolated': source}, block=True)
            workdir.finish(end.stage.name, result)
            write_json_atomic(workdir.results, {'stages': {end.stage.name: result}})
        finally:
            workdir.close()


def show(args, end, scored):
    """One block of rows for each data set, a row for each alpha."""
    blocks = {}
    for what, title in (('videos', end.stage.name), ('images', 'still images')):
        rows = {word: one[what] for word, one in scored.items() if what in one}
        if rows:
            protocol = next(iter(rows.values()))['protocol']
            blocks[title] = {
                'scores': {f'alpha {word}': row['scores']['ordered'] for word, row in rows.items()},
                'protocol': protocol | {'start': args.start, 'end': args.end},
            }
    if args.json:
        print(json.dumps(plain({'stages': blocks}), indent=2))
    elif blocks:
        print_results({'stages': blocks})


if __name__ == '__main__':
    with command_line.user_errors():
        sys.exit(main())
