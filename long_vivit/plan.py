"""What a run will take, before it starts: memory, FLOPs, speed, and what would make it fit.

    python -m long_vivit.plan --config configs/long.py:large --devices 8 --chip h200
    python -m long_vivit.plan --config configs/long.py:base --devices 4 --chip v5e --json

Nothing is allocated and no data is read: the training step is compiled from shapes, for devices of
the CPU that stand in for the real ones. So the peak is that of XLA's CPU compiler. It computes
bfloat16 in float32 and holds more between operations than a GPU or TPU would; what a GPU library
takes for itself, and fragments, come on top there. Exit status: 0, or 2 where an argument or the
configuration is at fault.
"""

import json
import os
import sys
from pathlib import Path

from absl import flags

from long_vivit import chips, command_line
from long_vivit.progress import compact, duration

CLIP_VOCAB = 49_408

DEVICES = flags.DEFINE_integer('devices', 1, 'devices, over all hosts', lower_bound=1)
CHIP = flags.DEFINE_string('chip', 'h100', f'what they are: {", ".join(chips.CHIPS)}')
MFU = flags.DEFINE_float('mfu', 0.4, 'utilisation to reckon speed with, 0 < x <= 1')
JSON = flags.DEFINE_bool('json', False, 'print JSON and nothing else')


def main(run):
    """Prints the plan of a resolved configuration -> exit status."""
    chip = chips.named(CHIP.value)
    if not 0 < MFU.value <= 1:
        raise ValueError(f'--mfu={MFU.value}: it must be more than 0 and at most 1')
    stand_in(DEVICES.value)
    plan = make(run, chip)
    print(json.dumps(plan, indent=2) if JSON.value else text(plan))
    return 0


def stand_in(devices):
    """Lets JAX, which is not imported yet, see so many devices of the CPU."""
    assert 'jax' not in sys.modules
    flag = f'--xla_force_host_platform_device_count={devices}'
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flag}'.strip()
    os.environ['JAX_PLATFORMS'] = 'cpu'


def make(run, chip):
    """The plan as plain values: what is printed as JSON."""
    from long_vivit import estimate, hardware

    instead = counted_as(run)
    run = estimate.changed(run, instead)
    mesh, (vocab, whose), stages = hardware.mesh_of(run), vocabulary(run), []
    for stage in run.stages:
        note(f'{stage.name}: compiling')
        found = estimate.estimate(run, stage, vocab, mesh, chip, MFU.value)
        fixes = [] if found.fits else estimate.remedies(run, stage, vocab, mesh, chip, note)
        stages.append(found.to_dict() | {'would_fit_with': fixes})
    return {
        'chip': CHIP.value,
        'chip_memory': int(chip.memory_bytes),
        'devices': DEVICES.value,
        'mesh': {axis: size for axis, size in mesh.shape.items() if size > 1},
        'mfu': MFU.value,
        'counted_as': instead,
        'vocabulary': vocab,
        'vocabulary_of': whose,
        'compiler': 'XLA for CPU',
        'stages': stages,
    }


def counted_as(run):
    """{path: value} of fields that the devices that stand in cannot do as they are set."""
    found = {}
    if run.model.video.remat == 'offload':  # no memory apart from the host's
        found['model.video.remat'] = 'full'
    if run.model.attention in ('cudnn', 'splash'):
        found['model.attention'] = 'blockwise'
    return found


def vocabulary(run):
    """(number of token ids, whose it is): the run's tokenizer, or CLIP's where there is none."""
    from long_vivit import weights
    from long_vivit.inputs.text import Tokenizer

    if weights.split(run.init) and (vocab := weights.describe(run.init).vocab):
        return vocab, run.init
    file = Path(run.data.tokenizer or Path(run.data.dir) / 'shape_stories' / 'tokenizer.json')
    if file.exists():
        return Tokenizer.load(file).vocab_size, str(file)
    return CLIP_VOCAB, f'CLIP, since {file} is not there'


def note(line):
    """What is going on, beside the result."""
    print(line, file=sys.stderr, flush=True)


def text(plan):
    """The plan as a table and sentences."""
    import io

    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, width=110, color_system=None)
    console.print(table(plan))
    return '\n'.join([stream.getvalue().rstrip(), '', *sentences(plan)])


def table(plan):
    """A row a stage; memory is of one device."""
    from rich.table import Table

    headings = ['stage', 'weights', 'trained', 'parameters', 'optimiser', 'gradients', 'batch']
    headings += ['activations', 'peak']
    headings += ['TFLOP/step', 'step', 'clips/s', 'fits']
    found = Table(*headings, box=None, pad_edge=False)
    for column in found.columns[1:]:
        column.justify = 'right'
    for stage in plan['stages']:
        sizes = [gigabytes(stage['memory'][key]) for key in (
            'parameters', 'optimiser', 'gradients', 'batch', 'activations', 'peak')]  # fmt: skip
        seconds = stage['step_seconds']
        found.add_row(
            stage['stage'], compact(stage['num_parameters']), compact(stage['num_trained']), *sizes,
            f'{stage["flops_per_step"] / 1e12:,.1f}',
            f'{seconds:.2f} s' if seconds < 60 else duration(seconds),
            compact(stage['clips_per_s']), 'yes' if stage['fits'] else 'NO',
        )  # fmt: skip
    return found


def sentences(plan):
    """What the table does not say."""
    used = ' x '.join(f'{axis}={size}' for axis, size in plan['mesh'].items()) or 'alone'
    yield (
        f'Memory of one of {plan["devices"]} x {plan["chip"]} ({gigabytes(plan["chip_memory"])}), '
        f'{used}; '
        f'speed at {plan["mfu"]:.0%} of its peak, recomputation and data not counted.'
    )
    yield f'Vocabulary: {plan["vocabulary"]} ({plan["vocabulary_of"]}).'
    yield (
        "The peak is XLA's for the CPU, which holds bfloat16 work as float32: more than a GPU or "
        'TPU would, but theirs has kernels and workspace of its own. Leave a tenth free.'
    )
    for path, value in plan['counted_as'].items():
        yield f'{path} is counted as {value!r}, since a CPU stands in for the device.'
    for stage in plan['stages']:
        if not stage['fits']:
            ways = stage['would_fit_with']
            head = f'{stage["stage"]} does not fit. '
            yield head + ('It would with one of:' if ways else 'No single change tried suffices.')
            yield from (f'  {way["change"]}  ({gigabytes(way["peak"])})' for way in ways)
    if any(stage['memory']['peak'] > 0.75 * plan['chip_memory'] for stage in plan['stages']):
        yield (
            'On GPUs JAX takes three quarters of the memory at the start: set '
            'XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 for more.'
        )


def gigabytes(num_bytes):
    """Bytes in units of 10^9, as data sheets count."""
    if num_bytes < 1e8:
        return f'{num_bytes / 1e6:.1f} MB'
    return f'{num_bytes / 1e9:.1f} GB'


def without_data(cfg):
    """A plan needs no data: a stage that names none is given a name."""
    if not cfg.data.train:
        for name in cfg.stages:
            cfg.stages[name].train = cfg.stages[name].train or 'videos:not_named.jsonl'


if __name__ == '__main__':
    command_line.main(main, default='configs/long.py', before=without_data)
