"""What `model.video.backbone` asks of the rest: the encoder's fields, its FLOPs, its limits."""

from long_vivit import flops, masking, tuning
from long_vivit.axes import SEQ
from long_vivit.models.slices import num_slices


def fields(run, stage, looks):
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
        'whole_slices': whole(stage),
        'frame_pool': video.frame_pool,
        'temporal_depth': video.temporal_depth,
    }


def whole(stage):
    """Whether the masks of a stage leave out whole slices, or nothing, at all its rates."""
    return stage.mask_kind == 'frame' or not any(masking.shares(stage))


def check_image(run, stage, looks):
    """Raises ValueError where a stage's model would take an image for a video of its View."""
    chosen = fields(run, stage, looks)
    rates = masking.shares(stage)
    if chosen and looks.tubelet == 1 and looks.grid[0] > 1 and not chosen['whole_slices']:
        raise ValueError(
            f'model.video.tubelet: 1, so an image looks like a frame of a video, and after a '
            f'mask_kind {stage.mask_kind!r} of mask_rate {max(rates)} model.video.backbone '
            f'{chosen["backbone"]!r} cannot tell the two apart; it takes no images'
        )


def step_towers(run, stage, looks, *, num_patches, patch_values):
    """What a backbone that tells slices apart computes -> arguments of `flops.training_step`.

    looks: the View of the videos. None for 'joint'.
    """
    chosen, video = fields(run, stage, looks), run.model.video
    if not chosen:
        return None
    is_image = patch_values == looks.patch**2 * 3
    still = is_image and (looks.tubelet > 1 or looks.grid[0] == 1)
    t = num_slices(num_patches, looks.grid, whole=chosen['whole_slices'], still=still)
    within = num_patches // t + (video.pool == 'cls')
    mlp_width = vars(video).get('mlp_width', 0)
    factorised = chosen['backbone'] == 'factorised'
    tower = flops.Tower(
        video.width, video.depth, t * within, mlp_width=mlp_width,
        looks=(within, t) if factorised else (within,),
        **tuning.of(stage).layers(video.depth, over_time=not factorised),
        **tuning.parts(run, stage),
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
