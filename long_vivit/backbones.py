"""What `model.video.backbone` asks of the rest: the encoder's fields, its FLOPs, its limits."""

from long_vivit import flops
from long_vivit.axes import SEQ
from long_vivit.inputs.patches import num_kept
from long_vivit.models.slices import looks_like_image, num_slices


def fields(run, looks):
    """{argument: value} of `VideoEncoder` for a stage that looks at videos as the View `looks`.

    Runs that were begun before there were backbones have none: theirs is 'joint'. A stage of images
    of the factorised backbone has no attention over time yet; the stage of videos after it begins
    with copies of what its layers have (`warm_start`).
    """
    video = run.model.video
    backbone = vars(video).get('backbone', 'joint')
    if backbone == 'joint' or (backbone == 'factorised' and looks.frames == 1):
        return {}
    return {
        'backbone': backbone,
        'kept': kept(looks),
        'frame_pool': video.frame_pool,
        'temporal_depth': video.temporal_depth,
    }


def kept(looks):
    """How many patches of a slice the mask of a View leaves; all of masks of whole slices."""
    kind = 'tube' if looks.mask_kind != 'frame' else 'frame'
    return num_kept(kind, (1, *looks.grid[1:]), looks.mask_rate)


def check_image(looks, backbone):
    """Raises ValueError where a model of the View `looks` would take an image for a video."""
    if backbone != 'joint' and looks.tubelet == 1 and looks_like_image(looks.grid, kept(looks)):
        raise ValueError(
            f'mask_rate: {looks.mask_rate} leaves a video of {looks.frames} frames as many patches '
            f'as an image has, and with model.video.tubelet = 1 model.video.backbone {backbone!r} '
            'could not tell the two apart; change mask_rate or tubelet'
        )


def step_towers(run, looks, *, num_patches, patch_values, num_trained):
    """What a backbone that tells slices apart computes -> arguments of `flops.training_step`.

    looks: the View of the videos. num_trained: last layers of the trunk that are. None for 'joint'.
    """
    chosen, video = fields(run, looks), run.model.video
    if not chosen:
        return None
    is_image = patch_values == looks.patch**2 * 3
    still = is_image and (looks.tubelet > 1 or looks.grid[0] == 1)
    t = num_slices(num_patches, looks.grid, chosen['kept'], still=still)
    within = num_patches // t + (video.pool == 'cls')
    mlp_width = vars(video).get('mlp_width', 0)
    factorised = chosen['backbone'] == 'factorised'
    tower = flops.Tower(
        video.width, video.depth, t * within, num_trained, mlp_width,
        (within, t) if factorised else (within,),
    )  # fmt: skip
    pooled = video.pool == 'map'
    if factorised:
        return {'video': tower, 'probe': int(pooled)}
    over_time = chosen['frame_pool'] if chosen['backbone'] == 'frames' else 'temporal'
    depth = {'mean': None, 'attention': 0, 'temporal': video.temporal_depth}[over_time]
    above = None if depth is None else flops.Tower(video.width, depth, t, depth, mlp_width)
    return {'video': tower, 'probe': t * pooled, 'above': above}


def mesh_faults(run, mesh):
    """A line where the mesh splits what the backbone keeps together."""
    backbone = vars(run.model.video).get('backbone', 'joint')
    if backbone != 'joint' and mesh.shape[SEQ] > 1:
        yield (
            f'mesh: seq={mesh.shape[SEQ]} splits the patches of a video over devices, but '
            f'model.video.backbone {backbone!r} attends within slices; use data or fsdp, or '
            "backbone 'joint'"
        )
