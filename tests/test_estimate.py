"""Plans: the compiled step of a stage, what is donated, and changes that take less memory."""

import json
import os
import subprocess
import sys

import jax
import pytest

from long_vivit import chips, estimate, hardware, sharding, trained
from tests import tiny_run

VOCAB = 40


@pytest.fixture(scope='module')
def mesh():
    return sharding.make_mesh(devices=jax.devices()[:2])


def tiny(**changes):
    return tiny_run.resolved('no_data', 'no_run', model__video__depth=6, **changes)


def test_no_leaf_of_the_state_is_copied(mesh):
    """All of it lies where the old state lay; JAX warns of others, and warnings are errors here."""
    run = tiny(optim__ema=0.5, optim__moment_dtype='bfloat16', stages__long__last_layers=2)
    program, state, batch = estimate.compiled(run, run.stages[2], VOCAB, mesh)
    found = program.memory_analysis()
    assert found.alias_size_in_bytes == estimate.own_bytes(state)
    assert found.argument_size_in_bytes == estimate.own_bytes((state, batch))


def test_a_plan_of_a_stage(mesh):
    run = tiny(optim__moment_dtype='bfloat16')
    stage = run.stages[1]
    found = estimate.estimate(run, stage, VOCAB, mesh, chips.named('v5e'), mfu=0.5)
    assert found.memory.parameters == 4 * found.num_parameters
    # two moments, one of half the width, and two counts
    assert found.memory.optimiser == 6 * found.num_parameters + 8
    assert found.memory.batch > stage.batch // 2 * 4 * 2 * 16 * 16 * 3
    assert found.memory.peak > found.memory.activations + 10 * found.num_parameters
    assert found.step_seconds == found.flops_per_step / (0.5 * 2 * 197e12)
    assert found.clips_per_s == pytest.approx(stage.batch / found.step_seconds)
    assert found.fits


