"""How far a stage is: a bar on a terminal, a plain, aligned line per log interval anywhere else."""

import sys
from collections.abc import Callable, Mapping
from typing import TextIO


def compact(value: float) -> str:
    """Returns three digits and a letter: 0.52, 8.8, 45, 999, 4.5k, 45k, 1.2M, 3.4G."""
    for size, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k'), (1, '')):
        if abs(value) >= 0.9995 * size:
            scaled = value / size
            return f'{scaled:.1f}{letter}' if abs(scaled) < 9.95 else f'{scaled:.0f}{letter}'
    return f'{value:.2f}'


def duration(seconds: float) -> str:
    """Returns m:ss, h:mm:ss from an hour on, or days: 0:05, 12:30, 3:04:05, 2d 03h."""
    if not 0 <= seconds < float('inf'):
        return '?'
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    if hours >= 24:
        return f'{hours // 24}d {hours % 24:02}h'
    return f'{hours}:{m:02}:{s:02}' if hours else f'{m}:{s:02}'


def size(num_bytes: float) -> str:
    """Returns a memory size in MiB or GiB."""
    gib = num_bytes / 2**30
    return f'{gib:.1f} GiB' if gib >= 1 else f'{num_bytes / 2**20:.0f} MiB'


# Metrics shown, in this order; all others are in metrics.jsonl only. Widths keep lines aligned.
FIELDS: dict[str, Callable[[float], str]] = {
    'loss': lambda x: f'loss {x:6.3f}',
    'loss_short': lambda x: f'short {x:6.3f}',
    'removed': lambda x: f'removed {100 * x:3.0f}%',
    'recall_at_1': lambda x: f'r@1 {100 * x:3.0f}%',
    'temperature': lambda x: f'temp {x:.3f}',
    'gap': lambda x: f'gap {x:6.3f}',
    'grad_norm': lambda x: f'grad {x:6.2f}',
    'clips_per_s': lambda x: f'{compact(x):>4} clips/s',
    'tokens_per_s': lambda x: f'{compact(x):>4} tok/s',
    'mfu': lambda x: f'mfu {100 * x:4.1f}%',
    'data_wait_share': lambda x: f'wait {100 * x:3.0f}%',
    'device_peak_bytes': lambda x: f'mem {size(x)}',
    'cut_texts_videos': lambda x: f'cut {100 * x:.0f}% of videos' if x else '',
    'cut_texts_images': lambda x: f'cut {100 * x:.0f}% of images' if x else '',
    'num_broken': lambda x: f'broken {x:.0f}' if x else '',
    'num_bad_steps': lambda x: f'bad steps {x:.0f}' if x else '',
    'eta_s': lambda x: f'eta {duration(x)}',
}


def fields(metrics: Mapping[str, float]) -> list[str]:
    """Returns the shown metrics as text, those that are there; NaN shows as nan."""
    shown = [show(float(metrics[name])) for name, show in FIELDS.items() if name in metrics]
    return [text for text in shown if text]


class Progress:
    """Shows a stage's progress, from `start` steps done to `total`. Use it in a `with` block.

    Args:
      stage: name of the stage.
      total: steps of the stage.
      start: steps already done, more than 0 when a run is resumed.
      stream: where to write; standard output if not given.
      terminal: whether `stream` redraws lines; by default as it says itself.
      name_width: columns for the stage's name, to align the lines of several stages.
    """

    def __init__(
        self, stage: str, total: int, start: int = 0, *,
        stream: TextIO | None = None, terminal: bool | None = None, name_width: int = 5,
    ):  # fmt: skip
        self.stage, self.total, self.start = stage, total, start
        self._width = max(name_width, len(stage))
        self._stream = stream or sys.stdout
        self._bar = None
        if self._stream.isatty() if terminal is None else terminal:
            self._bar = _Bar(stage, total, start, self._stream, terminal)

    def __enter__(self) -> 'Progress':
        if self._bar:
            self._bar.live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.live.stop()

    def advance(self, step: int) -> None:
        """Moves the bar to `step` steps done; prints nothing. Cheap: call it each step."""
        if self._bar:
            self._bar.move(step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows the metrics named in FIELDS as they are after `step` steps."""
        if self._bar:
            self._bar.move(step)
            self._bar.show(metrics)
            return
        digits = len(str(self.total))
        place = f'{self.stage:{self._width}}  {step:{digits}}/{self.total}'
        self._print('  '.join([place, *fields(metrics)]))

    def note(self, text: str) -> None:
        """Prints a line that stays, without harm to the bar: a score, a checkpoint, a warning."""
        if self._bar:
            self._bar.live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._print(text)

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class _Bar:
    """Two lines at the foot of a terminal: the bar, and under it the metrics."""

    def __init__(self, stage, total, start, stream, terminal):
        from rich import console, live, progress

        self._progress = progress.Progress(
            progress.TextColumn('[bold]{task.description}'),
            progress.BarColumn(bar_width=None),
            progress.MofNCompleteColumn(),
            progress.TextColumn('{task.percentage:3.0f}%'),
            progress.TextColumn('{task.fields[eta]}'),
            expand=True,
        )
        self._task = self._progress.add_task(stage, total=total, completed=start, eta='')
        self.live = live.Live(
            self._progress,
            console=console.Console(file=stream, force_terminal=terminal),
            refresh_per_second=4,
        )

    def move(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def show(self, metrics: Mapping[str, float]) -> None:
        from rich import console, text

        rest = {name: value for name, value in metrics.items() if name != 'eta_s'}
        if 'eta_s' in metrics:
            self._progress.update(self._task, eta=FIELDS['eta_s'](float(metrics['eta_s'])))
        lines = ['']
        for field in fields(rest):  # broken between fields only, unlike what rich would do
            if lines[-1] and len(lines[-1]) + 2 + len(field) > self.live.console.width:
                lines.append('')
            lines[-1] += ('  ' if lines[-1] else '') + field
        foot = text.Text('\n'.join(lines), style='dim', no_wrap=True)
        self.live.update(console.Group(self._progress, foot))
