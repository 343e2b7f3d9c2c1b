"""The rules of a sweep's configuration, on its own fields; each cell is checked as a run is."""

from collections.abc import Iterator
from typing import Any

from long_vivit import config, rules
from long_vivit.allowed import Rule, at_least, one_of, positive, share
from long_vivit.config import Run

OWN = {'seed': 'name them in seeds', 'workdir': "each cell has a folder in the sweep's own workdir"}
MEMORY_RULES = {
    'pixels': at_least(1),
    'patch': at_least(1),
    'tubelet': at_least(1),
    'layers': at_least(1),
    'text_length': at_least(3),
    'batch': at_least(1),
    'dtype': one_of('float32', 'bfloat16'),
    'limit_gb': positive,
    **{
        f'language.{field}': at_least(1)
        for field in ('width', 'depth', 'heads', 'latents', 'resampler_depth')
    },
}
MEMORY_LISTS = {
    'sizes': one_of('B', 'L'),
    'frames': Rule(lambda x: type(x) is int and x >= 2, 'a whole number of at least 2'),
    'remats': one_of('none', 'dots', 'attention', 'full'),
    'rates': share,
}


def own_faults(cfg) -> Iterator[str]:
    """Faults of the sweep's own fields."""
    from configs import sweep  # late, as config.py does: to read what is stored must not need it

    given, wanted = cfg.to_dict(), sweep.fields().to_dict()
    wrong = [f'{name}: is missing' for name in ('base', 'grids') if name not in given]
    plain = [{k: v for k, v in d.items() if k not in ('base', 'grids')} for d in (given, wanted)]
    wrong += rules.structure_faults(*plain)
    yield from wrong
    if wrong:
        return
    seeds, grids, run = cfg.seeds, given['grids'], config.plain_values(cfg.base)['run']
    if not seeds or len(set(seeds)) < len(seeds) or not all(_whole(seed, 0) for seed in seeds):
        yield f'seeds: {seeds!r}; it must be whole numbers of at least 0, each once, such as (0, 1)'
    if cfg.seeds_from and cfg.seeds_from not in run:
        yield f"seeds_from: {cfg.seeds_from!r}; it must be '' or a stage: {', '.join(run)}"
    for name in cfg.only:
        if name not in grids:
            yield f'only: {name!r} is no grid; it must be some of {", ".join(grids) or "(none)"}'
    if not grids:
        yield 'grids: there is none; it must name at least one'
    for name, products in grids.items():
        yield from grid_faults(f'grids.{name}', products)
    memory = given['memory']
    yield from rules.value_faults(memory, MEMORY_RULES, 'memory.')
    width, heads = (memory['language'][field] for field in ('width', 'heads'))
    if heads > 0 and width % heads:
        yield f'memory.language.width: {width} is not divisible by memory.language.heads = {heads}.'
    for field, rule in MEMORY_LISTS.items():
        if bad := [value for value in memory[field] if not rule.passes(value)]:
            yield f'memory.{field}: {bad[0]!r} is not allowed; each must be {rule.allowed}'


def grid_faults(path: str, products) -> Iterator[str]:
    """Products that are not {field: values}."""
    if not isinstance(products, tuple) or not all(isinstance(one, dict) for one in products):
        yield f'{path}: it must be a tuple of dicts, each {{field: (value, ...)}}'
        return
    for field, values in (item for product in products for item in product.items()):
        if not isinstance(values, tuple) or not values:
            yield f'{path}: {field}: {values!r}; it must be a tuple of values, such as (0.5, 0.75)'
        elif field in OWN:
            yield f'{path}: {field}: no axis; {OWN[field]}'


def scoring_faults(run: Run) -> Iterator[str]:
    """A last stage that is not scored: a row is its scores."""
    last = run.stages[-1]
    if not last.eval:
        yield (
            f'stages.{last.name}.eval: names no test set, and a row is the scores of the last '
            'stage; set it, or data.eval for all stages, to a data spec'
        )


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and value >= least
