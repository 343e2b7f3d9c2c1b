"""open_clip, imported: `from opened import open_clip`.

It asks for torchvision, whose compiled operators do not load beside a build of torch for CPU only;
it never calls them. They are then declared, so that torchvision can be imported without them.
"""

import sys

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    for name in [name for name in sys.modules if name.startswith('torchvision')]:
        del sys.modules[name]
    _library = torch.library.Library('torchvision', 'DEF')
    for _name in ('nms', 'qnms'):
        _library.define(f'{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')

import open_clip

__all__ = ['open_clip']
