"""What a configuration may hold: the rules behind `config.check`, on plain nested dicts.

configs/base.py states the same beside each field, for people.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from long_vivit import axes, loss_rules
from long_vivit.inputs import patches, samplers, short_text, sources


class Size(NamedTuple):
    """A transformer's shape."""

    width: int
    depth: int
    heads: int


SIZES = {
    'Ti': Size(192, 12, 3),
    'S': Size(384, 12, 6),
    'B': Size(768, 12, 12),
    'L': Size(1024, 24, 16),
}


class Rule(NamedTuple):
    """A test of one value and the words for what passes it."""

    passes: Callable[[Any], bool]
    allowed: str


def at_least(low: int) -> Rule:
    return Rule(lambda x: x >= low, f'at least {low}')


def one_of(*words: str) -> Rule:
    return Rule(lambda x: x in words, 'one of ' + ', '.join(words))


positive = Rule(lambda x: 0 < x < float('inf'), 'greater than 0')
finite = Rule(lambda x: abs(x) < float('inf'), 'a finite number')
share = Rule(lambda x: 0 <= x < 1, '0 or more and less than 1')

RULES = {
    'workdir': Rule(bool, 'the path of a folder'),
    'seed': at_least(0),
    'compile_cache': Rule(bool, "'auto', 'off' or the path of a folder"),
    'max_bad_steps': at_least(1),
    'data.threads': at_least(0),
    'data.time_limit_s': positive,
    'data.max_missing': share,
    'model.video.size': one_of(*SIZES, 'custom'),
    'model.video.patch': at_least(1),
    'model.video.tubelet': at_least(1),
    'model.video.pool': one_of('mean', 'cls'),
    'model.text.width': at_least(1),
    'model.text.depth': at_least(1),
    'model.video.remat': one_of('none', 'dots', 'attention', 'full', 'offload'),
    'model.text.heads': at_least(1),
    'model.text.length': at_least(0),
    'model.text.kind': one_of('bidirectional', 'causal'),
    'model.embed': at_least(1),
    'model.dtype': one_of('float32', 'bfloat16'),
    'model.attention': one_of('auto', 'blockwise', 'dense', 'cudnn', 'splash'),
    'model.sequence': one_of('auto', 'ulysses', 'ring'),
    'loss.kind': one_of('nce', 'sigmoid'),
    'loss.temperature': positive,
    'loss.max_scale': positive,
    'loss.bias': finite,
    'loss.label_smoothing': share,
    'loss.form': one_of('auto', 'dense', 'tiled', 'ring'),
    'loss.tile': at_least(1),
    'loss.short_weight': Rule(lambda x: 0 <= x < float('inf'), '0 or more'),
    'loss.components': at_least(0),
    'loss.basis_gradient': one_of('full', 'stop'),
    'loss.components_scope': one_of('global', 'local'),
    'optim.b1': share,
    'optim.b2': share,
    'optim.eps': positive,
    'optim.weight_decay': Rule(lambda x: 0 <= x < float('inf'), '0 or more'),
    'optim.clip': Rule(lambda x: 0 <= x < float('inf'), '0 (never) or more'),
    'optim.moment_dtype': one_of('float32', 'bfloat16'),
    'optim.ema': share,
    'checkpoint.every': at_least(1),
    'checkpoint.keep': at_least(1),
    'log.every': at_least(1),
    'eval.every': at_least(0),
}
DRAWING = {'rand_seg'}  # samplers that need a random generator: scores would change by themselves
STAGE_RULES = {
    'frames': at_least(1),
    'pixels': at_least(1),
    'sampler': one_of(*samplers.SAMPLERS),
    'eval_sampler': one_of(*(name for name in samplers.SAMPLERS if name not in DRAWING)),
    'fps': positive,
    'mask_kind': one_of('random', 'slice', 'tube', 'frame'),
    'mask_rate': Rule(lambda x: 0 <= x <= patches.MAX_RATE, f'from 0 to {patches.MAX_RATE}'),
    'text': one_of('caption', 'long_caption', 'any'),
    'text_length': at_least(3),
    'short_text': Rule(
        lambda x: x in ('', *short_text.KINDS), "'' (none), " + ' or '.join(short_text.KINDS)
    ),
    'short_length': at_least(3),
    'batch': at_least(2),
    'micro_batch': at_least(0),
    'eval_batch': at_least(1),
    'steps': at_least(1),
    'lr': positive,
    'warmup_steps': at_least(0),
    'image_ratio': share,
    'last_layers': at_least(0),
}


