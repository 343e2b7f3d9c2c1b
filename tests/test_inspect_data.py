"""The inspect_data command on real, broken and missing videos."""

import json

import pytest

from long_vivit import inspect_data
from long_vivit.inputs import sources, text, video


def manifest(tmp_path, rows):
    path = tmp_path / 'm.jsonl'
    path.write_text('\n'.join(json.dumps(row) for row in rows))
    return f'videos:{path}'


def report_of(capsys, spec, *words):
    code = inspect_data.main([spec, '--json', f'--data_dir={spec.split("#")[0]}/none', *words])
    return code, json.loads(capsys.readouterr().out)


def test_real_clips(clips, capsys):
    code, report = report_of(capsys, f'videos:{clips}/manifest.jsonl', '--frames=2')
    assert code == 0
    assert report['examples'] == report['files'] == report['readable'] == 30
    assert report['broken'] == [] and report['without_text'] == []
    assert report['codec']['h264'] == 19
    assert sum(report['size'].values()) == sum(report['container'].values()) == 30
    assert 120 < report['duration_s']['max'] < 126
    assert report['counted_in'] == 'words'
    assert report['texts']['long_caption']['cut_at']['32'] == 30
    assert report['texts']['caption']['cut_at']['77'] == 0


def test_broken_files_have_their_reasons(clips, tmp_path, capsys):
    edge = clips / 'edge'
    names = {
        'derived_audio_only.webm': 'no-video-stream',
        'derived_not_a_video.mp4': 'cannot-open',
        'derived_drumming_truncated_index_first.mp4': 'truncated',
        'nowhere.mp4': 'not-found',
    }
    rows = [{'video': str(edge / name), 'id': name, 'caption': None} for name in names]
    turned = edge / 'keyboard_rotation_90.mov'
    rows += [{'video': str(turned), 'caption': 'A keyboard.'}]
    degrees = str(video.probe(turned).rotation % 360)
    spec = manifest(tmp_path, rows)
    for frames in ('0', '2'):
        code, report = report_of(capsys, spec, f'--frames={frames}')
        assert code == 1
        assert {fault['id']: fault['reason'] for fault in report['broken']} == names
        assert report['readable'] == 1 and report['rotation'] == {degrees: 1}
        assert report['without_text'] == list(names)
    assert str(edge / 'nowhere.mp4') in report['broken'][-1]['detail']


def test_parts_of_one_file(clips, tmp_path, capsys):
    file = str(clips / 'arm_wrestling.mp4')  # 10 seconds
    rows = [
        {'video': file, 'caption': 'x', 'start': 0, 'end': 4},
        {'video': file, 'caption': 'y', 'start': 4},
        {'video': file, 'caption': 'z', 'start': 40, 'end': 50},
    ]
    rows += [{'video': file, 'caption': 'z', 'start': 4, 'end': 12}]
    for frames in ('8', '0'):
        code, report = report_of(capsys, manifest(tmp_path, rows), f'--frames={frames}')
        assert code == 1 and report['files'] == 1 and report['readable'] == 2
        assert [fault['reason'] for fault in report['broken']] == ['bad-range', 'bad-range']
        assert all('the video has 10.0' in fault['detail'] for fault in report['broken'])
        assert report['part_s']['min'] == 4 and 9.9 < report['part_s']['total'] < 10.1


def test_page_for_people(clips, tmp_path, capsys):
    rows = [
        {'video': str(clips / 'arm_wrestling.mp4'), 'caption': 'Two people arm wrestle.'},
        {'video': 'missing_' + 'very_' * 30 + 'long_name.mp4', 'caption': 'x ' * 300},
        {'video': str(clips / 'arm_wrestling.mp4'), 'label': 'arm wrestling'},
    ]
    assert inspect_data.main([manifest(tmp_path, rows), '--data_dir=none', '--frames=1']) == 1
    page, progress = capsys.readouterr()
    for words in ('3 examples in 2 files', '2 readable', '1 broken', 'h264', 'not-found', '>256'):
        assert words in page
    assert 'in words' in page and '1 without any text: ' in page
    assert '\x1b' not in page and progress == ''
    assert max(len(line.rstrip()) for line in page.splitlines()) <= inspect_data.PIPED_WIDTH


def test_tokens_are_counted_with_a_tokenizer(clips, tmp_path, capsys):
    words = ['a red circle moves left', 'a blue square spins']
    tokenizer = text.train_tokenizer(words, 300)
    tokenizer.save(tmp_path / 'tokenizer.json')
    rows = [{'video': str(clips / 'arm_wrestling.mp4'), 'caption': words * 10}]
    spec = manifest(tmp_path, rows)
    _, report = report_of(capsys, spec, f'--tokenizer={tmp_path}/tokenizer.json', '--frames=0')
    assert report['counted_in'] == 'tokens'
    lengths = tokenizer.encode(words, 64).num_tokens
    caption = report['texts']['caption']
    assert (caption['texts'], caption['distinct']) == (20, 2)
    assert caption['length']['max'] == max(lengths)
    assert caption['cut_at']['16'] == 10 * int((lengths > 16).sum())


@pytest.mark.parametrize('words', [['--frames=-1'], ['--time_limit=0'], ['--threads=-2'], ['--x']])
def test_wrong_options(words, capsys):
    with pytest.raises(SystemExit) as caught:
        inspect_data.main(['videos:a.jsonl', *words])
    assert caught.value.code == 2
    assert words[0].split('=')[0] in capsys.readouterr().err


def test_a_faulty_manifest_is_the_users_error(tmp_path):
    with pytest.raises(ValueError, match='line 1: captions: no such field'):
        inspect_data.main([manifest(tmp_path, [{'video': 'a.mp4', 'captions': 'x'}])])


def test_a_bug_in_a_thread_comes_out(tmp_path, monkeypatch):
    def broken(self, index):
        raise IndexError('a bug')

    monkeypatch.setattr(sources.Videos, '__getitem__', broken)
    with pytest.raises(IndexError, match='a bug'):
        inspect_data.main([manifest(tmp_path, [{'video': 'a.mp4', 'caption': 'x'}])])


def test_clock():
    assert [inspect_data.clock(s) for s in (4.24, 59.96, 60, 200, 7500)] == [
        '4.2 s', '1 min 00 s', '1 min 00 s', '3 min 20 s', '2 h 05 min',
    ]  # fmt: skip
