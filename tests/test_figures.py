"""Figures and findings of a sweep: from rows that are made here, so that what they say is known.

The notebook that shows them runs in test_sweep.py, on the rows of a sweep that was taught.
"""

import matplotlib
import numpy as np
import pytest

from long_vivit import config
from long_vivit.sweeps import deltas, findings, grid, report, rows

matplotlib.use('Agg')

from long_vivit.sweeps import figures
from scripts import variants

RATE, BACKBONE = 'stages.long.mask_rate', 'model.video.backbone'
SETTINGS = {'sizes': ('B', 'L'), 'frames': (16, 128), 'remats': ('none',), 'limit_gb': 16.0,
            'batch': 1, 'dtype': 'bfloat16', 'pixels': 256}  # fmt: skip


def row(difference, recall, *, seed=0, grids=('backbones',), rate=0.0, twins=0.9, gb=(4.0, 10.0)):
    """A row with these scores (both ways alike), and memory at B and L, 128 frames, in GB."""
    difference = dict(difference)
    if rate:
        difference[RATE] = rate
    variant = grid.name_of(difference)
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
    found = deltas.delta(above, below)
    assert found.mean == pytest.approx(9.0) and found.error == pytest.approx(1.0)
    assert str(found) == '+9.0 +- 1.0'
    assert str(deltas.delta(above[:1], below)) == '+8.0'
    assert deltas.delta(above[2:], below) is None


def test_a_line_is_what_differs_in_the_rate_only():
    found = deltas.lines_of(falling(0.2))
    assert {label: list(rates) for label, rates in found.items()} == {
        'base': [0.0, 0.75], 'backbone=frames': [0.0, 0.75],
    }  # fmt: skip


def test_findings_agree_or_disagree_by_the_rows():
    said = findings.masking(falling(0.2))
    assert 'base -1.2 +- 0.2, backbone=frames -10.0 +- 0.0 points' in said
    assert said.count('these rows agree') == 2
    said = findings.masking(falling(0.31))
    assert 'its other backbones fall by more; these rows disagree' in said
    assert 'missing' in findings.masking([r for r in falling(0.2) if r['difference'].get(BACKBONE)])
    assert findings.masking([]) == 'No variant has rows unmasked and at 75%.'
    said = findings.order(falling(0.2))
    assert (
        '5 points of chance: backbone=frames, backbone=frames,long.mask_rate=0.75. Asked: ' in said
    )
    ours = {BACKBONE: 'factorised_encoder'}  # loses nothing, and the paper does not have it
    ours = [row(ours, 0.1, seed=s, rate=rate) for s in range(2) for rate in (0.0, 0.75)]
    assert findings.masking(falling(0.2) + ours).count('these rows agree') == 2


KIND, LONG = 'stages.long.mask_kind', 'stages.long.'


def test_kinds_are_compared_with_each_other_at_the_same_rate():
    found = [row({}, 0.5, rate=0.75)]
    found[0]['difference'], found[0]['variant'] = {}, 'base'
    for kind, recalls in (('motion', (0.52, 0.45)), ('random', (0.51, 0.47))):
        for rate, recall in zip((0.75, 0.9), recalls, strict=True):
            found.append(row({KIND: kind}, recall, rate=rate))
    found.append(row({LONG + 'unmasked_tail': 0.2}, 0.56))
    said = findings.kinds(found)
    assert 'motion over random: +1.0 at 75%, -2.0 at 90%' in said
    assert 'random over the base: +1.0 at 75%;' in said
    assert 'an unmasked tail over the base: +6.0.' in said


def of_order(**twins):
    pool = 'model.video.frame_pool'
    differences = {
        'joint': {}, 'factorised': {BACKBONE: 'factorised'},
        'encoder': {BACKBONE: 'factorised_encoder'}, 'frames': {BACKBONE: 'frames'},
        'attention': {BACKBONE: 'frames', pool: 'attention'},
        'temporal': {BACKBONE: 'frames', pool: 'temporal'},
        'time': {LONG + 'tubelet': 8, RATE: 0.0}, 'space': {LONG + 'patch': 32, RATE: 0.0},
        'half': {LONG + 'tubelet': 4, RATE: 0.5},
    }  # fmt: skip
    return [row(differences[name], 0.3, twins=x) for name, x in twins.items()]


