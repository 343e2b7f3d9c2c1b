"""From a sweep's configuration to its cells: what each changes, and the runs that teach it.

A cell is a variant (a difference from the base) at a seed. It is taught stage by stage, each stage
a run of its own that starts from the one before. Cells that do not differ up to a stage have the
same run for it: it lies under shared/ and is taught once.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from long_vivit import config, weights
from long_vivit.config import Run
from long_vivit.sweeps import grid_rules

MAX_NAME = 120  # characters of a variant's folder; file systems take 255
MAX_WORD = 40  # of a value in a name


@dataclass(frozen=True)
class Link:
    """The run of one stage, alone: `run` starts from the link before and has its own workdir."""

    name: str
    run: Run

    @property
    def path(self):
        return Path(self.run.workdir)

    @property
    def stage(self):
        return self.run.stages[0]


@dataclass(frozen=True)
class Cell:
    """A variant at a seed."""

    difference: dict[str, Any]  # {path: value} of the fields that are not the base's
    seed: int
    grids: tuple[str, ...]  # those that it belongs to
    whole: Run  # all stages, as if one run taught them
    chain: tuple[Link, ...]  # one for each stage, in order

    @property
    def variant(self):
        """'base', or the name of its difference, such as 'long.mask_rate=0.5'."""
        return name_of(self.difference)

    @property
    def folder(self):
        """The variant's folder, without its seed."""
        return folder_of(self.difference)

    @property
    def name(self):
        return f'{self.folder}/seed{self.seed}'


@dataclass(frozen=True)
class Sweep:
    """A checked configuration of a sweep."""

    workdir: Path
    base: Run
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    memory: dict[str, Any]  # as in configs/sweep.py
    seeds_from: str

    @property
    def variants(self):
        """The first cell of each variant, in order."""
        return list({cell.variant: cell for cell in reversed(self.cells)}.values())[::-1]


def read(cfg) -> Sweep:
    """The sweep of a ConfigDict as configs/sweep.py makes it.

    Raises one ValueError with all faults, a line each, of the sweep and of the configuration of
    every cell; nothing is built or written.
    """
    faults = list(grid_rules.own_faults(cfg))
    resolved, of_cells = {}, {}
    for name, difference, grids in [] if faults else variants(cfg):
        try:
            run = config.resolve(config.changed(cfg.base, difference))
            resolved[name] = difference, grids, run
            for line in grid_rules.scoring_faults(run):
                of_cells.setdefault(line, []).append(name)
        except ValueError as error:
            for line in str(error).split('\n  '):
                if not line.startswith('the configuration has '):
                    of_cells.setdefault(line, []).append(name)
    for line, names in of_cells.items():
        more = f' and {len(names) - 1} more' if len(names) > 1 else ''
        faults.append(f'{line} ({names[0]}{more})')
    if faults:
        count = 'one fault' if len(faults) == 1 else f'{len(faults)} faults'
        raise ValueError('\n  '.join([f'the sweep has {count}:', *faults]))
    cells = [
        Cell(difference, seed, grids, run, chain(cfg, run, difference, seed))
        for seed in cfg.seeds  # outermost: all variants are seen before any is repeated
        for difference, grids, run in resolved.values()
    ]
    base = config.resolve(config.changed(cfg.base, {}))
    seeds, memory = tuple(cfg.seeds), cfg.memory.to_dict()
    return Sweep(Path(cfg.workdir), base, tuple(cells), seeds, memory, cfg.seeds_from)


def variants(cfg) -> Iterator[tuple[str, dict, tuple[str, ...]]]:
    """(name, difference, grids) of each variant: products multiplied out, each variant once.

    With `only`, those of these grids; each names all that it belongs to, for its row is theirs too.
    """
    base, found = dict(config.flat(cfg.base)), {}
    for grid, products in cfg.grids.to_dict().items():
        for product in products:
            for values in itertools.product(*product.values()):
                changes = dict(zip(product, values, strict=True))
                changes = {p: changes[p] for p in sorted(changes) if changes[p] != base.get(p)}
                grids = found.setdefault(name_of(changes), (changes, []))[1]
                if grid not in grids:
                    grids.append(grid)
    for name, (changes, grids) in found.items():
        if not cfg.only or set(grids) & set(cfg.only):
            yield name, changes, tuple(grids)


def name_of(changes: dict[str, Any]) -> str:
    """What a difference is called: the same whatever else the sweep has; 'base' for none."""
    words = [f'{short(path)}={_word(value)}' for path, value in sorted(changes.items())]
    return ','.join(words) or 'base'


