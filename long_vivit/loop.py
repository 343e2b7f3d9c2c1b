"""The steps of one stage: wait for data, step, report, score, save. The loop and nothing else."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from long_vivit import chips, hosts, long_text, masking, recipe, sharding
from long_vivit.inputs.looks import patches_of
from long_vivit.inputs.pipeline import HOST_ONLY, Batches, read_ahead
from long_vivit.names import flatten
from long_vivit.perf import Meter, device_peak, joined, peak_memory
from long_vivit.progress import Progress
from long_vivit.scoring import score_stage
from long_vivit.stop import Stopped
from long_vivit.window import Window
from long_vivit.workdir import writable


def end_of(result):
    """Waits until the arrays of `result` are computed -> time.monotonic() then."""
    jax.block_until_ready(result)
    return time.monotonic()


class Loop:
    """The steps of one stage."""

    def __init__(self, stage, tools, sources, saved, step):
        self.stage, self.tools, self.sources, self.saved = stage, tools, sources, saved
        self.step = step
        self.window, self.due = Window(), None
        self.running = None  # (watch, what Meter.step takes) of the step that the device is at
        self.bad_in_a_row = 0
        self.cuts_said, self.texts = set(), Counter()
        self.cost_before = {}

    def remember(self, at, info):
        """Goes on with what `save` noted beside the state of step `at`.

        Raises ValueError where the data are not those that the steps up to there have seen.
        """
        if 'data' in info and info['data'] != self.data():
            raise ValueError(
                f'{self.stage.name}: the training data have changed since step {at} was saved in '
                f'{self.tools.workdir.path}: {info["data"]} then, {self.data()} now, so the run '
                'cannot go on as it was begun; put them back, or start another workdir from it '
                'with --config.init'
            )
        self.cost_before, self.bad_in_a_row = info['cost'], info['bad_in_a_row']
        self.window = Window.from_info(info['window'])
        self.texts = Counter(info['cost'].get('texts'))

    def data(self):
        """{data spec: fingerprint} of what the stage is taught with."""
        used = (self.sources['train'], self.sources.get('images'))
        return {source.name: source.fingerprint for source in used if source}

    def batches(self):
        """The stage's training batches, by step."""
        run, stage, tools = self.tools.run, self.stage, self.tools
        images = self.sources.get('images')
        return Batches(
            videos=recipe.examples(run, stage, self.sources['train'], tools.tokenizer),
            batch=stage.batch,
            steps=stage.steps,
            images=images and recipe.examples(run, stage, images, tools.tokenizer, image=True),
            image_ratio=stage.image_ratio,
            rows=sharding.rows_here(tools.mesh, stage.batch),
            rates=masking.phases(stage),
        )

    def go(self, state, at):
        """Steps `at` to the end -> the last State."""
        stage, tools, every = self.stage, self.tools, self.tools.run.log.every
        names = [other.name for other in tools.run.stages]
        if tools.curves:
            tools.curves.truncate(stage.name, at, names)
        self.meter = Meter(stage.steps, at, chips.peak_flops(list(tools.mesh.devices.flat)))
        width, ear = max(map(len, names)), hosts.Ear()
        ahead = read_ahead(self.batches(), start=at, threads=tools.threads)
        with (
            Progress(stage.name, stage.steps, at, name_width=width) as self.bar,
            tools.signals.waiting(),
            ThreadPoolExecutor(1) as watcher,
        ):
            for step, batch in enumerate(self.meter.batches(ahead), at + 1):
                first = step == at + 1
                if first:
                    tools.start_up.mark('data')
                arrays = {key: batch[key] for key in batch if key not in HOST_ONLY}
                arrays = sharding.place(tools.mesh, arrays, stage.batch)
                self.prepare(state, arrays, batch['source'][0])
                with tools.profile.step(stage.name, step, self.running):
                    state, watch = self.step(state, arrays)
                self.meter.at_work(watcher.submit(end_of, watch))
                # One step runs while the next batch is fetched, no more: a line is one step late.
                self.end_running()
                self.note(step, batch, watch)
                if first:
                    self.end_running(first)
                if step % every == 0 or step == stage.steps:
                    self.due, self.window = (step, self.window), Window()
                self.bar.advance(step)
                signal = ear(tools.signals.noted)
                if step == stage.steps or signal or self.is_time(step):
                    self.rest(step, state, signal)
        return state

    def is_time(self, step):
        """Whether to score or save after `step`."""
        run = self.tools.run
        return step % run.checkpoint.every == 0 or bool(
            run.eval.every and step % run.eval.every == 0
        )

    def prepare(self, state, arrays, source):
        """Compiles the step for batches of a new shape; that is told, and no time of training."""
        if self.step.knows(state, arrays):
            return
        self.end_running()
        with self.meter.pause():
            seconds = self.step.prepare(state, arrays)
        k = arrays['where'].shape[1]
        self.bar.note(f'{self.stage.name}: {source} of {k} patches: compiled in {seconds:.1f} s')

    def note(self, step, batch, watch):
        """Remember a step until its line is written; broken videos go to their ledger at once."""
        for id, error in zip(batch['id'], batch['error'], strict=True):
            if error is not None and hosts.first():
                self.tools.broken.add(self.stage.name, step, id, error.reason, error.detail)
        b, (k, values) = self.stage.batch, patches_of(batch)
        self.window.add(step, batch, watch, b)
        flops = recipe.step_flops(
            self.tools.run, self.stage, batch=b, num_patches=k, patch_values=values,
            text_tokens=long_text.tokens_read(self.stage, batch['lengths']),
        )  # fmt: skip
        self.running = watch, (b, round(b * k), flops)

    def end_running(self, first=False):
        """Wait for the step that the device is at, count it, write the line that it completes."""
        if self.running is not None:
            (watch, counts), self.running = self.running, None
            jax.block_until_ready(watch)
            self.meter.step(*counts)
        if first:  # start-up ends here: what follows is speed
            self.tools.start_up.mark('first step')
            self.bar.note(self.tools.start_up.end())
            self.meter.skip_start()
        self.report()

    def report(self):
        """Write the line of the last full window, if its steps are done and it is not written."""
        if self.due is None:
            return
        (step, window), self.due = self.due, None
        self.settle(step, window)
        measured = {key: x for key, x in self.meter.read().items() if x == x}  # NaN: no full step
        line = window.line() | measured | device_peak()
        for writer in self.tools.writers:
            writer.write(self.stage.name, step, line)
        name, shown = self.stage.name, {'recall_at_1': line.pop('recall')} | line
        shown['num_broken'] = self.tools.broken.count(name)
        shown['num_bad_steps'] = self.tools.bad_steps.count(name)
        self.bar.log(step, shown)
        for field, words in window.cuts(self.stage).items():
            if field not in self.cuts_said:
                self.cuts_said.add(field)
                self.bar.note(f'{name}: {words}')

    def settle(self, step, window):
        """Fetch the numbers of a window that ends at `step`; list the steps that were skipped.

        Raises ValueError after too many of them in a row.
        """
        news, broken, texts = window.settle()
        self.texts.update(texts)
        if hosts.first():
            for row in broken:
                self.tools.broken.add(self.stage.name, *row)
        for place, (one, ids) in enumerate(news, step - len(news) + 1):
            self.bad_in_a_row = self.bad_in_a_row + 1 if one['skipped'] else 0
            if one['skipped'] and hosts.first():
                self.tools.bad_steps.add(self.stage.name, place, ids, one['loss'], one['grad_norm'])
            if self.bad_in_a_row >= self.tools.run.max_bad_steps:
                raise ValueError(
                    f'{self.stage.name}: {self.bad_in_a_row} steps in a row, up to step {place}, '
                    'had no finite loss or gradient; the parameters are as they were before them. '
                    f'Lower stages.{self.stage.name}.lr (in a new workdir), or look at the '
                    f'examples listed in {self.tools.bad_steps.path}'
                )

    def rest(self, step, state, signal):
        """Between two steps: lines written, then scores, then the checkpoint that knows of both."""
        run, stage = self.tools.run, self.stage
        self.end_running()
        self.settle(step, self.window)
        last = step == stage.steps
        with self.meter.pause():
            metric = None
            if run.eval.every and step % run.eval.every == 0 and not last:
                try:
                    metric = self.score(step, state)
                except ValueError:  # such as a video to score on that has gone: no step is lost
                    self.save(step, state, None, block=True)
                    raise
            self.save(step, state, metric, block=last or bool(signal))
        if signal:
            raise Stopped(signal, stage.name, step)

    def save(self, step, state, metric, *, block):
        """The checkpoint of `step`, with all that the stage goes on with."""
        info = {
            'cost': self.cost(),
            'window': self.window.to_info(),
            'bad_in_a_row': self.bad_in_a_row,
            'data': self.data(),
        }
        with writable(self.tools.workdir.path):
            self.saved.save(step, flatten(state), info, metric, block=block)

    def score(self, step, state):
        """Score on the way: a line in the curves; returns the mean recall@1 of both ways."""
        source = self.sources.get('eval')
        if source is None:
            return None
        model = state.model if state.ema is None else state.ema
        scored = score_stage(model, self.stage, self.tools, source, ('ordered',))
        one = scored['scores']['ordered']
        recall = [one[way]['recall_at_1'] for way in ('text_to_video', 'video_to_text')]
        line = {'eval_recall_at_1': float(np.mean(recall)), 'eval_twins': one['twin_accuracy']}
        for writer in self.tools.writers:
            writer.write(self.stage.name, step, line)
        self.bar.note(f'{self.stage.name}: step {step}: recall@1 {np.mean(recall):.1%}')
        return float(np.mean(recall))

    def cost(self):
        """What the stage cost so far, in the fields of results.json."""
        memory, before = peak_memory(), self.cost_before
        return {
            'steps': self.stage.steps,
            **joined(before, self.meter.totals()),
            'peak_memory_bytes': max(memory.num_bytes, before.get('peak_memory_bytes', 0)),
            'peak_memory_of': memory.of,
            'num_broken': self.tools.broken.count(self.stage.name),
            'num_bad_steps': self.tools.bad_steps.count(self.stage.name),
            'texts': dict(self.texts),
        }