def test_findings_on_order():
    paper = {
        'joint': 0.9, 'factorised': 0.8, 'encoder': 0.7, 'frames': 0.52, 'attention': 0.49,
        'temporal': 0.8, 'time': 0.6, 'space': 0.7, 'half': 0.9,
    }  # fmt: skip
    said = findings.order(of_order(**paper))
    assert said.count('these rows agree') == 3
    assert said.count('Asked: ') == 3 and 'The paper' not in said  # it has no order twins
    assert 'The transformer is +31.0 points above attention pooling.' in said
    assert '(here by 10.0 points of order twins)' in said
    for wrong in ({'frames': 0.6}, {'factorised': 0.5}, {'temporal': 0.54}, {'attention': 0.6},
                  {'time': 0.75}):  # fmt: skip
        assert findings.order(of_order(**paper | wrong)).count('these rows disagree') == 1, wrong
    assert findings.order(of_order(joint=0.9)).count('rows for it are missing') == 3


def of_tuning(last=0.5, adapters=0.49):
    adapted = {LONG + 'tune': 'adapters+stem', 'model.video.adapter_width': 32}
    return [
        row({}, 0.5, gb=(9, 9)), row({LONG + 'last_layers': 1}, last, gb=(3, 3)),
        row(adapted, adapters, gb=(6, 6)),
    ]  # fmt: skip


def test_a_budget_of_tokens_is_no_claim_of_the_papers():
    budget, coarse = {LONG + 'token_budget': 32, RATE: 0.0}, {LONG + 'patch': 32, RATE: 0.0}
    half = {LONG + 'tubelet': 4, RATE: 0.5}
    said = findings.coarser([row({}, 0.5), row(coarse, 0.4), row(half, 0.3), row(budget, 0.6)])
    assert said == (
        'The paper: masking beats coarse time, coarse space and tubes at equal tokens; these rows '
        'agree (one seed). Asked: masking beats a budget of tokens, as many of them; these rows '
        'disagree (one seed).'
    )
    said = findings.coarser([row({}, 0.5), row(half, 0.6), row(budget, 0.4)])
    assert said.index('disagree') < said.index('Asked: ') < said.index('these rows agree')
    assert findings.coarser([row({}, 0.5)]).count('rows for it are missing') == 2


def test_findings_on_what_is_trained():
    def said(found, last_gb=3.0):
        peaks = {one['variant']: one['memory'][0]['peak_bytes'] / 1e9 for one in found}
        return findings.tuning(found, peaks | {'long.last_layers=1': last_gb})

    assert said(of_tuning()).count('these rows agree') == 3
    assert said(of_tuning()).startswith('Against the base: long.last_layers=1: +0.0 points, 0.3 t')
    assert said(of_tuning(), 4.0).count('these rows disagree') == 1
    assert said(of_tuning(last=0.4)).count('these rows disagree') == 1
    assert said(of_tuning(adapters=0.4)).count('these rows disagree') == 1


def test_adapters_against_lora_where_the_run_ends_with_short_videos():
    run, tune = {'run': ['image', 'short']}, 'stages.short.tune'
    adapters = run | {tune: 'adapters+stem', 'model.video.adapter_width': 32}
    lora = run | {tune: 'lora+stem', 'model.video.lora_rank': 8}
    found = [row(run, 0.5), row(adapters, 0.45), row(lora, 0.4)]
    said = findings.image_to_video(found)
    assert (
        'adapters -5.0; LoRA -10.0.' in said and '(here by +5.0 points); these rows agree' in said
    )
    assert 'disagree' in findings.image_to_video([*found[:2], row(lora, 0.46)])


def test_other_savings_are_compared_with_masking_in_as_much_memory():
    """Of what fits, the best; and none where all masked ones are larger."""
    found = [row({}, 0.5), row({}, 0.46, rate=0.75), row({}, 0.3, rate=0.95),
             row({LONG + 'patch': 32}, 0.4), row({BACKBONE: 'frames'}, 0.2)]  # fmt: skip
    peaks = dict(zip((one['variant'] for one in found), (9, 4, 2, 3.9, 1), strict=True))
    said = findings.at_equal_memory(found, peaks)
    assert said.startswith(
        'In as much memory (at most 5% more), in points of R@1: long.mask_rate=0.75 over '
        'long.patch=32 +6.0. '
    )
    assert 'these rows agree' in said
    found[3] = row({LONG + 'patch': 32}, 0.47)
    assert 'these rows disagree' in findings.at_equal_memory(found, peaks)
    found[3] = row({LONG + 'token_budget': 32}, 0.47)  # told, but no saving that the paper tried
    said = findings.at_equal_memory(found, {**peaks, found[3]['variant']: 3.9})
    assert 'over long.token_budget=32 -1.0. The paper' in said and 'are missing' in said


