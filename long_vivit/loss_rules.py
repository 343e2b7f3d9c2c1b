"""The rules of the loss and of its second branch, on plain nested dicts; see rules.py."""

from collections.abc import Iterator


def faults(config: dict) -> Iterator[str]:
    """Fields of the loss that do not fit each other, the model or the stages."""
    loss = config['loss']
    if loss['temperature'] > 0 and 0 < loss['max_scale'] < 1 / loss['temperature']:
        yield (
            f'loss.max_scale: {loss["max_scale"]} is below the first scale 1 / loss.temperature = '
            f'{1 / loss["temperature"]:.4g}; raise one of the two.'
        )
    if loss['kind'] == 'sigmoid' and loss['label_smoothing'] > 0:
        yield (
            f'loss.label_smoothing: {loss["label_smoothing"]} is of loss.kind nce only; set it to '
            '0 with sigmoid.'
        )
    if loss['components'] >= config['model']['embed'] > 0:
        yield (
            f'loss.components: {loss["components"]} of features that have model.embed = '
            f'{config["model"]["embed"]}: all are kept, and short texts would see the whole video; '
            'use less, or 0.'
        )
    if loss['components'] > 0 and not loss['short_weight'] > 0:
        yield (
            f'loss.components: {loss["components"]} without short texts to compare with them; set '
            'loss.short_weight and the short_text of stages, or this to 0.'
        )
    stages = [config['stages'][name] for name in config['run'] if name in config['stages']]
    if loss['short_weight'] > 0 and stages and not any(stage['short_text'] for stage in stages):
        yield (
            f'loss.short_weight: {loss["short_weight"]}, but no stage of run has a short_text; set '
            "that of a stage to 'caption' or 'first_sentence', or this to 0."
        )


def stage_faults(config: dict, name: str) -> Iterator[str]:
    """Fields of a stage's second text that do not fit the others."""
    stage, path = config['stages'][name], f'stages.{name}.'
    if not stage['short_text']:
        return
    if not config['loss']['short_weight'] > 0:
        yield (
            f'{path}short_text: {stage["short_text"]!r} would be read for nothing with '
            "loss.short_weight = 0; set both, or this to ''."
        )
    if stage['text'] == stage['short_text'] == 'caption':
        yield (
            f"{path}short_text: 'caption', as {path}text is: both branches would read the same; "
            "use 'first_sentence', or the text 'long_caption' or 'any'."
        )
    rows = config['model']['text']['length'] or stage['text_length']
    if 0 < rows < stage['short_length']:
        table = 'model.text.length' if config['model']['text']['length'] else f'{path}text_length'
        yield (
            f'{path}short_length: {stage["short_length"]} is more than {table} = {rows}, the rows '
            'of the position table.'
        )
