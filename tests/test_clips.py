"""Real clips in eight codecs and containers are learnt by heart, through the public path."""

import pytest

from long_vivit import train
from long_vivit.inputs import video
from tests import tiny_run


@pytest.fixture
def decoded_once(monkeypatch):
    """Every clip is decoded in the first epoch only: its frames are the same in each."""
    known = {}

    def read_frames(file, *others, read=video.read_frames, **options):
        if file not in known:
            known[file] = read(file, *others, **options)
        return known[file]

    monkeypatch.setattr(video, 'read_frames', read_frames)
    return known


def test_thirty_clips_are_found_among_themselves(
    clips, tiny_stories, tmp_path, decoded_once, quick_compilation, one_device
):
    """Trained on 30 captioned clips, the model finds at least 27 of them, both ways."""
    manifest = f'videos:{clips / "manifest.jsonl"}'
    run = tiny_run.resolved(
        tiny_stories, tmp_path / 'run', run=('short',), data__train=manifest, data__eval=manifest,
        model__video__depth=2, model__video__width=64, model__video__heads=4, model__text__width=64,
        model__text__heads=4, model__embed=64, loss__temperature=0.1, checkpoint__every=1000,
        log__every=10, eval__ablations=False,
        stages__short__frames=8, stages__short__pixels=64, stages__short__batch=30,
        stages__short__eval_batch=30, stages__short__steps=80, stages__short__warmup_steps=8,
        stages__short__lr=2e-3, stages__short__sampler='mid', stages__short__text_length=32,
    )  # fmt: skip
    assert train.train(run) == 0
    assert len(decoded_once) == 30
    stage = tiny_run.results(run.workdir)['short']
    assert stage['num_broken'] == stage['protocol']['missing_videos'] == 0
    for way in ('text_to_video', 'video_to_text'):
        score = stage['scores']['ordered'][way]
        assert score['num_items'] == 30
        assert score['recall_at_1'] >= 0.9, (way, score)
