"""Builds a data set: `python -m long_vivit.build_data NAME`.

Each folder of `data/` with a `build.py` is a data set; `data/README.md` describes them.
"""

import argparse
import importlib
import pathlib
import signal
import sys
import time

DATA = pathlib.Path(__file__).resolve().parents[1] / 'data'
SECONDS_BETWEEN_LINES = 5.0


def names() -> list[str]:
    """The data sets that can be built."""
    return sorted(file.parent.name for file in DATA.glob('*/build.py'))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked as far as that needs no import of a data set."""
    parser = argparse.ArgumentParser(
        prog='python -m long_vivit.build_data',
        description='Builds a data set into a folder. What is already complete is left alone.',
        epilog=f'Data sets: {", ".join(names())}; `NAME --help` lists the options of each. '
        'See data/README.md.',
    )
    parser.add_argument('name', metavar='NAME', help='the data set: ' + ', '.join(names()))
    parser.add_argument(
        '--data_dir', default='data/built', help='where to; made if missing (default: %(default)s)'
    )
    parser.add_argument(
        '--config',
        action='append',
        metavar='CONFIG',
        help='build this configuration only; may be given several times (default: the usual '
        'ones of the data set)',
    )
    parser.add_argument(
        '--workers', type=int, help='processes that work at once (default: one per core)'
    )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='delete and build anew what is there with other settings or damaged',
    )
    # A data set may have options of its own, shown by `NAME --help`.
    words = sys.argv[1:] if argv is None else argv
    name = next((word for word in words if word in names()), None)
    if name and (DATA / name / 'options.py').is_file():
        importlib.import_module(f'data.{name}.options').add(parser)
    args = parser.parse_args(words)
    if args.name not in names():
        parser.error(f'no data set {args.name!r}; there are: {", ".join(names())}')
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = vars(parse(argv))
    name, data_dir, configs = (args.pop(key) for key in ('name', 'data_dir', 'config'))
    # So that a killed build cleans up behind itself.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    module = importlib.import_module(f'data.{name}.build')
    started = time.monotonic()
    try:
        with Progress() as progress:
            module.build(
                data_dir,
                tuple(dict.fromkeys(configs or module.CONFIGS)),
                **args,
                progress=progress.update,
                say=progress.say,
            )
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except OSError as error:
        print(f'error: cannot build into {data_dir}: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            'interrupted: what is finished stays; the same command goes on from there',
            file=sys.stderr,
        )
        return 130
    print(f'done in {time.monotonic() - started:.0f} s')
    return 0


class Progress:
    """A bar on a terminal, a plain line every few seconds elsewhere."""

    def __enter__(self):
        import rich.console
        import rich.progress

        # Held on to: a builder may redirect sys.stdout while it works.
        self._out = sys.stdout
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
        self._tasks = {}
        self._bars = None
        if self._out.isatty():
            self._bars = rich.progress.Progress(
                rich.progress.TextColumn('{task.description}'),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TimeRemainingColumn(),
                console=rich.console.Console(file=self._out),
                redirect_stdout=False,
            )
            self._bars.start()
        return self

    def __exit__(self, *_):
        if self._bars:
            self._bars.stop()

    def update(self, what: str, done: int, total: int) -> None:
        """Shows that `done` of `total` examples of `what` are made."""
        if self._bars:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total)
            self._bars.update(self._tasks[what], completed=done)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            print(f'{what}: {done} of {total}', file=self._out, flush=True)

    def say(self, line: str) -> None:
        """Prints a line above the bars."""
        if self._bars:
            self._bars.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=self._out, flush=True)


if __name__ == '__main__':
    sys.exit(main())