def folder_of(changes: dict[str, Any]) -> str:
    """A folder's name for a difference: its own, or what a file system takes of it and a digest."""
    name = name_of(changes)
    plain = re.sub(r'[^\w.,=+-]', '_', name)
    if plain == name and len(name) <= MAX_NAME:
        return name
    return f'{plain[:MAX_NAME]}~{digest(changes)[:8]}'


def digest(value: Any) -> str:
    """Twelve characters that differ where a plain value differs."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def short(path: str) -> str:
    """'stages.long.mask_rate' -> 'long.mask_rate', 'model.video.patch' -> 'patch'."""
    return re.sub(r'^(stages\.|model\.video\.|model\.)', '', path)


def _word(value: Any) -> str:
    if isinstance(value, tuple | list):
        return '+'.join(map(_word, value)) or 'none'
    text = str(value)
    if isinstance(value, float) and float(f'{value:g}') == value:
        text = f'{value:g}'
    if len(text) > MAX_WORD:
        return f'{text[:5]}..{digest(value)[:4]}'
    return text or 'none'


def chain(cfg, run: Run, difference: dict[str, Any], seed: int) -> tuple[Link, ...]:
    """The runs that teach a cell, a stage each; the last one lies under cells/.

    Stages before `seeds_from` are taught with the first seed.
    """
    links, names = [], [stage.name for stage in run.stages]
    place = names.index(cfg.seeds_from) if cfg.seeds_from in names else 0
    for i, stage in enumerate(run.stages):
        if i < len(names) - 1:
            felt = felt_by(run, i, difference, config.plain_values(cfg.base)['run'])
            name = f'shared/{stage.name}/{folder_of(felt)}'
        else:
            name = f'cells/{folder_of(difference)}'
        own_seed = seed if i >= place else cfg.seeds[0]
        name = f'{name}/seed{own_seed}'
        fields = {
            **vars(without(run, unborn(run, i))),
            'run': (stage.name,),
            'stages': (stage,),
            'seed': own_seed,
            'workdir': str(Path(cfg.workdir) / name),
        }
        if run.compile_cache == 'auto':
            fields['compile_cache'] = str(Path(cfg.workdir) / '.compiled')
        if links:
            fields |= _starts_from(links[-1], run, fields['model'])
        links.append(Link(name, Run(**fields)))
    return tuple(links)


def felt_by(
    run: Run, i: int, difference: dict[str, Any], of_base: tuple[str, ...]
) -> dict[str, Any]:
    """What of a difference the stages up to stage i may be taught otherwise by.

    Not fields of later stages, nor of parts that none so far trains, nor `run` where it has so far
    the stages of the base's, `of_base`.
    """
    names = [stage.name for stage in run.stages]
    later = tuple(f'stages.{name}.' for name in names[i + 1 :])
    unfelt = set(unborn(run, i, ever=True))
    if tuple(names[: i + 1]) == of_base[: i + 1]:
        unfelt.add('run')
    return {
        path: value
        for path, value in difference.items()
        if path not in unfelt and not path.startswith(later)
    }


def unborn(run: Run, i: int, ever: bool = False) -> tuple[str, ...]:
    """Fields of parts that the model of stage i does not have: no stage up to it trains them.

    LoRA is merged at the end of its stage, adapters stay; those that no stage names come from
    `init`. ever: only those of parts that no model up to stage i had; the rank of what was merged
    tells of the weights.
    """
    video = vars(run.model.video)  # not all of these fields in runs of before
    told = [set(vars(stage).get('tune', '').split('+')) for stage in run.stages]
    so_far, all_told = set().union(*told[: i + 1]), set().union(*told)
    lora = so_far if ever else told[i]
    adapters = 'adapters' in so_far or 'adapters' not in all_told
    parts = {'adapter_width': adapters, 'lora_rank': 'lora' in lora}
    return tuple(f'model.video.{x}' for x, there in parts.items() if video.get(x) and not there)


def without(run: Run, absent: tuple[str, ...]) -> Run:
    """The Run with these fields of model.video at 0."""
    zeros = {path.rsplit('.', 1)[-1]: 0 for path in absent}
    video = Run(**{**vars(run.model.video), **zeros})
    return Run(**{**vars(run), 'model': Run(**{**vars(run.model), 'video': video})})


def _starts_from(before: Link, run: Run, model: Run) -> dict[str, Any]:
    """The fields of a run that starts from the link before, with its tokenizer."""
    found = {'init': str(before.path)}
    if weights.split(run.init):  # of which the fields of the model are filled in by now
        found['model'] = Run(**{**vars(model), 'from_init': False})
        found['data'] = Run(**{**vars(run.data), 'tokenizer': str(before.path / 'tokenizer.json')})
    return found
