"""A polite end: SIGTERM and SIGINT end a run where nothing is lost, and say so."""

import os
import signal
import threading

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def words(number):
    """The name of a signal."""
    return signal.Signals(number).name


class Signalled(BaseException):
    """A signal ended the program at once; `number` is the signal's. No error: not an Exception."""

    def __init__(self, number):
        self.number = number
        super().__init__(words(number))


class Stopped(Exception):
    """A signal ended the run; its state is saved. `signal` is the number, `step` where it is."""

    def __init__(self, number, stage, step):
        self.signal, self.stage, self.step = number, stage, step
        super().__init__(
            f'{words(number)}: saved {stage} at step {step}; the same command goes on from there'
        )


class Handled:
    """Within it, `_note(number, frame)` handles the signals; in the main thread only."""

    def __enter__(self):
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        self._restore()

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)


class AtOnce(Handled):
    """Within it, a signal raises `Signalled`, so that files are closed on the way out."""

    def _note(self, number, frame):
        while frame is not None:
            # Python drops what is raised in JAX's callback of the garbage collector: once more.
            if frame.f_code.co_name == '_xla_gc_callback':
                threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
                return
            frame = frame.f_back
        raise Signalled(number)


class Stop(Handled):
    """Within it, the first signal sets `signal` (its number); a second one acts as it did before.

    The loop looks at it after each step, and stops.
    """

    def __init__(self):
        self.signal = None

    def _note(self, number, _frame):
        self.signal = number
        self._restore()
