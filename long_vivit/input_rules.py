"""What the fields of a stage may hold that say which patches are seen: a part of rules.py."""

from collections.abc import Iterator

from long_vivit import masking


def faults(stage: dict, video: dict, path: str, bad: set[str]) -> Iterator[str]:
    """Frames and pixels that do not divide, and masks that leave nothing.

    bad: paths of the fields whose values are faults by themselves.
    """
    sides = not bad & {f'{path}pixels', 'model.video.patch'}
    times = not bad & {f'{path}frames', 'model.video.tubelet'}
    if sides and stage['pixels'] % video['patch']:
        sides = False
        yield (
            f'{path}pixels: {stage["pixels"]} is not divisible by '
            f'model.video.patch = {video["patch"]}.'
        )
    if times and stage['frames'] > 1 and stage['frames'] % video['tubelet']:
        times = False
        yield (
            f'{path}frames: {stage["frames"]} is not divisible by '
            f'model.video.tubelet = {video["tubelet"]}; use 1 for images.'
        )
    rates = {f'{path}{name}' for name in ('mask_rate', 'mask_kind', 'unmasked_tail', 'steps')}
    if bad & rates:
        return
    yield from masking.faults(stage, path)
    if sides and times:
        slices = max(1, stage['frames'] // video['tubelet'])
        yield from rate_faults(stage, slices, (stage['pixels'] // video['patch']) ** 2, path)


def rate_faults(stage: dict, slices: int, places: int, path: str) -> Iterator[str]:
    """Masking rates that leave nothing of so many slices of so many places."""
    units = {'random': slices * places, 'slice': places, 'tube': places, 'frame': slices}
    count, kind = units[stage['mask_kind']], stage['mask_kind']
    what = 'slices' if kind == 'frame' else 'patches'
    rates = [('mask_rate', stage['mask_rate'])]
    rates += [('mask_schedule', rate) for rate in masking.later_rates(stage)]
    for field, rate in rates:
        if count * (1 - rate) < 1 - 1e-9:
            yield (
                f'{path}{field}: {rate} of {count} {what} leaves less than one; '
                f'it must be at most {1 - 1 / count:.4g} with mask_kind {kind!r}.'
            )
