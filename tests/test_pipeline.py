"""Batches by step: the same on any number of hosts, after any break, and with broken videos."""

import dataclasses
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from long_vivit.inputs import patches, pipeline, samplers, video
from long_vivit.inputs.patches import frames_needed, num_kept, patchify
from long_vivit.inputs.pipeline import Batches, Clips, Examples, Order, View, read_ahead
from long_vivit.inputs.sources import Example, open_source
from long_vivit.inputs.text import Tokenizer

VIEW = View(
    frames=8,
    pixels=32,
    patch=8,
    tubelet=2,
    sampler='rand_seg',
    fps=1.0,
    mask_kind='tube',
    mask_rate=0.5,
    text='caption',
    text_length=24,
)
IMAGE = dataclasses.replace(VIEW, frames=1, tubelet=1, mask_rate=0.0)
BATCH, STEPS = 8, 40


@pytest.fixture(scope='module')
def short(tiny_stories):
    return open_source('shape_stories/short:train', data_dir=tiny_stories)


@pytest.fixture(scope='module')
def images(tiny_stories):
    return open_source('shape_stories/image:train', data_dir=tiny_stories)


@pytest.fixture(scope='module')
def tokenizer(tiny_stories):
    return Tokenizer.load(tiny_stories / 'shape_stories' / 'tokenizer.json')


@pytest.fixture(scope='module')
def make(short, tokenizer):
    """Batches of the short films; `seed`, `view` and `source` differ where asked to."""

    def make(seed=0, view=VIEW, source=short, **fields):
        order = Order(len(source), source.group_size, (seed, 7))
        examples = Examples(source, order, view, tokenizer, (seed, 7))
        return Batches(examples, **{'batch': BATCH, 'steps': STEPS} | fields)

    return make


def rows(batch):
    """A batch as a list of dicts, a row each."""
    return [{key: value[i] for key, value in batch.items()} for i in range(len(batch['id']))]


def assert_same(one, other, but=()):
    assert one.keys() == other.keys()
    for key in one.keys() - set(but):
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)


# Order --------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 3), st.integers(0, 99))
def test_every_epoch_is_a_permutation_of_whole_groups(num_groups, group_size, seed):
    size = num_groups * group_size
    order = Order(size, group_size, (seed, 1))
    for epoch in range(3):
        found = [order[epoch * size + i] for i in range(size)]
        assert sorted(found) == list(range(size))
        for i in range(0, size, group_size):
            assert found[i] % group_size == 0
            assert found[i : i + group_size] == list(range(found[i], found[i] + group_size))


def test_epochs_and_seeds_differ_and_places_are_pure():
    order, again, other = Order(40, 2, (0, 1)), Order(40, 2, (0, 1)), Order(40, 2, (0, 2))
    epochs = [[order[40 * epoch + i] for i in range(40)] for epoch in range(6)]
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert [other[i] for i in range(40)] not in epochs
    # Backwards, and more epochs than are remembered.
    backwards = [again[place] for place in reversed(range(240))][::-1]
    assert backwards == sum(epochs, [])


@pytest.mark.parametrize('num_records,group_size', [(5, 2), (0, 1)])
def test_records_that_do_not_make_groups_are_refused(num_records, group_size):
    with pytest.raises(ValueError, match=f'{num_records} records do not make groups'):
        Order(num_records, group_size, (0,))


# Batches ------------------------------------------------------------------------------------


