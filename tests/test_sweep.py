"""Sweeps: grids and their faults, shared stages, stopped and gone on; rows, memory, notebook."""

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from configs import sweep as recipes
from data.shape_stories import world
from long_vivit import config, recipe, sweep, train, trained
from long_vivit.sweeps import costs, grid, jobs, rows, shapes
from long_vivit.workdir import Workdir
from long_vivit.writers import read_jsonl
from tests import quick, tiny_run

RATE = 'stages.long.mask_rate'


def sweep_of(grids, **changes):
    """A sweep of the default recipe with these grids."""
    cfg = recipes.fields()
    cfg.update({'seeds': (0,), **changes})
    cfg.grids.update(grids)
    return cfg


def faults_of(cfg):
    with pytest.raises(ValueError) as caught:
        grid.read(cfg)
    return str(caught.value).split('\n  ')


# Grids


def test_products_are_multiplied_out_and_what_is_twice_is_one_cell():
    products = {RATE: (0.0, 0.75), 'model.video.patch': (16, 8)}
    found = grid.read(
        sweep_of({'a': (products,), 'b': ({RATE: (0.5,)}, {RATE: (0.0,)})}, seeds=(3, 1))
    )
    names = [cell.name for cell in found.cells]
    assert names == [f'{v}/seed{s}' for s in (3, 1) for v in (
        'long.mask_rate=0', 'patch=8,long.mask_rate=0', 'base', 'patch=8', 'long.mask_rate=0.5',
    )]  # fmt: skip
    grids = {cell.variant: cell.grids for cell in found.cells}
    assert grids['long.mask_rate=0'] == ('a', 'b') and grids['long.mask_rate=0.5'] == ('b',)
    cell = found.cells[1]
    assert cell.difference == {RATE: 0.0, 'model.video.patch': 8}
    assert cell.whole.stages[2].mask_rate == 0.0 and cell.whole.model.video.patch == 8


def test_only_some_grids():
    """Their rows belong to the others too: done now, they are not taught again for those."""
    cfg = sweep_of({'a': ({RATE: (0.0, 0.75)},), 'b': ({RATE: (0.5, 0.75)},)}, only=('b',))
    cells = grid.read(cfg).cells
    assert [cell.variant for cell in cells] == ['base', 'long.mask_rate=0.5']
    assert [cell.grids for cell in cells] == [('a', 'b'), ('b',)]


def test_names_are_stable_readable_and_told_apart():
    assert grid.name_of({}) == 'base'
    assert grid.name_of({RATE: 0.75, 'model.video.patch': 8}) == 'patch=8,long.mask_rate=0.75'
    assert grid.name_of({RATE: 0.1234567}) != grid.name_of({RATE: 0.1234568})
    odd = [{'init': name} for name in ('a/b', 'a:b')]
    assert [grid.name_of(one) for one in odd] == ['init=a/b', 'init=a:b']
    folders = [grid.folder_of(one) for one in odd]
    assert folders[0] != folders[1]
    assert all(re.fullmatch(r'init=a_b~\w{8}', folder) for folder in folders)
    assert grid.folder_of({RATE: 0.75}) == 'long.mask_rate=0.75'
    assert len(grid.folder_of({'init': 'x' * 500})) < 140


def test_stages_before_the_difference_are_shared():
    """Each stage is a run of its own, from the one before; it is named by what it feels."""
    cfg = sweep_of({'a': ({RATE: (0.0, 0.75)}, {'stages.short.mask_rate': (0.0,)})})
    plain, base, short = grid.read(cfg).cells
    assert [link.name for link in plain.chain] == [
        'shared/image/base/seed0', 'shared/short/base/seed0', 'cells/long.mask_rate=0/seed0',
    ]  # fmt: skip
    assert plain.chain[:2] == base.chain[:2]
    assert short.chain[0] == base.chain[0]
    assert short.chain[1].name == 'shared/short/short.mask_rate=0/seed0'
    assert [link.run.init for link in plain.chain] == ['', *(str(x.path) for x in plain.chain[:2])]
    assert [link.run.run for link in plain.chain] == [('image',), ('short',), ('long',)]
    assert plain.chain[2].run.stages == (plain.whole.stages[2],)


