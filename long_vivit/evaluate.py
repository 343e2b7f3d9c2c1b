"""Retrieval scores of a taught model, as a table and as JSON, with the protocol beside them.

    python -m long_vivit.evaluate --checkpoint runs/long --data videos:PATH/manifest.jsonl
    python -m long_vivit.evaluate --checkpoint runs/long --data shape_stories/long:test --json
    python -m long_vivit.evaluate --checkpoint clip:PATH --frames 16 --data videos:...    # untaught

Exit status: 0, or 2 where an argument, a manifest or a video is at fault.
"""

import argparse
import json
import sys
from dataclasses import replace

import jax

from long_vivit import command_line, hardware, hosts, inference, recipe, retrieval
from long_vivit.inputs.pipeline import FRAME_ORDERS
from long_vivit.inputs.samplers import SAMPLERS
from long_vivit.inputs.sources import open_source
from long_vivit.perf import keep_freed_memory
from long_vivit.tables import print_results
from long_vivit.writers import plain, write_json_atomic

LOOK = ('frames', 'tubelet', 'pixels', 'text_length')


def parse(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m long_vivit.evaluate', description=__doc__.split('\n')[0]
    )
    add = parser.add_argument
    add(
        '--checkpoint',
        required=True,
        metavar='WORKDIR',
        help='the work directory of a run, or FAMILY:PATH, weights of others as they are',
    )
    for name in LOOK:  # weights of others have no stage that says how they look
        add(f'--{name}', type=int, default=0, help='of FAMILY:PATH (default: what it is made for)')
    add('--stage', default='', help='a finished stage of it (default: the last one)')
    add('--data', default='', metavar='SPEC', help="data spec (default: the stage's own)")
    add('--images', action='store_true', help='score the data as still images, by the image stem')
    add(
        '--weights', default='', choices=('mean', 'raw', 'both'),
        help='the running mean (optim.ema), without it, or one after the other (default: the mean '
        'where there is one)',
    )  # fmt: skip
    add('--text', choices=('caption', 'long_caption', 'any'), help="default: the stage's own")
    add('--sampler', choices=tuple(SAMPLERS), help="default: the stage's eval_sampler")
    add('--batch', type=int, default=0, help="videos at once (default: the stage's eval_batch)")
    add('--ordered_only', action='store_true', help='not with shuffled frames, not with one frame')
    add('--allow_broken', action='store_true', help='score the videos that can be read')
    add('--mesh', default='data=-1', metavar='AXES', help='how the devices are used: data=-1,seq=2')
    add('--multihost', action='store_true', help='one of several processes of one evaluation')
    add('--json', action='store_true', help='print JSON and nothing else')
    add('--out', default='', metavar='FILE', help='also write the JSON to this file')
    return parser.parse_args(argv)


def main(argv=None):
    """Scores what the command line names, alone or as one of several processes -> exit status."""
    args = parse(argv)
    if args.multihost:
        hosts.start()
    with hosts.one_voice():
        return evaluate(args)


def evaluate(args):
    """Scores what the arguments name -> exit status."""
    if args.batch < 0:
        raise ValueError(f'--batch={args.batch}: it must be 1 or more')
    keep_freed_memory()
    each = ('mean', 'raw') if args.weights == 'both' else (args.weights,)
    stages = {}
    for weights in each:
        name, scored = score(args, weights)
        stages[f'{name} {weights}' if len(each) > 1 else name] = scored
    results = plain({'stages': stages})
    if args.json:
        print(json.dumps(results, indent=2))
    else:
        print_results(results)
    if args.out and hosts.first():
        try:
            write_json_atomic(args.out, results)
        except OSError as error:
            raise ValueError(f'--out={args.out}: cannot be written ({error.strerror})') from error
    return 0


def score(args, weights):
    """(name of the stage, scores and protocol) of one set of weights of the checkpoint."""
    look = {name: getattr(args, name) for name in LOOK if getattr(args, name)}
    mesh = hardware.make_mesh('--mesh', args.mesh)
    with jax.set_mesh(mesh):  # which attention can run depends on it
        loaded = inference.load(args.checkpoint, args.stage, weights, **look)
    run, stage = loaded.run, loaded.stage
    view, spec = loaded.view, args.data or stage.eval
    if args.images:
        view, spec = recipe.image_view(run, stage), args.data or vars(run.eval).get('images', '')
    if not spec:
        what = 'still images' if args.images else 'eval data'
        raise ValueError(f'--data: the stage {stage.name!r} has no {what} of its own; name some')
    view = replace(view, text=args.text or view.text, sampler=args.sampler or view.sampler)
    source = open_source(spec, data_dir=run.data.dir, text=view.text)
    orders = FRAME_ORDERS if view.frames > 1 and not args.ordered_only else ('ordered',)
    scored = retrieval.score(
        loaded.model, source, view, loaded.tokenizer, batch=args.batch or stage.eval_batch,
        threads=recipe.num_threads(run), frame_orders=orders,
        allow_broken=args.allow_broken or run.eval.allow_broken,
        mesh=hardware.fitting_to_score(mesh, run, view),
    )  # fmt: skip
    scored['protocol'] |= {'checkpoint': args.checkpoint, 'stage': stage.name}
    if weights:
        scored['protocol']['weights'] = {'mean': 'running mean', 'raw': 'raw'}[weights]
    return stage.name, scored


if __name__ == '__main__':
    with command_line.user_errors():
        sys.exit(main())
