"""What the rows of a sweep say about the paper's findings, and about what else was asked of them:
numbers first, then agree or disagree.

Sentences of arithmetic on rows (see deltas.py); nothing is drawn. Where rows are missing, the
sentence says so.
"""

from long_vivit.sweeps import rows
from long_vivit.sweeps.deltas import against, changes, delta, lines_of, those, twins

CHANCE, MARGIN = 50.0, 5.0  # of order twins, in percent: within MARGIN of CHANCE is blind to order
ALLOWED = 2.0  # points of recall that count as nothing lost
MASKS = {'mask_rate', 'mask_kind', 'unmasked_tail'}  # fields that are masking and nothing else
CUTS = {'patch', 'tubelet', 'tubes'}  # fields of how a video is cut
BUDGET = 'token_budget'
ASKED = 'Asked'  # heads our own questions
PAPERS = {  # of fields with choices that the paper lacks, those that it has
    BUDGET: (),
    'text_tower': (),
    'backbone': ('joint', 'factorised', 'frames'),
    'frame_pool': ('mean', 'attention'),
    'tune': ('all', 'adapters+stem', 'lora+stem', 'temporal+stem', 'last:4'),
}


def held(claim, holds, deltas=(), who='The paper'):
    """'The paper: CLAIM; these rows agree.' - or disagree, or cannot tell it from the seeds.

    Args:
      holds: None where rows are missing.
      deltas: what decides it: all that it rests on where it holds, else those that speak against
        it. A Delta cannot tell where its error is larger than it is.
      who: ASKED where the paper has no such claim.
    """
    if holds is None:
        return f'{who}: {claim}; the rows for it are missing.'
    unsure = [d.error is not None and abs(d.mean) < d.error for d in deltas]
    word = 'agree' if holds else 'disagree'
    noise = any(unsure) if holds else bool(unsure) and all(unsure)
    doubt = ', within the noise of the seeds' if noise else ''
    one = any(d.error is None for d in deltas)
    return f'{who}: {claim}; these rows {word}{doubt}{" (one seed)" if one else ""}.'


def held_by(claim, test, *deltas, who='The paper'):
    """`held` where each of the Deltas that are there passes a test of its mean."""
    there = [d for d in deltas if d is not None]
    against_it = [d for d in there if not test(d.mean)]
    return held(claim, not against_it if there else None, against_it or there, who)


def of_paper(row):
    """Whether what a variant chooses, masks aside, is among what the paper tried."""
    return all(value in PAPERS.get(field, (value,)) for field, value in changes(row).items())


def masking(found, base='base', rate=0.75):
    """What each line loses between no masking and `rate`."""
    losses, ours = {}, set()
    for label, rates in lines_of(found).items():
        if 0.0 in rates and rate in rates:
            losses[label] = delta(rates[rate], rates[0.0])
            if not of_paper(rates[rate][0]):
                ours.add(label)
    losses = {label: loss for label, loss in losses.items() if loss is not None}
    if not losses:
        return f'No variant has rows unmasked and at {rate:.0%}.'
    told = ', '.join(f'{label} {loss}' for label, loss in losses.items())
    said = [f'From no masking to {rate:.0%}, R@1 changes by {told} points.']
    own = losses.pop(base, None)
    claim = f'joint space-time attention keeps within {ALLOWED:g} points'
    said.append(held_by(claim, lambda mean: mean >= -ALLOWED, own))
    theirs = [loss for label, loss in losses.items() if label not in ours]
    if own and theirs:
        claim = 'its other backbones fall by more'
        said.append(held_by(claim, lambda mean: mean < own.mean, *theirs))
    return ' '.join(said)


def kinds(found):
    """What a kind of mask gains over others at the same rate, and what an unmasked tail does."""
    by_kind = {}
    for label, rates in lines_of(found).items():
        one = changes(next(iter(rates.values()))[0])
        if one.keys() <= {'mask_rate', 'mask_kind'}:
            by_kind['the base' if label == 'base' else one['mask_kind']] = rates
    said = []
    for kind, other in (('motion', 'random'), ('random', 'the base'), ('motion', 'the base')):
        above, below = by_kind.get(kind, {}), by_kind.get(other, {})
        told = {rate: delta(above[rate], below[rate]) for rate in above if rate in below}
        if told := [f'{d} at {rate:.0%}' for rate, d in told.items() if d]:
            said.append(f'{kind} over {other}: {", ".join(told)}')
    if d := delta(those(found, 'unmasked_tail'), those(found)):
        said.append(f'an unmasked tail over the base: {d}')
    return f'In points of R@1, {"; ".join(said)}.' if said else ''


def coarser(found):
    """Whether coarse time, coarse space and tubes stay below masking, and a budget of tokens."""

    def of(fields):
        mine = [row for row in found if changes(row).keys() & fields or not changes(row)]
        return against(mine).values()

    below = lambda mean: mean < 0  # noqa: E731
    return ' '.join([
        held_by('masking beats coarse time, coarse space and tubes at equal tokens',
                below, *of(CUTS)),
        held_by('masking beats a budget of tokens, as many of them', below, *of({BUDGET}),
                who=ASKED),
    ])  # fmt: skip


def order(found):
    """Who tells order twins apart."""
    means = {
        label: rows.spread([twins(row) for row in mine])[0]
        for label, mine in rows.by_variant(found).items()
    }
    means = {label: 100 * mean for label, mean in means.items() if mean is not None}
    if not means:
        return 'No row has order twins.'
    blind = [label for label, mean in means.items() if abs(mean - CHANCE) <= MARGIN]
    return ' '.join([
        f'Within {MARGIN:g} points of chance: {", ".join(blind) or "none"}.',
        _blindness(found), _pooling(found), _time_and_space(found),
    ])  # fmt: skip