def test_seeds_from_a_stage_on():
    cells = grid.read(sweep_of({'a': ({},)}, seeds=(5, 6), seeds_from='long')).cells
    assert [[link.run.seed for link in cell.chain] for cell in cells] == [[5, 5, 5], [5, 5, 6]]
    assert cells[0].chain[:2] == cells[1].chain[:2]


LORA = {'stages.short.tune': ('lora+stem',), 'model.video.lora_rank': (4, 8)}


def test_what_an_earlier_stage_felt_stays_in_the_names():
    """A rank is felt after its stage too, where it is merged and the model has it no more."""
    cfg = sweep_of({'a': (LORA,)}, seeds=(0, 1))
    cells = grid.read(cfg).cells
    assert len({cell.chain[-1].name for cell in cells}) == len(cells) == 4
    assert [cell.chain[-1].name for cell in cells] == [f'cells/{cell.name}' for cell in cells]
    four, eight = cells[:2]
    assert four.chain[0] == eight.chain[0] and four.chain[0].name == 'shared/image/base/seed0'
    assert [link.run.model.video.lora_rank for link in eight.chain] == [0, 8, 0]
    between = sweep_of({'a': (LORA,)})  # and in those of shared stages behind it
    between.base.stages.end = copy.deepcopy(between.base.stages.long)
    between.base.run = (*between.base.run, 'end')
    four, eight = (cell.chain[2] for cell in grid.read(between).cells)
    assert four.name.startswith('shared/long/lora_rank=4,') and four.run.init != eight.run.init


def test_adapters_that_no_stage_names_come_from_the_start(tmp_path):
    cfg = sweep_of({'a': ({},)})
    cfg.base.model.video.adapter_width, cfg.base.init = 8, str(tmp_path)
    (cell,) = grid.read(cfg).cells
    assert [link.run.model.video.adapter_width for link in cell.chain] == [8, 8, 8]


def test_runs_that_end_earlier_begin_with_what_the_others_do():
    ends, skips = {'run': (('image', 'short'),)}, {'run': (('short', 'long'),)}
    cfg = sweep_of({'a': ({}, ends, skips)}, seeds=(0, 1), seeds_from='long')
    whole, short, other = (cell.chain for cell in grid.read(cfg).cells[:3])
    assert short[0] == whole[0] and short[0].name == 'shared/image/base/seed0'
    assert short[1].name == 'cells/run=image+short/seed0'
    assert other[0].name == 'shared/short/run=short+long/seed0' != whole[1].name
    assert grid.read(cfg).cells[4].chain[0].name == 'shared/image/base/seed1'  # it has its own seed


@pytest.mark.parametrize('word', recipes.SIZES)
def test_a_name_stands_for_one_run(word):
    cells, runs = grid.read(recipes.get_config(word)).cells, {}
    for link in (link for cell in cells for link in cell.chain):
        assert runs.setdefault(link.name, link.run) == link.run, link.name
    assert len({cell.chain[-1].name for cell in cells}) == len(cells)


def test_a_last_stage_that_is_not_scored_is_a_fault():
    cfg = sweep_of({'a': ({RATE: (0.0, 0.75)}, {'run': (('image', 'short'),)})})
    cfg.base.stages.long.eval = ''
    head, line = faults_of(cfg)
    assert head == 'the sweep has one fault:'
    assert line.startswith('stages.long.eval: names no test set') and 'data.eval' in line
    assert line.endswith('(long.mask_rate=0 and 1 more)')
    cfg.base.data.eval = 'shape_stories/long:test'
    assert len(grid.read(cfg).cells) == 3


def test_all_faults_at_once():
    """Of the sweep's own fields first; then of every cell, a fault of many told once."""
    cfg = sweep_of(
        {'a': ({RATE: 0.5},), 'b': ({'seed': (1, 2)},), 'c': 3}, seeds=(0, 0), only=('d',),
        seeds_from='longer',
    )  # fmt: skip
    cfg.memory.update(sizes=('S',), patch=0, frames=(1,))
    cfg.memory.language.update(width=30, heads=4, depth=0)
    head, *lines = faults_of(cfg)
    assert head == 'the sweep has 11 faults:'
    for line, start in zip(lines, (
        'seeds: (0, 0)', "seeds_from: 'longer'", "only: 'd'", f'grids.a: {RATE}: 0.5; it must be',
        'grids.b: seed: no axis; name them in seeds', 'grids.c: it must be a tuple of dicts',
        'memory.patch: 0', 'memory.language.depth: 0',
        'memory.language.width: 30 is not divisible by memory.language.heads = 4',
        "memory.sizes: 'S'", 'memory.frames: 1',
    ), strict=True):  # fmt: skip
        assert line.startswith(start), line


