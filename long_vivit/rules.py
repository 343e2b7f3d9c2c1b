"""What a configuration may hold: the rules behind `config.check`, on plain nested dicts.

configs/base.py states the same beside each field, for people.
"""

import os
from collections.abc import Iterator

from long_vivit import axes, input_rules, loss_rules, tuning_rules, weights
from long_vivit.allowed import Rule, at_least, finite, one_of, positive, share
from long_vivit.inputs import patches, samplers, short_text, sources
from long_vivit.model_rules import MODEL_RULES, SIZES, backbone_mask_faults, model_faults

RULES = MODEL_RULES | {
    'workdir': Rule(bool, 'the path of a folder'),
    'seed': at_least(0),
    'compile_cache': Rule(bool, "'auto', 'off' or the path of a folder"),
    'max_bad_steps': at_least(1),
    'data.threads': at_least(0),
    'data.scaling': one_of('bilinear', 'bicubic'),
    'data.time_limit_s': positive,
    'data.max_missing': share,
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
    'optim.video_lr': positive,
    'optim.text_lr': positive,
    'optim.layer_decay': Rule(lambda x: 0 < x <= 1, 'greater than 0 and at most 1'),
    'optim.ema': share,
    'checkpoint.every': at_least(1),
    'checkpoint.keep': at_least(1),
    'log.every': at_least(1),
    'eval.every': at_least(0),
    'eval.images_text': one_of('caption', 'long_caption', 'any'),
}
MASK_FIELDS = ('frames', 'tubelet', 'mask_kind', 'mask_rate', 'image_ratio')  # of a stage
DRAWING = {'rand_seg'}  # samplers that need a random generator: scores would change by themselves
STAGE_RULES = {
    'frames': at_least(1),
    'pixels': at_least(1),
    'sampler': one_of(*samplers.SAMPLERS),
    'eval_sampler': one_of(*(name for name in samplers.SAMPLERS if name not in DRAWING)),
    'fps': positive,
    'patch': at_least(0),
    'tubelet': at_least(0),
    'token_budget': at_least(0),
    'mask_kind': one_of(*patches.KINDS, patches.MOTION),
    'motion_uniform': Rule(lambda x: 0 <= x <= 1, 'from 0 to 1'),
    'mask_rate': Rule(lambda x: 0 <= x <= patches.MAX_RATE, f'from 0 to {patches.MAX_RATE}'),
    'unmasked_tail': share,
    'text': one_of('caption', 'long_caption', 'any'),
    'text_length': at_least(3),
    'text_buckets': Rule(
        lambda x: all(type(n) is int and n >= 3 for n in x), 'whole numbers of at least 3, or ()'
    ),
    'sentences': one_of('all', 'sample'),
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
} | tuning_rules.STAGE_RULES


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
    yield from model_faults(config)
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
    family, init = weights.split(config['init']) or ('', config['init'])
    if family and not init:
        yield f'init: {config["init"]!r} names no path; it must be {family}:PATH.'
    for field, path in (('init', init), ('data.tokenizer', config['data']['tokenizer'])):
        if path and '://' not in path and not os.path.exists(path):
            what = 'a path'
            if field == 'init' and ':' in path:
                what += f', FAMILY:PATH (FAMILY one of {", ".join(weights.FAMILIES)})'
            yield f"{field}: {path!r} does not exist; it must be {what} or ''."
    yield from loss_rules.faults(config)
    yield from tuning_rules.faults(config)


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
    yield from tuning_rules.stage_faults(config, name, depth, first)
    rows = config['model']['text']['length']
    if 0 < rows < stage['text_length']:
        yield (
            f'{path}text_length: {stage["text_length"]} is more than model.text.length = {rows}, '
            'the rows of the position table.'
        )
    elif config['model']['text']['kind'] == 'padded' and rows > stage['text_length']:
        yield (
            f'{path}text_length: {stage["text_length"]} is less than model.text.length = {rows}, '
            "but model.text.kind 'padded' reads every place; make them equal."
        )
    if config['model']['text']['kind'] == 'padded' and stage['text_buckets']:
        yield (
            f"{path}text_buckets: {stage['text_buckets']}, but model.text.kind 'padded' reads each "
            'place of every text; set it to ().'
        )
    yield from loss_rules.stage_faults(config, name)
    yield from input_rules.faults(stage, video, path, bad)
    needs = {f'{path}{field}' for field in MASK_FIELDS}
    if not bad & (needs | {'model.video.backbone', 'model.video.tubelet'}):
        yield from backbone_mask_faults(config, name)


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
        specs['eval.images'] = config['eval']['images']
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
