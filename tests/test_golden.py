"""The losses of the three stages as they once were: whatever changes them has to be meant.

A change that is meant stores new values: `python -m tests.test_golden`
"""

import json
import tempfile
from pathlib import Path

import pytest

from tests import tiny_run

GOLDEN = Path(__file__).parent / 'golden' / 'tiny_run.json'
KEYS = ('loss', 'gap', 'temperature', 'lr')


def measured(data_dir, workdir):
    """{stage: {key: [value of each step]}} of a run with all that moves the losses switched on."""
    from long_vivit import train

    run = tiny_run.resolved(
        data_dir, workdir, log__every=1, model__video__depth=2, model__attention='blockwise',
        optim__ema=0.5, loss__label_smoothing=0.1, checkpoint__every=100,
        stages__image__eval='', stages__short__eval='', stages__long__eval='',
        stages__image__steps=3, stages__short__steps=4, stages__long__steps=3,
        stages__short__image_train='shape_stories/image:train', stages__short__image_ratio=0.5,
        stages__long__last_layers=1,
    )  # fmt: skip
    assert train.train(run) == 0
    found = {}
    for line in tiny_run.curves(workdir):
        stage = found.setdefault(line['stage'], {key: [] for key in KEYS})
        for key in KEYS:
            stage[key].append(line[key])
    return found


def test_the_losses_are_what_they_were(tiny_stories, tmp_path, quick_compilation):
    found, stored = measured(tiny_stories, tmp_path / 'run'), json.loads(GOLDEN.read_text())
    assert list(found) == list(stored) == list(tiny_run.STAGES)
    for stage, curves in stored.items():
        for key, values in curves.items():
            assert found[stage][key] == pytest.approx(values, abs=1e-4), f'{stage} {key}'


if __name__ == '__main__':
    from data.shape_stories import build

    with tempfile.TemporaryDirectory() as folder:
        build.build_tiny(folder)
        values = measured(folder, Path(folder) / 'run')
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(values, indent=1) + '\n')
    print(f'wrote {GOLDEN}')
