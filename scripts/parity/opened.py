"""open_clip, imported: `from opened import open_clip`. It asks for torchvision."""

import torchvision_ops  # noqa: F401  first: then torchvision can be imported

import open_clip  # isort: skip

__all__ = ['open_clip']
