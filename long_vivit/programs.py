"""The programs that a stage's step is compiled to: one for each shape of its batches."""

import contextlib
import time

import jax


def end_of(result):
    """Waits until the arrays of `result` are computed -> time.monotonic() then."""
    jax.block_until_ready(result)
    return time.monotonic()


class Programs:
    """The shapes that the step has met, so that each compiling but the first is told.

    The first one is told by the start-up.

    Args:
      meter: the `Meter`, which does not count that time. wait: awaits, and counts, what the device
        is still at. say: takes a line.
    """

    def __init__(self, meter, wait, say):
        self.meter, self.wait, self.say = meter, wait, say
        self.met = set()

    @contextlib.contextmanager
    def compiling(self, arrays, name):
        """Around giving `arrays`, a batch that a line calls `name`, to the jitted step."""
        shape = tuple(x.shape for x in jax.tree.leaves(arrays))
        is_new = bool(self.met) and shape not in self.met
        self.met.add(shape)
        if not is_new:
            yield
            return
        self.wait()
        begun = time.monotonic()
        with self.meter.pause():
            yield
        self.say(f'{name}: compiled in {time.monotonic() - begun:.1f} s')
