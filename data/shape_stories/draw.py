"""Draws the shots of Shape Stories with numpy: objects over a moving, muted, noisy background.

A shot depends on its event and its own random numbers alone, never on its place in the film.
The background, the noise and the camera's drift are not told in any caption.
"""

import functools
import math

import numpy as np

from data.shape_stories import shapes, world

RGB = {
    'red': (232, 36, 36),
    'orange': (255, 145, 0),
    'yellow': (252, 238, 30),
    'green': (24, 180, 50),
    'cyan': (40, 225, 235),
    'blue': (30, 60, 245),
    'purple': (175, 40, 215),
    'white': (252, 252, 252),
}
EDGE = np.float32(16)
# Lengths below are in pixels of a 64-pixel picture and are scaled to the setting's.
RADIUS, RADIUS_OF_TWO = 12.0, 10.0
FREE = 15.0  # how far from the border the centre of an object stands at 'top', 'left', ...
SWEEP = 22.0  # how far from the middle a slide starts and ends
GRID = 9  # random colours across the background
DRIFT = 3.0
NOISE = 4


def draw_story(seed: int, setting: world.Setting, split: str, group: int):
    """The shots of a group, in the order of its story's events.

    Returns:
      A list of uint8 arrays [frames of the event, pixels, pixels, 3], RGB.
    """
    story = world.make_story(seed, setting, split, group)
    rng = world.example_rng(seed, setting, split, group, 'pixels')
    return [draw_shot(event, setting.pixels, rng) for event in story.events]


def draw_shot(event: world.Event, pixels: int, rng) -> np.ndarray:
    """uint8 [event.frames, pixels, pixels, 3] of one event."""
    num_frames = event.frames
    drift = _drift(rng, num_frames, DRIFT * pixels / 64)
    picture = _background(rng, num_frames, pixels, drift)
    grid = np.arange(pixels, dtype=np.float32) + 0.5
    for thing, x, y, radius, angle in _actors(event, pixels, rng):
        # [t, h, w]: from the object's centre, in the object's own frame.
        dx = grid[None, None, :] - _over_frames(x + drift[:, 0])
        dy = grid[None, :, None] - _over_frames(y + drift[:, 1])
        if np.any(angle):
            c, s = _over_frames(np.cos(angle)), _over_frames(np.sin(angle))
            dx, dy = c * dx + s * dy, c * dy - s * dx
        outside = shapes.SHAPES[thing.shape](dx, dy, _over_frames(radius))
        cover = np.clip(0.5 - outside, 0, 1)
        fill = cover * np.clip(-1.0 - outside, 0, 1)  # the rest of `cover` is the dark edge
        keep, edge = 1 - cover, cover * EDGE
        for channel, value in zip(picture, RGB[thing.colour], strict=True):
            channel *= keep
            channel += edge
            channel += fill * np.float32(value - EDGE)
    noise = rng.integers(-NOISE, NOISE + 1, picture.shape[1:], dtype=np.int8)
    picture += noise
    return np.clip(picture, 0, 255).astype(np.uint8).transpose(1, 2, 3, 0).copy()


def _over_frames(values: np.ndarray) -> np.ndarray:
    """[t] to float32 [t, 1, 1]."""
    return values.astype(np.float32)[:, None, None]


def _drift(rng, num_frames: int, reach: float) -> np.ndarray:
    """[t, 2] pixels: a slow sway of the camera."""
    time = np.arange(num_frames)[:, None]
    speed = rng.uniform(0.25, 0.7, (1, 2))
    phase = rng.uniform(0, 2 * math.pi, (1, 2))
    return reach * np.sin(speed * time + phase)


def _background(rng, num_frames: int, pixels: int, drift: np.ndarray) -> np.ndarray:
    """float32 [3, t, h, w]: a smooth random texture that changes in time and drifts."""
    base = rng.uniform(75, 150) + rng.uniform(-14, 14, 3)
    light = rng.uniform(-1, 1, (2, GRID, GRID, 1))
    tint = rng.uniform(-1, 1, (2, GRID, GRID, 3))
    textures = light * rng.uniform(15, 38) + tint * 13
    time = rng.uniform(0, 2 * math.pi) + rng.uniform(0.15, 0.5) * np.arange(num_frames)
    mix = np.stack([np.cos(time), np.sin(time)], axis=1)
    colours = np.einsum('ta,ayxc->ctyx', mix, textures) + base[:, None, None, None]
    across = _tents(pixels, drift[:, 0])  # [t, pixels, GRID]
    down = _tents(pixels, drift[:, 1])
    return down @ (colours.astype(np.float32) @ across.transpose(0, 2, 1))


def _tents(pixels: int, shift: np.ndarray) -> np.ndarray:
    """float32 [t, pixels, GRID]: linear interpolation weights of a drifting line of colours."""
    margin = 1.3 * DRIFT / 64
    place = (np.arange(pixels) + 0.5 - shift[:, None]) / pixels  # about 0 to 1
    place = (place + margin) / (1 + 2 * margin) * (GRID - 1)
    weights = 1 - np.abs(place[..., None] - np.arange(GRID))
    return np.maximum(weights, 0).astype(np.float32)