def test_what_a_batch_holds(make, short, tokenizer):
    batch = make()[3]
    kept = num_kept('tube', VIEW.grid, 0.5)
    wanted = {
        'patches': (np.uint8, (BATCH, kept, 2 * 8 * 8 * 3)),
        'where': (np.int32, (BATCH, kept, 3)),
        'tokens': (np.int32, (BATCH, 24)),
        'lengths': (np.int32, (BATCH,)),
        'ok': (np.bool_, (BATCH,)),
        'text_key': (np.int32, (BATCH,)),
        'video_key': (np.int32, (BATCH,)),
        'cut': (np.bool_, (BATCH,)),
    }
    found = {key: (batch[key].dtype, batch[key].shape) for key in wanted}
    assert found == wanted and batch.keys() == wanted.keys() | {'id', 'error', 'source'}
    assert batch['ok'].all() and batch['error'] == [None] * BATCH
    for row in rows(batch):
        example = short[int(row['video_key'])]
        assert example.id == row['id']
        tokens = tokenizer.encode(example.captions, 24)
        np.testing.assert_array_equal(row['tokens'], tokens.ids[0])
        assert row['lengths'] == tokens.lengths[0]
        assert row['cut'] == (tokens.num_tokens[0] > 24)
        assert row['text_key'] == pipeline.text_key(example.captions[0])


def test_a_batch_is_a_pure_function_of_its_step(make):
    """In whatever order the steps are asked for, and by whichever object."""
    one, other = make(), make()
    first = [one[step] for step in (0, 9, 20)]
    for step, batch in zip((20, 9, 0), reversed(first), strict=True):
        assert_same(other[step], batch)
    changing = [first[0][key] for key in ('patches', 'where', 'video_key')]
    for step in (1, 2, 9):
        for x, key in zip(changing, ('patches', 'where', 'video_key'), strict=True):
            assert not np.array_equal(one[step][key], x), (step, key)
    other_seed = make(seed=1)[0]
    for x, key in zip(changing, ('patches', 'where', 'video_key'), strict=True):
        assert not np.array_equal(other_seed[key], x)


