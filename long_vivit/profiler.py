"""A trace of some steps, for TensorBoard or Perfetto."""

import contextlib
import re
from pathlib import Path

import jax


class Profile:
    """Writes a trace of `count` steps from step `first` on; use it in a `with` block.

    Steps are counted from the first one that this process takes, over all stages: a run that goes
    on at step 5,000 is traced all the same. The first step of a stage also compiles.

    Args:
      spec: 'FIRST:COUNT', both at least 1; '' traces nothing.
      folder: where the trace goes, in JAX's layout below it; of several processes each has its
        own folder there, by its number. say: prints a line.

    Raises:
      ValueError: a spec of another form.
    """

    def __init__(self, spec, folder, say):
        if spec and not re.fullmatch(r'[1-9]\d*:[1-9]\d*', spec):
            raise ValueError(
                f'--profile={spec}: it must be START:COUNT, the first step to trace (1 is the '
                'first that this command takes, and compiles) and how many, as --profile=10:3'
            )
        self.first, self.count = map(int, spec.split(':')) if spec else (0, 0)
        self.folder, self.say = Path(folder), say
        self.taken = 0
        self.begun = None  # 'STAGE step S' of the first traced step, while the trace runs

    @contextlib.contextmanager
    def step(self, stage, step, running):
        """Around giving step `step` of a stage to the device; `running`: what it still works at."""
        self.taken += 1
        if not self.count or self.taken > self.first + self.count:
            yield
            return
        if self.taken == self.first:
            jax.block_until_ready(running)
            jax.profiler.start_trace(self._own())
            self.begun = f'{stage} step {step}'
        elif self.taken == self.first + self.count:
            self._end(running)
        with jax.profiler.StepTraceAnnotation('train', step_num=step):
            yield
        self.last = f'{stage} step {step}'

    def _own(self):
        """Where this process writes: JAX names files by host and second, which processes share."""
        several = jax.process_count() > 1
        return self.folder / f'process_{jax.process_index()}' if several else self.folder

    def _end(self, running):
        jax.block_until_ready(running)
        jax.profiler.stop_trace()
        self.say(
            f'profile: {self.begun} to {self.last} in {self.folder} '
            '(tensorboard --logdir, with the plugin xprof; or ui.perfetto.dev)'
        )
        self.begun = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.begun is not None:
            self._end(())
        elif self.count and self.taken < self.first:
            self.say(
                f'profile: nothing traced; the run took {self.taken} steps and --profile starts at '
                f'step {self.first} of this command'
            )
