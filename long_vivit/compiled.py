"""A step compiled before its first batch comes, while parameters are drawn and data are read."""

from concurrent.futures import ThreadPoolExecutor

import jax


class Compiled:
    """A jitted step(state, batch) with the state donated, one program for each shape of batch.

    Args:
      step: the function. state_like: pytree of ShapeDtypeStruct with shardings, what it will get.
    """

    def __init__(self, step, state_like):
        self._step, self._state_like = jax.jit(step, donate_argnums=0), state_like
        self._programs = {}  # futures
        self._compiler = ThreadPoolExecutor(1, 'compiler')

    def expect(self, batch):
        """Starts to compile for batches like this dict of arrays or ShapeDtypeStruct; returns."""
        key = tuple((name, x.shape, x.dtype) for name, x in sorted(batch.items()))
        if key not in self._programs:
            self._programs[key] = self._compiler.submit(self._compile, batch)
        return self._programs[key]

    def _compile(self, batch):
        return self._step.lower(self._state_like, batch).compile()

    def __call__(self, state, batch):
        return self.expect(batch).result()(state, batch)
