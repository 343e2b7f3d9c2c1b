"""What a stage will take before anything is allocated: memory from the compiled step, FLOPs, speed.

The step is the trainer's own (`recipe.training`), lowered from shapes and compiled for devices of
XLA's CPU backend that stand in for the real ones.
"""

import bisect
import itertools
import json
import math
from dataclasses import asdict, dataclass, replace

import jax

from long_vivit import compiling, config, hardware, layout, masking, recipe, sharding, trained
from long_vivit.axes import FSDP
from long_vivit.inputs.looks import patches_of
from long_vivit.models.slices import KINDS
from long_vivit.names import below, flatten

# XLA's passes before code is generated decide about memory; LLVM's level does not (a test shows).
OPTIONS = compiling.HASTY


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. The peak counts what is used again for the new state once."""

    parameters: int
    optimiser: int  # the moments, and the running mean of the parameters
    batch: int
    activations: int  # all that lives within the step: activations, gradients, scratch
    peak: int
    gradients: int = 0  # of the activations: one for each number that is trained, none for others


@dataclass(frozen=True)
class Estimate:
    """A stage on `devices` devices of a chip."""

    stage: str
    num_parameters: int
    num_trained: int  # of them
    memory: Memory
    flops_per_step: int  # all devices; the mean over the stage's steps, see `mean_flops`
    step_seconds: float  # at the utilisation that was stated
    clips_per_s: float
    fits: bool

    def to_dict(self):
        return asdict(self)


def compiled(run, stage, vocab, mesh):
    """The compiled training step of a stage, and the State and batch it takes as shapes."""
    program, state, batch = lowered(run, stage, vocab, mesh)
    return program.compile(compiler_options=OPTIONS), state, batch


def lowered(run, stage, vocab, mesh):
    """`compiled` before it is compiled."""
    with jax.set_mesh(mesh):
        init, step = recipe.training(run, stage, vocab)
        shapes = jax.eval_shape(init)
    lies, _ = layout.shardings(shapes, mesh)
    state = layout.like(shapes, lies)
    batch = layout.batch(recipe.batch_like(run, stage), mesh)
    step = jax.jit(step, donate_argnums=0, out_shardings=(lies, sharding.everywhere(mesh)))
    with jax.set_mesh(mesh):
        return step.lower(state, batch), state, batch


def own_bytes(tree):
    """Bytes of the leaves (ShapeDtypeStruct with shardings) on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def memory(run, stage, vocab, mesh):
    """The `Memory` of a training step of the stage."""
    return memory_of(*compiled(run, stage, vocab, mesh))


def memory_of(program, state, batch):
    """The `Memory` of what `compiled` gives."""
    found = program.memory_analysis()
    return Memory(
        parameters=own_bytes(state.model),
        optimiser=own_bytes((state.opt, state.ema)),
        batch=own_bytes(batch),
        activations=found.temp_size_in_bytes,
        peak=peak(found),
        gradients=own_bytes(below(flatten(state.opt), 'adam/nu')),  # a second moment for each
    )


def peak(found):
    """Bytes of a compiled program on one device, by its `memory_analysis`."""
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes + found.temp_size_in_bytes + results


def estimate(run, stage, vocab, mesh, chip, mfu):
    """What `stage` takes on the devices of `mesh`, were they `chip`s used to the share `mfu`.

    Memory is that of the lowest masking rate, which takes the most.
    """
    flops = mean_flops(run, stage)
    seconds = flops / (mfu * chip.peak_flops * mesh.size)
    program, state, batch = compiled(run, stage, vocab, mesh)
    taken = memory_of(program, state, batch)
    num_trained, num_parameters = trained.counts(state)
    return Estimate(
        stage=stage.name,
        num_parameters=num_parameters,
        num_trained=num_trained,
        memory=taken,
        flops_per_step=flops,
        step_seconds=seconds,
        clips_per_s=stage.batch / seconds,
        fits=taken.peak <= chip.memory_bytes,
    )


def mean_flops(run, stage):
    """FLOPs of a training step of the stage, all devices.

    The mean over its masking rates, and over its steps on videos and on images.
    """
    found = 0.0
    for rate, share in masking.shares(stage).items():
        sights = [(1 - stage.image_ratio, patches_of(recipe.batch_like(run, stage, rate)))]
        if stage.image_ratio:
            still = replace(recipe.view(run, stage, image=True), mask_rate=rate)
            sights.append((stage.image_ratio, still.shapes[0]))
        for part, (k, values) in sights:
            shape = {'batch': stage.batch, 'num_patches': k, 'patch_values': values}
            found += share * part * recipe.step_flops(run, stage, **shape)
    return round(found)


