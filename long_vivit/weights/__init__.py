"""Other people's weights: `--config.init=FAMILY:PATH`, a file of this folder for each family.

A family's file has `describe(path)`, which reads names and shapes but no tensor.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

FAMILIES = ('clip', 'open_clip', 'openai', 'longclip', 'siglip2', 'vivit')


class Described(NamedTuple):
    """What a checkpoint of others says about itself."""

    fields: dict[str, Any]  # {path of configs/base.py: value} of the architecture
    tokenizer: Path | None = None  # the file or folder of its tokenizer; None: it has none


def split(init: str) -> tuple[str, str] | None:
    """'clip:PATH' -> ('clip', 'PATH'); None where `init` begins with no family's name."""
    family, colon, path = init.partition(':')
    return (family, path) if colon and family in FAMILIES else None


def describe(init: str) -> Described:
    """The architecture of 'FAMILY:PATH', from its small files and headers.

    Raises ValueError: it is no such name, or the files are missing or not of this family.
    """
    return _module(init).describe(Path(split(init)[1]))


def _module(init):
    if split(init) is None:
        raise ValueError(
            f'init: {init!r} names no family of weights; it must be FAMILY:PATH, FAMILY one of '
            f'{", ".join(FAMILIES)}'
        )
    return import_module(f'long_vivit.weights.{split(init)[0]}')