def test_each_cell_is_checked_before_the_first_one_runs():
    bad = {RATE: (0.75, 0.99), 'stages.long.mask_kind': ('tube', 'cube'), 'model.video.pach': (8,)}
    bad.pop('model.video.pach')
    lines = faults_of(sweep_of({'a': (bad, {'model.video.pach': (8,)}, {RATE: ('much',)})}))
    assert len(lines) == 1 + 4, lines
    text = '\n'.join(lines)
    assert 'stages.long.mask_rate: 0.99 is not allowed' in text and 'and 1 more)' in text
    assert "stages.long.mask_kind: 'cube' is not allowed" in text
    assert 'model.video.pach: no such field; nearest: model.video.patch (pach=8)' in text
    assert "stages.long.mask_rate: 'much'; it must be of type float" in text


def test_the_recipes_pass(tmp_path):
    """All grids, each cell as a whole, and the run of each of its stages by itself."""
    for word in recipes.SIZES:
        cfg = recipes.get_config(word)
        found = grid.read(cfg)
        assert word == 'tiny' or set(cfg.grids) == set(recipes.FINDINGS)
        links = {link.name: link.run for cell in found.variants for link in cell.chain}
        file = tmp_path / 'config.json'
        for run in links.values():
            file.write_text(config.to_json(run))
            alone = config.load_file(str(file))
            alone.init = alone.init and str(tmp_path)  # which is there, as the link before will be
            config.resolve(alone)
    with pytest.raises(ValueError, match="'huge' is no size"):
        recipes.get_config('huge')


@pytest.mark.parametrize(('word', 'films'), [('', 'long'), ('laptop', 'short')])
def test_the_ways_to_send_less_see_all_frames_in_as_many_patches(word, films):
    """A budget too, which takes frames by their rate."""
    setting = world.SETTINGS[films]
    variants = grid.read(recipes.get_config(word)).variants
    mine = [one for one in variants if {'inputs', 'tuning'} & set(one.grids)]
    for cell in mine:
        stage = cell.whole.stages[-1]
        view = recipe.view(cell.whole, stage)
        assert view.seen(0.0, setting.num_frames / setting.fps)[0] == stage.frames, cell.variant
    counts = {
        one.variant: costs.mean_tokens(one.whole, one.whole.stages[-1])
        for one in mine
        if 'inputs' in one.grids
    }
    whole, base = counts.pop('long.mask_rate=0'), counts.pop('base')
    assert len(counts) == 5 and set(counts.values()) == {base} and whole == 4 * base


def test_the_recipes_have_what_can_be_trained_in_the_long_stage():
    cells = [one for one in grid.read(recipes.get_config()).variants if 'tuning' in one.grids]
    tuned = {(one.whole.model.video.backbone, one.whole.stages[-1].tune) for one in cells}
    joint = ('all', 'adapters+stem', 'lora+stem', 'first:1', 'stem', 'none')
    assert tuned == {*(('joint', tune) for tune in joint), ('factorised', 'all'),
                     ('factorised', 'temporal+stem')}  # fmt: skip
    assert sum(one.whole.stages[-1].text_tower == 'frozen' for one in cells) == 1
    count = {}
    for one in cells:
        init, _ = recipe.training(one.whole, one.whole.stages[-1], 500)
        count[one.variant], _ = trained.counts(jax.eval_shape(init))
    none, stem = (count[f'long.tune={word}'] for word in ('none', 'stem'))
    first = count[grid.name_of({'stages.long.tune': 'first:1'})]
    assert none < stem < first < count['long.text_tower=frozen'] < count['base']


