"""Figures and findings of a sweep: from rows that are made here, so that what they say is known.

The notebook that shows them runs in test_sweep.py, on the rows of a sweep that was taught.
"""

import matplotlib
import pytest

from long_vivit.sweeps import findings, report, rows

matplotlib.use('Agg')

from long_vivit.sweeps import figures

RATE, BACKBONE = 'stages.long.mask_rate', 'model.video.backbone'
SETTINGS = {'sizes': ('B', 'L'), 'frames': (16, 128), 'remats': ('none',), 'limit_gb': 16.0,
            'batch': 1, 'dtype': 'bfloat16', 'pixels': 256}  # fmt: skip


def row(difference, recall, *, seed=0, grids=('backbones',), rate=0.0, twins=0.9, gb=(4.0, 10.0)):
    """A row with these scores (both ways alike), and memory at B and L, 128 frames, in GB."""
    difference = dict(difference)
    if rate:
        difference[RATE] = rate
    variant = findings.grid.name_of(difference)
    score = {way: dict.fromkeys(rows.RECALLS, recall) for way in rows.WAYS}
    score |= {'twin_accuracy': twins}
    memory = [
        {'size': size, 'frames': 128, 'remat': 'none', 'rate': rate, 'peak_bytes': int(x * 1e9)}
        for size, x in zip('BL', gb, strict=True)
    ]
    return {
        'cell': f'{variant}/seed{seed}', 'variant': variant, 'seed': seed, 'grids': list(grids),
        'difference': difference, 'stage': 'long', 'mask_rate': rate, 'mask_kind': 'tube',
        'memory': memory, **score, 'shuffled': score, 'one_frame': score, 'clips_per_s': 10.0,
        'seconds': 60.0, 'num_trained': 10**6, 'tokens_per_clip': 512, 'flops_per_clip': 10**9,
        'peak_bytes': 2**30, 'device': 'CPU', 'commit': 'abc', 'versions': {'jax': '0'},
        'protocol': {'data': 'stories'},
    }  # fmt: skip


def falling(frames_at_75):
    """Rows of two backbones at two rates and two seeds: joint loses 1 and 1.4 points."""
    frames = {BACKBONE: 'frames'}
    return [
        *(row({}, x, seed=s) for s, x in enumerate((0.50, 0.52))),
        *(row({}, x, seed=s, rate=0.75, gb=(2, 3)) for s, x in enumerate((0.49, 0.506))),
        *(row(frames, 0.3, seed=s, twins=0.51) for s in range(2)),
        *(row(frames, frames_at_75, seed=s, rate=0.75, twins=0.5, gb=(2, 3)) for s in range(2)),
    ]


def test_a_difference_is_paired_by_seed():
    above, below = ([row({}, x, seed=s) for s, x in pairs] for pairs in (
        [(0, 0.5), (1, 0.7), (2, 0.9)], [(1, 0.6), (0, 0.42)]))  # fmt: skip
    found = findings.delta(above, below)
    assert found.mean == pytest.approx(9.0) and found.error == pytest.approx(1.0)
    assert str(found) == '+9.0 +- 1.0'
    assert str(findings.delta(above[:1], below)) == '+8.0'
    assert findings.delta(above[2:], below) is None


def test_a_line_is_what_differs_in_the_rate_only():
    found = findings.lines_of(falling(0.2))
    assert {label: list(rates) for label, rates in found.items()} == {
        'base': [0.0, 0.75], 'backbone=frames': [0.0, 0.75],
    }  # fmt: skip


def test_findings_agree_or_disagree_by_the_rows():
    said = findings.masking(falling(0.2))
    assert 'base -1.2 +- 0.2, backbone=frames -10.0 +- 0.0 points' in said
    assert said.count('these rows agree') == 2
    said = findings.masking(falling(0.31))
    assert 'the other backbones fall by more; these rows disagree' in said
    assert 'missing' in findings.masking([r for r in falling(0.2) if r['difference'].get(BACKBONE)])
    assert findings.masking([]) == 'No variant has rows unmasked and at 75%.'
    said = findings.order(falling(0.2))
    assert said.endswith(
        '5 points of chance: backbone=frames, backbone=frames,long.mask_rate=0.75.'
    )


def test_one_seed_and_noise_are_said():
    one = findings.delta([row({}, 0.5)], [row({}, 0.4)])
    assert findings.held('x', True, [one]) == 'The paper: x; these rows agree (one seed).'
    noisy = findings.Delta(0.5, 2.0)
    assert 'within the noise of the seeds' in findings.held('x', True, [noisy])


def test_recall_is_drawn_over_memory_with_the_spread_of_the_seeds():
    figure, said = figures.backbones(falling(0.2))
    (axes,) = figure.axes
    bars = [one for one in axes.containers if one.has_yerr]
    assert len(bars) == 4 and 'these rows agree' in said
    points = sorted(tuple(bar[0].get_xydata()[0]) for bar in bars)
    assert points[1] == (2.0, pytest.approx(49.8)) and points[3] == (4.0, pytest.approx(51.0))
    assert [text.get_text() for text in axes.texts] == ['0%', '75%', '0%', '75%']


def test_memory_growth_and_order():
    figure, said = figures.growth(falling(0.2))
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([150, 50, 150, 50])
    assert said.startswith('From B to L memory grows by 50%')
    figure, _ = figures.order(falling(0.2))
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([90, 90, 51, 50])


def test_memory_over_frames_with_the_line():
    found = [
        {'variant': 'base', 'size': 'B', 'frames': f, 'remat': 'none', 'rate': r, 'peak_bytes': x}
        for f, r, x in ((16, 0.0, 4e9), (128, 0.0, 17e9), (16, 0.75, 3e9), (128, 0.75, 6e9))
    ]
    figure, said = figures.memory(found)
    assert said.startswith('At 128 frames 1 of 2 fit into 16 GB') and 'base, 75% masked' in said
    assert len(figure.axes[0].lines) == 3
    text = report.memory_table(found, SETTINGS)
    assert '17.00*' in text and '6.00 ' in text and 'L 128' in text


def test_what_is_missing_is_said_and_not_drawn():
    for draw in (
        figures.backbones,
        figures.inputs,
        figures.long_stage,
        figures.kinds,
        figures.growth,
    ):
        figure, said = draw([])
        assert figure is None and said.startswith('Not drawn: ')
    assert figures.order([]) == (None, 'No row has order twins.')
    assert figures.memory([])[0] is None


def test_the_table_has_means_and_spreads():
    text = report.table(falling(0.2), SETTINGS)
    (line,) = [one for one in text.splitlines() if one.startswith('base ')]
    assert '51.0 +- 1.4' in line and '4.00' in line and '10.00' in line
    assert report.line(row({}, 0.5)).startswith('base/seed0: R@1 50.0 / 50.0, twins 90.0')
