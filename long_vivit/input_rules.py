"""What the fields of a stage may hold that say which patches are seen: a part of rules.py."""

from collections.abc import Iterator

from long_vivit import masking
from long_vivit.inputs import tubes
from long_vivit.inputs.patches import MOTION

CUTS = ('patch', 'tubelet')


def faults(stage: dict, video: dict, path: str, bad: set[str]) -> Iterator[str]:
    """Frames and pixels that do not divide, masks that leave nothing, cuts that do not fit.

    bad: paths of the fields whose values are faults by themselves.
    """
    patch, tubelet = (stage[name] or video[name] for name in CUTS)
    named = {name: f'{path}{name}' if stage[name] else f'model.video.{name}' for name in CUTS}
    sides = not bad & {f'{path}pixels', named['patch']}
    times = not bad & {f'{path}frames', named['tubelet']}
    if sides and stage['pixels'] % patch:
        sides = False
        yield f'{path}pixels: {stage["pixels"]} is not divisible by {named["patch"]} = {patch}.'
    if times and stage['frames'] > 1 and stage['frames'] % tubelet:
        times = False
        yield (
            f'{path}frames: {stage["frames"]} is not divisible by '
            f'{named["tubelet"]} = {tubelet}; use 1 for images.'
        )
    if bad & {f'{path}{name}' for name in ('mask_rate', 'mask_kind', 'unmasked_tail', 'steps')}:
        return
    yield from masking.faults(stage, path)
    yield from tube_faults(stage, path, fits=sides and times)
    if sides and times:
        grid = max(1, stage['frames'] // tubelet), (stage['pixels'] // patch) ** 2
        yield from rate_faults(stage, *grid, path)
        yield from budget_faults(stage, *grid, path)
    backbone = video.get('backbone', 'joint')
    for field in ('token_budget', 'tubes'):
        if stage[field] and backbone != 'joint':
            yield (
                f"{path}{field}: {stage[field]!r} is of model.video.backbone 'joint' only, since "
                f'{backbone!r} takes equally many patches of each time slice.'
            )


def rate_faults(stage: dict, slices: int, places: int, path: str) -> Iterator[str]:
    """Masking rates that leave nothing of so many slices of so many places."""
    units = {'random': slices * places, 'slice': places, 'tube': places, 'frame': slices}
    count, kind = (units | {MOTION: units['random']})[stage['mask_kind']], stage['mask_kind']
    what = 'slices' if kind == 'frame' else 'patches'
    rates = [('mask_rate', stage['mask_rate'])]
    rates += [('mask_schedule', rate) for rate in masking.later_rates(stage)]
    for field, rate in rates:
        if count * (1 - rate) < 1 - 1e-9:
            yield (
                f'{path}{field}: {rate} of {count} {what} leaves less than one; '
                f'it must be at most {1 - 1 / count:.4g} with mask_kind {kind!r}.'
            )


def budget_faults(stage: dict, slices: int, places: int, path: str) -> Iterator[str]:
    """A token_budget that does not go with the rest of the stage, of so many slices and places."""
    budget = stage['token_budget']
    if not budget:
        return
    if stage['frames'] == 1:
        yield f'{path}token_budget: {budget} in a stage of images; set it to 0.'
    elif budget > slices * places:
        yield (
            f'{path}token_budget: {budget} is more than the {slices * places} patches of '
            f'{path}frames = {stage["frames"]}; no clip has so many.'
        )
    if stage['mask_rate'] or stage['mask_schedule'] or stage['unmasked_tail']:
        yield (
            f'{path}token_budget: {budget} says how many patches are seen, so nothing can be '
            'masked besides; set mask_rate and unmasked_tail to 0 and mask_schedule to '
            "'', or this to 0."
        )
    if stage['mask_kind'] not in ('random', MOTION):
        yield (
            f'{path}mask_kind: {stage["mask_kind"]!r} with {path}token_budget = {budget}, which '
            f"draws patch by patch; use 'random' or {MOTION!r}."
        )


def tube_faults(stage: dict, path: str, fits: bool) -> Iterator[str]:
    """Tubes that cannot be read, or do not fit the stage; fits: frames and pixels may be asked."""
    try:
        found = tubes.parse(stage['tubes'])
    except ValueError as error:
        yield f'{path}tubes: {error}.'
        return
    if not found:
        return
    if stage['frames'] == 1:
        yield f"{path}tubes: {stage['tubes']!r} in a stage of images; set it to ''."
        return
    for tube in found if fits else ():
        if min(tube.grid(stage['frames'], stage['pixels'])) < 1:
            yield (
                f'{path}tubes: {tube.name} from {"x".join(map(str, tube.offset))} on does not fit '
                f'into {stage["frames"]} frames of {stage["pixels"]} pixels.'
            )
    if stage['token_budget']:
        yield f'{path}tubes: {stage["tubes"]!r} with a token_budget; set one of the two only.'
    if masking.ever(stage) and stage['mask_kind'] != 'random':
        yield (
            f'{path}mask_kind: {stage["mask_kind"]!r} with {path}tubes, which are no grid; use '
            "'random' (the same share of each kernel's tubes)."
        )
