"""The axes of the mesh, and the words of the field `mesh`: "data=-1,fsdp=4,seq=2".

dcn      slices of a pod, or islands of nodes, joined by a slow network; splits the batch
data     splits the batch
fsdp     splits the batch, and the parameters with what the optimiser keeps of them
seq      splits the tokens of a video
tensor   splits heads and MLPs

No jax here: the configuration is checked before it is imported.
"""

import difflib
import math

DCN, DATA, FSDP, SEQ, TENSOR = AXES = ('dcn', 'data', 'fsdp', 'seq', 'tensor')  # slowest first
BATCH = (DCN, DATA, FSDP)  # what the batch is split over


def parse(spec):
    """'data=-1,fsdp=4' -> {axis: size} of all AXES; an axis that is not named has size 1.

    Raises ValueError: an axis that does not exist or comes twice, a size that is neither -1 nor at
    least 1, more than one -1.
    """
    found = {}
    for part in filter(None, (part.strip() for part in spec.split(','))):
        axis, _, size = (word.strip() for word in part.partition('='))
        if axis not in AXES:
            near = difflib.get_close_matches(axis, AXES, 1, 0.3) or [', '.join(AXES)]
            raise ValueError(f'{axis!r} in {spec!r} is no axis; nearest: {near[0]}')
        if axis in found:
            raise ValueError(f'{axis!r} comes twice in {spec!r}; name each axis once')
        if not (size == '-1' or (size.isdecimal() and int(size) > 0)):
            raise ValueError(
                f'{part!r} in {spec!r}: the size of an axis must be at least 1, or -1 (what is '
                f'left of the devices), as in {axis}=2'
            )
        found[axis] = int(size)
    if list(found.values()).count(-1) > 1:
        raise ValueError(f'{spec!r} has more than one -1; write out all sizes but one')
    return {axis: found.get(axis, 1) for axis in AXES}


def sizes(spec, num_devices):
    """`parse` with the -1 worked out, so that the product is the number of devices.

    Raises ValueError: as `parse` does, and with both numbers where they do not agree.
    """
    found = parse(spec)
    product = math.prod(size for size in found.values() if size > 0)
    for axis, size in found.items():
        if size < 0 and num_devices % product == 0:
            return found | {axis: num_devices // product}
    if product != num_devices:
        what = 'a multiple of ' if -1 in found.values() else ''
        raise ValueError(
            f'{spec!r} needs {what}{product} devices, and there are {num_devices}; the product of '
            "the sizes must be the number of devices ('data=-1' takes as many as there are)"
        )
    return found