def test_an_example_is_seen_differently_in_every_epoch(make, short):
    """Other frames and other patches of the same film."""
    batches = make()
    seen = {}
    for step in range(2 * len(short) // BATCH):
        for row in rows(batches[step]):
            seen.setdefault(row['id'], []).append(row)
    assert len(seen) == len(short) and {len(times) for times in seen.values()} == {2}
    for one, other in seen.values():
        assert not np.array_equal(one['patches'], other['patches'])
    assert sum(np.array_equal(one['where'], other['where']) for one, other in seen.values()) < 3


@pytest.mark.parametrize('step', [0, 5, 11])
def test_each_host_reads_the_rows_it_needs_of_one_global_batch(make, step):
    """Row by row the same frames, patches and texts, from the first step to the second epoch."""
    whole = rows(make()[step])
    for needed in ([0, 1, 2, 3], [4, 5, 6, 7], [1, 6], np.array([7])):
        mine = rows(make(rows=needed)[step])
        for row, place in zip(mine, needed, strict=True):
            assert_same(row, whole[place])


def test_twins_stand_side_by_side(make, short):
    assert short.group_size == 2
    for step in range(10):
        index = make()[step]['video_key']
        np.testing.assert_array_equal(index[::2] % 2, 0)
        np.testing.assert_array_equal(index[::2] + 1, index[1::2])
        groups = [short[int(i)].group for i in index]
        assert groups[::2] == groups[1::2] and len(set(groups)) == BATCH // 2


@pytest.mark.parametrize('kind', ['random', 'slice', 'tube', 'frame'])
def test_shapes_are_the_same_at_every_step(make, kind):
    batches = make(view=dataclasses.replace(VIEW, mask_kind=kind, mask_rate=0.7))
    shapes = {batches[step]['patches'].shape for step in range(4)}
    assert shapes == {(BATCH, num_kept(kind, VIEW.grid, 0.7), 384)}


# Images among the videos --------------------------------------------------------------------


class Places:
    """Stands for Examples: says which places of the stream were asked for."""

    def __init__(self, kind):
        self.kind = kind

    def __getitem__(self, place):
        return {'kind': self.kind, 'place': place}


@pytest.mark.parametrize('ratio', [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.9])
def test_images_are_mixed_in_evenly_and_each_stream_goes_on(ratio):
    steps, size = 90, 4
    batches = Batches(Places('film'), size, steps, images=Places('image'), image_ratio=ratio)
    kinds, places = [], {'film': [], 'image': []}
    for step in range(steps):
        batch = batches[step]
        (kind,) = set(batch['kind'].tolist())
        kinds.append(kind)
        places[kind] += batch['place'].tolist()
    for one in places.values():
        assert one == list(range(len(one)))
    num_images = np.cumsum([kind == 'image' for kind in kinds])
    assert np.abs(num_images - ratio * np.arange(1, steps + 1)).max() <= 1
    assert [batches.num_images_before(s) for s in range(1, steps + 1)] == num_images.tolist()


def test_a_ratio_without_images_changes_nothing():
    batches = Batches(Places('film'), 2, 10, image_ratio=0.5)
    found = np.concatenate([batches[step]['place'] for step in range(10)])
    np.testing.assert_array_equal(found, np.arange(20))


def test_images_come_as_images(make, images, tokenizer):
    order = Order(len(images), images.group_size, (3,))
    stills = Examples(images, order, IMAGE, tokenizer, (3,))
    batches = make(images=stills, image_ratio=0.5)
    shapes = [batches[step]['patches'].shape for step in range(4)]
    film, still = (BATCH, 32, 384), (BATCH, 16, 192)
    assert sorted(shapes) == [still, still, film, film] and shapes[0] != shapes[1]
    assert all(batches[step]['ok'].all() for step in range(4))


# Going on -----------------------------------------------------------------------------------


@pytest.mark.parametrize('threads', [1, 3])
def test_a_later_start_is_the_tail_of_the_unbroken(make, threads):
    batches = make(steps=6)
    whole = list(read_ahead(batches, threads=threads))
    assert len(whole) == 6
    for step, batch in enumerate(whole):
        assert_same(batch, batches[step])
    for start in (1, 4, 5):
        tail = list(read_ahead(batches, start=start, threads=threads))
        assert len(tail) == 6 - start
        for one, other in zip(tail, whole[start:], strict=True):
            assert_same(one, other)


@pytest.mark.parametrize('start', [6, 7])
def test_nothing_is_left_behind_the_end(make, start):
    assert list(read_ahead(make(steps=6), start=start)) == []


class Counted:
    """Examples that count how many were asked for, and on how many threads at once."""

    def __init__(self):
        self.num, self.threads = 0, set()

    def __getitem__(self, place):
        self.threads.add(threading.get_ident())
        self.num += 1
        time.sleep(0.002)
        return {'patches': np.zeros(1, np.uint8), 'id': str(place)}


@pytest.mark.parametrize('threads', [1, 4, 32])
def test_few_batches_wait_whatever_the_number_of_threads(threads):
    """A batch of long videos is gigabytes; and the first one is made by all threads."""
    source = Counted()
    ahead = read_ahead(Batches(source, 64, 40), threads=threads)
    assert next(ahead)['id'] == [str(place) for place in range(64)]
    assert len(source.threads) >= min(threads, 3)
    time.sleep(1.0)  # nobody takes any: what is made now waits
    assert source.num <= 64 * 5, source.num / 64
    assert [one['id'][0] for one in ahead] == [str(64 * step) for step in range(1, 40)]


# Broken videos ------------------------------------------------------------------------------


@dataclasses.dataclass
class Damaged:
    """A source of which some records' videos are replaced."""

    source: object
    videos: dict  # index -> what stands in for the file

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        example = self.source[index]
        return dataclasses.replace(example, video=self.videos.get(index, example.video))

    @property
    def group_size(self):
        return self.source.group_size


@pytest.fixture(scope='module')
def broken(make, short):
    """(the batch unbroken, the same with rows 2 and 5 unreadable)."""
    whole = make()[0]
    at = whole['video_key'][[2, 5]].tolist()
    source = Damaged(short, {at[0]: b'<html>not found</html>', at[1]: 'no/such/film.mp4'})
    return whole, make(source=source)[0]


def test_a_broken_video_is_marked_named_and_empty(broken):
    _, batch = broken
    np.testing.assert_array_equal(batch['ok'], [i not in (2, 5) for i in range(BATCH)])
    np.testing.assert_array_equal(batch['patches'][[2, 5]], 0)
    reasons = [error and error.reason for error in batch['error']]
    assert reasons == [None, None, 'cannot-open', None, None, 'not-found', None, None]
    for row in (2, 5):
        error = batch['error'][row]
        assert isinstance(error, video.VideoError) and batch['id'][row] in str(error)
        assert error.__traceback__ is None  # its frames would hold the whole file


def test_the_rest_of_the_batch_is_untouched(broken):
    """Pixels of the other rows, and places and texts of all."""
    whole, batch = broken
    assert_same(batch, whole, but=('patches', 'ok', 'error'))
    good = [i for i in range(BATCH) if i not in (2, 5)]
    np.testing.assert_array_equal(batch['patches'][good], whole['patches'][good])


def test_faults_of_ours_are_not_taken_for_broken_videos(make, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError('ours')

    monkeypatch.setattr(video, 'read_frames', fail)
    with pytest.raises(RuntimeError, match='ours'):
        make()[0]


# Frames and patches of one film -------------------------------------------------------------


def all_frames(example, view, times):
    """The frames that a view shows at `times`, all of them decoded."""
    return video.read_frames(example.video, lambda a, b: times(a, b), pixels=view.pixels).frames


@pytest.mark.parametrize('kind', ['random', 'slice', 'tube', 'frame'])
def test_patches_are_those_of_the_whole_film(short, kind):
    """What is not decoded makes no difference to what is shown."""
    view = dataclasses.replace(VIEW, mask_kind=kind, mask_rate=0.75)
    (shown,), where, error = pipeline.load_video(short[4], view, np.random.default_rng(5))
    assert error is None
    rng = np.random.default_rng(5)
    patches.choose(kind, view.grid, view.mask_rate, rng)  # the draws before the times
    frames = all_frames(short[4], view, lambda a, b: samplers.rand_seg(a, b, 8, rng=rng))
    np.testing.assert_array_equal(shown, patchify(frames, where, 2, 8))


@pytest.mark.parametrize('kind,num_decoded', [('frame', 2), ('tube', 8), ('slice', 8)])
def test_slices_that_no_patch_needs_are_not_decoded(short, monkeypatch, kind, num_decoded):
    """With whole slices masked at 75%, a quarter of the frames is asked for."""
    asked, read = [], video.read_frames

    def counting(file, choose, **options):
        def chosen(start_s, end_s):
            asked.append(choose(start_s, end_s))
            return asked[-1]

        return read(file, chosen, **options)

    monkeypatch.setattr(video, 'read_frames', counting)
    view = dataclasses.replace(VIEW, mask_kind=kind, mask_rate=0.75, sampler='mid')
    _, where, _ = pipeline.load_video(short[0], view, np.random.default_rng(0))
    assert [len(times) for times in asked] == [num_decoded]
    duration = video.probe(short[0].video).duration_s
    wanted = samplers.mid(0, duration, 8)[frames_needed(where, 2)]
    np.testing.assert_allclose(asked[0], wanted)


def test_the_range_of_an_example_is_kept(short):
    """start_s and end_s cut the film before the sampler sees it."""
    view = dataclasses.replace(VIEW, mask_rate=0.0, sampler='mid')
    part = dataclasses.replace(short[0], start_s=2.0, end_s=6.0)
    (shown,), where, _ = pipeline.load_video(part, view, np.random.default_rng(0))
    frames = all_frames(short[0], view, lambda a, b: samplers.mid(2.0, 6.0, 8))
    np.testing.assert_array_equal(shown, patchify(frames, where, 2, 8))


# Texts --------------------------------------------------------------------------------------

BOTH = Example('both', b'', captions=('a', 'b', 'c'), long_captions=('x', 'y'))
SHORT_ONLY = Example('short only', b'', captions=('a',))
LONG_ONLY = Example('long only', b'', long_captions=('x',))


@pytest.mark.parametrize(
    'example,kind,texts',
    [
        (BOTH, 'caption', 'abc'),
        (BOTH, 'long_caption', 'xy'),
        (BOTH, 'any', 'xy'),
        (SHORT_ONLY, 'any', 'a'),
        (LONG_ONLY, 'any', 'x'),
    ],
)
def test_one_of_the_texts_is_drawn(example, kind, texts):
    """Each of them equally often."""
    drawn = [pipeline.pick_text(example, kind, np.random.default_rng(i)) for i in range(300)]
    assert set(drawn) == set(texts)
    for text in texts:
        assert abs(drawn.count(text) - 300 / len(texts)) < 45


@pytest.mark.parametrize(
    'example,kind,words',
    [
        (SHORT_ONLY, 'long_caption', "short only: has no long_caption.*text to 'any'"),
        (LONG_ONLY, 'caption', 'long only: has no caption;'),
    ],
)
def test_a_missing_text_is_an_error_that_names_the_example(example, kind, words):
    with pytest.raises(ValueError, match=words):
        pipeline.pick_text(example, kind, np.random.default_rng(0))


def test_several_captions_are_drawn_anew_in_every_epoch(short, tokenizer):
    class Two(Damaged):
        def __getitem__(self, index):
            return dataclasses.replace(self.source[index], captions=('One.', 'Two.'))

    examples = Examples(Two(short, {}), Order(len(short), 2, (0,)), VIEW, tokenizer, (0,))
    keys = {}
    for place in range(4 * len(short)):
        index = examples.order[place]
        if index < 8:
            keys.setdefault(index, []).append(int(examples[place]['text_key']))
    assert set(sum(keys.values(), [])) == {int(pipeline.text_key(t)) for t in ('One.', 'Two.')}
    assert len({tuple(found) for found in keys.values()}) > 2


def test_equal_texts_share_a_key_and_others_do_not():
    same = ['A red ball falls.', ' a RED ball falls. ']
    other = ['A red ball rises.', 'A red ball falls', '']
    keys = [pipeline.text_key(text) for text in same + other]
    assert keys[0] == keys[1] and len(set(keys)) == 4
    assert all(key.dtype == np.int32 and key.shape == () for key in keys)
    many = {int(pipeline.text_key(f'text {i}')) for i in range(5000)}
    assert len(many) > 4995 and min(many) < 0 < max(many)


# Clips, for scoring -------------------------------------------------------------------------

SCORING = VIEW.evaluation('mid')


def clips_of(source, batch, order='ordered', **kwargs):
    return Clips(source, SCORING, batch, (order,), **kwargs)


def unpatched(batch, view=SCORING):
    """Frames [b, n, ...] of a batch of all patches in one order."""
    t, h, w = view.grid
    b = len(batch['id'])
    tiles = batch['patches'].reshape(b, t, h, w, view.tubelet, view.patch, view.patch, 3)
    order = (0, 1, 4, 2, 5, 3, 6, 7)
    return tiles.transpose(order).reshape(b, view.frames, view.pixels, view.pixels, 3)


def test_clips_come_in_order_and_whole(short):
    clips = clips_of(short, 24)
    assert len(clips) == 3  # of 64
    found = list(read_ahead(clips, threads=2))
    assert [len(batch['id']) for batch in found] == [24, 24, 16]
    assert sum((batch['id'] for batch in found), []) == [short[i].id for i in range(64)]
    for batch in found:
        assert batch.keys() == {'patches', 'where', 'id', 'error'}
        assert batch['where'].shape[1] == 4 * 4 * 4 and batch['error'] == [None] * len(batch['id'])
    wanted = all_frames(short[25], SCORING, lambda a, b: samplers.mid(a, b, 8))
    np.testing.assert_array_equal(unpatched(found[1])[1], wanted)
    assert_same(clips_of(short, 24)[1], found[1])


def test_a_broken_clip_is_named_and_empty(short):
    batch, whole = clips_of(Damaged(short, {3: b''}), 4)[0], clips_of(short, 4)[0]
    assert [error and error.reason for error in batch['error']] == [None] * 3 + ['cannot-open']
    np.testing.assert_array_equal(batch['patches'][3], 0)
    np.testing.assert_array_equal(batch['patches'][:3], whole['patches'][:3])


def test_shuffled_clips_show_the_same_frames_in_another_order(short):
    ordered, shuffled = clips_of(short, 8)[0], clips_of(short, 8, 'shuffled')[0]
    assert_same(shuffled, clips_of(short, 8, 'shuffled')[0])
    assert_same(shuffled, ordered, but=('patches',))
    moved = 0
    for one, other in zip(unpatched(ordered), unpatched(shuffled), strict=True):
        assert sorted(f.tobytes() for f in one) == sorted(f.tobytes() for f in other)
        moved += not np.array_equal(one, other)
    assert moved >= 7
    orders = {clips_of(short, 8, 'shuffled', seed=s)[0]['patches'].tobytes() for s in range(3)}
    assert len(orders) == 3
    # An example's order is its own, whatever it is scored with.
    np.testing.assert_array_equal(
        clips_of(short, 3, 'shuffled')[1]['patches'], shuffled['patches'][3:6]
    )


def test_one_frame_clips_show_the_middle_frame_at_all_times(short):
    ordered, still = clips_of(short, 4)[0], clips_of(short, 4, 'one_frame')[0]
    frames = unpatched(still)
    np.testing.assert_array_equal(frames, np.repeat(frames[:, :1], 8, axis=1))
    np.testing.assert_array_equal(frames[:, 0], unpatched(ordered)[:, 4])
    assert_same(still, ordered, but=('patches',))


def test_one_decoding_serves_all_orders(short, monkeypatch):
    reads = []
    read_frames = video.read_frames
    monkeypatch.setattr(
        video, 'read_frames', lambda *a, **k: reads.append(1) or read_frames(*a, **k)
    )
    together = Clips(short, SCORING, 4, pipeline.FRAME_ORDERS)[0]
    assert len(reads) == 4
    for i, order in enumerate(pipeline.FRAME_ORDERS):
        alone = clips_of(short, 4, order)[0]['patches'][:, 0]
        np.testing.assert_array_equal(together['patches'][:, i], alone)


def test_a_masked_view_may_be_shuffled_too(short):
    """All frames are then decoded, since any may come to stand in a slice that is shown."""
    view = dataclasses.replace(VIEW, mask_kind='frame', mask_rate=0.75, sampler='mid')
    (shown,), where, _ = pipeline.load_video(short[0], view, np.random.default_rng(3), ['shuffled'])
    frames = all_frames(short[0], view, lambda a, b: samplers.mid(a, b, 8))
    rng = np.random.default_rng(3)
    patches.choose('frame', view.grid, 0.75, rng)
    np.testing.assert_array_equal(shown, patchify(frames[rng.permutation(8)], where, 2, 8))


def test_views_know_their_grid_and_score_all_patches():
    assert VIEW.grid == (4, 4, 4) and IMAGE.grid == (1, 4, 4)
    assert SCORING.mask_rate == 0 and SCORING.sampler == 'mid'
    assert dataclasses.replace(SCORING, mask_rate=0.5, sampler='rand_seg') == VIEW


def test_only_the_kept_patches_cross_the_bus(make):
    """Of what goes to a device, at 75% masking: a quarter of the frames' bytes and a little."""
    view = dataclasses.replace(VIEW, mask_rate=0.75)
    batch = make(view=view)[0]
    sent = {key: batch[key].nbytes for key in batch if key not in pipeline.HOST_ONLY}
    frames = BATCH * view.frames * view.pixels**2 * 3
    assert sent['patches'] == frames // 4
    assert sum(sent.values()) - sent['patches'] < 0.05 * frames
