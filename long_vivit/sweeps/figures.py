"""The paper's figures from the rows of a sweep; each function returns (figure, sentence).

Needs matplotlib. The sentence says what the figure shows, in numbers computed from the rows, and
whether they agree with the paper (arXiv 2312.07395v1), which prints no values: what can be compared
is which way things go. Where rows are missing there is no figure, and the sentence says so.
"""

from long_vivit.sweeps import deltas, drawing, findings, rows

SHAPE = ('B', 128, 'none')  # size, frames, remat


def shape_of(found):
    """(size, frames, remat) whose compiled memory goes on the axes: ViT-B and 128 frames, if there.

    Else the first that the rows have.
    """
    shapes = [(one['size'], one['frames'], one['remat']) for row in found for one in row['memory']]
    return SHAPE if SHAPE in shapes or not shapes else shapes[0]


def gigabytes(row, shape=SHAPE):
    """Compiled GB of a row's variant at a shape, or None."""
    found = rows.peak(row, *shape)
    return None if found is None else found / 1e9


def recall_against_memory(found, title, *, shape=SHAPE, measure=rows.recall, limit_gb=None):
    """Recall over training memory: a line for each difference, a point for each masking rate.

    Returns the figure, or None where no variant was compiled at `shape`.
    """
    lines = {}
    for label, rates in deltas.lines_of(found).items():
        points = [
            (gigabytes(mine[0], shape), *map(_points, rows.spread(map(measure, mine))), rate)
            for rate, mine in rates.items()
        ]
        if points := [p for p in points if p[0] is not None and p[1] is not None]:
            lines[label] = points
    if not lines:
        return None
    many = {'width': 11, 'height': 6} if len(lines) > drawing.FEW else {}
    figure, axes = drawing.new_axes(title, **many)
    for style, (label, points) in zip(drawing.styles(lines), lines.items(), strict=True):
        colour = style['color']
        for memory, mean, spread, rate in points:
            axes.errorbar(memory, mean, spread, capsize=3, **style)
            axes.annotate(
                f'{100 * rate:g}%', (memory, mean), xytext=(5, 4), fontsize=8, color=colour,
                textcoords='offset points',
            )  # fmt: skip
        axes.plot(*zip(*[p[:2] for p in points], strict=True), label=label, **style)
    if limit_gb:
        axes.axvline(limit_gb, color='#b03030', linestyle=':', label=f'{limit_gb:g} GB')
    drawing.doubling(axes)
    size, frames, remat = shape
    axes.set_xlabel(f'compiled training memory at ViT-{size}, {frames} frames, remat {remat} (GB)')
    axes.set_ylabel('R@1, mean of both ways (%)')
    drawing.legend(figure, axes)
    return figure


def backbones(found, shape=SHAPE):
    """Figure 2: recall against memory, each backbone at each masking rate."""
    mine = deltas.of_grid(found, 'backbones')
    figure = recall_against_memory(mine, 'Backbones and masking rates', shape=shape)
    if figure is None:
        return None, _missing('backbones', shape)
    return figure, findings.masking(mine)


def inputs(found, shape=SHAPE):
    """Figure 3 (CVPR: 4): ways to send less of the video."""
    mine = deltas.of_grid(found, 'inputs')
    figure = recall_against_memory(mine, 'Ways to send less of a video', shape=shape)
    if figure is None:
        return None, _missing('inputs', shape)
    told = deltas.against(mine)
    words = ', '.join(f'{label} {d}' for label, d in told.items()) or 'nothing but the base'
    return figure, f'R@1 against the base, in points: {words}. {findings.coarser(mine)}'


def kinds(found, shape=SHAPE):
    """Which patches are left out: by tubes, at random, by motion."""
    mine = deltas.of_grid(found, 'masking')
    figure = recall_against_memory(mine, 'Which patches are left out', shape=shape)
    if figure is None:
        return None, _missing('masking', shape)
    return figure, f'{findings.masking(mine)} {findings.kinds(mine)}'