def test_a_stored_configuration_is_one_to_start_from(tmp_path):
    """The command line takes config.json of a run, and what it lacks is told, not filled in."""
    run = tiny_run.resolved('no_data', tmp_path / 'run')
    file = tmp_path / 'config.json'
    file.write_text(config.to_json(run))
    assert config.resolve(config.load_file(str(file))) == run
    fields = json.loads(file.read_text())
    del fields['model']['video']['pool']
    file.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match='model.video.pool: is missing'):
        config.resolve(config.load_file(str(file)))
    file.write_text('{"stages": 3}')
    with pytest.raises(ValueError, match='not the configuration of a run'):
        config.load_file(str(file))


# Shapes


def test_a_variant_at_the_papers_sizes():
    """Its choices stay; units of the small run go along with the size."""
    cfg = sweep_of({'a': ({'model.video.patch': (32,), 'model.video.tubelet': (4,),
                           'stages.long.last_layers': (2,), RATE: (0.5,)},)})  # fmt: skip
    found = grid.read(cfg)
    run, base = found.cells[0].whole, found.base
    large = shapes.at(run, base, found.memory, size='L', frames=128, remat='full')
    (stage,) = large.stages
    video = large.model.video
    assert (video.width, video.depth, video.heads, video.remat) == (1024, 24, 16, 'full')
    assert (video.patch, video.tubelet, stage.last_layers) == (32, 4, 8)
    assert (stage.frames, stage.pixels, stage.batch, stage.mask_rate) == (128, 256, 1, 0.5)
    assert large.model.dtype == 'bfloat16' and large.model.text.width == 768
    every = [shape for shape, _ in shapes.wanted(run, base, found.memory, rates=(0.0, 0.5))]
    assert len(every) == 2 * 3 * 1 * 2  # sizes, frames, remats, rates
    assert {shape['rate'] for shape in every} == {0.5, 0.0}


def test_tokens_are_the_mean_over_the_rates_of_a_stage():
    cfg = sweep_of({'a': ({'stages.long.unmasked_tail': (0.2,)}, {RATE: (0.5,)})})
    tail, half = (cell.whole for cell in grid.read(cfg).variants)
    assert costs.mean_tokens(half, half.stages[-1]) == 256
    assert costs.mean_tokens(tail, tail.stages[-1]) == round(0.8 * 128 + 0.2 * 512)


# Several commands at a time


def task(name, code, out, needs=(), **environment):
    """A task that runs a line of Python; it is finished when the file `out` is there."""
    return jobs.Task(name, ('-c', code), out.exists, needs, environment)


def test_a_pool_minds_needs_and_failures_and_starts_nothing_twice(tmp_path):
    a, b, c = (tmp_path / name for name in 'abc')
    write = "open({!r}, 'x').write(str(__import__('os').sched_getaffinity(0)))".format
    tasks = [
        task('b', write(str(b)), b, needs=('a',)),
        task('a', write(str(a)), a),
        task('bad', "print('error: no\\n  more'); raise SystemExit(2)", c),
        task('after', write(str(c)), c, needs=('bad',)),
    ]
    share = jobs.Share({}, frozenset([min(os.sched_getaffinity(0))]))
    with jobs.Pool([share], tmp_path / 'logs') as pool:
        ended = {one.name: reason for one, reason in pool.run(tasks)}
        again = {one.name: reason for one, reason in pool.run(tasks[:2])}
    assert ended['a'] == ended['b'] == '' and again == {'a': '', 'b': ''}
    assert ended['bad'].startswith('no\n  more (exit status 2; ')
    assert ended['after'].startswith('bad: no\n  more')
    assert a.read_text() == str(set(share.cores)) and not c.exists()


def test_what_runs_is_told_to_stop(tmp_path):
    code = 'import time; print("up", flush=True); time.sleep(60)'
    with jobs.Pool([jobs.Share({})], tmp_path) as pool:
        pool.start(task('long', code, tmp_path / 'never'))
        (process,) = pool.running
    assert process.returncode == -signal.SIGTERM and not pool.running