def faults(config: dict, base: dict) -> Iterator[str]:
    """A line for each fault of `config`; `base` holds the fields and types there must be."""
    wrong = list(structure_faults(config, base))
    yield from wrong
    if wrong:  # the rules below take fields and types for granted
        return
    seen = list(value_faults(config, RULES))
    run = [name for name in dict.fromkeys(config['run']) if name in config['stages']]
    for name in run:
        seen += value_faults(config['stages'][name], STAGE_RULES, f'stages.{name}.')
    yield from seen
    bad = {line.split(':')[0] for line in seen}
    yield from run_faults(config)
    yield from shape_faults(config, bad)
    for position, name in enumerate(run):
        yield from stage_faults(config, name, first=position == 0, bad=bad)


def structure_faults(config: dict, base: dict, path: str = '') -> Iterator[str]:
    """Fields too many, too few, or of another type than in configs/base.py."""
    for key in config.keys() - base.keys():
        yield f'{path}{key}: no such field; configs/base.py lists them.'
    for key, model in base.items():
        if key not in config:
            yield f'{path}{key}: is missing; start from base.get_config() or base.stage().'
            continue
        value = config[key]
        if path + key == 'stages':
            for name, stage in value.items():
                yield from structure_faults(stage, model['short'], f'stages.{name}.')
        elif isinstance(model, dict) and isinstance(value, dict):
            yield from structure_faults(value, model, f'{path}{key}.')
        elif type(value) is not type(model):
            given, wanted = type(value).__name__, type(model).__name__
            yield f'{path}{key}: {value!r} is of type {given}; it must be {wanted}.'


def value_faults(section: dict, table: dict[str, Rule], path: str = '') -> Iterator[str]:
    """Values that by themselves are not allowed."""
    for name, rule in table.items():
        value = section
        for key in name.split('.'):
            value = value[key]
        if not rule.passes(value):
            yield f'{path}{name}: {value!r} is not allowed; it must be {rule.allowed}.'


def run_faults(config: dict) -> Iterator[str]:
    """Stages, axes of the mesh and places on disk that do not exist."""
    run, stages = config['run'], config['stages']
    if not run:
        yield f'run: names no stage; it must name some of {", ".join(stages)}.'
    for name in run:
        if name not in stages:
            yield f'run: {name!r} is no stage; it must be one of {", ".join(stages)}.'
    for name in {name for name in run if run.count(name) > 1}:
        yield f'run: {name!r} appears twice; each stage is taught once.'
    try:
        axes.parse(config['mesh'])
    except ValueError as error:
        yield f'mesh: {error}'
    for path in ('init', 'data.tokenizer'):
        section, key = (config['data'], 'tokenizer') if '.' in path else (config, path)
        if section[key] and '://' not in section[key] and not os.path.exists(section[key]):
            yield f"{path}: {section[key]!r} does not exist; it must be a path or ''."
    yield from loss_rules.faults(config)


def shape_faults(config: dict, bad: set[str]) -> Iterator[str]:
    """Widths, depths and heads of the encoders."""
    video, text = config['model']['video'], config['model']['text']
    size = SIZES.get(video['size'])
    for field in Size._fields:
        value = video[field]
        if size and value not in (0, getattr(size, field)):
            yield (
                f'model.video.{field}: {value} contradicts size {video["size"]!r}, which has '
                f"{getattr(size, field)}; set it to 0, or the size to 'custom'."
            )
        elif video['size'] == 'custom' and value < 1:
            yield f"model.video.{field}: {value} with size 'custom'; it must be at least 1."
    attention = config['model']['attention']
    if config['model']['sequence'] == 'ring' and attention not in ('auto', 'blockwise'):
        yield (
            f"model.sequence: 'ring' computes in blocks of its own, not as model.attention = "
            f"{attention!r} says; set that to 'blockwise', or this to 'auto'."
        )
    for name, tower in (('video', video), ('text', text)):
        if tower['heads'] > 0 and tower['width'] % tower['heads']:
            yield (
                f'model.{name}.width: {tower["width"]} is not divisible by '
                f'model.{name}.heads = {tower["heads"]}.'
            )


