"""Files of other people's weights: safetensors, whole or in shards, PyTorch's `.pt`, small JSON.

Names, shapes and dtypes are known before a tensor is read; tensors are read one at a time.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  numpy learns bfloat16, which safetensors asks it for
import numpy as np
from safetensors import SafetensorError, safe_open

FLOATS = {'F64', 'F32', 'F16', 'BF16'}
TORCH = ('.pt', '.pth', '.bin')  # what torch.save writes


class Tensors:
    """The tensors of a checkpoint, by name.

    Attributes:
      shapes: {name: shape}. path: the file or folder, for messages.
    """

    def __init__(self, path: Path, shapes: dict[str, tuple[int, ...]], read):
        self.path, self.shapes, self._read = path, shapes, read

    def read(self, name: str) -> np.ndarray:
        """One tensor, of the dtype it is stored in.

        Raises ValueError where it is of none that this program takes: float of 64, 32 or 16 bits.
        """
        return self._read(name)


def open_tensors(path: str | Path, stem: str = 'model') -> Tensors:
    """The weights at `path`: a file, or a folder with `STEM.safetensors`, whole or in shards.

    Sharded: STEM.safetensors.index.json names the file of each tensor. Only the headers are read.

    Raises:
      ValueError: there are no such files, or they cannot be read.
    """
    path = Path(path)
    if path.is_file() and path.suffix in TORCH:
        return _torch_file(path)
    if path.is_file():
        return _safetensors(path, [path])
    whole, index = path / f'{stem}.safetensors', path / f'{stem}.safetensors.index.json'
    if whole.is_file():
        return _safetensors(path, [whole])
    if index.is_file():
        named = read_json(index).get('weight_map', {})
        return _safetensors(path, [path / file for file in sorted(set(named.values()))], named)
    there = sorted(file.name for file in path.iterdir()) if path.is_dir() else []
    torchs = [name for name in there if name.endswith(TORCH)]
    raise ValueError(
        f'{path}: has no {whole.name} (nor {index.name}); there: {", ".join(there) or "nothing"}. '
        + (f'Name the file, {path / torchs[0]}, to have PyTorch read it. ' if torchs else '')
        + 'Weights in another form can be saved so with safetensors.torch.save_file.'
    )


def _safetensors(path: Path, files: list[Path], promised: dict[str, str] | None = None) -> Tensors:
    """promised: {tensor: file} of an index, which the files must hold."""
    where, shapes, dtypes, opened = {}, {}, {}, {}
    for file in files:
        try:
            # Read, not mapped: pages of a mapped file would count as memory of this process.
            opened[file] = safe_open(file, framework='np', backend='pread')
            names = opened[file].keys()
        except (SafetensorError, OSError) as error:
            raise ValueError(f'{file}: cannot be read as safetensors ({error})') from error
        for name in names:
            part = opened[file].get_slice(name)
            where[name], shapes[name] = file, tuple(part.get_shape())
            dtypes[name] = part.get_dtype()
    if lost := [name for name in promised or () if where.get(name) != path / promised[name]]:
        raise ValueError(f'{path}: the index names {", ".join(lost)}, which their files lack')

    def read(name):
        if dtypes[name] not in FLOATS:
            raise ValueError(f'{path}: {name} is {dtypes[name]}; wanted floats of 16 bits or more')
        try:
            return opened[where[name]].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f'{where[name]}: {name} cannot be read ({error})') from error

    return Tensors(path, shapes, read)


def _torch_file(path: Path) -> Tensors:
    """A state dict that torch.save wrote. Nothing in it is executed (weights_only)."""
    try:
        import torch
    except ImportError:
        raise ValueError(
            f'{path}: a {path.suffix} file is read by PyTorch, which is not installed here: take '
            "the extra `torch` (pip install -e '.[torch]', or pip install 'torch>=2.10'), or save "
            'the state dict elsewhere with safetensors.torch.save_file'
        ) from None
    try:
        # Files from before PyTorch 1.6 are no archives, and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        state = torch.load(path, map_location='cpu', weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises several, with advice to execute what is in the file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f'{path}: torch cannot load it as weights only ({reason}). A TorchScript archive, as '
            'OpenAI gives CLIP out, holds a program: take its .state_dict() where you trust it, '
            'and save that with safetensors.torch.save_file'
        ) from error
    if not isinstance(state, dict) or not all(torch.is_tensor(x) for x in state.values()):
        raise ValueError(f'{path}: is no state dict, a dict of tensors by name')

    def read(name):
        if not state[name].is_floating_point():
            raise ValueError(f'{path}: {name} is {state[name].dtype}; wanted floats')
        return state[name].float().numpy()

    return Tensors(path, {name: tuple(x.shape) for name, x in state.items()}, read)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError where the file is missing or holds none."""
    if not path.is_file():
        raise ValueError(f'{path}: is not there')
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f'{path}: is no JSON ({error})') from error
    if not isinstance(found, dict):
        raise ValueError(f'{path}: must hold a JSON object, holds a {type(found).__name__}')
    return found