def alive(process):
    """Whether the process of a folder in /proc still runs; a dead one may wait to be fetched."""
    try:
        return (process / 'stat').read_text().rsplit(')', 1)[-1].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_runs_dies_with_who_started_it(tmp_path):
    """So that the same command finds nobody else in the folder of a run."""
    code = (
        'import pathlib, sys, time; from long_vivit.sweeps import jobs\n'
        f'pool = jobs.Pool([jobs.Share({{}})], pathlib.Path({str(tmp_path)!r}))\n'
        "pool.start(jobs.Task('long', ('-c', 'import time; time.sleep(60)'), bool))\n"
        'print(*[one.pid for one in pool.running], flush=True); time.sleep(60)'
    )
    parent = subprocess.Popen(
        [sys.executable, '-c', code], cwd=tiny_run.ROOT, stdout=subprocess.PIPE, text=True
    )
    with parent:
        child = Path('/proc', parent.stdout.readline().strip())
        assert alive(child)
        parent.kill()
    end = time.monotonic() + 30
    while alive(child):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_shares_of_devices(monkeypatch):
    assert jobs.shares(1) == [jobs.Share({})]
    monkeypatch.setattr(jobs, 'devices', lambda: ('gpu', 4))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,5,6,7')
    shown = [share.environment['CUDA_VISIBLE_DEVICES'] for share in jobs.shares(2)]
    assert shown == ['4,5', '6,7']
    with pytest.raises(ValueError, match='--jobs=5: there are 4 devices'):
        jobs.shares(5)
    monkeypatch.setattr(jobs, 'devices', lambda: ('cpu', 1))
    cores = [share.cores for share in jobs.shares(len(os.sched_getaffinity(0)))]
    assert frozenset().union(*cores) == os.sched_getaffinity(0) and all(len(x) == 1 for x in cores)


# What a folder holds


@pytest.mark.parametrize('left', ['cells/base/seed0', 'shared/image/base/seed0'])
@pytest.mark.parametrize(
    ('path', 'value'),
    [
        ('optim.b1', 0.5), ('data.eval', 'shape_stories/long:train'), ('eval.allow_broken', True),
        ('stages.long.eval', 'shape_stories/long:test[:32]'),
        ('stages.long.eval_sampler', 'linspace_excl'),
    ],
)  # fmt: skip
def test_another_base_or_test_set_is_refused_once_any_stage_is_taught(tmp_path, path, value, left):
    """Rows of two bases are no table; and shared stages would be taken as they are."""
    cfg = sweep_of({'a': ({},)}, workdir=str(tmp_path))
    sweep.keep_base(grid.read(cfg), of_rows=True)
    other = sweep_of({'a': ({},)}, workdir=str(tmp_path))
    other.base.update_from_flattened_dict({path: value})
    sweep.keep_base(grid.read(other), of_rows=True)  # nothing is taught yet
    sweep.keep_base(grid.read(cfg), of_rows=True)
    (tmp_path / left).mkdir(parents=True)
    (tmp_path / left / 'config.json').touch()
    stored = (tmp_path / 'sweep.json').read_bytes()
    with pytest.raises(ValueError, match=rf'another base; .*\n  base\.{re.escape(path)}: '):
        sweep.keep_base(grid.read(other), of_rows=True)
    assert (tmp_path / 'sweep.json').read_bytes() == stored
    if path != 'optim.b1':
        sweep.keep_base(grid.read(other), of_rows=False)  # memory has no test set
    cfg.base.log.every = 7  # what changes no row may differ
    sweep.keep_base(grid.read(cfg), of_rows=True)


def test_the_seed_of_stages_taught_once_stays_the_first(tmp_path):
    def of(seeds, seeds_from='long'):
        changes = {'workdir': str(tmp_path), 'seeds': seeds, 'seeds_from': seeds_from}
        return grid.read(sweep_of({'a': ({},)}, **changes))

    sweep.keep_base(of((0, 1)), of_rows=True)
    shared = tmp_path / 'shared/short/base/seed0'
    shared.mkdir(parents=True)
    (shared / 'config.json').touch()
    with pytest.raises(ValueError, match='seeds: 0 -> 3, the first .* name it first: seeds=0,3'):
        sweep.keep_base(of((3, 4)), of_rows=True)
    sweep.keep_base(of((3, 4)), of_rows=False)
    sweep.keep_base(of((0, 3, 4)), of_rows=True)
    with pytest.raises(ValueError, match="seeds_from: 'long' -> ''"):
        sweep.keep_base(of((3, 4), ''), of_rows=True)
    stored = json.loads((tmp_path / 'sweep.json').read_text())
    assert stored.pop('first_seed') == 0
    (tmp_path / 'sweep.json').write_text(json.dumps(stored))  # one of before
    sweep.keep_base(of((0, 1)), of_rows=True)
    assert json.loads((tmp_path / 'sweep.json').read_text())['first_seed'] == 0


