"""Masking rates that change on the way: which step has which, the data, the plan, going on."""

import contextlib
import io
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import long
from long_vivit import config, estimate, loop, masking, recipe, sharding, train
from long_vivit.inputs.pipeline import Batches
from long_vivit.inputs.sources import open_source
from long_vivit.inputs.text import Tokenizer
from long_vivit.writers import read_jsonl
from tests import tiny_run

SCHEDULE = {'stages__short__mask_schedule': '0.4=0.25', 'stages__short__unmasked_tail': 0.3}
KEPT = [4, 4, 6, 6, 8, 8]  # patches of each step of the tiny short stage: 2 slices of 4 places


@pytest.fixture(scope='module', autouse=True)
def cache(quick_compilation, one_device):
    return quick_compilation


def tiny(data_dir='no_data', workdir='no_run', **changes):
    return tiny_run.resolved(
        data_dir, workdir, run=('short',), stages__short__mask_kind='slice',
        stages__short__eval='', **changes,
    )  # fmt: skip


def fields(**changes):
    stage = {'steps': 100, 'mask_rate': 0.9, 'mask_schedule': '', 'unmasked_tail': 0.0} | changes
    return config.frozen(stage)


@settings(max_examples=60)
@given(
    st.integers(1, 1000),
    st.lists(st.integers(1, 999), unique=True, max_size=3).map(sorted),
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75]), min_size=3, max_size=3),
    st.integers(0, 999),
)
def test_each_step_has_the_rate_that_was_named_last(steps, begins, rates, tail):
    """By exact arithmetic, for all schedules that pass; the shares of the steps add up."""
    spec = ','.join(f'{b / 1000}={r}' for b, r in zip(begins, rates, strict=False))
    one = fields(steps=steps, mask_schedule=spec, unmasked_tail=tail / 1000)
    if list(masking.faults(vars(one), '')):
        return
    named = [(0, 0.9)] + [
        (round(Fraction(b, 1000) * steps), r) for b, r in zip(begins, rates, strict=False)
    ]
    named += [(steps - round(Fraction(tail, 1000) * steps), 0.0)] if tail else []
    wanted = [[rate for begin, rate in named if begin <= step][-1] for step in range(steps)]
    phases = masking.phases(one)
    assert [[r for b, r in phases if b <= step][-1] for step in range(steps)] == wanted
    assert phases[0].first == 0
    assert all(a.rate != b.rate for a, b in zip(phases, phases[1:], strict=False))
    shares = masking.shares(one)
    assert {rate: round(share * steps) for rate, share in shares.items()} == {
        rate: wanted.count(rate) for rate in dict.fromkeys(wanted)
    }


def test_in_words():
    assert masking.in_words(fields(unmasked_tail=0.1)) == (
        'masks 90% of the patches, from step 91 on 0%: a program for each'
    )
    assert masking.in_words(fields()) == masking.in_words(fields(mask_schedule='0.5=0.9')) == ''


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'mask_schedule': 'half'}, "mask_schedule: 'half' in 'half' must be SHARE=RATE"),
        ({'mask_schedule': '0.5=0.5,0.4=0'}, 'the share must be less than 1 and more than 0.5'),
        ({'mask_schedule': '0=0.5'}, 'mask_rate is the rate of the beginning'),
        ({'mask_schedule': '0.5=0.99'}, 'the rate must be from 0 to 0.95'),
        ({'mask_schedule': '0.5=nan'}, 'the rate must be from 0 to 0.95'),
        (
            {'mask_schedule': '0.0001=0.5'},
            "'0.0001=0.5' of 600 steps make rates begin after 0, 0 s",
        ),
        ({'mask_schedule': '0.9=0.5', 'unmasked_tail': 0.2}, 'unmasked_tail = 0.2 of 600 steps'),
        ({'unmasked_tail': 0.0001}, 'rates begin after 0, 600 steps; each must have a step'),
        ({'unmasked_tail': 0.9999}, 'rates begin after 0, 0 steps'),
        ({'unmasked_tail': 1.0}, 'unmasked_tail: 1.0 is not allowed'),
        (
            {'mask_kind': 'frame', 'mask_schedule': '0.5=0.9'},
            'mask_schedule: 0.9 of 8 slices leaves less than one',
        ),
    ],
)
def test_refused(changes, words):
    cfg = long.get_config()
    cfg.stages.short.update(steps=600, **changes)
    with pytest.raises(ValueError) as caught:
        config.check(cfg)
    assert words in str(caught.value) and 'one fault' in str(caught.value)