def test_gradients_and_moments_are_of_what_is_trained_alone():
    """By the report, and in the compiled step, whose scratch shrinks along with the gradients."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    wide = {'model__video__width': 64, 'stages__short__batch': 2}  # gradients outweigh activations
    adapters = {'model__video__adapter_width': 4, 'stages__short__text_tower': 'frozen'}
    found = {}
    for tune, more in (('all', {}), ('adapters+stem', adapters), ('last:2', {})):
        run = tiny(stages__short__tune=tune, **wide, **more)
        program, state, batch = estimate.compiled(run, run.stages[1], VOCAB, mesh)
        num_trained, num_all = trained.counts(state)
        memory = estimate.memory_of(program, state, batch)
        assert (num_trained == num_all) == (tune == 'all')
        assert memory.parameters == 4 * num_all and memory.gradients == 4 * num_trained
        assert memory.optimiser == 8 * num_trained + 8  # two moments, and two counts
        found[tune] = memory
    whole = found.pop('all')
    for tune, part in found.items():
        assert part.gradients < whole.gradients / 4, tune
        saved = whole.gradients - part.gradients
        # Not all gradients of a step live at one time: those of which the update is made are gone.
        assert whole.activations - part.activations > saved / 2, tune
        assert whole.peak - part.peak > 2 * saved + saved / 2, tune  # and of moments all of them


def test_the_memory_is_the_same_at_every_level_of_llvm(mesh):
    """So a plan compiles in a hurry."""
    run = tiny_run.resolved('no_data', 'no_run')
    init, step = estimate.recipe.training(run, run.stages[0], VOCAB)
    like = jax.eval_shape(init), estimate.recipe.batch_like(run, run.stages[0])
    lowered = jax.jit(step, donate_argnums=0).lower(*like)
    sizes = {
        estimate.peak(lowered.compile(compiler_options=options).memory_analysis())
        for options in (estimate.OPTIONS, None)
    }
    assert len(sizes) == 1


def test_changes_are_those_that_there_are_the_mildest_first(mesh):
    run = tiny(stages__long__mask_rate=0.5)
    stage = run.stages[2]
    found = [
        path.split('.')[-1] for change in estimate.changes(run, stage, mesh) for path in change
    ]
    assert found == [
        'remat', 'remat', 'mesh', 'micro_batch', 'micro_batch', 'moment_dtype', 'dtype', 'batch',
        'batch', 'mask_rate', 'last_layers',
    ]  # fmt: skip
    least = tiny(
        model__video__remat='full', optim__moment_dtype='bfloat16', model__dtype='bfloat16',
        stages__long__batch=2, stages__long__mask_rate=0.75, stages__long__last_layers=4,
    )  # fmt: skip
    assert estimate.changes(least, least.stages[2], mesh) == [{'mesh': 'fsdp=2'}]


def of_field(changes, field):
    """The values of a field of the short stage."""
    path = f'stages.short.{field}'
    return [change[path] for change in changes if path in change]


@pytest.mark.parametrize(
    'batch,micro_batch,devices,wanted',
    [
        (8, 0, 1, [4, 2, 1]),
        (24, 0, 1, [12, 6, 3, 1]),
        (7, 0, 1, [1]),
        (24, 0, 2, [12, 6, 2]),
        (8, 4, 2, [2]),
        (8, 1, 1, []),
    ],
)
def test_micro_batches_go_down_to_a_pair_a_device(batch, micro_batch, devices, wanted):
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    run = tiny(stages__short__batch=batch, stages__short__micro_batch=micro_batch)
    found = estimate.changes(run, run.stages[1], mesh)
    assert of_field(found, 'micro_batch') == wanted
    assert min(of_field(found, 'batch'), default=2) >= 2  # a pair alone has nothing to tell apart
    for change in found:  # what is suggested, the trainer takes
        hardware.mesh_of(estimate.changed(run, change), list(mesh.devices.flat))


def test_a_step_of_images_counts_by_its_share():
    mixed = {'stages__short__image_ratio': 0.25, 'stages__short__image_train': 'x/image:train'}
    schedule = {'stages__short__mask_schedule': '0.5=0.0'}
    run, videos = tiny(**mixed, **schedule), tiny(**schedule)
    stage = run.stages[1]
    images = [
        estimate.recipe.step_flops(run, stage, batch=8, num_patches=k, patch_values=16 * 16 * 3)
        for k in (2, 4)  # of 2 x 2, half of the steps half of them
    ]
    whole = estimate.mean_flops(videos, videos.stages[1])
    assert sum(images) / 2 < whole / 1.5
    wanted = 0.75 * whole + 0.25 * sum(images) / 2
    assert estimate.mean_flops(run, stage) == pytest.approx(wanted, abs=1)


def test_a_changed_run():
    run = tiny()
    other = estimate.changed(run, {'stages.long.batch': 2, 'model.video.remat': 'full'})
    assert other.stages[2].batch == 2 and other.model.video.remat == 'full'
    assert other.stages[1] == run.stages[1] and run.stages[2].batch == 8


def test_only_changes_that_make_it_fit_are_named(mesh, monkeypatch):
    run = tiny()
    peaks = {'none': 90, 'attention': 50, 'full': 30}

    def memory(run, stage, vocab, mesh):
        peak = peaks[run.model.video.remat] * 10**9 * (stage.micro_batch or stage.batch) // 8
        peak //= mesh.shape['fsdp']
        return estimate.Memory(0, 0, 0, 0, peak)

    monkeypatch.setattr(estimate, 'memory', memory)
    found = estimate.remedies(run, run.stages[1], VOCAB, mesh, chips.named('a100-40'))
    assert [one['change'] for one in found] == [
        '--config.model.video.remat=full', '--config.stages.short.micro_batch=2',
        '--config.stages.short.batch=2',
    ]  # fmt: skip


@pytest.mark.parametrize('rows,wanted', [(40, 32), (5, 4), (1, 1), (0, None)])
def test_the_largest_micro_batch_that_fits_is_named(rows, wanted, monkeypatch):
    """In few tries, of which each compiles."""
    run = tiny(stages__short__batch=4096)
    mesh, tried = sharding.make_mesh(devices=jax.devices()[:1]), []

    def memory(run, stage, vocab, mesh):
        tried.append(stage.micro_batch)
        return estimate.Memory(0, 0, 0, 0, (stage.micro_batch or stage.batch) * 10**9)

    monkeypatch.setattr(estimate, 'memory', memory)
    chip = chips.named('a100-40')._replace(memory_bytes=rows * 10**9)
    found = estimate.remedies(run, run.stages[1], VOCAB, mesh, chip)
    words = f'--config.stages.short.micro_batch={wanted}'
    assert found == ([{'change': words, 'peak': wanted * 10**9}] if wanted else [])
    assert sum(map(bool, tried)) <= 4


def test_the_command(tmp_path):
    """The tiny run on four devices of a chip, as JSON; no data, no work directory."""
    flags = tiny_run.flags(tmp_path, tmp_path / 'run', run='image', model__attention='cudnn')
    environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
    command = ['-m', 'long_vivit.plan', *flags, '--devices', '4', '--chip', 'l4', '--json']
    done = subprocess.run(
        [sys.executable, *command], cwd=tiny_run.ROOT, env=environment, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan['devices'] == 4 and plan['chip_memory'] == 24 * 10**9
    assert plan['counted_as'] == {'model.attention': 'blockwise'}
    assert plan['vocabulary'] == 49_408 and 'CLIP' in plan['vocabulary_of']
    (stage,) = plan['stages']
    assert stage['stage'] == 'image' and stage['fits'] and stage['would_fit_with'] == []
    assert not (tmp_path / 'run').exists()
