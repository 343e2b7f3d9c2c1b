"""Start a model from the parameters of another: the stage before, a checkpoint, imported weights.

Pure functions on flat dicts {name: array} (see `names.py`). Names must agree exactly. Shapes may
differ only where a row of `ADAPTERS` says so, by the adapter it names:

    resize   position tables of the video, one interpolation each: space [h, w, d], time [t, d],
             joint [t, h, w, d]
    inflate  patch kernel of an image -> of a tubelet, so that a still clip embeds as its image does
    copy     a parameter that another one starts: the biases of tubelets, and attention over time,
             which is a copy of its layer's own (LongViViT, arXiv 2312.07395; ViViT had zeros)
    stretch  positions of the text: first rows kept, the rest interpolated (Long-CLIP); of a shorter
             text the first rows alone

Anything else raises, and the message lists every fault.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Long-CLIP keeps 20 of CLIP's 77 rows; other tables keep the same share unless told otherwise.
KEPT_SHARE = 20 / 77


class CannotAdapt(ValueError):
    """The adapter does not do this change of shape; the message says what it does."""


def resize(value: Any, shape: Sequence[int]) -> np.ndarray:
    """A position table on another grid: [h, w, d] -> [h', w', d], [t, d] -> [t', d] or all three.

    Linear between the centres of the cells, without antialiasing, so that a constant table stays
    constant and a table of one row is repeated. The width d must be the same.
    """
    if len(shape) != np.ndim(value) or shape[-1] != value.shape[-1]:
        raise CannotAdapt('resize changes the grid, not the width')
    table = jnp.asarray(value, jnp.float32)
    return np.asarray(jax.image.resize(table, tuple(shape), 'linear', antialias=False))


def inflate(value: Any, shape: Sequence[int]) -> np.ndarray:
    """An image's patch kernel [p*q*c, d] for tubelets [r*p*q*c, d]: repeated r times, divided by r.

    A tubelet's pixels are laid out (r p q c) with r slowest. A clip of one frame repeated gets
    the embedding of that frame, up to float error (filter inflation: ViViT, arXiv 2103.15691,
    section 3.4).
    """
    rows, width = value.shape
    if len(shape) != 2 or shape[1] != width or shape[0] % rows:
        raise CannotAdapt('inflate repeats the rows a whole number of times, the width unchanged')
    repeats = shape[0] // rows
    return np.tile(np.asarray(value, np.float32) / repeats, (repeats, 1))


def copy(value: Any, shape: Sequence[int]) -> np.ndarray:
    """The same values; the shape must be the same."""
    if tuple(value.shape) != tuple(shape):
        raise CannotAdapt('copy changes no shape')
    return np.asarray(value)


def stretch(value: Any, shape: Sequence[int], keep: int | None = None) -> np.ndarray:
    """Text positions [l, d] for texts of another length [l', d], float32.

    Longer: rows below `keep` stay as they are; row r >= keep is read, linearly, at
    keep + (r - keep) / ratio with ratio = (l' - keep) / (l - keep), and the rows past the last
    one continue its slope. With l = 77, l' = 248, keep = 20 the ratio is 4 and this is Long-CLIP's
    knowledge-preserved stretching (arXiv 2403.15378), to the last bit of its released loop run in
    float32. keep = 0 is plain interpolation. Shorter: the first l' rows.

    Args:
      keep: rows of l left untouched, at most l - 2. None keeps Long-CLIP's share, 20 of 77.
    """
    rows, width = value.shape
    if len(shape) != 2 or shape[1] != width:
        raise CannotAdapt('stretch changes the length, not the width')
    table = np.asarray(value, np.float32)
    if shape[0] <= rows:
        return table[: shape[0]]
    if keep is None:
        keep = round(KEPT_SHARE * rows)
    if not 0 <= keep <= rows - 2:
        raise CannotAdapt(
            f'stretch must leave two rows or more to read between, keep is {keep} (model.text.keep)'
        )
    # Row `keep + i` lies share / parts of the way from row `low` to the next, in whole numbers:
    # the order of the products and divisions is the released loop's, hence the same last bits.
    low, share = np.divmod(np.arange(shape[0] - keep) * (rows - keep), shape[0] - keep)
    common = math.gcd(rows - keep, shape[0] - keep)
    low, parts = low + keep, np.float32((shape[0] - keep) // common)
    share = np.float32(share // common)[:, None]
    after = np.minimum(low + 1, rows - 1)
    between = (parts - share) * table[low] / parts + share * table[after] / parts
    beyond = table[-1] + share * (table[-1] - table[-2]) / parts
    read = np.where((low == rows - 1)[:, None], beyond, between)
    return np.concatenate([table[:keep], np.where(share == 0, table[low], read)])


class Adapter(NamedTuple):
    """One row of the table: how the target parameters of some names may be made."""

    target: str  # regex that a target's whole name matches
    function: Callable[..., np.ndarray]  # (value, shape, **options) -> array of that shape
    source: str = ''  # the name it is made from where the source lacks its own, with \1 for what
    #                   the regex caught; '' is its own only


ADAPTERS = (
    Adapter(r'video/positions/(space|time|joint)', resize),
    Adapter(r'video/tubelet_embed/kernel', inflate, 'video/image_embed/kernel'),
    Adapter(r'video/tubelet_embed/bias', copy, 'video/image_embed/bias'),
    Adapter(r'text/positions', stretch),
    Adapter(r'video/trunk/blocks/temporal/(attention/\w+)', copy, r'video/trunk/blocks/\1'),
    Adapter(r'video/trunk/blocks/temporal/norm/(\w+)', copy, r'video/trunk/blocks/norm_1/\1'),
)


class WarmStart(NamedTuple):
    """What `warm_start` returns."""

    params: dict[str, Any]  # every name of the target, in its order, with its shape and dtype
    lines: list[str]  # for people: one line for each parameter that was adapted or dropped


def warm_start(
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    *,
    drop: Sequence[str] = (),
    keep: int | None = None,
    adapters: Sequence[Adapter] = ADAPTERS,
) -> WarmStart:
    """The parameters of `source` in the names and shapes of `target`.

    Args:
      source: {name: array}, numpy or JAX.
      target: {name: anything with .shape and .dtype}, for instance `jax.eval_shape` of the model.
      drop: regexes of whole names of the source to leave out; each must match something. A target
        of the same name is then made as if the source had never had it.
      keep: rows of the text positions that `stretch` leaves untouched; None is its default.
      adapters: the table; the first row whose regex matches a target's name is its only one.
    Returns:
      WarmStart(params, lines). Adapted parameters are numpy arrays; the others are the source's
      own, converted where the dtype differs (and then a line says so).
    Raises:
      ValueError: one message with every name that is missing on either side (and the nearest one
        there is), every shape that no adapter may change, every `drop` that matches nothing.
    """
    lines, faults, used = [], [], set()
    dropped = [name for name in source if any(re.fullmatch(rule, name) for rule in drop)]
    for rule in drop:
        if not any(re.fullmatch(rule, name) for name in dropped):
            faults.append(f'drop {rule!r} matches no name of the source')
    lines += [f'{name} {_shape(source[name])}: dropped, as asked' for name in dropped]
    source = {name: value for name, value in source.items() if name not in dropped}
    params = {}
    for name, like in target.items():
        try:
            origin, value, line = _make(name, like, source, adapters, keep)
        except CannotAdapt as error:
            faults.append(str(error) + _nearest(name, source, target))
            used.add(name)  # its shape was the fault; its name is not one
        else:
            used.add(origin)
            params[name] = value
            lines += line
    for name in source:
        if name not in used:
            faults.append(
                f'{name} {_shape(source[name])}: only the source has it; drop it by name if the '
                'target shall do without' + _nearest(name, target, source)
            )
    if faults:
        head = f'cannot start from these weights, {len(faults)} fault(s):'
        raise ValueError('\n  '.join([head, *faults]))
    return WarmStart(params, lines)


def _make(
    name: str, like: Any, source: Mapping[str, Any], adapters: Sequence[Adapter], keep: int | None
) -> tuple[str, Any, list[str]]:
    """(name it came from, array as `like`, lines) of one target, or CannotAdapt."""
    row = next((row for row in adapters if re.fullmatch(row.target, name)), None)
    origin = name
    if name not in source and row is not None:
        made_from = re.fullmatch(row.target, name).expand(row.source)
        origin = made_from if made_from in source else name
    if origin not in source:
        raise CannotAdapt(f'{name} {_shape(like)}: the target has it, the source lacks it')
    value, line = source[origin], ''
    if origin != name or tuple(value.shape) != tuple(like.shape):
        change = f'{name}: {_shape(value)} in the source, {_shape(like)} in the target'
        if row is None or (origin == name and row.source):
            raise CannotAdapt(f'{change}; no adapter changes this shape')
        options = {'keep': keep} if row.function is stretch else {}
        try:
            value = row.function(value, like.shape, **options)
        except CannotAdapt as error:
            raise CannotAdapt(f'{change}; {error}') from None
        line = f'{name}: {row.function.__name__} of {origin} {_shape(source[origin])}'
        line += f' -> {_shape(like)}'
        if row.function is stretch and len(value) < len(source[origin]):
            line = f'{name}: the first {len(value)} of {len(source[origin])} rows; '
            line += 'the others are lost'
    given, wanted = np.dtype(source[origin].dtype), np.dtype(like.dtype)
    if jnp.issubdtype(given, jnp.floating) != jnp.issubdtype(wanted, jnp.floating):
        raise CannotAdapt(f'{name}: {given} in the source, {wanted} in the target')
    if given != wanted:
        line = f'{line or name + ":"} {given} -> {wanted}'
    if value.dtype != wanted:
        value = value.astype(wanted)
    return origin, value, [line] if line else []


def _nearest(name: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """'; nearest there: ...' for a name that `there` lacks, taken from what only `there` has."""
    if name in there:
        return ''
    alone = [other for other in there if other not in here] or list(there)
    close = difflib.get_close_matches(name, alone, n=1, cutoff=0.5)
    return f'; nearest there: {close[0]} {_shape(there[close[0]])}' if close else ''


def _shape(value: Any) -> str:
    return str(list(value.shape))
