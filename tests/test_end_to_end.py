"""The real commands on a tiny data set: to the end, killed and gone on, stopped, refused."""

import errno
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import long_vivit
from long_vivit import checkpoints, evaluate, loop, losses, retrieval, sharding, step, train
from long_vivit.inputs import pipeline
from long_vivit.inputs.sources import open_source
from long_vivit.stop import Signalled, Signals
from long_vivit.workdir import Workdir
from long_vivit.writers import JsonlWriter, read_jsonl
from tests import tiny_run

LINES = [('image', 3), ('image', 4), ('short', 3), ('short', 6), ('long', 3), ('long', 5)]

# Runs the command, and sends itself a signal: before a stage is recorded as finished, or in a step.
SABOTAGED = """
import os, runpy, sys
from long_vivit import loop, workdir
name, place, number = sys.argv.pop(1).split(':')
def hit(*here):
    if here == (name, place):
        os.kill(os.getpid(), int(number))
def finish(self, stage, result, finish=workdir.Workdir.finish):
    hit(stage, 'finish')
    finish(self, stage, result)
def note(self, step, *others, note=loop.Loop.note):
    note(self, step, *others)
    hit(self.stage.name, str(step))
workdir.Workdir.finish, loop.Loop.note = finish, note
runpy.run_module('long_vivit.train', run_name='__main__', alter_sys=True)
"""


@pytest.fixture(scope='module', autouse=True)
def cache(quick_compilation, one_device):
    """All runs here share what is compiled for the first one."""
    return quick_compilation


@pytest.fixture(scope='module')
def unbroken(tiny_stories, tmp_path_factory, cache):
    """(work directory, what was printed) of the command, run to its end."""
    workdir = tmp_path_factory.mktemp('unbroken') / 'run'
    done = tiny_run.child(['-m', 'long_vivit.train', *tiny_run.flags(tiny_stories, workdir)], cache)
    assert done.returncode == 0, done.stderr
    return workdir, done


@pytest.fixture
def copied(unbroken, tmp_path):
    """A copy of the unbroken run, to spoil."""
    return Path(shutil.copytree(unbroken[0], tmp_path / 'copy'))


def content(folder):
    """{file: (bytes, time of change)} of all files in a folder."""
    files = [file for file in Path(folder).rglob('*') if file.is_file()]
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def test_a_run_from_start_to_end(unbroken):
    workdir, done = unbroken
    assert [(line['stage'], line['step']) for line in tiny_run.curves(workdir)] == LINES
    line = read_jsonl(workdir / 'metrics.jsonl')[-1]
    assert {
        'loss', 'recall', 'gap', 'temperature', 'grad_norm', 'lr', 'ok', 'skipped', 'cut_texts',
        'clips_per_s', 'tokens_per_s', 'data_wait_share', 'eta_s',
    } <= line.keys()  # fmt: skip
    assert line['tokens_per_s'] / line['clips_per_s'] == pytest.approx(4 * 2)  # 4 slices, 4 / 2
    found = tiny_run.results(workdir)
    assert list(found) == ['image', 'short', 'long']
    for name, stage in found.items():
        orders = ['ordered'] if name == 'image' else ['ordered', 'shuffled', 'one_frame']
        assert list(stage['scores']) == orders
        assert stage['steps'] == tiny_run.OWN_FIELDS[name]['steps']
        assert stage['peak_memory_bytes'] > 2**20 and stage['seconds'] > 0
        assert stage['num_broken'] == stage['num_bad_steps'] == 0
        for score in stage['scores'].values():
            for way in ('text_to_video', 'video_to_text'):
                assert score[way]['num_queries'] == score[way]['num_items'] == 32
                assert score[way]['interval'][0] <= score[way]['recall_at_1']
            assert (score['twin_accuracy'] is None) == (name == 'image')
        assert stage['protocol']['frames'] == tiny_run.OWN_FIELDS[name]['frames']
        assert stage['protocol']['missing_videos'] == 0


def test_what_the_screen_shows(unbroken):
    workdir, done = unbroken
    assert 'Traceback' not in done.stderr and 'Warning' not in done.stderr, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f'{workdir}: image, short, long on CPU'
    assert lines[1] == 'attention: dense (model.attention names it)'
    assert lines[2].startswith('ready after ')
    adapted = {line.split(':')[0].strip() for line in lines if re.match(r'  \S+/\S+: ', line)}
    assert adapted >= {'video/tubelet_embed/kernel', 'video/positions/time', 'text/positions'}
    assert 'nan' not in done.stdout
    assert 'None' not in done.stdout
    assert sum(line.split()[:1] == ['long'] for line in lines) == 4  # curves, scores, cost
    assert lines[-1].endswith(f"results.json; the model: long_vivit.load('{workdir}')")