class Compiler:
    """A pool that answers the first requests of --memory with the frames as bytes."""

    def __init__(self, count=100):
        self.count = count

    def run(self, tasks):
        for task in tasks[: self.count]:
            request = json.loads(Path(task.arguments[-1]).read_text())
            shape = {'size': 'B', 'remat': 'none', 'rate': 0.75}
            lines = [shape | {'frames': f, 'peak_bytes': f} for f in request['memory']['frames']]
            Path(request['out']).write_text(json.dumps({'memory': lines}))
            yield task, ''


def test_memory_of_some_variants_leaves_that_of_the_others(tmp_path):
    def compiled(count=100, only=(), **changes):
        cfg = sweep_of({'a': ({RATE: (0.0, 0.75)},), 'b': ({RATE: (0.5,)},)}, only=only,
                       workdir=str(tmp_path))  # fmt: skip
        cfg.memory.update(changes)
        assert sweep.compile_all(grid.read(cfg), Compiler(count)) == 0
        found = {}
        for one in read_jsonl(tmp_path / 'memory.jsonl'):
            found.setdefault(one['variant'], []).append(one['frames'])
        return found

    whole, base, half = 'long.mask_rate=0', 'base', 'long.mask_rate=0.5'
    assert compiled(frames=(2, 4)) == {whole: [2, 4], base: [2, 4], half: [2, 4]}
    assert compiled(only=('b',), frames=(8,)) == {whole: [2, 4], base: [2, 4], half: [8]}
    assert compiled(count=1, frames=(16,)) == {whole: [16], base: [2, 4], half: [8]}  # stopped
    assert compiled(only=('b',), frames=(2,), batch=8) == {half: [2]}  # those were of a batch of 1


# The command

DRAWN = ('backbones', 'inputs', 'masking', 'tuning')  # grids with a figure of their own


@pytest.fixture(scope='module')
def settings(tiny_stories, tmp_path_factory, one_device):
    """(work directory, flags) of a tiny sweep of two cells, in each grid that is drawn, and of one
    cell that fails. Memory is compiled at one small shape of ViT-B."""
    folder = tmp_path_factory.mktemp('sweep')
    file = folder / 'mine.py'
    file.write_text(
        'from configs import sweep\n'
        'def get_config():\n'
        "    config = sweep.get_config('tiny')\n"
        "    good = ({'stages.long.mask_rate': (0.75, 0.0)},)\n"
        f'    config.grids = dict.fromkeys({DRAWN}, good)\n'
        "    config.grids['worse'] = ({'stages.long.train': ('videos:none.jsonl',)},)\n"
        "    config.memory.update(sizes=('B',), frames=(2,), rates=(0.0,), pixels=64,\n"
        "                         text_length=8, dtype='float32')\n"
        '    config.memory.language.update(width=32, depth=2, heads=2)\n'
        '    config.base.checkpoint.every = 1\n'
        f'    config.base.data.dir = {str(tiny_stories)!r}\n'
        f'    config.workdir = {str(folder / "sweep")!r}\n'
        '    return config\n'
    )
    return folder / 'sweep', ['-m', 'long_vivit.sweep', f'--config={file}']