def long_stage(found, shape=SHAPE, limit_gb=16.0):
    """Recall of the long stage against its memory, by what of it is trained."""
    mine = deltas.of_grid(found, 'tuning')
    figure = recall_against_memory(mine, 'What is trained', shape=shape, limit_gb=limit_gb)
    if figure is None:
        return None, _missing('tuning', shape)
    return figure, findings.tuning(mine, peaks_of(mine, shape))


def video_to_text(found, memory, shape=SHAPE):
    """Figure 5: memory of the contrastive long stage and of video-to-text; colours are recall.

    memory: rows of memory.jsonl.
    """
    told = {}
    for name, mine in rows.by_variant(last_stage(found)).items():
        taken = rows.reading(memory, name, mine[0]['mask_rate'], *shape)
        if taken and taken.get('video_to_text_bytes'):
            both = (taken[key] / 1e9 for key in ('peak_bytes', 'video_to_text_bytes'))
            told[name] = (*both, 100 * rows.spread(map(rows.recall, mine))[0])
    if not told:
        size, frames, remat = shape
        return None, (
            f'Not drawn: memory.jsonl has no video-to-text at ViT-{size}, {frames} frames, remat '
            f'{remat}; run the sweep with --memory.'
        )
    figure, axes = drawing.new_axes('Contrastive training and video-to-text', height=6, width=11)
    numbers = {name: str(i) for i, name in enumerate(told, 1)}
    x, y, recall = zip(*told.values(), strict=True)
    dots = axes.scatter(x, y, c=recall, cmap='viridis', s=60, zorder=3)
    figure.colorbar(dots, label='R@1, mean of both ways (%)', location='bottom', shrink=0.5)
    for place, names in drawing.together(told).items():
        axes.annotate(', '.join(numbers[name] for name in names), place, xytext=(0, 7),
                      textcoords='offset points', fontsize=8, rotation=60)  # fmt: skip
    for name, number in numbers.items():
        axes.scatter([], [], s=0, label=f'{number}  {name}')
    size, frames, remat = shape
    at = f'at ViT-{size}, {frames} frames, remat {remat} (GB)'
    axes.set_xlabel(f'compiled memory of the contrastive step {at}')
    axes.set_ylabel('compiled memory of the video-to-text step (GB)')
    figure.legend(fontsize=7, frameon=False, loc='outside right upper', handlelength=0)
    return figure, findings.video_to_text(last_stage(found), told)


def image_to_video(found):
    """R@1 of short videos behind images, by what of the encoder is trained."""
    mine = deltas.of_grid(found, 'image_to_video')
    if not mine:
        return None, 'Not drawn: the rows have no variant of image_to_video.'
    figure = drawing.bars(_spreads(mine, rows.recall), 'From images to short videos')
    figure.axes[0].set_xlabel('R@1, mean of both ways (%)')
    return figure, findings.image_to_video(mine)


def all_variants(found, shape=SHAPE, limit_gb=None):
    """Every variant of the last stage: recall against memory, and what masking gives in as much."""
    mine = last_stage(found)
    figure = recall_against_memory(
        mine, 'Recall and memory of each variant', shape=shape, limit_gb=limit_gb
    )
    if figure is None:
        return None, _missing('any grid', shape)
    return figure, findings.at_equal_memory(mine, peaks_of(mine, shape))


def growth(found, shape=SHAPE):
    """Figure 4 (CVPR: 3): how much more memory a variant takes at ViT-L than at ViT-B."""
    _, frames, remat = shape
    variants = rows.by_variant(found)
    shares = {variant: deltas.growth(mine[0], frames, remat) for variant, mine in variants.items()}
    shares = {variant: 100 * x for variant, x in shares.items() if x is not None}
    if not shares:
        return None, _missing('any grid', ('B and L', frames, remat))
    figure = drawing.bars(
        {v: (x, None) for v, x in shares.items()}, 'Memory growth from ViT-B to ViT-L'
    )
    figure.axes[0].set_xlabel(f'more memory at ViT-L than at ViT-B, {frames} frames (%)')
    low, high = min(shares, key=shares.get), max(shares, key=shares.get)
    said = (
        f'From B to L memory grows by {shares[low]:.0f}% ({low}) to {shares[high]:.0f}% ({high}).'
    )
    alike = [
        v
        for v in shares
        if deltas.changes(variants[v][0]).keys() <= {'backbone'}
        and findings.of_paper(variants[v][0])
    ]
    there = {'base', 'backbone=factorised'} <= set(alike)
    holds = max(alike, key=shares.get) == 'backbone=factorised' if there else None
    claim = 'of its backbones, masked alike, factorised attention grows the most'
    return figure, f'{said} {findings.held(claim, holds)}'