def changes(run, stage, mesh):
    """Single changes that take less memory, the least invasive first: [{path: value}].

    First what leaves the result as it is, then what alters its rounding, then what alters what is
    learnt.
    """
    found, path = [], f'stages.{stage.name}.'
    if run.model.video.remat != 'full':
        if run.model.video.remat != 'attention':
            found.append({'model.video.remat': 'attention'})
        found.append({'model.video.remat': 'full'})
    if 1 < mesh.size != mesh.shape[FSDP]:
        found.append({'mesh': f'{FSDP}={mesh.size}'})
    found += [{f'{path}micro_batch': b} for b in turns(stage.micro_batch or stage.batch, mesh)]
    if run.optim.moment_dtype != 'bfloat16':
        found.append({'optim.moment_dtype': 'bfloat16'})
    if run.model.dtype != 'bfloat16':
        found.append({'model.dtype': 'bfloat16'})
    if not stage.micro_batch:
        found += [{f'{path}batch': b} for b in smaller(stage.batch, mesh)]
    if len(masking.phases(stage)) > 1:  # one rate, that of the beginning
        found.append({f'{path}mask_schedule': '', f'{path}unmasked_tail': 0.0})
    if stage.token_budget:
        found.append({f'{path}token_budget': stage.token_budget // 2})
    elif stage.frames > 1 and stage.mask_rate < 0.75:
        kind = {} if _takes_mask(run, stage) else {f'{path}mask_kind': 'tube'}
        found.append({f'{path}mask_rate': 0.75} | kind)
    last = 4
    if run.model.video.depth > last and not 0 < stage.last_layers <= last:
        found.append({f'{path}last_layers': last})
    return found


def _takes_mask(run, stage):
    """Whether the backbone can take the stage's kind of mask."""
    return stage.mask_kind in KINDS[vars(run.model.video).get('backbone', 'joint')]


def turns(batch, mesh):
    """Halves of a (micro-)batch, down to a pair for each part that the devices make of it."""
    found, parts = halves(batch, mesh), sharding.batch_parts(mesh)
    return found + [parts] * ([batch, *found][-1] > parts)


def smaller(batch, mesh):
    """A half and a quarter of a batch, where they are whole and split over the devices."""
    return [half for half in halves(batch, mesh)[:2] if half >= 2]


def halves(batch, mesh):
    """A half of a batch, its half and so on, as long as they are whole and split over devices."""
    parts, found = sharding.batch_parts(mesh), []
    while batch % (2 * parts) == 0:
        batch //= 2
        found.append(batch)
    return found


def changed(run, change):
    """The Run with the fields at these paths set; stages go by their names."""
    fields = json.loads(config.to_json(run))
    for path, value in change.items():
        section, *inner = path.split('.')
        here = fields
        if section == 'stages':
            name, *inner = inner
            here = next(one for one in fields['stages'] if one['name'] == name)
        else:
            inner = [section, *inner]
        for key in inner[:-1]:
            here = here[key]
        assert inner[-1] in here, path
        here[inner[-1]] = value
    return config.frozen(fields)


def remedies(run, stage, vocab, mesh, chip, say=lambda text: None):
    """Those of `changes` with which the stage fits: [{'change', 'peak'}]; each tried is compiled.

    Of ever smaller batches that is the largest with which it fits.
    """
    place, peaks = [one.name for one in run.stages].index(stage.name), {}

    def fits(change):
        words = in_words(change)
        say(f'{stage.name}: trying {words}')
        other = changed(run, change)
        try:
            changed_mesh = hardware.mesh_of(other, list(mesh.devices.flat))
        except ValueError as error:  # no way out: fsdp over more devices than there are pairs
            say(f'  {error}')
            return False
        peaks[words] = memory(other, other.stages[place], vocab, changed_mesh).peak
        return peaks[words] <= chip.memory_bytes

    found = []
    for _, ladder in itertools.groupby(changes(run, stage, mesh), key=_ladder):
        ladder = list(ladder)
        first = bisect.bisect_left(ladder, True, key=fits)  # of twelve halves four are compiled
        found += [in_words(change) for change in ladder[first : first + 1]]
    return [{'change': words, 'peak': peaks[words]} for words in found]


def in_words(change):
    """A change as flags of the command line."""
    return ' '.join(f'--config.{path}={value}' for path, value in change.items())


def _ladder(change):
    """Equal for changes of which each takes less memory than the one before: smaller batches."""
    path = next(iter(change))
    return path if path.endswith('batch') else in_words(change)
