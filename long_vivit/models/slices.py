"""How the patches of a video fall into time slices, by their number alone: so it is static.

The input pipeline gives patches in order of time, row and column. With a mask that keeps equally
many in each slice, `k` patches are `t'` slices of `k / t'` each, one after the other: a reshape.
Whoever attends within slices needs this; joint attention needs none of it.
"""

# The mask kinds that each backbone can take (`long_vivit.inputs.patches.choose` says what they are).
KINDS = {
    'joint': ('random', 'slice', 'tube', 'frame'),
    'factorised': ('tube', 'frame'),  # a place must be there in each slice that is
    'factorised_encoder': ('slice', 'tube', 'frame'),
    'frames': ('slice', 'tube', 'frame'),
}
FRAME_POOLS = ('mean', 'attention', 'temporal')


def num_slices(k, grid, kept, *, still=False):
    """How many time slices `k` patches make.

    Args:
      k: patches of one video. grid: (t, h, w), slices and places of a whole one.
      kept: patches of a slice that a mask of training leaves; h * w where it leaves all, or leaves
        out whole slices.
      still: whether they are known to be of an image.

    A whole video and a masked one have t slices, but for masks of whole slices. An image that is
    not known to be one (tubelets of one frame) has `kept` or h * w patches; where a masked video
    has h * w as well it is taken for that: see `looks_like_image`.

    Raises:
      ValueError: neither a whole nor a masked video or image has so many.
    """
    t, places = grid[0], grid[1] * grid[2]
    if still:
        return 1
    if kept == places and k % places == 0 and 0 < k <= t * places:
        return k // places
    if k in (t * kept, t * places):
        return t
    if k in (kept, places):
        return 1
    raise ValueError(
        f'{k} patches make no equal time slices of a grid of {t} x {grid[1]} x {grid[2]}, of which '
        f'training keeps {kept} of {places} in each slice; this model.video.backbone needs all '
        'patches, or those of its mask_kind and mask_rate'
    )


def looks_like_image(grid, kept):
    """Whether a masked video has as many patches as a whole image."""
    t, places = grid[0], grid[1] * grid[2]
    return t > 1 and kept < places and t * kept == places
