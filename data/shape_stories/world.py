"""The world of Shape Stories: what can happen, and which story an example tells.

A story is a list of events. An event is one shot of the film: one object that does something
at a place, or two objects that do something together. Nothing is drawn here (`draw.py`) and
nothing is put into words (`captions.py`). Every story is a pure function of
(seed, setting, split, group), so a process can make any part of the data set by itself.
"""

import dataclasses
import functools
import zlib

import numpy as np

# Raised whenever any pixel or word changes: stored with the built files and compared.
VERSION = '1.1.0'
SEED = 2024
SPLITS = ('train', 'test')

COLOURS = ('red', 'orange', 'yellow', 'green', 'cyan', 'blue', 'purple', 'white')
SHAPES = ('circle', 'square', 'triangle', 'star', 'ring', 'cross')

ROWS = ('at the top', 'in the middle', 'at the bottom')
COLUMNS = ('on the left', 'in the middle', 'on the right')
CORNERS = (
    'at the top left',
    'at the top right',
    'at the bottom left',
    'at the bottom right',
    'in the middle',
)
# Column and row of each place, in halves of the free width and height.
PLACES = {
    'at the top': (1, 0),
    'in the middle': (1, 1),
    'at the bottom': (1, 2),
    'on the left': (0, 1),
    'on the right': (2, 1),
    'at the top left': (0, 0),
    'at the top right': (2, 0),
    'at the bottom left': (0, 2),
    'at the bottom right': (2, 2),
}

# What one object does -> the places where it can do so.
MOTIONS = {
    'slides left': ROWS,
    'slides right': ROWS,
    'rises': COLUMNS,
    'falls': COLUMNS,
    'jumps': COLUMNS,
    'grows': CORNERS,
    'shrinks': CORNERS,
    'blinks': CORNERS,
    'turns': CORNERS,
}
ROUND = ('circle', 'ring')  # turning does not show on these
# What two objects do together, by family, so that each family is equally frequent.
MEETINGS = (
    ('follows left', 'follows right'),
    ('circles',),
    ('bumps into',),
    ('hides behind',),
    ('jumps over',),
)
# What a still picture can show: one object anywhere, or two side by side.
STILL = 'stands'
STILL_PAIRS = ('left of', 'right of', 'above', 'below')


@dataclasses.dataclass(frozen=True)
class Setting:
    """One configuration: how long its stories are and how many there are.

    Attributes:
      name: 'image', 'short', 'long' or 'episodes'.
      num_frames: frames of every film.
      fps: frames per second of the files.
      min_events, max_events: events of a story, both included.
      min_event_frames: the shortest event.
      pair_rate: share of events with two objects, 0 to 1.
      pixels: height and width of the films.
      twins: films of one story: 2 = the same shots in two orders, 1 = no twin.
      train, test: number of films of each split; multiples of `twins`.
      opening: events with which all stories begin, the same ones in both splits.
    """

    name: str
    num_frames: int
    fps: int
    min_events: int
    max_events: int
    min_event_frames: int
    pair_rate: float
    train: int
    test: int
    twins: int = 2
    pixels: int = 64
    opening: int = 0

    @property
    def narrated(self) -> bool:
        """Whether a film has a narrative and a summary, not one sentence that tells all."""
        return self.name in ('long', 'episodes')

    def size(self, split: str) -> int:
        """Number of films in a split ('train' or 'test')."""
        return {'train': self.train, 'test': self.test}[split]


