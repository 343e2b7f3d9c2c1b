"""What a checkpoint can hold, and whether it holds what is wanted: checks without any I/O."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def storable(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """`arrays` as {name: JAX or numpy array}; ValueError listing all that cannot be stored."""
    faults = [] if arrays else ['no arrays given']
    for name, value in arrays.items():
        if not isinstance(value, (jax.Array, np.ndarray, np.generic)) or value.dtype == object:
            faults.append(f'{name}: {type(value).__name__} is not an array')
        elif jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            faults.append(f'{name}: a typed random key; give jax.random.key_data of it')
        elif not value.size:
            faults.append(f'{name}: has no elements, its shape is {list(value.shape)}')
    if faults:
        raise ValueError('\n  '.join(['cannot be saved:', *faults]))
    return {k: v if isinstance(v, jax.Array) else np.asarray(v) for k, v in arrays.items()}


def json_note(info: Mapping[str, Any], metric: float | None) -> dict[str, Any]:
    """{'info', 'metric'} to be stored as JSON; ValueError if that would change or lose anything."""
    metric = None if metric is None else float(metric)
    if metric is not None and not math.isfinite(metric):
        raise ValueError(f'metric is {metric}; wanted a finite number, or None for no score')
    try:
        same = json.loads(json.dumps(dict(info), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f'info cannot be stored as JSON: {error}') from error
    if same != info:
        raise ValueError('info would change in JSON: wanted string keys, and lists for tuples')
    return {'info': same, 'metric': metric}


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """A line for each name that only one of the two has or that has another shape or dtype."""
    here, there = stored.keys() - wanted, wanted.keys() - stored
    lines = [f'{name} {_kind(stored[name])}: stored, not wanted' for name in here]
    lines += [f'{name} {_kind(wanted[name])}: wanted, not stored' for name in there]
    for name in stored.keys() & wanted:
        if _kind(stored[name]) != _kind(wanted[name]):
            lines.append(f'{name}: {_kind(stored[name])} stored, {_kind(wanted[name])} wanted')
    return sorted(lines)


def numpy_like(kind: Any) -> np.ndarray:
    """An array of the shape and dtype of `kind` that takes no memory; its values are zero."""
    return np.broadcast_to(np.zeros((), kind.dtype), kind.shape)


def brief(error: Exception | str) -> str:
    """The first line of an error, without the dumps that TensorStore appends."""
    text = re.sub(r'\s*\[(tensorstore_spec|source locations)=.*', '', str(error), flags=re.S)
    return (text.splitlines() or [type(error).__name__])[0][:400]


def _kind(value: Any) -> str:
    return f'{list(value.shape)} {np.dtype(value.dtype).name}'