def _actors(event: world.Event, pixels: int, rng):
    """Where things are: (thing, x, y, radius, angle), far things first, arrays over frames."""
    scale = pixels / 64
    if event.other is not None:
        actors = MEETINGS[event.kind](event, rng, *_unit(event.frames))
        base = RADIUS_OF_TWO
    else:
        actors = [(event.thing, *_motion(event, rng, *_unit(event.frames)))]
        base = RADIUS
    size = base * rng.uniform(0.92, 1.08)
    shift_x, shift_y = rng.uniform(-1.5, 1.5, 2)
    for thing, x, y, radius, angle in actors:
        zeros = np.zeros(event.frames)
        yield (
            thing,
            scale * (32 + shift_x + x + zeros),
            scale * (32 + shift_y + y + zeros),
            scale * size * (radius + zeros),
            angle + zeros,
        )


def _unit(num_frames: int):
    """Frame numbers [t] and times from 0 at the first frame to 1 at the last, [t]."""
    number = np.arange(num_frames)
    return number, number / max(num_frames - 1, 1)


def _motion(event: world.Event, rng, number, u):
    """One object: x, y from the middle of the picture, radius as a factor, angle in radians."""
    column, row = world.PLACES[event.place]
    x, y = (column - 1) * (32 - FREE), (row - 1) * (32 - FREE)
    radius, angle = 1.0, 0.0
    sweep = SWEEP * (2 * u - 1)
    match event.kind:
        case 'slides left':
            x = -sweep
        case 'slides right':
            x = sweep
        case 'rises':
            y = -sweep
        case 'falls':
            y = sweep
        case 'jumps':
            hops = max(1, round(len(number) / 5))
            y = 16 - 34 * np.abs(np.sin(math.pi * hops * u))
        case 'grows':
            radius = 0.5 + 0.8 * u
        case 'shrinks':
            radius = 1.3 - 0.8 * u
        case 'blinks':
            half = 1 if len(number) < 6 else 2
            radius = np.where(number // half % 2 == 0, 1.0, -1.0)
        case 'turns':
            angle = number * rng.choice((-1, 1)) * math.radians(24)
        case world.STILL:
            pass
        case _:
            raise ValueError(f'no motion for kind {event.kind!r}')
    return x, y, radius, angle


def _follows(direction, event, rng, number, u):
    # Sizes leave both objects in the picture for most of the way.
    middle = direction * 16 * (2 * u - 1)
    height = rng.uniform(-14, 14)
    ahead, behind = middle + direction * 12, middle - direction * 12
    return [(event.other, ahead, height, 0.95, 0.0), (event.thing, behind, height, 0.95, 0.0)]


def _circles(event, rng, number, u):
    turn = rng.choice((-1, 1)) * 2 * math.pi * max(1, len(number) / 9) * u * 0.9
    angle = rng.uniform(0, 2 * math.pi) + turn
    return [
        (event.other, 0.0, 0.0, 0.9, 0.0),
        (event.thing, 21 * np.cos(angle), 21 * np.sin(angle), 0.85, 0.0),
    ]


def _bumps(event, rng, number, u):
    side = rng.choice((-1, 1))
    height = rng.uniform(-12, 12)
    runner = np.minimum(-24 + 52 * u, -12 + 10 * np.maximum(u - 0.5, 0))
    pushed = 8 + 26 * np.maximum(u - 0.4, 0)
    return [
        (event.other, side * pushed, height, 0.95, 0.0),
        (event.thing, side * runner, height, 0.95, 0.0),
    ]


def _hides(event, rng, number, u):
    side = rng.choice((-1, 1))
    height = rng.uniform(-10, 10)
    runner = side * 24 * np.maximum(1 - 1.25 * u, 0)
    return [
        (event.thing, runner - 6 * side, height, 0.8, 0.0),
        (event.other, -6.0 * side, height, 1.45, 0.0),
    ]


def _jumps_over(event, rng, number, u):
    side = rng.choice((-1, 1))
    return [
        (event.other, 0.0, 15.0, 0.95, 0.0),
        (event.thing, side * 22 * (2 * u - 1), 15 - 34 * np.sin(math.pi * u), 0.9, 0.0),
    ]


def _beside(dx, dy, event, rng, number, u):
    gap = 12.0
    wander = rng.uniform(-12, 12)  # along the line that does not matter
    x, y = (0.0, wander) if dx else (wander, 0.0)
    return [
        (event.other, x - gap * dx, y - gap * dy, 1.0, 0.0),
        (event.thing, x + gap * dx, y + gap * dy, 1.0, 0.0),
    ]


MEETINGS = {
    'follows left': functools.partial(_follows, -1),
    'follows right': functools.partial(_follows, 1),
    'circles': _circles,
    'bumps into': _bumps,
    'hides behind': _hides,
    'jumps over': _jumps_over,
    'left of': functools.partial(_beside, -1, 0),
    'right of': functools.partial(_beside, 1, 0),
    'above': functools.partial(_beside, 0, -1),
    'below': functools.partial(_beside, 0, 1),
}
