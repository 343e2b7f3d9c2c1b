"""The steps between two lines of the curves: what was watched in them, and their means."""

from dataclasses import dataclass, field
from itertools import chain

import jax
import numpy as np

from long_vivit import hosts
from long_vivit.writers import plain


@dataclass
class Window:
    """The steps since the last line of the curves.

    Their numbers stay on the device until `settle`, so that no step waits for them.
    """

    watch: list = field(default_factory=list)  # a dict of each step; of floats once settled
    unsettled: list = field(default_factory=list)  # what this host knows of the other steps
    cut: int = 0  # texts that were cut, of so many
    clips: int = 0
    short_cut: int | None = None  # short texts that were cut, where there are any

    def add(self, step, batch, watch, b):
        """A step: its number, this host's batch, its dict of device scalars, clips of all hosts."""
        self.watch.append(watch)
        self.unsettled.append(
            {
                'ids': batch['id'],
                'broken': [
                    [step, id, error.reason, error.detail]
                    for id, error in zip(batch['id'], batch['error'], strict=True)
                    if error is not None
                ],
                'cut': float(batch['cut'].mean() * b),  # where hosts share rows, all do alike
                'short_cut': float(batch['short_cut'].mean() * b) if 'short_cut' in batch else None,
            }
        )
        self.clips += b

    def settle(self):
        """Fetches what is still on the device, or with other hosts, of the steps not yet settled.

        Returns:
          [(watch, ids)] of those steps, in order; ids only where the step was skipped. And what
          was broken in them on any host: [(step, id, reason, detail)].
        """
        known = len(self.watch) - len(self.unsettled)
        fetched = jax.device_get(self.watch[known:])
        self.watch[known:] = [{k: float(v) for k, v in one.items()} for one in fetched]
        for one, step in zip(self.watch[known:], self.unsettled, strict=True):
            if not one['skipped']:
                step['ids'] = []
        steps = list(zip(*hosts.gathered(self.unsettled), strict=True))  # [steps][hosts]
        self.cut += counted('cut', steps)
        if steps and steps[0][0]['short_cut'] is not None:
            self.short_cut = (self.short_cut or 0) + counted('short_cut', steps)
        # Hosts that share rows tell the same twice.
        ids = [list(dict.fromkeys(chain(*(host['ids'] for host in step)))) for step in steps]
        broken = {tuple(row) for step in steps for host in step for row in host['broken']}
        self.unsettled = []
        return list(zip(self.watch[known:], ids, strict=True)), sorted(broken)

    def line(self):
        """Means over the steps that were taken (over all, if none was), once settled."""
        good = [one for one in self.watch if not one['skipped']] or self.watch
        means = {key: float(np.mean([one[key] for one in good])) for key in good[0]}
        means['skipped'] = int(sum(one['skipped'] for one in self.watch))
        means['lr'] = self.watch[-1]['lr']
        means['cut_texts'] = self.cut / self.clips
        if self.short_cut is not None:
            means['cut_short_texts'] = self.short_cut / self.clips
        return means

    def cuts(self, stage):
        """{field of the stage: a sentence} for the lengths that cut some of the texts."""
        found = {}
        for name, what, num in (
            ('text_length', 'texts', self.cut),
            ('short_length', 'short texts', self.short_cut),
        ):
            if num:
                found[name] = (
                    f'{num / self.clips:.0%} of the {what} are longer than stages.{stage.name}.'
                    f'{name}={getattr(stage, name)} tokens and are cut there'
                )
        return found

    def to_info(self):
        """What a checkpoint in the middle of a window must remember of it, once settled."""
        info = {'watch': self.watch, 'cut': self.cut, 'clips': self.clips}
        return plain(info | {'short_cut': self.short_cut})

    @classmethod
    def from_info(cls, info):
        """The window that `to_info` told of."""
        watch = [{key: float(value) for key, value in one.items()} for one in info['watch']]
        return cls(watch, [], info['cut'], info['clips'], info.get('short_cut'))


def counted(what, steps):
    """Texts of all hosts in these steps, [steps][hosts]."""
    return round(sum(np.mean([host[what] for host in step]) for step in steps))
