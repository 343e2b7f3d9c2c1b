"""Contrastive losses over all pairs of a batch: `nce` and `sigmoid`, each in the forms of form.py.

A file each for what a newcomer may look for: the losses on paper and their formulas (infonce,
siglip), which pairs count (pairs), one tile at a time (tiles), around the devices (ring), and what
of a video a short text is compared with (components).
"""

from long_vivit.losses.infonce import nce
from long_vivit.losses.pairs import logit_scale
from long_vivit.losses.siglip import sigmoid

__all__ = ['logit_scale', 'nce', 'sigmoid']
