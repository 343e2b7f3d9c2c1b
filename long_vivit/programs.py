"""The programs that a jitted function is compiled to: one for each shape of its arguments."""

import time

import jax

from long_vivit.perf import give_back_freed_memory


class Programs:
    """A jitted function, to be prepared for arguments of new shapes before it is called with them.

    What the compiler has freed is given back before the program runs, whose own memory would
    otherwise lie on top of it.
    """

    def __init__(self, function):
        self.function, self.known = function, set()

    def knows(self, *arguments):
        """Whether it is compiled for arguments such as these."""
        return _shapes(arguments) in self.known

    def prepare(self, *arguments):
        """Compiles for arguments such as these, which may be ShapeDtypeStruct with shardings.

        Returns the seconds that it took, 0.0 where there was such a program already.
        """
        if self.knows(*arguments):
            return 0.0
        begun = time.monotonic()
        self.function.lower(*arguments).compile()
        give_back_freed_memory()
        self.known.add(_shapes(arguments))
        return time.monotonic() - begun

    def __call__(self, *arguments):
        return self.function(*arguments)


def _shapes(arguments):
    return tuple(leaf.shape for leaf in jax.tree.leaves(arguments))
