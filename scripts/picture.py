"""Draw the README's picture from a finished run of the small recipe.

python scripts/picture.py runs/long scripts/picture.png
"""

import json
import sys
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from long_vivit import recipe
from long_vivit.inputs import patches, samplers, video
from long_vivit.inputs.sources import open_source
from long_vivit.workdir import Workdir
from long_vivit.writers import read_jsonl

ORDERS = {'ordered': 'in order', 'shuffled': 'shuffled frames', 'one_frame': 'one frame'}
SHOWN_FRAMES = 16
COLOURS = ('#0b6e99', '#e08e2b', '#9a9a9a')


def strips(run, stage):
    """Frames of the first scored story, the same with the masked patches dark, and its text."""
    example = open_source(stage.eval, data_dir=run.data.dir)[0]
    view = recipe.view(run, stage)
    frames = video.read_frames(
        example.video, lambda a, b: samplers.mid(a, b, view.frames), pixels=view.pixels
    ).frames
    where = patches.choose(view.mask_kind, view.grid, view.mask_rate, np.random.default_rng(0))
    kept = np.zeros(view.grid, bool)
    kept[tuple(where.T)] = True
    kept = kept.repeat(view.tubelet, 0).repeat(view.patch, 1).repeat(view.patch, 2)
    masked = np.where(kept[..., None], frames, frames // 6)
    shown = np.arange(SHOWN_FRAMES) * len(frames) // SHOWN_FRAMES
    return [np.concatenate(list(part[shown]), 1) for part in (frames, masked)], example


def draw(folder, out):
    """The picture of the run in `folder`, written to the file `out`."""
    workdir = Workdir(folder)
    run = workdir.read_config()
    results = json.loads(workdir.results.read_text())['stages']
    stage = run.stages[-1]
    (whole, masked), example = strips(run, stage)
    figure = plt.figure(figsize=(11, 6.4), dpi=130, layout='constrained')
    grid = figure.add_gridspec(4, 2, height_ratios=(1, 1, 0.9, 5))
    for row, (strip, title) in enumerate(
        (
            (whole, f'A test story: {SHOWN_FRAMES} of its {stage.frames} frames'),
            (masked, f'What the encoder is sent in training: {1 - stage.mask_rate:.0%} of it'),
        )
    ):
        axes = figure.add_subplot(grid[row, :])
        axes.imshow(strip, aspect='equal')
        axes.set_title(title, loc='left', fontsize=9)
        axes.axis('off')
    axes = figure.add_subplot(grid[2, :])
    text = textwrap.shorten((example.long_captions or example.captions)[0], 330, placeholder=' ...')
    axes.text(0, 1, textwrap.fill(f'"{text}"', 170), fontsize=8, va='top', style='italic')
    axes.axis('off')
    curves(figure.add_subplot(grid[3, 0]), run, read_jsonl(workdir.metrics))
    bars(figure.add_subplot(grid[3, 1]), results)
    figure.savefig(out)
    print(f'wrote {out}')


def curves(axes, run, rows):
    """Recall in the training batch over all steps, a colour for each stage."""
    start = 0
    for colour, stage in zip(COLOURS, run.stages, strict=False):
        lines = [row for row in rows if row['stage'] == stage.name and 'recall' in row]
        steps = [start + row['step'] for row in lines]
        axes.plot(steps, [row['recall'] for row in lines], color=colour)
        start += stage.steps
        axes.axvline(start, color='#dddddd', zorder=0)
        axes.text(start, 0.95, f'{stage.name} ', ha='right', color=colour)
    sizes = ', '.join(str(stage.batch) for stage in run.stages)
    title = f'Recall@1 in the training batch (of {sizes} pairs)'
    axes.set(title=title, xlabel='step', ylim=(0, 1), xlim=(0, start))


def bars(axes, results):
    """Recall@1 of text to video and order twins, with frames in order, shuffled, and one frame."""
    groups = []
    for name, result in results.items():
        scores = result['scores']
        if 'shuffled' not in scores:
            continue
        number = scores['ordered']['text_to_video']['num_items']
        recall = [scores[order]['text_to_video']['recall_at_1'] for order in ORDERS]
        groups.append((f'{name}: R@1\nof {number}', recall, 1 / number))
        twins = [scores[order]['twin_accuracy'] for order in ORDERS]
        groups.append((f'{name}:\norder twins', twins, 0.5))
    for i, (colour, label) in enumerate(zip(COLOURS, ORDERS.values(), strict=True)):
        heights = [values[i] for _, values, _ in groups]
        places = np.arange(len(groups)) + 0.27 * (i - 1)
        marks = axes.bar(places, heights, 0.25, color=colour, label=label)
        axes.bar_label(marks, [f'{100 * h:.0f}' for h in heights], fontsize=7)
    for place, (_, _, chance) in enumerate(groups):
        axes.plot([place - 0.42, place + 0.42], [chance, chance], 'k:', lw=1)
    axes.set_xticks(range(len(groups)), [name for name, *_ in groups], fontsize=8)
    axes.set(title='Held-out stories, percent (dotted: chance)', ylim=(0, 1.12), yticks=[])
    axes.legend(fontsize=8, loc='upper left', frameon=False, ncols=3)


if __name__ == '__main__':
    if len(sys.argv) != 3:
        sys.exit('usage: python scripts/picture.py WORKDIR OUT.png')
    draw(*sys.argv[1:])
