"""Tests of single values, with the words for what passes them."""

from collections.abc import Callable
from typing import Any, NamedTuple


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
