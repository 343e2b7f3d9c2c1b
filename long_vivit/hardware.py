"""Whether a configuration fits the devices there are, checked before anything is built."""

from dataclasses import replace

import jax

from long_vivit import axes, backbones, masking, sharding
from long_vivit.recipe import eval_view, image_view, split_of, view


def mesh_of(run, devices=None):
    """The mesh to train a resolved configuration on, over all devices (or those given).

    Raises ValueError: one message with all that does not fit.
    """
    mesh = make_mesh('mesh', run.mesh, devices)
    found = list(model_faults(run, mesh))
    for stage in run.stages:
        found += stage_faults(run, stage, mesh)
    return fitting(mesh, found)


def fitting_to_score(mesh, run, looks):
    """`mesh`, on which a model of `run` is scored that looks at videos by the View `looks`.

    Raises ValueError as `mesh_of` does.
    """
    return fitting(mesh, [*model_faults(run, mesh), *view_faults('--mesh', looks, mesh)])


def make_mesh(field, spec, devices=None):
    """`sharding.make_mesh`, its error beginning with the field that is at fault."""
    try:
        return sharding.make_mesh(spec, devices)
    except ValueError as error:
        raise ValueError(f'{field}: {error}') from error


def fitting(mesh, faults):
    """`mesh`, or one ValueError with all faults."""
    if faults:
        raise ValueError('\n  '.join(['the configuration does not fit the hardware:', *faults]))
    return mesh


def model_faults(run, mesh):
    """A line for each field of the model that the mesh does not divide."""
    seq, tensor = mesh.shape[axes.SEQ], mesh.shape[axes.TENSOR]
    yield from backbones.mesh_faults(run, mesh)
    for tower in ('video', 'text'):
        heads = getattr(run.model, tower).heads
        if heads % tensor:
            yield f'model.{tower}.heads: {heads} does not split over tensor={tensor} of the mesh'
    if run.model.video.remat == 'offload' and mesh.devices.flat[0].platform == 'cpu':
        yield (
            "model.video.remat: 'offload', but on CPU the host's memory is the device's; use "
            "'full', which computes the same"
        )
    if seq > 1 and run.model.video.heads % tensor == 0:
        try:
            split_of(run, seq, tensor)
        except ValueError as error:  # ulysses is named, and the heads do not divide
            yield str(error)


def stage_faults(run, stage, mesh):
    """A line for each field of a stage that the mesh does not divide."""
    parts = sharding.batch_parts(mesh)
    for field in ('batch', 'micro_batch'):
        size = getattr(stage, field)
        if size % parts:
            names = ' x '.join(f'{axis}={mesh.shape[axis]}' for axis in axes.BATCH)
            yield (
                f'stages.{stage.name}.{field}: {size} does not split over {names}; it must be a '
                f'multiple of {parts}'
            )
    for rate in masking.shares(stage):
        looks = replace(view(run, stage), mask_rate=rate)
        yield from view_faults(f'stages.{stage.name}.mask_rate', looks, mesh)
        if stage.image_ratio:
            looks = replace(view(run, stage, image=True), mask_rate=rate)
            yield from view_faults(f'stages.{stage.name}.image_ratio', looks, mesh)
    if stage.eval:
        yield from view_faults(f'stages.{stage.name}.eval', eval_view(run, stage), mesh)
    if run.eval.images:
        yield from view_faults('eval.images', image_view(run, stage), mesh)


def view_faults(field, looks, mesh):
    """A line if the patches that a View shows do not split over the mesh."""
    seq = mesh.shape[axes.SEQ]
    for k in {k for k, _ in looks.shapes if k % seq}:
        yield (
            f'{field}: {k} patches of {looks.frames} frames do not split over seq={seq} of the '
            'mesh; change frames, pixels, mask_rate, token_budget or seq'
        )


def words(mesh):
    """The devices of a mesh, and how they are used: '8 x CPU (data=4 x seq=2)'."""
    device = mesh.devices.flat[0]
    kind, platform = device.device_kind, device.platform
    kind = platform.upper() if kind == platform else f'{kind} ({platform})'
    if mesh.size == 1:
        return kind
    used = ' x '.join(f'{axis}={size}' for axis, size in mesh.shape.items() if size > 1)
    processes = f', {jax.process_count()} processes' if jax.process_count() > 1 else ''
    return f'{mesh.size} x {kind} ({used}{processes})'
