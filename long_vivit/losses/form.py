"""In which form a contrastive loss is computed; loss and gradients are the same in all.

dense   the matrix of all pairs at once: the least work for small batches, memory O(b^2)
tiled   one tile of the matrix at a time, computed again in the backward pass; every device does all
        of it: memory O(tile + b e), for one device
ring    the same, shared by the devices that the batch is split over: memory O(tile + b e / devices)
auto    dense up to DENSE_UP_TO pairs; above, ring where the batch is split over devices, else tiled
"""

from long_vivit.losses import ring
from long_vivit.sharding import axis_size, batch_axes

FORMS = ('auto', 'dense', 'tiled', 'ring')
DENSE_UP_TO = 4096  # pairs in a batch; some ten float32 matrices of that side are 0.7 GB


def chosen(form, batch):
    """'dense', 'tiled' or 'ring' for a batch of so many pairs under the ambient mesh."""
    if form not in FORMS:
        raise ValueError(f'loss.form is {form!r}; it must be one of {", ".join(FORMS)}')
    if form != 'auto':
        return form
    if batch <= DENSE_UP_TO:
        return 'dense'
    return 'ring' if batch_axes() else 'tiled'


def plan_of(form, tile, batch):
    """The `ring.Plan` of a batch of so many pairs under the ambient mesh; None: dense.

    Raises ValueError: no such form, or a ring that does not divide the batch.
    """
    form = chosen(form, batch)
    if form == 'dense':
        return None
    return ring.around(tile, batch) if form == 'ring' else ring.on_one(tile)


def in_words(kind, form, batch, tile):
    """What a run says of its loss at the start: 'nce loss, ring of 8 devices, tiles of 1024'."""
    form = chosen(form, batch)
    if form == 'dense':
        return f'{kind} loss, dense'
    share = f'ring of {axis_size(batch_axes())} devices' if form == 'ring' else 'tiled'
    return f'{kind} loss, {share}, tiles of at most {tile} x {tile} pairs'