def test_batches_keep_what_their_step_says_and_all_else_as_it_was(tiny_stories):
    """A rate changes which patches are seen of an example, not which example, frames or text."""
    run = tiny(tiny_stories, **SCHEDULE)
    (one,) = run.stages
    source = open_source(one.train, data_dir=tiny_stories)
    tokenizer = Tokenizer.load(tiny_stories / 'shape_stories/tokenizer.json')
    examples = recipe.examples(run, one, source, tokenizer)
    plain = Batches(examples, batch=8, steps=6)
    changing = Batches(examples, batch=8, steps=6, rates=masking.phases(one))
    found = [changing[step] for step in range(6)]
    assert [batch['where'].shape[1] for batch in found] == KEPT
    for step, batch in enumerate(found):
        for key in ('id', 'tokens', 'video_key'):
            np.testing.assert_array_equal(batch[key], plain[step][key])
        np.testing.assert_array_equal(batch['patches'], changing[step]['patches'])
    for key in ('patches', 'where'):
        np.testing.assert_array_equal(found[0][key], plain[0][key])


def test_a_plan_is_of_the_rate_that_takes_most():
    """What is compiled has the batches of the lowest rate; the FLOPs are the mean of all."""
    mesh = sharding.make_mesh()
    rates = {0.5: 4, 0.25: 6, 0.0: 8}  # and the patches kept
    plain = {rate: tiny(stages__short__mask_rate=rate) for rate in rates}
    run = tiny(**SCHEDULE)
    (one,) = run.stages
    assert recipe.batch_like(run, one) == recipe.batch_like(plain[0.0], plain[0.0].stages[0])
    _, _, batch = estimate.compiled(run, one, 40, mesh)  # what a plan measures
    assert batch['where'].shape == (8, 8, 3)
    flops = {rate: estimate.mean_flops(run, run.stages[0]) for rate, run in plain.items()}
    assert estimate.mean_flops(run, one) == pytest.approx(np.mean(list(flops.values())), abs=1)
    for rate, k in rates.items():
        assert recipe.batch_like(run, one, rate)['where'].shape == (8, k, 3)
    changes = estimate.changes(run, one, mesh)
    path = 'stages.short.'
    assert {f'{path}mask_schedule': '', f'{path}unmasked_tail': 0.0} in changes
    for change in changes:
        estimate.changed(run, change)


class Killed(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture(scope='module')
def whole(tiny_stories, tmp_path_factory, cache):
    """(work directory, what was printed) of a run that nothing stopped."""
    workdir, shown = tmp_path_factory.mktemp('whole') / 'run', io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert train.train(tiny(tiny_stories, workdir, log__every=1, **SCHEDULE)) == 0
    return workdir, shown.getvalue()


def test_what_a_run_shows(whole):
    workdir, shown = whole
    assert 'short: masks 50% of the patches, from step 3 on 25%, from step 5 on 0%' in shown
    compiled = [line.split(':')[1] for line in shown.splitlines() if ': compiled in' in line]
    assert compiled == [' videos of 6 patches', ' videos of 8 patches']
    lines = [line for line in read_jsonl(workdir / 'metrics.jsonl') if 'clips_per_s' in line]
    assert [round(x['tokens_per_s'] / x['clips_per_s']) for x in lines] == KEPT[1:]


@pytest.mark.parametrize('at', [5])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(
    whole, tiny_stories, tmp_path, monkeypatch, at
):
    """In the tail, after two rates; saved at steps 2, 4 and 6."""
    run = tiny(tiny_stories, tmp_path / 'run', log__every=1, **SCHEDULE)

    def note(self, step, *others, note=loop.Loop.note):
        note(self, step, *others)
        if step == at:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop.Loop, 'note', note)
        train.train(run)
    assert train.train(run) == 0
    ends = [tiny_run.checkpoints(workdir, 'short')[6] for workdir in (whole[0], run.workdir)]
    assert tiny_run.differing(*ends) == []
    assert tiny_run.curves(run.workdir) == tiny_run.curves(whole[0])