def test_one_seed_and_noise_are_said():
    one = deltas.delta([row({}, 0.5)], [row({}, 0.4)])
    assert findings.held('x', True, [one]) == 'The paper: x; these rows agree (one seed).'
    noisy = deltas.Delta(0.5, 2.0)
    assert 'within the noise of the seeds' in findings.held('x', True, [noisy])
    sure = deltas.Delta(-5.0, 1.0)
    said = findings.held_by('x', lambda mean: mean > 0, noisy, sure)
    assert said == 'The paper: x; these rows disagree.'  # the noisy one does not speak against it
    said = findings.held_by('x', lambda mean: mean > 1, noisy)
    assert said == 'The paper: x; these rows disagree, within the noise of the seeds.'
    assert 'missing' in findings.held_by('x', bool, None)


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
    assert said.startswith('From B to L memory grows by 50%') and 'are missing' in said
    others = [
        row({BACKBONE: name}, 0.3, gb=(4, x)) for name, x in (('frames', 9), ('factorised', 12))
    ]
    assert 'these rows agree' in figures.growth([row({}, 0.5), *others])[1]
    assert 'these rows disagree' in figures.growth([row({}, 0.5, gb=(4, 13)), *others])[1]
    others[0]['memory'] = row({}, 0.3, gb=(4, 13))['memory']
    assert 'these rows disagree' in figures.growth([row({}, 0.5), *others])[1]
    figure, _ = figures.order(falling(0.2))
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([90, 90, 51, 50])


def test_memory_over_frames_with_the_line():
    found = [
        {'variant': 'base', 'size': 'B', 'frames': f, 'remat': 'none', 'rate': r, 'peak_bytes': x}
        for f, r, x in ((16, 0.0, 4e9), (128, 0.0, 17e9), (16, 0.75, 3e9), (128, 0.75, 6e9))
    ]
    figure, said = figures.memory(found)
    assert said.startswith('2 variants and masking rates have 2 different curves. ')
    assert 'At 128 frames 1 of these fit into 16 GB' in said and 'base, 75% masked.' in said
    assert len(figure.axes[0].lines) == 3
    figure, said = figures.memory(found + [one | {'variant': 'other'} for one in found])
    assert len(figure.axes[0].lines) == 3 and 'base, 75% masked (and 1 more).' in said
    text = report.memory_table(found, SETTINGS)
    assert '17.00*' in text and '6.00 ' in text and 'L 128' in text and 'Video-to' not in text
    read = [
        one | {'video_to_text_bytes': x}
        for one, x in zip(found, (None, 7e9, 5e9, 8e9), strict=True)
    ]
    text = report.memory_table(read, SETTINGS)
    assert 'frozen, takes 5.00 to 5.00 (B 16), 7.00 to 8.00 (B 128) GB.' in text


def test_memory_of_both_uses_of_an_encoder():
    """A point for each variant, at its own masking rate; those without video-to-text have none."""
    found = of_tuning() + [row({LONG + 'tubes': 'tubevit'}, 0.4)]
    taken = dict(zip((one['variant'] for one in found), (7.0, 7.0, 7.2, None), strict=True))
    memory = []
    for one in found:
        (own, _), x = one['memory'], taken[one['variant']]
        own = {'variant': one['variant'], **own, 'video_to_text_bytes': x and x * 1e9}
        memory += [own | {'rate': 0.75, 'peak_bytes': 1}, own]
    figure, said = figures.video_to_text(found, memory)
    (dots,) = [one for one in figure.axes[0].collections if len(one.get_offsets()) == 3]
    np.testing.assert_allclose(dots.get_offsets(), [(9, 7), (3, 7), (6, 7.2)])
    np.testing.assert_allclose(dots.get_array(), [50, 50, 49])
    assert said.startswith(
        'The contrastive step takes 3.00 GB (long.last_layers=1) to 9.00 GB (base), 3.00 times '
        'as much; video-to-text on the same encoders, frozen and unmasked, 7.00 GB (base) to '
        '7.20 GB (adapter_width=32,long.tune=adapters+stem), 1.03 times as much. '
    )
    assert said.count('these rows agree') == 2
    for one in memory:
        one['video_to_text_bytes'] = {'base': 7e9}.get(one['variant'], 6.9e9)
    assert figures.video_to_text(found, memory)[1].count('these rows disagree') == 1
    assert figures.video_to_text(found, [])[0] is None
    for one in memory:
        del one['video_to_text_bytes']  # a file of before
    assert 'run the sweep with --memory' in figures.video_to_text(found, memory)[1]


