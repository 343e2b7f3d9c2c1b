"""What a variant takes, from shapes: parameters, tokens, FLOPs, and memory of compiled steps.

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
from long_vivit.sweeps import shapes
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
        peak = at_size(other, Path(request['cache']), mesh)
        found['memory'].append(shape | peak)
        print(f'{shape}: {peak["peak_bytes"] / 1e9:.2f} GB ({peak["seconds"]:.0f} s)', flush=True)
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


def at_size(run, folder, mesh):
    """The stage of a Run at a ViT size; its peak from `folder` where the same step was compiled.

    The same is what lowers to the same program: seeds, data and many other fields do not matter.
    """
    stage, begun = run.stages[0], time.monotonic()
    program, state, batch = estimate.lowered(run, stage, shapes.VOCAB, mesh)
    file = folder / f'{digest(f"{jax.__version__} {program.as_text()}")}.json'
    if not file.exists():
        found = program.compile(compiler_options=estimate.OPTIONS).memory_analysis()
        seconds = round(time.monotonic() - begun, 1)
        write_json_atomic(file, {'peak_bytes': estimate.peak(found), 'seconds': seconds})
    return {'tokens': batch['where'].shape[1], **counts(state), **json.loads(file.read_text())}


def counts(state):
    """Parameters in all and trained, as a row names them."""
    num_trained, num_parameters = trained.counts(state)
    return {'num_parameters': num_parameters, 'num_trained': num_trained}


if __name__ == '__main__':
    main(sys.argv[1])