def test_killed_and_stopped_runs_go_on_as_if_nothing_had_been(
    unbroken, tiny_stories, tmp_path, cache
):
    """Killed at a stage's end and within a stage, SIGTERM, SIGINT: the same bits in the end."""
    workdir = tmp_path / 'run'
    flags = tiny_run.flags(tiny_stories, workdir)

    def run(*sabotage):
        start = ['-c', SABOTAGED, *sabotage] if sabotage else ['-m', 'long_vivit.train']
        done = tiny_run.child([*start, *flags], cache)
        return done.returncode, done.stdout.splitlines(), done.stderr

    status, lines, _ = run(f'image:finish:{signal.SIGKILL}')
    assert status == -signal.SIGKILL
    assert not (workdir / 'stages/image/finished.json').exists()
    status, lines, _ = run(f'short:5:{signal.SIGKILL}')
    assert status == -signal.SIGKILL
    assert 'image: goes on from step 4' in lines
    status, lines, _ = run(f'long:1:{signal.SIGTERM}')
    assert status == 128 + signal.SIGTERM
    assert 'image: finished before' in lines
    assert {'short: goes on from step 2', 'short: goes on from step 4'} & set(lines)
    again = 'the same command goes on from there'
    assert lines[-1] == f'SIGTERM: saved long at step 1; {again}'
    status, lines, errors = run(f'long:4:{signal.SIGINT}')
    assert status == 128 + signal.SIGINT, errors
    assert not any('starts from' in line for line in lines)
    assert lines[-1] == f'SIGINT: saved long at step 4; {again}'
    status, lines, errors = run()
    assert status == 0, errors
    assert lines[2:5] == [
        'image: finished before', 'short: finished before', 'long: goes on from step 4'
    ]  # fmt: skip

    assert tiny_run.curves(workdir) == tiny_run.curves(unbroken[0])
    for name in tiny_run.STAGES:
        here, there = (tiny_run.checkpoints(w, name) for w in (workdir, unbroken[0]))
        assert max(here) == max(there) == tiny_run.OWN_FIELDS[name]['steps']
        assert there.keys() <= here.keys()
        for at in there:
            assert tiny_run.differing(here[at], there[at]) == []
    for name, stage in tiny_run.results(unbroken[0]).items():
        other = tiny_run.results(workdir)[name]
        assert {k for k in stage if stage[k] != other[k]} <= tiny_run.MEASURED


def test_another_configuration_is_refused_and_nothing_changes(copied, tiny_stories):
    before = content(copied)
    run = tiny_run.resolved(tiny_stories, copied, model__embed=32, stages__long__lr=2e-3)
    with pytest.raises(ValueError, match='another configuration') as caught:
        train.train(run)
    assert str(caught.value).splitlines()[1:] == [
        '  model.embed: 16 -> 32', '  stages.long.lr: 0.001 -> 0.002'
    ]  # fmt: skip
    assert content(copied) == before


def test_what_does_not_teach_may_change(copied, tiny_stories, capsys):
    changes = {'checkpoint__keep': 1, 'stages__long__eval_batch': 4, 'max_bad_steps': 3}
    changes |= {'loss__form': 'tiled', 'stages__long__micro_batch': 4}  # same loss, less memory
    assert train.train(tiny_run.resolved(tiny_stories, copied, **changes)) == 0
    assert 'long: finished before' in capsys.readouterr().out


def test_a_configuration_that_taught_nothing_may_be_mended(tiny_stories, tmp_path):
    """Its fault showed in the folder it had made: the mended one may go there."""
    asked = {'run': ('image',), 'stages__image__eval': ''}
    run = tiny_run.resolved(tiny_stories, tmp_path / 'run', optim__freeze=('txet/.*',), **asked)
    with pytest.raises(ValueError, match="freeze: 'txet/.*' matches no parameter"):
        train.train(run)
    assert (tmp_path / 'run' / 'config.json').exists()
    mended = tiny_run.resolved(tiny_stories, tmp_path / 'run', optim__freeze=('text/.*',), **asked)
    assert train.train(mended) == 0
    with pytest.raises(ValueError, match='another configuration'):
        train.train(run)
    (tmp_path / 'run' / 'metrics.jsonl').unlink()  # the checkpoints are enough
    with pytest.raises(ValueError, match='another configuration'):
        train.train(run)


