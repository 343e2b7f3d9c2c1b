"""What a variant takes, from shapes: parameters, tokens, FLOPs, and memory of compiled steps, those
of the contrastive stage and those of video-to-text on its encoder.

    python -m long_vivit.sweeps.costs REQUEST.json      (long_vivit.sweep starts it)

REQUEST is {run, base, memory, rates, cache, out}: the resolved variant and base, the section
`memory` of configs/sweep.py, more masking rates, the folder that keeps each compiled peak, the file
to write. Nothing is allocated: steps are compiled for one device, as `plan` does, and with
JAX_PLATFORMS=cpu by XLA for CPU, which holds bfloat16 work as float32: more than a GPU would.
"""

import json
import sys
import time
from pathlib import Path

import jax

from long_vivit import config, estimate, sharding, start, trained
from long_vivit.sweeps import captioning, shapes
from long_vivit.sweeps.grid import digest
from long_vivit.writers import write_json_atomic


def main(path):
    """Answers the request in the file `path`."""
    request = json.loads(Path(path).read_text())
    run, base = (config.frozen(request[key]) for key in ('run', 'base'))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    found = own(run, start.tokenizer(run).vocab_size, mesh)
    found['memory'] = []
    for shape, other in shapes.wanted(run, base, request['memory'], request['rates']):
        begun = time.monotonic()
        taken = at_size(other, request['memory']['language'], Path(request['cache']), mesh)
        found['memory'].append(shape | taken)
        keys = {'': 'peak_bytes', 'video-to-text ': 'video_to_text_bytes'}
        peaks = ', '.join(f'{k}{taken[x] / 1e9:.2f} GB' for k, x in keys.items() if taken[x])
        print(f'{shape}: {peaks} ({time.monotonic() - begun:.0f} s)', flush=True)
    write_json_atomic(request['out'], {'request': digest(request), **found})


def own(run, vocab, mesh):
    """The last stage of the variant as it is taught."""
    stage = run.stages[-1]
    program, state, batch = estimate.compiled(run, stage, vocab, mesh)
    return {
        'tokens_per_clip': batch['where'].shape[1],
        'flops_per_clip': estimate.mean_flops(run, stage) // stage.batch,
        **counts(state),
        'peak_bytes': estimate.peak(program.memory_analysis()),
    }


def at_size(run, language, folder, mesh):
    """Tokens, parameters and compiled peaks of the stage of a Run at a ViT size.

    language: see `captioning.lowered`; its peak is None for tubes and token budgets.
    """
    program, state, batch = estimate.lowered(run, run.stages[0], shapes.VOCAB, mesh)
    found = {'peak_bytes': peak(program, folder)}
    reading = captioning.lowered(run, language)
    found['video_to_text_bytes'] = None if reading is None else peak(reading, folder)
    return {'tokens': batch['where'].shape[1], **counts(state), **found}


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
