"""The rules of what stages train, on plain nested dicts; see rules.py and tuning.py."""

from collections.abc import Iterator

from long_vivit import tuning
from long_vivit.allowed import Rule, one_of


def sound(tune: str) -> bool:
    """Whether `tuning.parsed` takes it."""
    try:
        tuning.parsed(tune)
    except ValueError:
        return False
    return True


STAGE_RULES = {
    'tune': Rule(sound, tuning.ALLOWED),
    'text_tower': one_of('train', 'frozen'),
}
SIZES = {'adapters': 'adapter_width', 'lora': 'lora_rank'}  # word -> the field that gives its size


def faults(config: dict) -> Iterator[str]:
    """Adapters and LoRA that no stage trains."""
    stages = [config['stages'][name] for name in config['run'] if name in config['stages']]
    named = {word for stage in stages for word in stage['tune'].split('+')}
    for word, field in SIZES.items():
        value = config['model']['video'][field]
        kept = word == 'adapters' and config['init']  # they may come with the start
        if value > 0 and stages and word not in named and not kept:
            yield (
                f'model.video.{field}: {value}, but no stage of run trains it; put {word!r} into '
                "the tune of a stage, such as '"
                f"{word}+stem', or set this to 0."
            )


def stage_faults(config: dict, name: str, depth: int, first: bool) -> Iterator[str]:
    """What a stage trains, against the model and what it starts from."""
    stage, video, path = config['stages'][name], config['model']['video'], f'stages.{name}.'
    last, tune = stage['last_layers'], stage['tune']
    if last > depth > 0:
        yield f'{path}last_layers: {last} of an encoder with {depth} layers.'
    if last > 0 and tune != 'all':
        yield (
            f'{path}last_layers: {last} is short for tune = last:{last}, but {path}tune is '
            f'{tune!r}; set this to 0.'
        )
    if not sound(tune):
        return
    found = tuning.parsed(tune)
    if (found.last or found.first) > depth > 0:
        yield f'{path}tune: {tune!r} of an encoder with {depth} layers.'
    for word, field in SIZES.items():
        if word in found.words and video[field] == 0:
            yield (
                f'{path}tune: {tune!r}, but model.video.{field} = 0: there is nothing to train; '
                f'set it, or leave {word!r} out.'
            )
    if tune == 'none' and stage['text_tower'] == 'frozen':
        yield (
            f"{path}tune: 'none' with {path}text_tower = 'frozen' leaves nothing to teach; train "
            'one of the two towers.'
        )
    if first and not config['init']:
        given = {'last_layers': last, 'tune': tune, 'text_tower': stage['text_tower']}
        usual = {'last_layers': 0, 'tune': 'all', 'text_tower': 'train'}
        for field, value in given.items():
            if value != usual[field]:
                what = 'layers below' if field == 'last_layers' else 'other parameters'
                yield (
                    f'{path}{field}: {value} would leave the {what} as they were drawn; set init '
                    f'to a checkpoint, put a stage before this one, or use {usual[field]!r}.'
                )