def _blind(mine):
    """Whether rows of one variant are at chance on order twins; None where there are none."""
    mean, _ = rows.spread([twins(row) for row in mine])
    return None if mean is None else abs(100 * mean - CHANCE) <= MARGIN


def _blindness(found):
    told = [
        _blind(those(found, **extra))
        for extra in (
            {}, {'backbone': 'factorised'}, {'backbone': 'factorised_encoder'},
            {'backbone': 'frames'},
        )
    ]  # fmt: skip
    holds = None if None in told else told == [False, False, False, True]
    claim = 'encoders of single frames stay at chance on order, joint and factorised ones do not'
    return held(claim, holds, who=ASKED)


def _pooling(found):
    attention, temporal = (
        those(found, backbone='frames', frame_pool=pool) for pool in ('attention', 'temporal')
    )
    d = delta(temporal, attention, twins)
    holds = None if d is None else bool(_blind(attention)) and not _blind(temporal)
    claim = (
        'attention pooling does not rescue single frames on order, a temporal transformer over '
        'them does'
    )
    far = '' if d is None else f' The transformer is {d} points above attention pooling.'
    return held(claim, holds, [d] if d else [], ASKED) + far


def _time_and_space(found):
    time, space = (those(found, field, mask_rate=0.0) for field in ('tubelet', 'patch'))
    d = delta(time, space, twins)
    claim = 'coarse time hurts order more than coarse space'
    if d is not None:
        claim += f' (here by {-d.mean:.1f} points of order twins)'
    return held_by(claim, lambda mean: mean < 0, d, who=ASKED)


def tuning(found, peaks):
    """What the long stage loses with less of it trained, and how much memory that saves.

    peaks: {variant: compiled GB or None}.
    """
    base = peaks.get('base')
    words = '; '.join(
        f'{name}: {d} points, {peaks[name] / base:.1f} times its memory'
        for name, d in against(found).items()
        if peaks.get(name) and base
    )
    last, adapters = those(found, 'last_layers'), those(found, 'tune', 'adapter_width')
    lost = delta(last, those(found))
    saved = base / peaks[last[0]['variant']] if last and base else None
    return ' '.join([
        f'Against the base: {words or "nothing to compare"}.',
        held('the last four layers take a third of the memory of all, both with 75% masked',
             None if saved is None else saved >= 3 - 0.05),
        held_by(f'they lose nothing ({ALLOWED:g} points or less)',
                lambda mean: mean >= -ALLOWED, lost),
        held_by('adapters lose nothing from short videos to long ones',
                lambda mean: mean >= -ALLOWED, delta(adapters, those(found))),
    ])  # fmt: skip


def video_to_text(found, told):
    """What the variants' encoders cost in video-to-text, where all of them are frozen.

    told: {variant: (GB of the contrastive step, GB of that of video-to-text, mean recall)}.
    """

    def span(place):
        low, high = (f(told, key=lambda name: told[name][place]) for f in (min, max))
        ends = ' to '.join(f'{told[name][place]:.2f} GB ({name})' for name in (low, high))
        return f'{ends}, {told[high][place] / told[low][place]:.2f} times as much'

    base = told.get('base')
    last, adapters = (
        told.get(mine[0]['variant']) if (mine := those(found, *names)) else None
        for names in (('last_layers',), ('tune', 'adapter_width'))
    )

    def against_base(one):
        return f' (here {one[1] - base[1]:+.2f} GB)' if base and one else ''

    return ' '.join([
        f'The contrastive step takes {span(0)}; video-to-text on the same encoders, frozen and '
        f'unmasked, {span(1)}.',
        held('the last four layers take no more memory in video-to-text than all'
             + against_base(last), None if not (base and last) else last[1] <= base[1]),
        held('adapters take more there' + against_base(adapters),
             None if not (base and adapters) else adapters[1] > base[1]),
    ])  # fmt: skip


def image_to_video(found):
    """From images to short videos: all trained, adapters, LoRA."""
    whole, adapters, lora = (
        those(found, 'run', *more)
        for more in ((), ('tune', 'adapter_width'), ('tune', 'lora_rank'))
    )
    told = {'adapters': delta(adapters, whole), 'LoRA': delta(lora, whole)}
    told = '; '.join(f'{name} {d}' for name, d in told.items() if d is not None)
    claim = 'adapters are ahead of LoRA from images to videos'
    d = delta(adapters, lora)
    by = '' if d is None else f' (here by {d} points)'
    return (
        f'From images to short videos, against all trained, in points of R@1: {told or "no rows"}. '
        + held_by(claim + by, lambda mean: mean > 0, d)
    )


def at_equal_memory(found, peaks, near=1.05):
    """Each other saving against the best that masking alone gives in as much memory.

    peaks: {variant: compiled GB or None}. near: as much is this many times as much or less. What
    the paper claims is of the savings that it tried.
    """
    variants = {name: mine for name, mine in rows.by_variant(found).items() if peaks.get(name)}
    masked = {name: mine for name, mine in variants.items() if changes(mine[0]).keys() <= MASKS}
    said, deltas = [], []
    for name, mine in variants.items():
        fit = [other for other in masked if peaks[other] <= near * peaks[name]]
        if name in masked or not fit:
            continue
        best = max(fit, key=lambda other: rows.spread(map(rows.recall, masked[other]))[0])
        d = delta(masked[best], mine)
        if d is not None:
            deltas += [d] * of_paper(mine[0])
            said.append(f'{best} over {name} {d}')
    return (
        f'In as much memory (at most {near - 1:.0%} more), in points of R@1: '
        f'{"; ".join(said) or "no rows"}. '
        + held_by('masking beats every other saving it tried', lambda mean: mean > 0, *deltas)
    )
