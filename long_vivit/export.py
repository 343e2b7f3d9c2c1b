"""A taught model for other programs: safetensors with a config.json.

    python -m long_vivit.export --checkpoint runs/mine --format clip --out mine_clip
    python -m long_vivit.export --checkpoint runs/mine --format safetensors --out mine_st

clip          the image tower and the text tower as a CLIPModel of Hugging Face Transformers, with
              the same embeddings, at any text length; what is not CLIP's is named and refused
safetensors   both towers whole, under our names; scripts/torch_twin.py runs them with PyTorch where
              the backbone is joint attention, with or without adapters; tubes are refused here

LoRA is merged into the weights in both.

Exit status: 0, or 2 where an argument or a checkpoint is at fault.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from long_vivit import command_line, inference
from long_vivit.names import flatten
from long_vivit.weights import clip_out, flat

FORMATS = ('clip', 'safetensors')


def parse(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m long_vivit.export', description=__doc__.split('\n')[0]
    )
    add = parser.add_argument
    add('--checkpoint', required=True, metavar='WORKDIR', help='the work directory of a run')
    add('--stage', default='', help='a finished stage of it (default: the last one)')
    add('--weights', default='', choices=('mean', 'raw'), help='default: as evaluate')
    add('--format', required=True, choices=FORMATS)
    add('--out', required=True, metavar='DIR', help='a folder that does not exist yet')
    return parser.parse_args(argv)


def main(argv=None):
    """Writes what the command line names -> exit status."""
    args = parse(argv)
    out = Path(args.out)
    if out.exists():
        raise ValueError(f'--out: {out} exists; name a folder that does not')
    loaded = inference.load(args.checkpoint, args.stage, args.weights)
    params = {name: np.asarray(leaf) for name, leaf in flatten(loaded.model).items()}
    config = flat.architecture(loaded.model)
    try:
        if args.format == 'clip':
            clip_out.write(out, params, config, loaded.tokenizer, loaded.view.scaling)
        else:
            flat.write(out, params, config | taught(args, loaded), loaded.tokenizer.to_json())
    except OSError as error:
        raise ValueError(f'--out={out}: cannot be written ({error.strerror})') from error
    for line in lines(args, out, config):
        print(line)
    return 0


def taught(args, loaded):
    """What the model was taught to look at, for config.json."""
    view, tokenizer = loaded.view, loaded.tokenizer
    names = ('frames', 'pixels', 'scaling', 'sampler', 'fps', 'text', 'text_length')
    return {
        'input': {name: getattr(view, name) for name in names},
        'tokens': {name: getattr(tokenizer, name) for name in ('start', 'end', 'pad')},
        'source': {'checkpoint': args.checkpoint, 'stage': loaded.stage.name},
    }


def lines(args, out, config):
    """What was written, and what of the model was not, for people."""
    video, text = config['video'], config['text']
    if args.format == 'safetensors':
        backbone = video.get('backbone', 'joint')
        runs = 'runs' if backbone == 'joint' else f'has no backbone {backbone!r} and cannot run'
        yield f'wrote {out}: scripts/torch_twin.py {runs} it with PyTorch'
        return
    if video['grid'][0] > 1:
        yield 'left out: tubelets and times; CLIP has the image tower'
    side = video['grid'][1] * video['patch']
    yield (
        f'wrote {out}: images of {side} pixels, texts of {text["length"]} tokens; '
        f"transformers.CLIPModel.from_pretrained('{out}')"
    )


if __name__ == '__main__':
    with command_line.user_errors():
        sys.exit(main())
