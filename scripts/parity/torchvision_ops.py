"""Lets torchvision be imported where its compiled operators do not load: beside torch for CPU only.

open_clip, transformers and torchcodec import it where it is installed, and never call these two
operators; they are then declared, no more.
"""

import sys

import torch

try:
    import torchvision  # noqa: F401
except ImportError:  # not installed: nobody asks for it
    pass
except RuntimeError:
    for name in [name for name in sys.modules if name.startswith('torchvision.')]:
        del sys.modules[name]
    sys.modules.pop('torchvision', None)
    library = torch.library.Library('torchvision', 'DEF')
    for name in ('nms', 'qnms'):
        library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
