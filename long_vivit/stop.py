"""A polite end: SIGTERM and SIGINT end a run where nothing is lost, and say so."""

import contextlib
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


class Signals:
    """Within it, in the main thread, SIGTERM and SIGINT raise `Signalled`, so that files are closed
    on the way out; where they are told to wait, the first is `noted` and a second one raises.

    Of several processes none may leave the others alone: there they always wait.
    """

    def __init__(self, wait=False):
        self.wait, self.noted = wait, None

    def __enter__(self):
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def waiting(self):
        """Within it they wait: whoever enters looks at `noted`."""
        before, self.wait = self.wait, True
        try:
            yield
        finally:
            self.wait = before

    def _handle(self, number, frame):
        if self.wait and self.noted is None:
            self.noted = number
            return
        while frame is not None:
            # Python drops what is raised in JAX's callback of the garbage collector: once more.
            if frame.f_code.co_name == '_xla_gc_callback':
                threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
                return
            frame = frame.f_back
        raise Signalled(number)
