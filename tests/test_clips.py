"""Real clips learnt by heart, and shards of films taught and scored, through the public path."""

import dataclasses
import json

import pytest

from data.clips import build
from long_vivit import evaluate, train
from long_vivit.inputs import opening, video
from long_vivit.inputs.sources import open_source
from tests import tiny_run


@pytest.fixture
def decoded_once(monkeypatch):
    """Every clip is decoded in the first epoch only: its frames are the same in each."""
    known = {}

    def read_frames(file, times, *others, read=video.read_frames, **options):
        def noted(*asked):
            known[file] = [asked, None]
            return times(*asked)

        if file in known:
            times(*known[file][0])  # which chooses the patches of this look
        else:
            shown = read(file, noted, *others, **options)
            known[file][1] = shown
        return known[file][1]

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


@pytest.fixture
def manifest(tiny_stories, tmp_path):
    """A manifest of films of the built-in set as files: 16 to train on, 8 to test, in twins."""
    rows = []
    for split, num_films in (('train', 16), ('test', 8)):
        source = open_source(f'shape_stories/short:{split}', data_dir=tiny_stories)
        for i in range(num_films):
            example = source[i]
            (tmp_path / f'{example.id}.mp4').write_bytes(example.video)
            rows.append({
                'id': example.id, 'video': f'{example.id}.mp4', 'split': split,
                'caption': example.captions[0], 'group': example.group,
            })  # fmt: skip
    path = tmp_path / 'films.jsonl'
    path.write_text('\n'.join(map(json.dumps, rows)))
    return path


def test_shards_are_trained_on_and_scored_as_their_originals(
    manifest, tiny_stories, tmp_path, quick_compilation, one_device
):
    """The films have the rate and twice the size of the shards: the frames shown are the same."""
    build.build(tmp_path / 'built', manifest=manifest, pixels=32, fps='2', workers=1)
    how = {
        'run': ('short',), 'data__tokenizer': str(tiny_stories / 'shape_stories/tokenizer.json'),
        'stages__short__steps': 2, 'eval__ablations': False,
    }  # fmt: skip
    specs = {
        'shards': ('clips/films:train', 'clips/films:test'),
        'originals': (f'videos:{manifest}#train', f'videos:{manifest}#test'),
    }
    scores = {}
    for name, (train_spec, eval_spec) in specs.items():
        run = tiny_run.resolved(
            tmp_path / 'built', tmp_path / name, data__train=train_spec, data__eval=eval_spec, **how
        )
        assert train.train(run) == 0
        stage = tiny_run.results(run.workdir)['short']
        assert stage['num_broken'] == 0 and stage['protocol']['videos'] == 8
        assert stage['scores']['ordered']['twin_accuracy'] is not None
        for other, (_, spec) in specs.items():
            out = tmp_path / f'{name}-{other}.json'
            command = ['--checkpoint', run.workdir, '--data', spec, '--ordered_only', '--out', out]
            assert evaluate.main(list(map(str, command))) == 0
            scores[name, other] = json.loads(out.read_text())['stages']['short']['scores']
            assert scores[name, other] == stage['scores']
    assert scores['shards', 'shards'] == scores['originals', 'originals']
    checkpoints = [tiny_run.checkpoints(tmp_path / name, 'short')[2] for name in specs]
    assert tiny_run.differing(*checkpoints) == []


def test_files_to_score_on_that_are_of_no_use_are_told_before_the_start(
    manifest, tiny_stories, tmp_path, monkeypatch
):
    whole = (tmp_path / 'short-test-000001a.mp4').read_bytes()
    (tmp_path / 'short-test-000001a.mp4').write_bytes(b'<html>not found</html>')
    (tmp_path / 'short-test-000002b.mp4').unlink()
    run = tiny_run.resolved(
        tiny_stories, tmp_path / 'run', run=('short',),
        data__train=f'videos:{manifest}#train', data__eval=f'videos:{manifest}#test',
    )  # fmt: skip
    with pytest.raises(ValueError) as caught:
        train.train(run)
    lines = str(caught.value).splitlines()
    assert '2 of 8 videos cannot be read' in lines[0] and 'eval.allow_broken=True' in lines[0]
    assert lines[1].startswith('  short-test-000001a: cannot-open: ')
    assert lines[2].startswith('  short-test-000002b: not-found: ')
    assert not (tmp_path / 'run').exists()

    source = open_source(f'videos:{manifest}#test')
    monkeypatch.setattr(
        source, '_examples', [dataclasses.replace(e, start_s=900.0) for e in source._examples[:1]]
    )
    assert opening.unusable(source, time_limit_s=20, threads=2)[0].startswith('bad-range: start l')
    source = open_source(f'videos:{manifest}#test')
    (tmp_path / 'short-test-000001a.mp4').write_bytes(whole)
    assert list(opening.unusable(source, time_limit_s=20, threads=2)) == [5]
    assert (
        opening.unusable(
            open_source('shape_stories/short:test', data_dir=tiny_stories),
            time_limit_s=20,
            threads=2,
        )
        == {}
    )
