"""The list of what went wrong in a run: examples that were left out, steps that were not taken.

Nothing is skipped in silence: each broken example is counted under its reason and listed once, and
the run ends by saying how many there were.
"""

import collections
import os
import threading
from collections.abc import Iterable

from long_vivit.writers import JsonlWriter, read_jsonl


class Ledger:
    """Broken examples, a JSON line {stage, step, id, reason, detail}: once a stage for each reason.

    An example that is met again adds nothing, neither in a later epoch nor after a resume, so the
    counts are of examples. Safe to use from several threads; the file is made by the first entry.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = path
        self._lock = threading.Lock()
        self._writer = None
        self._seen, self._pairs = set(), set()
        self._counts = collections.Counter()
        self._first = {}
        for row in read_jsonl(path):
            self._note(str(row['stage']), str(row['id']), str(row['reason']))

    def add(self, stage: str, step: int, id: str, reason: str, detail: str = '') -> bool:
        """Records that example `id` was left out; returns whether that is news in this stage.

        Args:
          stage: name of the stage.
          step: the step in whose batch it was met.
          id: the example's id.
          reason: a slug, as `VideoError.reason` (cannot-open, truncated ...).
          detail: one line for people.
        """
        with self._lock:
            if (str(stage), str(id), str(reason)) in self._seen:
                return False
            if self._writer is None:
                self._writer = JsonlWriter(self.path)
            self._writer.write(stage, step, {'id': id, 'reason': reason, 'detail': detail})
            self._note(str(stage), str(id), str(reason))
            return True

    def counts(self) -> dict[str, int]:
        """Returns the number of broken examples by reason, most frequent first."""
        with self._lock:
            return dict(self._counts.most_common())

    def __len__(self) -> int:
        """The number of different pairs (id, reason) in all stages."""
        with self._lock:
            return len(self._pairs)

    def count(self, stage: str) -> int:
        """Returns the number of different pairs (id, reason) that were met in a stage."""
        with self._lock:
            return sum(seen[0] == stage for seen in self._seen)

    def summary(self) -> str:
        """Returns what the end of a run says of it; one line if nothing was broken."""
        counts = self.counts()
        if not counts:
            return 'No broken examples.'
        total = sum(counts.values())
        lines = [f'{total:,} broken example{"s" * (total != 1)} left out ({self.path}):']
        width = max(map(len, counts))
        for reason, count in counts.items():
            lines.append(f'  {count:6,}  {reason:{width}}  first: {self._first[reason]}')
        return '\n'.join(lines)

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def __enter__(self) -> 'Ledger':
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _note(self, stage: str, id: str, reason: str) -> None:
        if (id, reason) not in self._pairs:
            self._pairs.add((id, reason))
            self._counts[reason] += 1
            self._first.setdefault(reason, id)
        self._seen.add((stage, id, reason))


class BadSteps:
    """Steps whose loss or gradient was not finite, so that the update was left out.

    A JSON line {stage, step, loss, grad_norm, ids} for each (stage, step); a step that is repeated
    after a resume is not listed twice. `ids` are the examples of the batch, to look at.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = path
        self._lock = threading.Lock()
        self._writer = None
        self._seen = {(row['stage'], row['step']) for row in read_jsonl(path)}

    def add(self, stage: str, step: int, ids: Iterable[str], loss: float, grad_norm: float) -> bool:
        """Records a step; returns whether that is news."""
        with self._lock:
            if (stage, int(step)) in self._seen:
                return False
            if self._writer is None:
                self._writer = JsonlWriter(self.path)
            row = {'loss': loss, 'grad_norm': grad_norm, 'ids': list(ids)}
            self._writer.write(stage, step, row)
            self._seen.add((stage, int(step)))
            return True

    def __len__(self) -> int:
        with self._lock:
            return len(self._seen)

    def count(self, stage: str) -> int:
        """Returns the number of such steps in a stage."""
        with self._lock:
            return sum(seen[0] == stage for seen in self._seen)

    def summary(self) -> str:
        """Returns one line for the end of a run."""
        if not self._seen:
            return 'No steps with a non-finite loss or gradient.'
        stage, step = min(self._seen, key=lambda seen: seen[1])
        noun = 'step' if len(self._seen) == 1 else 'steps'
        return (
            f'{len(self._seen):,} {noun} with a non-finite loss or gradient were not taken, '
            f'such as step {step:,} of {stage} ({self.path}).'
        )

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def __enter__(self) -> 'BadSteps':
        return self

    def __exit__(self, *_) -> None:
        self.close()