SETTINGS = {
    s.name: s
    for s in (
        Setting('image', 1, 1, 1, 1, 1, pair_rate=0.5, train=8000, test=512, twins=1),
        Setting('short', 16, 2, 2, 4, 3, pair_rate=0.25, train=6000, test=512),
        Setting('long', 64, 1, 8, 16, 3, pair_rate=0.25, train=3000, test=512),
        # The opening takes 77 tokens and more to tell: what a text tower of CLIP's length reads.
        Setting(
            'episodes', 64, 1, 12, 16, 3, pair_rate=0.25, train=3000, test=512, twins=1, opening=8
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Thing:
    """An object: a colour of `COLOURS` and a shape of `SHAPES`."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f'{self.colour} {self.shape}'


@dataclasses.dataclass(frozen=True)
class Event:
    """One shot: `thing` does `kind`, at `place` or with `other`.

    Attributes:
      kind: a key of `MOTIONS`, a member of `MEETINGS`, `STILL` or one of `STILL_PAIRS`.
      thing: who does it.
      other: with whom; None for one object alone.
      place: a key of `PLACES`; '' where two objects meet (they use the whole picture).
      frames: how long it lasts.
    """

    kind: str
    thing: Thing
    other: Thing | None
    place: str
    frames: int


@dataclasses.dataclass(frozen=True)
class Story:
    """Events, and the orders in which the story's films show them.

    Attributes:
      events: no object occurs in two of them, so an event is known by its object.
      orders: one per film, each a permutation of range(len(events)). No event has the same
        place in two orders.
    """

    events: tuple[Event, ...]
    orders: tuple[tuple[int, ...], ...]


def example_rng(seed: int, setting: Setting, split: str, group: int, use: str):
    """A generator that depends on nothing but its arguments (`use` names what it is for)."""
    words = (setting.name, split, use)
    return np.random.default_rng([seed, group, *(zlib.crc32(w.encode()) for w in words)])


def make_story(seed: int, setting: Setting, split: str, group: int) -> Story:
    """The story of a group: the events of its films and their orders."""
    rng = example_rng(seed, setting, split, group, 'story')
    count = int(rng.integers(setting.min_events, setting.max_events + 1))
    opening = _opening(seed, setting)
    taken = {thing for event in opening for thing in (event.thing, event.other)}
    things = [thing for thing in _shuffled_things(rng) if thing not in taken]
    frames = _durations(rng, count, setting)
    events = [dataclasses.replace(e, frames=n) for e, n in zip(opening, frames, strict=False)]
    events += [_event(rng, setting, things, n) for n in frames[len(opening) :]]
    orders = [tuple(range(count))]
    if setting.twins == 2:
        orders.append(_derangement(rng, count))
    return Story(tuple(events), tuple(orders))


@functools.cache
def _opening(seed: int, setting: Setting) -> tuple[Event, ...]:
    """What all stories of the setting begin with; without durations."""
    rng = example_rng(seed, setting, '', 0, 'opening')
    things = _shuffled_things(rng)
    return tuple(_event(rng, setting, things, 0) for _ in range(setting.opening))


def _shuffled_things(rng) -> list[Thing]:
    every = [Thing(colour, shape) for colour in COLOURS for shape in SHAPES]
    return [every[i] for i in rng.permutation(len(every))]


def _durations(rng, count: int, setting: Setting) -> list[int]:
    """Random lengths that sum to the film's, each at least the shortest allowed."""
    spare = setting.num_frames - count * setting.min_event_frames
    cuts = np.sort(rng.integers(0, spare + 1, count - 1))
    gaps = np.diff(np.concatenate([[0], cuts, [spare]]))
    return [int(gap) + setting.min_event_frames for gap in gaps]


def _event(rng, setting: Setting, things: list[Thing], frames: int) -> Event:
    """Takes its objects off the end of `things`."""
    thing = things.pop()
    if rng.random() < setting.pair_rate:
        family = STILL_PAIRS if setting.num_frames == 1 else _choice(rng, MEETINGS)
        return Event(_choice(rng, family), thing, things.pop(), '', frames)
    if setting.num_frames == 1:
        return Event(STILL, thing, None, _choice(rng, tuple(PLACES)), frames)
    kinds = [k for k in MOTIONS if not (k == 'turns' and thing.shape in ROUND)]
    kind = _choice(rng, kinds)
    return Event(kind, thing, None, _choice(rng, MOTIONS[kind]), frames)


def _choice(rng, options):
    return options[int(rng.integers(len(options)))]


def _derangement(rng, count: int) -> tuple[int, ...]:
    """A random order that leaves no event in its place (one try in e succeeds)."""
    while True:
        order = rng.permutation(count)
        if (order != np.arange(count)).all():
            return tuple(int(i) for i in order)