def order(found):
    """Order twins by variant, with the line of chance."""
    found = last_stage(found)
    told = _spreads(found, deltas.twins)
    if not told:
        return None, 'No row has order twins.'
    figure = drawing.bars(told, 'Order twins told apart')
    (axes,) = figure.axes
    axes.axvline(50, color='#3f3f3f', linestyle=':')
    axes.set_xlim(0, 100)
    axes.set_xlabel('right of two stories with the same shots in two orders (%); 50 is chance')
    return figure, findings.order(found)


def memory(found, size='B', remat='none', limit_gb=16.0):
    """Compiled memory over frames, a line for each variant at its masking rate; one for equal ones.

    found: rows of memory.jsonl.
    """
    lines = {}
    for one in found:
        if (one['size'], one['remat']) == (size, remat):
            label = f'{one["variant"]}, {100 * one["rate"]:g}% masked'
            lines.setdefault(label, []).append((one['frames'], one['peak_bytes'] / 1e9))
    if not lines:
        return None, f'Nothing was compiled at ViT-{size} with remat {remat}.'
    num_lines, lines = len(lines), _equal_ones(lines)
    width, height = (7.5, 4.8) if len(lines) <= drawing.FEW else (11, 1 + 0.2 * len(lines))
    figure, axes = drawing.new_axes(
        f'Compiled memory at ViT-{size}', height=max(4.8, height), width=width
    )
    for style, (label, points) in zip(drawing.styles(lines), lines.items(), strict=True):
        axes.plot(*zip(*sorted(points), strict=True), label=label, **style)
    axes.axhline(limit_gb, color='#b03030', linestyle=':', label=f'{limit_gb:g} GB')
    axes.set_xlabel('frames')
    axes.set_ylabel('GB')
    drawing.legend(figure, axes)
    longest = max(one[0] for points in lines.values() for one in points)
    fit = [label for label, points in lines.items() if dict(points).get(longest, 1e9) <= limit_gb]
    return figure, (
        f'{num_lines} variants and masking rates have {len(lines)} different curves. At {longest} '
        f'frames {len(fit)} of these fit into {limit_gb:g} GB with ViT-{size}: '
        f'{"; ".join(fit) or "none"}.'
    )


def _equal_ones(lines):
    """{label: points} with equal points once, under the first label and how many more there are."""
    labels = {}
    for label, points in lines.items():
        labels.setdefault(tuple(sorted(points)), []).append(label)
    return {
        names[0] + (f' (and {len(names) - 1} more)' if len(names) > 1 else ''): points
        for points, names in labels.items()
    }


def last_stage(found):
    """Rows of runs that do not end before the base's."""
    return [row for row in found if 'run' not in row['difference']]


def peaks_of(found, shape):
    """{variant: compiled GB at a shape, or None}."""
    return {name: gigabytes(mine[0], shape) for name, mine in rows.by_variant(found).items()}


def _spreads(found, measure):
    """{variant: (mean, deviation or None)} of a share over its seeds, in percent."""
    told = {name: rows.spread(map(measure, mine)) for name, mine in rows.by_variant(found).items()}
    return {name: tuple(map(_points, one)) for name, one in told.items() if one[0] is not None}


def _points(share):
    return None if share is None else 100 * share


def _missing(name, shape):
    size, frames, remat = shape
    return (
        f'Not drawn: the rows have no variant of {name} compiled at ViT-{size}, {frames} frames, '
        f'remat {remat}.'
    )
