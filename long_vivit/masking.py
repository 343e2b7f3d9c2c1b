"""Which share of the patches a stage leaves out at which of its steps.

A rate is a number of patches, hence a program of its own on the device: so rates are constant over
many steps, and there are few.
"""

from typing import NamedTuple

from long_vivit.inputs.patches import MAX_RATE


class Phase(NamedTuple):
    """Steps in a row at one rate."""

    first: int  # steps done before it
    rate: float  # share of the patches left out


def parse(spec):
    """'0.5=0.75,0.8=0.5' -> [(0.5, 0.75), (0.8, 0.5)]: from a share of the steps on, a rate.

    Raises ValueError: no such words, a share that is not above the one before it and between 0 and
    1, a rate that is not allowed.
    """
    found, before = [], 0.0
    for part in filter(None, (part.strip() for part in spec.split(','))):
        try:
            share, rate = (float(word) for word in part.split('='))
        except ValueError:
            raise ValueError(
                f'{part!r} in {spec!r} must be SHARE=RATE, two numbers: from this share of the '
                'steps on, this masking rate'
            ) from None
        if not before < share < 1:
            raise ValueError(
                f'{part!r} in {spec!r}: the share must be less than 1 and more than {before:g}, '
                'the one before it (mask_rate is the rate of the beginning)'
            )
        if not 0 <= rate <= MAX_RATE:
            raise ValueError(f'{part!r} in {spec!r}: the rate must be from 0 to {MAX_RATE}')
        found.append((share, rate))
        before = share
    return found


def planned(stage):
    """The phases that the fields of a stage (a dict) name, in order; some may have no step."""
    steps, tail = stage['steps'], stage.get('unmasked_tail', 0.0)  # not there in runs of before
    found = [Phase(0, stage['mask_rate'])]
    for share, rate in parse(stage.get('mask_schedule', '')):
        found.append(Phase(round(share * steps), rate))
    if tail:
        found.append(Phase(steps - round(tail * steps), 0.0))
    return found


def later_rates(stage):
    """The rates of mask_schedule, of the fields of a stage; [] where it cannot be read."""
    try:
        return [rate for _, rate in parse(stage['mask_schedule'])]
    except ValueError:
        return []


def ever(stage):
    """Whether any step of a stage (a dict of its fields) leaves patches out."""
    return any([stage['mask_rate'], *later_rates(stage)])


def phases(stage):
    """The phases of a resolved stage: a tuple, in order; the first begins at 0, rates change."""
    found = []
    for phase in planned(vars(stage)):
        if not found or phase.rate != found[-1].rate:
            found.append(phase)
    return tuple(found)


def rate_at(stage, step):
    """The rate of the step that follows `step` steps."""
    return [phase.rate for phase in phases(stage) if phase.first <= step][-1]


def shares(stage):
    """{rate: share of the stage's steps at it}, in order of the steps."""
    each, found = phases(stage), {}
    ends = [*(phase.first for phase in each[1:]), stage.steps]
    for phase, end in zip(each, ends, strict=True):
        found[phase.rate] = found.get(phase.rate, 0.0) + (end - phase.first) / stage.steps
    return found


def in_words(stage):
    """The rates of a stage in a line; '' where there is one."""
    first, *others = phases(stage)
    if not others:
        return ''
    later = ', '.join(f'from step {phase.first + 1} on {phase.rate:.0%}' for phase in others)
    return f'masks {first.rate:.0%} of the patches, {later}: a program for each'


def faults(stage, path):
    """A line for each field of a stage (a dict) that makes no sense with the others."""
    try:
        each = planned(stage)
    except ValueError as error:
        yield f'{path}mask_schedule: {error}.'
        return
    firsts = [phase.first for phase in each] + [stage['steps']]
    if all(one < two for one, two in zip(firsts, firsts[1:], strict=False)):
        return
    tail = f' and {path}unmasked_tail = {stage["unmasked_tail"]}' * bool(stage['unmasked_tail'])
    yield (
        f'{path}mask_schedule: {stage["mask_schedule"]!r}{tail} of {stage["steps"]} steps make '
        f'rates begin after {", ".join(map(str, firsts[:-1]))} steps; each must have a step of its '
        'own before the next.'
    )
