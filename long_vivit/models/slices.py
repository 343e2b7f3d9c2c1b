"""How the patches of a video fall into time slices, by their number alone: so it is static.

The input pipeline gives patches in order of time, row and column. With a mask that keeps equally
many in each slice, `k` patches are `t'` slices of `k / t'` each, one after the other: a reshape.
Whoever attends within slices needs this; joint attention needs none of it.
"""

# The mask kinds that each backbone can take; `long_vivit.inputs.patches` says what they are.
KINDS = {
    'joint': ('random', 'slice', 'tube', 'frame', 'motion'),
    'factorised': ('tube', 'frame'),  # a place must be there in each slice that is
    'factorised_encoder': ('slice', 'tube', 'frame'),
    'frames': ('slice', 'tube', 'frame'),
}
FRAME_POOLS = ('mean', 'attention', 'temporal')


def num_slices(k, grid, *, whole, still=False):
    """How many time slices `k` patches make.

    Args:
      k: patches of one video, whole or masked. grid: (t, h, w), slices and places of a whole one.
      whole: whether every slice that is there has all its places: masks leave out whole slices.
        Otherwise all t slices are there, each with as many patches.
      still: whether the patches are known to be of an image.

    An image that is not known to be one (tubelets of one frame) is told from a video only where
    `whole` holds.

    Raises:
      ValueError: so many patches make no such slices.
    """
    t, places = grid[0], grid[1] * grid[2]
    if still:
        return 1
    if 0 < k <= t * places and k % (places if whole else t) == 0:
        return k // places if whole else t
    each = f'each of {places} patches' if whole else f'{t} of them'
    raise ValueError(
        f'{k} patches make no equal time slices, {each}, of a grid of {t} x {grid[1]} x {grid[2]}; '
        'this model.video.backbone needs all patches, or those of its mask_kind and mask_rate'
    )
