"""The shapes of Shape Stories, as functions of the plane.

Each tells about how many pixels the points (x, y) lie outside of it, negative inside, as an array
of their shape. x is to the right, y down, both in pixels from the shape's centre; r is the radius
of the circle, and the others are sized to look as big.
"""

import math

import numpy as np


def _circle(x, y, r):
    return np.sqrt(x * x + y * y) - r


def _square(x, y, r):
    return np.maximum(np.abs(x), np.abs(y)) - 0.9 * r


def _triangle(x, y, r):
    y = y - 0.12 * r
    return np.maximum(0.866 * np.abs(x) - 0.5 * y, y) - 0.66 * r


def _star(x, y, r):
    # Folded into one tenth of the star, one straight edge is left.
    angle = np.arctan2(x, -y)  # 0 at the upper tip, to pi
    angle = np.abs((angle + math.pi / 5) % (2 * math.pi / 5) - math.pi / 5)
    length = np.sqrt(x * x + y * y)
    tip, dent = 1.25, 0.52
    ex, ey = dent * math.cos(math.pi / 5) - tip, dent * math.sin(math.pi / 5)
    norm = math.hypot(ex, ey)
    px, py = length * np.cos(angle) - tip * r, length * np.sin(angle)
    return (px * ey - py * ex) / norm


def _ring(x, y, r):
    return np.abs(np.sqrt(x * x + y * y) - 0.78 * r) - 0.3 * r


def _cross(x, y, r):
    x, y = np.abs(x), np.abs(y)
    long, short = np.maximum(x, y), np.minimum(x, y)
    return np.maximum(long - 1.05 * r, short - 0.36 * r)


SHAPES = {
    'circle': _circle,
    'square': _square,
    'triangle': _triangle,
    'star': _star,
    'ring': _ring,
    'cross': _cross,
}