def test_what_is_missing_is_said_and_not_drawn():
    for draw in (
        figures.backbones,
        figures.inputs,
        figures.long_stage,
        figures.kinds,
        figures.growth,
        figures.image_to_video,
        figures.all_variants,
    ):
        figure, said = draw([])
        assert figure is None and said.startswith('Not drawn: ')
    assert figures.order([]) == (None, 'No row has order twins.')
    assert figures.memory([])[0] is None


def test_who_was_taught_once_for_all_seeds(tmp_path):
    def about(found, seeds_from):
        stored = config.Run(memory=config.frozen(SETTINGS), seeds_from=seeds_from)
        (tmp_path / 'sweep.json').write_text(config.to_json(stored))
        return report.about(found, tmp_path)

    whole, short = falling(0.2), row({'run': ['image', 'short']}, 0.5)
    assert about(whole, '').endswith('commit abc.')
    once = 'The stages before `long` were taught once, for all seeds: error bars do not hold '
    assert once in about(whole, 'long')
    assert once in about([*whole, row({'run': ['short', 'long']}, 0.5)], 'long')
    assert 'for all seeds, but for runs that end before it: error' in about([*whole, short], 'long')


def test_the_table_has_means_and_spreads():
    text = report.table(falling(0.2), SETTINGS)
    (line,) = [one for one in text.splitlines() if one.startswith('base ')]
    assert '51.0 +- 1.4' in line and '4.00' in line and '10.00' in line
    assert report.line(row({}, 0.5)).startswith('base/seed0: R@1 50.0 / 50.0, twins 90.0')


def test_tables_of_results():
    """The best first, runs that end early at the end; bold over the limit, '-' where none."""
    early = row({'run': ('image', 'short')}, 0.9, grids=('image_to_video',)) | {'stage': 'short'}
    del early['shuffled']
    lines = '\n'.join(variants.table([early, *falling(0.2)])).strip().splitlines()
    assert lines[0].endswith('| ViT-B, 128 frames | ViT-L, 128 frames |')
    assert lines[1] == '|---' * lines[0].count(' | ') + '|---|'
    names = [line.split(' | ')[0] for line in lines[2:]]
    assert names == [
        '| base', '| long.mask_rate=0.75', '| backbone=frames',
        '| backbone=frames,long.mask_rate=0.75', '| run=image+short',
    ]  # fmt: skip
    assert '| 51.0 +- 1.4 | 51.0 +- 1.4 | 90.0 +- 0.0 | 51.0 +- 1.4 | 1,000,000 | 512 |' in lines[2]
    assert '| 90.0 | 90.0 | 90.0 | - |' in lines[-1] and lines[2].endswith('| 4.00 | 10.00 |')
    peaks = {('B', 2): 3e9, ('B', 16): 17e9, ('L', 16): 16e9}
    memory = [
        {'variant': 'base', 'rate': 0.75, 'remat': 'none', 'size': s, 'frames': f, 'peak_bytes': x}
        for (s, f), x in peaks.items()
    ]
    memory += [memory[0] | {'rate': 0.0}]
    assert '\n'.join(variants.memory_table(memory, 16.0)).strip().splitlines() == [
        '| variant | masked | B 2 | B 16 | L 16 |', '|---|---|---|---|---|',
        '| base | 75% | 3.00 | **17.00** | 16.00 |', '| base | 0% | 3.00 | - | - |',
    ]  # fmt: skip
