"""A polite end: SIGTERM and SIGINT end a run where nothing is lost, and say so."""

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

    def _note(self, number, _frame):
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
