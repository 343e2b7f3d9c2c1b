"""The losses of the stages as they once were: whatever changes them has to be meant.

Of a tiny run with all that moves the losses switched on, of the small recipe as it stands but for
its length: two steps a stage, one of them warming up, and of the images that it mixes in. All are
compiled without optimising, so what an optimising compiler does to the recipe's losses is not seen
here.

A change that is meant stores new values: `python -m tests.test_golden`
"""

import json
import tempfile
from pathlib import Path

import pytest

from configs import long
from long_vivit import config
from tests import tiny_run

GOLDEN = Path(__file__).parent / 'golden'
KEYS = ('loss', 'gap', 'temperature', 'lr')


def tiny(data_dir, workdir):
    """A tiny run with all that moves the losses switched on."""
    return tiny_run.resolved(
        data_dir, workdir, log__every=1, model__video__depth=2, model__attention='blockwise',
        optim__ema=0.5, loss__label_smoothing=0.1, checkpoint__every=100,
        stages__image__eval='', stages__short__eval='', stages__long__eval='',
        stages__image__steps=3, stages__short__steps=4, stages__long__steps=3,
        stages__short__image_train='shape_stories/image:train', stages__short__image_ratio=0.5,
        stages__long__last_layers=1,
    )  # fmt: skip


def small(data_dir, workdir):
    """configs/long.py, but for the number of steps: two a stage, and nothing is scored."""
    fields = long.get_config()
    fields.data.dir, fields.workdir, fields.log.every = str(data_dir), str(workdir), 1
    for stage in fields.stages.values():
        stage.update(steps=2, warmup_steps=1, eval='')
    return config.resolve(fields)


def mixed(data_dir, workdir):
    """The short stage of configs/long.py alone: two steps, one of them of images."""
    fields = long.get_config()
    fields.data.dir, fields.workdir, fields.log.every = str(data_dir), str(workdir), 1
    fields.run = ('short',)
    fields.stages.short.update(steps=2, warmup_steps=1, eval='', image_ratio=0.5)
    return config.resolve(fields)


RUNS = {'tiny_run': tiny, 'small_recipe': small, 'mixed_images': mixed}


def measured(run, workdir):
    """{stage: {key: [value of each step]}} of a run."""
    from long_vivit import train

    assert train.train(run) == 0
    found = {}
    for line in tiny_run.curves(workdir):
        stage = found.setdefault(line['stage'], {key: [] for key in KEYS})
        for key in KEYS:
            stage[key].append(line[key])
    return found


@pytest.mark.parametrize('name', RUNS)
def test_the_losses_are_what_they_were(
    name, tiny_stories, tmp_path, quick_compilation, one_device
):  # fmt: skip
    workdir = tmp_path / 'run'
    found = measured(RUNS[name](tiny_stories, workdir), workdir)
    stored = json.loads((GOLDEN / f'{name}.json').read_text())
    assert list(found) == list(stored)
    assert name == 'mixed_images' or list(found) == list(tiny_run.STAGES)
    for stage, curves in stored.items():
        for key, values in curves.items():
            assert found[stage][key] == pytest.approx(values, abs=1e-4), f'{stage} {key}'


if __name__ == '__main__':
    from data.shape_stories import build

    with tempfile.TemporaryDirectory() as folder:
        build.build_tiny(folder)
        for name, make in RUNS.items():
            workdir, file = Path(folder) / name, GOLDEN / f'{name}.json'
            file.write_text(json.dumps(measured(make(folder, workdir), workdir), indent=1) + '\n')
            print(f'wrote {file}')