def test_one_command_at_a_time(copied, tiny_stories, capsys):
    run = tiny_run.resolved(tiny_stories, copied)
    other = Workdir(copied)
    other.open(run, other.tokenizer.read_text())
    with pytest.raises(ValueError, match='another command is teaching here'):
        train.train(run)
    other.close()
    assert train.train(run) == 0


def test_other_data_under_the_same_name_are_refused(copied, tiny_stories, monkeypatch):
    """A run that goes on must see what it would have seen."""
    (copied / 'stages' / 'long' / 'finished.json').unlink()
    run = tiny_run.resolved(tiny_stories, copied)

    def changed(*args, **kwargs):
        source = open_source(*args, **kwargs)
        source.fingerprint = 'of other films'
        return source

    before = content(copied / 'stages')
    monkeypatch.setattr(train, 'open_source', changed)
    with pytest.raises(ValueError, match='long: the training data have changed since step 5'):
        train.train(run)
    assert content(copied / 'stages') == before
    monkeypatch.undo()
    assert train.train(run) == 0


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_garbage_is_collected_is_not_lost(number):
    """Python only prints what is raised in there."""

    def _xla_gc_callback(*_):
        os.kill(os.getpid(), number)

    begun = time.monotonic()
    with pytest.raises(Signalled), Signals():
        _xla_gc_callback()
        time.sleep(10)
    assert time.monotonic() - begun < 5


def test_a_workdir_that_is_no_folder(tiny_stories, tmp_path):
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(ValueError) as caught:
        train.train(tiny_run.resolved(tiny_stories, tmp_path / 'file'))
    assert str(caught.value) == (
        f'workdir: cannot write {tmp_path}/file: a file of this name is in the way; '
        'choose another workdir'
    )
    assert (tmp_path / 'file').read_text() == 'mine'
    with pytest.raises(ValueError, match='a part of the path is a file; choose another workdir'):
        train.train(tiny_run.resolved(tiny_stories, tmp_path / 'file' / 'run'))


def test_a_workdir_that_cannot_be_written(tiny_stories, tmp_path, monkeypatch):
    def refused(self, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, 'mkdir', refused)
    with pytest.raises(ValueError, match='cannot write .*/run: no permission to write'):
        train.train(tiny_run.resolved(tiny_stories, tmp_path / 'run'))


def test_a_batch_that_does_not_split_over_the_devices(tiny_stories, tmp_path, monkeypatch):
    eight = Mesh(np.array(jax.devices()).reshape(1, 8, 1, 1, 1), sharding.AXES)
    monkeypatch.setattr(sharding, 'make_mesh', lambda *_: eight)
    run = tiny_run.resolved(tiny_stories, tmp_path / 'run', stages__short__batch=12)
    with pytest.raises(ValueError, match='stages.short.batch: 12 .* must be a multiple of 8'):
        train.train(run)
    assert not (tmp_path / 'run').exists()


def test_offloading_is_refused_where_there_is_no_other_memory(tiny_stories, tmp_path):
    run = tiny_run.resolved(tiny_stories, tmp_path / 'run', model__video__remat='offload')
    with pytest.raises(ValueError, match="remat: 'offload', but on CPU .* use 'full'"):
        train.train(run)
    assert not (tmp_path / 'run').exists()


