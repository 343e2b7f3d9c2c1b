"""Whether a configuration fits the devices there are, checked before anything is built."""

import jax

from long_vivit import axes, sharding
from long_vivit.inputs.patches import num_kept
from long_vivit.recipe import eval_view, view


def mesh_of(run, devices=None):
    """The mesh of a resolved configuration over all devices (or those given).

    Raises ValueError: one message with all that does not fit.
    """
    try:
        mesh = sharding.make_mesh(run.mesh, devices)
    except ValueError as error:
        raise ValueError(f'mesh: {error}') from error
    if found := list(faults(run, mesh)):
        raise ValueError('\n  '.join(['the configuration does not fit the hardware:', *found]))
    return mesh


def faults(run, mesh):
    """A line for each field that the sizes of the mesh do not divide."""
    parts, tensor, seq = sharding.batch_parts(mesh), mesh.shape[axes.TENSOR], mesh.shape[axes.SEQ]
    for tower in ('video', 'text'):
        heads = getattr(run.model, tower).heads
        if heads % tensor:
            yield f'model.{tower}.heads: {heads} does not split over tensor={tensor} of the mesh'
    if seq > 1 and run.model.video.pool == 'cls':
        yield f"model.video.pool: 'cls' adds a token that is no patch; use 'mean' with seq={seq}"
    for stage in run.stages:
        if stage.batch % parts:
            names = ' x '.join(f'{axis}={mesh.shape[axis]}' for axis in axes.BATCH)
            yield (
                f'stages.{stage.name}.batch: {stage.batch} does not split over {names}; it must '
                f'be a multiple of {parts}'
            )
        for field, looks in views(run, stage).items():
            k = num_kept(looks.mask_kind, looks.grid, looks.mask_rate)
            if k % seq:
                yield (
                    f'stages.{stage.name}.{field}: {k} patches do not split over seq={seq} of the '
                    'mesh; change frames, pixels or mask_rate'
                )


def views(run, stage):
    """{field to change: View} of all that the video encoder is given in a stage."""
    found = {'mask_rate': view(run, stage)}
    if stage.image_ratio:
        found['image_ratio'] = view(run, stage, image=True)
    if stage.eval:
        found['eval'] = eval_view(run, stage)
    return found


def words(mesh):
    """The devices of a mesh, and how they are used: '8 x CPU (data=4 x seq=2)'."""
    device = mesh.devices.flat[0]
    kind, platform = device.device_kind, device.platform
    kind = platform.upper() if kind == platform else f'{kind} ({platform})'
    if mesh.size == 1:
        return kind
    used = ' x '.join(f'{axis}={size}' for axis, size in mesh.shape.items() if size > 1)
    hosts = f', {jax.process_count()} processes' if jax.process_count() > 1 else ''
    return f'{mesh.size} x {kind} ({used}{hosts})'