def start(flags, cache):
    """The command, with one device for each job and a quick compilation, in a process."""
    return subprocess.Popen(
        [sys.executable, *flags], cwd=tiny_run.ROOT, env=os.environ | quick.environment(cache),
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def ended(flags, cache):
    """(exit status, what it printed) of the command."""
    process = start(flags, cache)
    printed = process.communicate(timeout=900)[0]
    return process.returncode, printed


@pytest.fixture(scope='module')
def taught(settings, quick_compilation):
    """(work directory, exit status, what was printed): stopped in a cell and gone on."""
    workdir, flags = settings
    process, end = start(flags, quick_compilation), time.monotonic() + 600
    while not any(workdir.glob('cells/*/seed0/config.json')) and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    stopped = process.communicate(timeout=600)[0]
    assert process.returncode == 128 + signal.SIGTERM, stopped
    last = f'SIGTERM: the same command goes on from what is in {workdir}'
    assert stopped.splitlines()[-1] == last and not (workdir / 'rows.jsonl').read_text()
    shared = workdir / 'shared/short/base/seed0/stages/short/finished.json'
    before = shared.stat().st_mtime_ns
    count = min(2, len(os.sched_getaffinity(0)))
    status, printed = ended([*flags, f'--jobs={count}'], quick_compilation)
    assert shared.stat().st_mtime_ns == before  # taught once
    return workdir, status, printed


def test_a_cell_that_fails_is_told_and_the_others_are_taught(taught):
    workdir, status, printed = taught
    assert status == 1, printed
    assert {row['cell'] for row in read_jsonl(workdir / 'rows.jsonl')} == {
        'base/seed0', 'long.mask_rate=0/seed0',
    }  # fmt: skip
    entry = read_jsonl(workdir / 'failed.jsonl')[-1]
    assert entry['cell'].startswith('long.train=videos_none.jsonl~')
    assert 'none.jsonl' in entry['reason'] and 'exit status 2' in entry['reason']
    assert '1 cell(s) failed' in printed and 'Traceback' not in printed


def test_rows_are_complete(taught):
    workdir, _, printed = taught
    masked, whole = sorted(read_jsonl(workdir / 'rows.jsonl'), key=lambda row: -row['mask_rate'])
    assert masked['difference'] == {} and whole['difference'] == {RATE: 0.0}
    assert masked['grids'] == list(DRAWN) and masked['seed'] == 0
    assert (masked['tokens_per_clip'], whole['tokens_per_clip']) == (4, 16)
    assert whole['flops_per_clip'] > 2 * masked['flops_per_clip'] > 0
    assert whole['peak_bytes'] > masked['peak_bytes'] > 0
    assert whole['num_trained'] == whole['num_parameters'] > 1000
    for row in (masked, whole):
        result = Workdir(workdir / 'cells' / row['cell']).finished('long')
        for order, where in (
            ('ordered', row),
            ('shuffled', row['shuffled']),
            ('one_frame', row['one_frame']),
        ):
            score = result['scores'][order]
            assert where['twin_accuracy'] == score['twin_accuracy']
            for way in rows.WAYS:
                assert where[way] == {key: score[way][key] for key in rows.RECALLS}
        assert row['clips_per_s'] > 0 and row['seconds'] > 0 and row['device'] == 'CPU'
        assert row['versions']['jax'] and row['protocol']['videos'] == 32
    assert sum(': R@1 ' in line for line in printed.splitlines()) == 2


def test_a_chain_of_runs_is_the_run_of_all_stages_bit_by_bit(taught, settings, tmp_path):
    """Though the cell was stopped on its way; the whole run goes by a stored configuration."""
    workdir, flags = settings
    cfg = config.load_file(flags[-1].partition('=')[2])
    (cell,) = [cell for cell in grid.read(cfg).cells if cell.variant == 'base']
    file = tmp_path / 'whole.json'
    file.write_text(config.to_json(cell.whole))
    again = config.load_file(str(file))
    again.workdir = str(tmp_path / 'run')
    assert train.train(config.resolve(again)) == 0
    ends = [max(tiny_run.checkpoints(place, 'long').items())[1] for place in (
        tmp_path / 'run', workdir / 'cells/base/seed0')]  # fmt: skip
    assert tiny_run.differing(*ends) == []


def test_done_cells_are_skipped_and_another_base_is_refused(taught, settings, quick_compilation):
    workdir, flags = settings
    content = (workdir / 'rows.jsonl').read_bytes()
    shared = json.loads((workdir / 'sweep.json').read_text())
    del shared['memory']['language']  # no row's: one begun with another, or with none, goes on
    (workdir / 'sweep.json').write_text(json.dumps(shared))
    status, printed = ended([*flags, '--config.only=tuning'], quick_compilation)
    assert status == 0, printed
    assert printed.splitlines()[0] == f'{workdir}: 2 cells, 2 done before; 0 runs to go'
    assert (workdir / 'rows.jsonl').read_bytes() == content
    status, printed = ended([*flags, '--config.base.stages.long.lr=0.5'], quick_compilation)
    assert status == 2 and 'base.stages.long.lr: 0.001 -> 0.5' in printed
    status, printed = ended([*flags, '--table'], quick_compilation)
    assert status == 0 and 'long.mask_rate=0 ' in printed


@pytest.fixture(scope='module')
def compiled(taught, settings, quick_compilation):
    """(work directory, what was printed) of --memory after the cells were taught."""
    workdir, flags = settings
    kept = sorted(workdir.glob('facts/compiled/*'))
    status, printed = ended([*flags, '--config.only=tuning', '--memory'], quick_compilation)
    assert status == 0, printed
    new = set(workdir.glob('facts/compiled/*')) - set(kept)
    assert len(new) == 1  # video-to-text, on one encoder; the others are the same programs
    return workdir, printed


def test_memory_of_all_variants_at_a_vits_shapes(compiled):
    """Each at its own masking rate and at the others, the same whoever asked for it first."""
    workdir, printed = compiled
    found = {(one['variant'], one['rate']): one for one in read_jsonl(workdir / 'memory.jsonl')}
    assert list(found) == [('base', 0.75), ('base', 0.0), ('long.mask_rate=0', 0.0)]
    for one in found.values():
        assert (one['size'], one['frames'], one['remat']) == ('B', 2, 'none')
        assert one['tokens'] == {0.75: 4, 0.0: 16}[one['rate']]
        # A ViT-B, its text tower and CLIP's vocabulary; parameters and moments, 12 bytes for each.
        assert one['num_trained'] == one['num_parameters'] > 86e6 + 49_408 * 512
        assert one['peak_bytes'] > 12 * one['num_parameters']
    masked, whole, alone = found.values()
    assert masked['video_to_text_bytes'] == whole['video_to_text_bytes'] > 4 * 86e6  # all unmasked
    assert alone == whole | {'variant': 'long.mask_rate=0'}
    assert masked['peak_bytes'] < whole['peak_bytes']
    for row in read_jsonl(workdir / 'rows.jsonl'):
        own = dict(found[row['variant'], row['mask_rate']])
        assert own.pop('video_to_text_bytes') and 'video_to_text_bytes' not in row['memory'][0]
        assert own.pop('of')
        assert [{'variant': row['variant'], **one} for one in row['memory']] == [own]
    lines = {tuple(line.split()) for line in printed.splitlines()}
    for (variant, rate), one in found.items():
        assert (variant, f'{100 * rate:g}%', 'none', f'{one["peak_bytes"] / 1e9:.2f}') in lines
    assert ('variant', 'masked', 'remat', 'B', '2') in lines


@pytest.mark.filterwarnings('default')  # those of the kernel's libraries
def test_the_notebook_runs_on_what_was_taught_and_compiled(compiled):
    """Each figure is there with its sentence; at one size there is no growth to draw."""
    import nbclient
    import nbformat

    workdir, _ = compiled
    folder = tiny_run.ROOT / 'notebooks'
    notebook = nbformat.read(folder / 'memory_recall.ipynb', as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name='python3', resources={'metadata': {'path': str(folder)}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, 'ROWS', str(workdir))
        client.execute()
    outputs = [out for cell in notebook.cells for out in cell.get('outputs', ())]
    shown = [out.get('data', {}) for out in outputs]
    said = [data['text/markdown'] for data in shown if 'text/markdown' in data]
    assert sum('image/png' in data for data in shown) == 8
    assert [one.partition(':')[2] for one in said if one.startswith('Not drawn')] == [
        ' the rows have no variant of any grid compiled at ViT-B and L, 2 frames, remat none.',
        ' the rows have no variant of image_to_video.',
    ]
    assert said[0].startswith('2 rows, seeds 0; ') and 'jax' in said[0]
    assert any('At 2 frames 2 of these fit into 16 GB with ViT-B' in one for one in said)
    printed = ''.join(out.get('text', out.get('data', {}).get('text/plain', '')) for out in outputs)
    for heading in ('GFLOP/clip', 'masked'):  # of the table of rows, of that of memory
        assert heading in printed