def test_a_full_disk_harms_nothing_that_is_saved(tiny_stories, tmp_path, monkeypatch):
    run = tiny_run.resolved(tiny_stories, tmp_path / 'run', run=('image',), stages__image__eval='')
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    save, append = checkpoints.v1.save_async, JsonlWriter.append

    def save_once(folder, *others, **options):
        if folder.name == '4':
            raise full
        return save(folder, *others, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.v1, 'save_async', save_once)
        with pytest.raises(ValueError, match='disk is full; .*step 4 not saved .* step 2 is there'):
            train.train(run)
    assert list(tiny_run.checkpoints(run.workdir, 'image')) == [2]

    def append_once(self, row):
        if row['step'] == 4:
            raise full
        append(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(JsonlWriter, 'append', append_once)
        with pytest.raises(ValueError, match='workdir: cannot write .*: the disk is full; free'):
            train.train(run)
    assert train.train(run) == 0
    assert list(tiny_run.checkpoints(run.workdir, 'image')) == [2, 4]
    assert [line['step'] for line in tiny_run.curves(run.workdir)] == [3, 4]


def test_a_signal_ends_the_scoring(copied, tiny_stories, monkeypatch, capsys):
    (copied / 'stages/long/finished.json').unlink()
    with monkeypatch.context() as patch:
        patch.setattr(retrieval, 'score', lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
        before = signal.getsignal(signal.SIGTERM)
        assert train.train(tiny_run.resolved(tiny_stories, copied)) == 128 + signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == before
    assert capsys.readouterr().out.splitlines()[-1] == (
        f'SIGTERM: stopped at once; the same command goes on from what is saved in {copied}'
    )
    assert not (copied / 'stages/long/finished.json').exists()


def test_weights_to_start_from(unbroken, tiny_stories, tmp_path, capsys):
    """The long stage taught from a checkpoint of the short one, as the unbroken run did."""
    checkpoint = tiny_run.checkpoints(unbroken[0], 'short')[6]
    run = tiny_run.resolved(
        tiny_stories, tmp_path / 'run', run=('long',), init=str(checkpoint), eval__ablations=False
    )
    assert train.train(run) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f'long: starts from {checkpoint}' in lines
    assert any(line.startswith('  text/positions: stretch of text/positions') for line in lines)
    wanted = [line for line in tiny_run.curves(unbroken[0]) if line['stage'] == 'long']
    for line, other in zip(tiny_run.curves(run.workdir), wanted, strict=True):
        assert line['loss'] == other['loss']
    short = tiny_run.resolved(tiny_stories, tmp_path / 'other', init=str(tmp_path / 'run'))
    with pytest.raises(ValueError, match=r'(?s)cannot start from these weights.*tubelet_embed'):
        train.train(short)  # an image stage has no use for what was taught on videos


def test_evaluate_repeats_the_scores(unbroken, tmp_path, capsys):
    workdir, out = unbroken[0], tmp_path / 'out.json'
    arguments = ['--checkpoint', str(workdir), '--ordered_only', '--json', '--out', str(out)]
    assert evaluate.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == found
    found, stored = found['stages']['long'], tiny_run.results(workdir)['long']
    assert found['scores'] == {'ordered': stored['scores']['ordered']}
    assert found['protocol'] == stored['protocol'] | {'checkpoint': str(workdir), 'stage': 'long'}
    assert evaluate.main(['--checkpoint', str(workdir), '--stage', 'image', '--text', 'any']) == 0
    table = capsys.readouterr().out
    assert 'image  in order' in table and 'Training' not in table
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match='--out=.*/file/out.json: cannot be written'):
        evaluate.main([*arguments[:-1], str(tmp_path / 'file' / 'out.json')])
    assert json.loads(capsys.readouterr().out)['stages']['long'] == found  # not lost for that


def test_what_the_notebook_gets_is_what_was_scored(unbroken, tiny_stories, tmp_path):
    loaded = long_vivit.load(unbroken[0])
    assert loaded.stage.name == 'long'
    source = open_source('shape_stories/long:test', data_dir=str(tiny_stories), text='long_caption')
    clips = pipeline.Clips(source, loaded.view, 16)
    (z_video,), broken = retrieval.embed_videos(loaded.model, clips)
    files = [tmp_path / f'{i}.mp4' for i in range(3)]
    for i, file in enumerate(files):
        file.write_bytes(source[i].video)
    assert not broken
    from_files = loaded.encode_video(files)
    np.testing.assert_allclose(from_files, z_video[:3], atol=1e-6)
    np.testing.assert_allclose(loaded.encode_video(str(files[1])), z_video[1], atol=1e-6)
    frames = np.stack([loaded.read(file) for file in files])
    np.testing.assert_allclose(loaded.encode_video(frames), from_files, atol=1e-6)
    np.testing.assert_allclose(loaded.encode_video(frames[2]), from_files[2], atol=1e-6)
    assert abs(from_files[0] - from_files[1]).max() > 1e-4  # twins, yet not the same film
    texts, owner = retrieval.texts_of(source, 'long_caption')
    z_text, _ = retrieval.embed_texts(loaded.model, loaded.tokenizer, texts, length=32)
    with pytest.warns(UserWarning, match='5 of 5 texts have more than the 32 tokens'):
        np.testing.assert_allclose(loaded.encode_text(texts[:5]), z_text[:5], atol=1e-6)
    with pytest.warns(UserWarning, match='1 of 1 texts'):
        np.testing.assert_allclose(loaded.encode_text(texts[3]), z_text[3], atol=1e-6)
    assert long_vivit.load(unbroken[0], 'image').view.frames == 1
    with pytest.raises(ValueError, match="'shrot' is no finished stage; finished: image, short"):
        long_vivit.load(unbroken[0], 'shrot')


def test_all_that_is_optional(tiny_stories, tmp_path, capsys):
    """Images among videos, last layers only, running mean, bfloat16, scores on the way."""
    run = tiny_run.resolved(
        tiny_stories, tmp_path / 'run', run=('short', 'long'), log__every=1, log__tensorboard=True,
        checkpoint__keep=1, eval__every=2, eval__ablations=False, optim__ema=0.9,
        model__dtype='bfloat16', model__video__depth=2,
        stages__short__image_train='shape_stories/image:train',
        stages__short__image_ratio=0.5, stages__long__last_layers=1,
    )  # fmt: skip
    assert train.train(run) == 0
    lines = read_jsonl(Path(run.workdir) / 'metrics.jsonl')
    rates = [line for line in lines if line['stage'] == 'short' and 'clips_per_s' in line]
    tokens = [round(line['tokens_per_s'] / line['clips_per_s']) for line in rates]
    assert tokens == [2, 4, 2, 4, 2]  # steps 2 to 6: two of four patches; two slices of a video

    scored = {line['step']: line for line in lines if 'eval_recall_at_1' in line}
    assert set(scored) == {2, 4}
    for name in ('short', 'long'):
        own = [line for line in lines if line['stage'] == name and 'eval_recall_at_1' in line]
        best = max(own, key=lambda line: (line['eval_recall_at_1'], line['step']))
        kept = tiny_run.checkpoints(run.workdir, name)
        assert list(kept) == [best['step'], tiny_run.OWN_FIELDS[name]['steps']]
        assert list((Path(run.workdir) / 'tensorboard' / name).iterdir())

    ends = [
        checkpoints.read_flat(tiny_run.checkpoints(run.workdir, name)[at])
        for name, at in (('short', 6), ('long', 5))
    ]
    assert {array.dtype for name, array in ends[1].items() if 'count' not in name} <= {
        np.dtype('float32'), np.dtype('int32')
    }  # fmt: skip
    kernel = 'video/trunk/blocks/up/kernel'
    assert not np.array_equal(ends[0]['ema/' + kernel], ends[0]['model/' + kernel])
    for start in ('model/', 'ema/'):  # the long stage started from the short one's running mean
        before, after = ends[0]['ema/' + kernel], ends[1][start + kernel]
        assert np.array_equal(before[0], after[0])
        assert not np.array_equal(before[1], after[1])
        frozen = 'video/tubelet_embed/kernel'
        assert np.array_equal(ends[0]['ema/' + frozen], ends[1][start + frozen])
    assert 'short: step 2: recall@1' in capsys.readouterr().out


def test_a_score_on_the_way_that_fails_costs_no_step(
    tiny_stories, tmp_path, quick_compilation, one_device, monkeypatch
):
    """Such as of a video that has gone since the start."""

    def gone(*_):
        raise ValueError('film 5.mp4: not-found')

    monkeypatch.setattr(loop, 'score_stage', gone)
    fields = {'run': ('short',), 'eval__every': 3, 'checkpoint__every': 100}
    with pytest.raises(ValueError, match='not-found'):
        train.train(tiny_run.resolved(tiny_stories, tmp_path / 'run', **fields))
    assert list(tiny_run.checkpoints(tmp_path / 'run', 'short')) == [3]


@pytest.fixture
def own_videos(tiny_stories, tmp_path):
    """A manifest of 16 files, of which one is damaged."""
    source = open_source('shape_stories/short:train', data_dir=str(tiny_stories))
    rows = []
    for i in range(16):
        file = tmp_path / f'film {i}.mp4'
        file.write_bytes(source[i].video if i != 5 else source[i].video[:500])
        rows.append({'video': file.name, 'caption': source[i].captions[0]})
    (tmp_path / 'mine.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return f'videos:{tmp_path / "mine.jsonl"}'


def test_a_broken_video_of_ones_own(own_videos, tiny_stories, tmp_path, capsys):
    asked = {'run': ('short',), 'data__train': own_videos, 'data__eval': own_videos}
    asked |= {'eval__ablations': False}
    workdir = tmp_path / 'run'
    with pytest.raises(ValueError, match='1 of 16 videos cannot be read') as caught:
        train.train(tiny_run.resolved(tiny_stories, workdir, **asked))
    assert str(caught.value).count('film 5.mp4') == 1
    assert 'eval.allow_broken' in str(caught.value)
    assert not workdir.exists()  # said before anything was taught

    assert (
        train.train(tiny_run.resolved(tiny_stories, workdir, eval__allow_broken=True, **asked)) == 0
    )
    (row,) = read_jsonl(workdir / 'broken.jsonl')
    assert row['stage'] == 'short' and row['step'] in (1, 2) and 'film 5' in row['id']
    shares = [line['ok'] for line in tiny_run.curves(workdir)]
    assert np.mean(shares) == pytest.approx(15 / 16)  # 48 places of three epochs
    assert list(tiny_run.checkpoints(workdir, 'short')) == [2, 4, 6]
    shown = ' '.join(capsys.readouterr().out.split())
    assert '1 broken example left out' in shown
    assert 'missing videos 1' in shown and 'with the missing ones all wrong' in shown
    stage = tiny_run.results(workdir)['short']
    assert stage['num_broken'] == 1
    assert (stage['protocol']['videos'], stage['protocol']['missing_videos']) == (15, 1)
    for way in ('text_to_video', 'video_to_text'):
        score = stage['scores']['ordered'][way]
        assert score['num_queries'] == score['num_items'] == 15
        hits = 15 * score['recall_at_1']
        assert score['bounds'] == pytest.approx([hits / 16, (hits + 1) / 16])


def poisoned(monkeypatch, is_bad):
    """Makes the loss NaN of each batch that has a text of which is_bad(text) is true."""
    key = np.int32(-12345)

    def nce(z_video, z_text, log_scale, ok, text_key, *videos, nce=losses.nce, **others):
        loss, watch = nce(z_video, z_text, log_scale, ok, text_key, *videos, **others)
        return jnp.where((text_key == key).any(), jnp.nan, loss), watch

    def text_key(text, text_key=pipeline.text_key):
        return key if is_bad(text) else text_key(text)

    monkeypatch.setattr(step.losses, 'nce', nce)
    monkeypatch.setattr(pipeline, 'text_key', text_key)


def test_a_step_without_a_finite_loss_is_left_out_and_listed(tiny_stories, tmp_path, monkeypatch):
    source = open_source('shape_stories/image:train', data_dir=str(tiny_stories))
    bad = source[7]
    alike = {e.id for e in source if e.captions == bad.captions}
    poisoned(monkeypatch, lambda text: text == bad.captions[0])
    run = tiny_run.resolved(
        tiny_stories, tmp_path / 'run', run=('image',), stages__image__eval='',
        stages__image__steps=8, max_bad_steps=8,
    )  # fmt: skip
    assert train.train(run) == 0  # one epoch: 64 films in 8 steps
    rows = read_jsonl(Path(run.workdir) / 'bad_steps.jsonl')
    assert 1 <= len(rows) <= len(alike)
    for row in rows:
        assert row['loss'] == 'nan' and len(row['ids']) == 8 and alike & set(row['ids'])
    lines = tiny_run.curves(run.workdir)
    assert sum(line['skipped'] for line in lines) == len(rows)
    assert all(np.isfinite(line['loss']) for line in lines)
    assert tiny_run.results(run.workdir)['image']['num_bad_steps'] == len(rows)
    end = checkpoints.read_flat(tiny_run.checkpoints(run.workdir, 'image')[8])
    assert all(np.isfinite(array).all() for array in end.values())
    counts = {int(array) for name, array in end.items() if name.endswith('/count')}
    assert counts == {8 - len(rows)} and end['step'] == 8


def test_too_many_of_them_end_the_run(tiny_stories, tmp_path, monkeypatch):
    poisoned(monkeypatch, lambda text: True)
    run = tiny_run.resolved(
        tiny_stories, tmp_path / 'run', run=('image',), max_bad_steps=3, log__every=1
    )
    with pytest.raises(ValueError, match='image: 3 steps in a row, up to step 3') as caught:
        train.train(run)
    assert 'stages.image.lr' in str(caught.value)
    assert f'{run.workdir}/bad_steps.jsonl' in str(caught.value)
    assert [row['step'] for row in read_jsonl(Path(run.workdir) / 'bad_steps.jsonl')] == [1, 2, 3]
    with pytest.raises(ValueError, match='3 steps in a row, up to step 3'):
        train.train(run)  # from the checkpoint of step 2, which knows of two bad steps
