"""What of a model a stage trains, by the fields `tune` and `text_tower` of the stage.

`tune` is about the video encoder: one of all, none, last:K and first:K, or some of the other words
with + between; trained is what they name.

    all        everything
    none       nothing: the tower is locked, texts learn to meet it (LiT, arXiv 2111.07991)
    adapters   the adapters behind each layer's MLP             (models/adapters.py)
    lora       the low-rank pairs beside the weights            (models/lora.py)
    temporal   attention over time: names with a part `temporal`, and layers over whole slices,
               `over_time`
    stem       what videos have and images lack: the embedding of tubelets and the positions that
               know of time; without tubelets the embedding of patches stands for the former
    head       what follows the layers: last norm, pooling, projection
    last:K     the last K layers and what follows them
    first:K    the first K layers and what comes before them

LongViViT (arXiv 2312.07395, section 6.1) trains the new 3D patch convolution together with the
adapters, the pairs or the temporal attention: adapters+stem, lora+stem, temporal+stem. That it
leaves the positions, the projection, the temperature and the text encoder alone, or trains them, it
does not say. Here the positions of time go with the stem, since they are as new; the text encoder
is trained unless `text_tower` is 'frozen'; the temperature and the bias of the loss always are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# Of the video encoder's layers, stacked; and all that comes before them.
BLOCKS = r'video/trunk/blocks/.*'
BELOW = r'video/(image_embed|tubelet_embed|tubes|positions|cls|norm_input)(/.*)?'
NAMES = {  # of the whole name
    'adapters': r'video/(.*/)?adapter/.*',
    'lora': r'video/(.*/)?(\w+_)?lora/.*',
    'temporal': r'video/((.*/)?temporal|over_time)(/.*)?',
    'stem': r'video/((tubelet_embed|tubes)/.*|positions/(time|joint))',
    'head': r'video/(trunk/norm|map|head)/.*',
}
TUBES = r'video/(tubelet_embed|tubes)/'
PATCH_STEM = r'video/image_embed/.*'  # stands for the stem where there are no tubelets
HINTS = {
    'adapters': 'set model.video.adapter_width',
    'lora': 'set model.video.lora_rank',
    'temporal': 'only encoders with attention over time have it',
}
ALONE = ('all', 'none')
ALLOWED = f'one of {", ".join(ALONE)}, last:K, first:K, or some of {", ".join(NAMES)} joined by +'
LAYERS = re.compile(r'(last|first):([1-9]\d*)')


class Tuning(NamedTuple):
    """What is trained, in words that `parsed` has read."""

    words: tuple[str, ...] = ('all',)  # of NAMES, or one of ALONE, or none with last or first
    last: int = 0  # layers of last:K
    first: int = 0  # layers of first:K
    text: bool = True  # the text encoder

    def cuts(self, depth: int) -> dict[str, int]:
        """The first and the last blocks that get no gradient, as `Trunk` takes them."""
        return {
            'num_frozen': depth - self.last if self.last else 0,
            'num_still': depth - self.first if self.first else 0,
        }

    def layers(self, depth: int, over_time: bool = False) -> dict:
        """Of how many layers what is trained, as `flops.Tower` takes it.

        over_time: what `temporal` names lies above these layers, not in them.
        """
        trained = depth if self.words == ('all',) else self.last or self.first
        within = self._replace(
            words=tuple(set(self.words) - {'temporal'} if over_time else self.words)
        )
        passed = self.last if self.last else depth if within.within() else 0
        named = tuple(word for word in within.words if word in ('adapters', 'lora', 'temporal'))
        return {'num_trained': trained, 'num_passed': passed, 'named': named}

    def outside(self) -> dict[str, bool]:
        """What is trained outside the layers, as `flops.Trains` takes it."""
        every = self.words == ('all',)
        return {
            'stem': every or self.first > 0 or 'stem' in self.words,
            'head': every or self.last > 0 or 'head' in self.words,
            'above': every or self.last > 0 or 'temporal' in self.words,
            'text': self.text,
        }

    def within(self) -> bool:
        """Whether anything in the layers of the video encoder, or before them, is trained."""
        return bool(self.last or self.first or set(self.words) - {'none', 'head'})


ALL = Tuning()


def parsed(tune: str, text_tower: str = 'train') -> Tuning:
    """The Tuning that these two fields stand for. Raises ValueError for what is not allowed."""
    words, layers = tuple(tune.split('+')), LAYERS.fullmatch(tune)
    several = len(set(words)) == len(words) and all(word in NAMES for word in words)
    if not (layers or tune in ALONE or several):
        raise ValueError(f'tune: {tune!r} is not allowed; it must be {ALLOWED}')
    if text_tower not in ('train', 'frozen'):
        raise ValueError(f'text_tower: {text_tower!r} is not allowed; it must be train or frozen')
    text = text_tower == 'train'
    if layers:
        return Tuning((), text=text, **{layers[1]: int(layers[2])})
    return Tuning(words, text=text)


def of(stage) -> Tuning:
    """The Tuning of a resolved stage; runs of before had `last_layers` alone."""
    fields = vars(stage)
    last_layers = fields.get('last_layers', 0)
    last = f'last:{last_layers}' if last_layers else 'all'
    tune = last if fields.get('tune', 'all') == 'all' else stage.tune
    return parsed(tune, fields.get('text_tower', 'train'))


def parts(run, stage) -> dict[str, int]:
    """{field: value} of what the stage's video encoder has besides: adapter_width, lora_rank.

    Adapters are there from the first stage on that names them, and where no stage of the run does,
    in all (they then come from `init`). LoRA is a way of training: a stage has it that names it,
    and the next one starts from the merged weights.
    """
    video, words = vars(run.model.video), set(of(stage).words)
    named = [one.name for one in run.stages if 'adapters' in of(one).words]
    names = [one.name for one in run.stages]
    begun = not named or names.index(stage.name) >= names.index(named[0])
    found = {
        'adapter_width': video.get('adapter_width', 0) if begun else 0,
        'lora_rank': video.get('lora_rank', 0) if 'lora' in words else 0,
    }
    return {field: value for field, value in found.items() if value}


def sized(run, **sizes):
    """The Run with other adapter_width or lora_rank of model.video."""
    video = type(run)(**(vars(run.model.video) | sizes))
    model = type(run)(**(vars(run.model) | {'video': video}))
    return type(run)(**(vars(run) | {'model': model}))


def in_words(stage, num_trained: int, num_all: int) -> str:
    """What a stage trains that leaves some parameters as they are, for people."""
    tuning = of(stage)
    video = '+'.join(tuning.words)
    if tuning.last or tuning.first:
        video = f'the last {tuning.last}' if tuning.last else f'the first {tuning.first}'
        video += ' layers'
    text = 'trained' if tuning.text else 'frozen'
    return (
        f'trains {num_trained:,} of {num_all:,} parameters ({num_trained / num_all:.2%}): of the '
        f'video encoder {video}; the text encoder is {text}'
    )


def faults_of(tuning: Tuning, names: Iterable[str], depth: int) -> list[str]:
    """Words that name nothing among the parameters, layers that there are not."""
    names = list(names)
    found = [
        f'tune: {word!r} names no parameter of this model; {HINTS.get(word, "leave it out")}'
        for word in tuning.words
        if word in NAMES and not any(re.fullmatch(regex(word, names), name) for name in names)
    ]
    layers = tuning.last or tuning.first
    if layers > depth:
        word = 'last' if tuning.last else 'first'
        found.append(f'tune: {word}:{layers} of an encoder with {depth} layers')
    return found


def regex(word: str, names: Iterable[str]) -> str:
    """That of NAMES, for a model with these parameters."""
    if word == 'stem' and not any(re.match(TUBES, name) for name in names):
        return f'{NAMES[word]}|{PATCH_STEM}'
    return NAMES[word]


def rows(tuning: Tuning, names: Iterable[str], depth: int) -> dict[str, tuple[int, int] | None]:
    """{name: (slices of its leading dim that stay: so many first, so many last)}; None: all stay.

    (0, 0) is trained whole; only stacked layers can be trained in part.
    """
    names = list(names)
    regexes = [regex(word, names) for word in tuning.words if word in NAMES]
    found = {}
    for name in names:
        named = any(re.fullmatch(one, name) for one in regexes)
        if name.startswith('text/'):
            found[name] = (0, 0) if tuning.text else None
        elif named or tuning.words == ('all',) or not name.startswith('video/'):
            found[name] = (0, 0)
        elif re.fullmatch(BLOCKS, name) and (tuning.last or tuning.first):
            stay = (depth - tuning.last, 0) if tuning.last else (0, depth - tuning.first)
            found[name] = stay
        elif re.fullmatch(BELOW, name):
            found[name] = (0, 0) if tuning.first else None
        else:
            found[name] = (0, 0) if tuning.last else None
    return found