def stage_faults(config: dict, name: str, first: bool, bad: set[str]) -> Iterator[str]:
    """Fields of one stage that do not fit each other, the model or the data."""
    stage, video, path = config['stages'][name], config['model']['video'], f'stages.{name}.'
    yield from data_faults(config, name)
    if stage['warmup_steps'] >= stage['steps'] > 0:
        yield (
            f'{path}warmup_steps: {stage["warmup_steps"]} must be less than '
            f'{path}steps = {stage["steps"]}.'
        )
    if stage['micro_batch'] > 0 and stage['batch'] % stage['micro_batch']:
        yield (
            f'{path}micro_batch: {stage["micro_batch"]} does not divide {path}batch = '
            f'{stage["batch"]}; use a divisor of it, or 0 for the whole batch at once.'
        )
    depth = SIZES[video['size']].depth if video['size'] in SIZES else video['depth']
    if stage['last_layers'] > depth > 0:
        yield f'{path}last_layers: {stage["last_layers"]} of an encoder with {depth} layers.'
    if stage['last_layers'] > 0 and first and not config['init']:
        yield (
            f'{path}last_layers: {stage["last_layers"]} would leave the layers below as they were '
            'drawn; set init to a checkpoint, put a stage before this one, or use 0.'
        )
    rows = config['model']['text']['length']
    if 0 < rows < stage['text_length']:
        yield (
            f'{path}text_length: {stage["text_length"]} is more than model.text.length = {rows}, '
            'the rows of the position table.'
        )
    yield from loss_rules.stage_faults(config, name)
    yield from token_faults(stage, video, path, bad)


def token_faults(stage: dict, video: dict, path: str, bad: set[str]) -> Iterator[str]:
    """Frames and pixels that do not divide, and masks that leave nothing."""
    sides = not bad & {f'{path}pixels', 'model.video.patch'}
    times = not bad & {f'{path}frames', 'model.video.tubelet'}
    if sides and stage['pixels'] % video['patch']:
        sides = False
        yield (
            f'{path}pixels: {stage["pixels"]} is not divisible by '
            f'model.video.patch = {video["patch"]}.'
        )
    if times and stage['frames'] > 1 and stage['frames'] % video['tubelet']:
        times = False
        yield (
            f'{path}frames: {stage["frames"]} is not divisible by '
            f'model.video.tubelet = {video["tubelet"]}; use 1 for images.'
        )
    if not (sides and times) or bad & {f'{path}mask_rate', f'{path}mask_kind'}:
        return
    slices = max(1, stage['frames'] // video['tubelet'])
    places = (stage['pixels'] // video['patch']) ** 2
    units = {'random': slices * places, 'slice': places, 'tube': places, 'frame': slices}
    count = units[stage['mask_kind']]
    if count * (1 - stage['mask_rate']) < 1 - 1e-9:
        what = 'slices' if stage['mask_kind'] == 'frame' else 'patches'
        yield (
            f'{path}mask_rate: {stage["mask_rate"]} of {count} {what} leaves less than one; '
            f'it must be at most {1 - 1 / count:.4g} with mask_kind {stage["mask_kind"]!r}.'
        )


def data_faults(config: dict, name: str) -> Iterator[str]:
    """Data specs that are missing, malformed or contradict each other."""
    stage, data, path = config['stages'][name], config['data'], f'stages.{name}.'
    if not (stage['train'] or data['train']):
        yield (
            f'{path}train: names no data; set it, or data.train for all stages, to a data spec '
            "such as 'videos:PATH.jsonl'."
        )
    specs = {f'{path}{key}': stage[key] for key in ('train', 'eval', 'image_train')}
    if name == config['run'][0]:  # said once, not for each stage
        specs |= {f'data.{key}': data[key] for key in ('train', 'eval')}
    for field, spec in specs.items():
        try:
            sources.parse_spec(spec or 'videos:unset.jsonl')
        except ValueError as error:
            yield f'{field}: {error}'
    if bool(stage['image_train']) != (stage['image_ratio'] > 0):
        yield (
            f'{path}image_ratio: {stage["image_ratio"]} with {path}image_train '
            f'{stage["image_train"]!r}; to mix images in, set both; to leave them out, set neither.'
        )
    if stage['image_ratio'] > 0 and stage['frames'] == 1:
        yield f'{path}image_ratio: {stage["image_ratio"]} in a stage of images; it must be 0.'
