"""What a variant takes, from shapes: parameters, tokens, FLOPs, and memory of compiled steps, those
of the contrastive stage and those of video-to-text on its encoder.

    python -m long_vivit.sweeps.costs REQUEST.json      (long_vivit.sweep starts it)

REQUEST is {run, base, memory, rates, video_to_text, cache, out}: the resolved variant and base, the
section `memory` of configs/sweep.py, more masking rates, whether to compile video-to-text, the
folder that keeps each compiled peak, the file to write. Nothing is allocated: steps are compiled
for one device, as `plan` does, and with JAX_PLATFORMS=cpu by XLA for CPU, which holds bfloat16 work
as float32: more than a GPU would.
"""

import json
import sys
import time
from pathlib import Path

import jax

from long_vivit import config, estimate, masking, recipe, sharding, start, trained
from long_vivit.inputs.looks import patches_of
from long_vivit.sweeps import captioning, shapes
from long_vivit.sweeps.grid import digest
from long_vivit.writers import write_json_atomic


def main(path):
    """Answers the request in the file `path`."""
    request = json.loads(Path(path).read_text())
    run, base = (config.frozen(request[key]) for key in ('run', 'base'))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    found = own(run, start.tokenizer(run).vocab_size, mesh)
    found['memory'], readings = [], {}
    memory, folder = request['memory'], Path(request['cache'])
    for shape, other in shapes.wanted(run, base, memory, request['rates']):
        begun = time.monotonic()
        taken = at_size(other, folder, mesh)
        if request['video_to_text']:  # the same at all masking rates
            key = tuple(value for name, value in shape.items() if name != 'rate')
            if key not in readings:
                readings[key] = of_reading(other, memory['language'], folder)
            taken['video_to_text_bytes'] = readings[key]
        found['memory'].append(shape | taken)
        took = f'{taken["peak_bytes"] / 1e9:.2f} GB ({time.monotonic() - begun:.0f} s)'
        print(f'{shape}: {took}', flush=True)
    write_json_atomic(request['out'], {'request': digest(request), **found})


def own(run, vocab, mesh):
    """The last stage of the variant as it is taught."""
    stage = run.stages[-1]
    program, state, _ = estimate.compiled(run, stage, vocab, mesh)
    return {
        'tokens_per_clip': mean_tokens(run, stage),
        'flops_per_clip': estimate.mean_flops(run, stage) // stage.batch,
        **counts(state),
        'peak_bytes': estimate.peak(program.memory_analysis()),
    }


def mean_tokens(run, stage):
    """Patches of a video in a training step, the mean over the stage's masking rates, rounded."""
    each = masking.shares(stage).items()
    return round(sum(x * patches_of(recipe.batch_like(run, stage, rate))[0] for rate, x in each))


def at_size(run, folder, mesh):
    """Tokens, parameters and compiled peak of the stage of a Run at a ViT size."""
    program, state, batch = estimate.lowered(run, run.stages[0], shapes.VOCAB, mesh)
    return {
        'tokens': batch['where'].shape[1],
        **counts(state),
        'peak_bytes': peak(program, folder),
    }


def of_reading(run, language, folder):
    """Compiled peak of video-to-text on that stage's encoder; None: see `captioning.lowered`."""
    program = captioning.lowered(run, language)
    return None if program is None else peak(program, folder)


def peak(program, folder):
    """Peak bytes of a lowered program; from `folder` where the same was compiled before.

    The same is what lowers to the same program: seeds, data and many other fields do not matter.
    """
    file = folder / f'{digest(f"{jax.__version__} {program.as_text()}")}.json'
    if not file.exists():
        compiled = program.compile(compiler_options=estimate.OPTIONS)
        write_json_atomic(file, {'peak_bytes': estimate.peak(compiled.memory_analysis())})
    return json.loads(file.read_text())['peak_bytes']


def counts(state):
    """Parameters in all and trained, as a row names them."""
    num_trained, num_parameters = trained.counts(state)
    return {'num_parameters': num_parameters, 'num_trained': num_trained}


if __name__ == '__main__':
    main(sys.argv[1])
