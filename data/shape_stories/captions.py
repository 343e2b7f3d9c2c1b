"""The words of Shape Stories: what a story's films are called.

Words are chosen per event and connectives per position, the same for both films of a pair: the
two captions hold the same words and differ in their order alone, as the films do.
"""

from data.shape_stories import world

# Two to four words each, so that a narrative of 16 events stays below 250 tokens.
VERBS = {
    'slides left': ('slides left', 'moves left', 'glides to the left'),
    'slides right': ('slides right', 'moves right', 'glides to the right'),
    'rises': ('rises up', 'moves up', 'goes up'),
    'falls': ('falls down', 'drops down', 'moves down'),
    'jumps': ('jumps up and down', 'hops up and down', 'bounces up and down'),
    'grows': ('grows larger', 'gets bigger', 'becomes bigger'),
    'shrinks': ('shrinks down', 'gets smaller', 'becomes smaller'),
    'blinks': ('blinks on and off', 'flashes on and off', 'keeps blinking'),
    'turns': ('turns around', 'spins around', 'keeps spinning'),
    'follows left': ('follows', 'chases', 'goes after'),
    'follows right': ('follows', 'chases', 'goes after'),
    'circles': ('circles around', 'goes around', 'runs around'),
    'bumps into': ('bumps into', 'runs into', 'crashes into'),
    'hides behind': ('hides behind', 'slips behind', 'disappears behind'),
    'jumps over': ('jumps over', 'leaps over', 'hops over'),
}
TAILS = {'follows left': ' to the left', 'follows right': ' to the right'}
STILL_WORDS = {
    'left of': 'to the left of',
    'right of': 'to the right of',
    'above': 'above',
    'below': 'below',
}
FIRST = ('first,', 'to begin,', 'at the start,')
NEXT = ('then,', 'next,', 'after that,', 'and then,', 'later,', 'afterwards,')
LAST = ('finally,', 'at last,', 'in the end,')
NUMBERS = (
    *('no', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight'),
    *('nine', 'ten', 'eleven', 'twelve', 'thirteen', 'fourteen', 'fifteen', 'sixteen'),
)


def captions(seed: int, setting: world.Setting, split: str, group: int):
    """Captions of each film of a group.

    Returns:
      A list with a pair (caption, long_caption) per film. `image` and `short`: the caption
      tells every event in order and long_caption is ''. `long` and `episodes`: the caption is a
      one-sentence summary and long_caption the narrative, a sentence per event in order.
    """
    story = world.make_story(seed, setting, split, group)
    rng = world.example_rng(seed, setting, split, group, 'words')
    told = [_tell(event, rng) for event in story.events]
    shuffled = rng.permutation(len(NEXT))  # taken in turn: no connective twice running
    between = [NEXT[shuffled[i % len(NEXT)]] for i in range(len(told) - 2)]
    connectives = [_pick(rng, FIRST), *between, _pick(rng, LAST)]
    films = []
    for order in story.orders:
        sentences = [told[i] for i in order]
        if setting.narrated:
            films.append((_summary(sentences), _narrative(sentences, connectives)))
        else:
            films.append((', then '.join(sentences), ''))
    return films


def _tell(event: world.Event, rng) -> str:
    if event.kind == world.STILL:
        return f'{_a(event.thing)} {event.place}'
    if event.kind in STILL_WORDS:
        return f'{_a(event.thing)} {STILL_WORDS[event.kind]} {_a(event.other)}'
    verb = _pick(rng, VERBS[event.kind])
    if event.other is None:
        return f'{_a(event.thing)} {verb} {event.place}'
    return f'{_a(event.thing)} {verb} {_a(event.other)}{TAILS.get(event.kind, "")}'


def _a(thing: world.Thing) -> str:
    return f'an {thing}' if thing.colour == 'orange' else f'a {thing}'


def _narrative(sentences, connectives) -> str:
    return ' '.join(f'{c} {s}.' for c, s in zip(connectives, sentences, strict=True))


def _summary(sentences) -> str:
    count = NUMBERS[len(sentences)]
    return f'{count} events: it starts when {sentences[0]} and ends when {sentences[-1]}'


def _pick(rng, options):
    return options[int(rng.integers(len(options)))]
