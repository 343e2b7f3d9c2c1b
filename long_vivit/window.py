"""The steps between two lines of the curves: what was watched in them, and their means."""

from dataclasses import dataclass, field

import jax
import numpy as np

from long_vivit.writers import plain


@dataclass
class Window:
    """The steps since the last line of the curves.

    Their numbers stay on the device until `settle`, so that no step waits for them.
    """

    watch: list = field(default_factory=list)  # a dict of each step; of floats once settled
    ids: list = field(default_factory=list)  # of the examples of the steps not yet settled
    cut: int = 0
    clips: int = 0

    def add(self, batch, watch):
        """A step: its host batch and its dict of device scalars."""
        self.watch.append(watch)
        self.ids.append(batch['id'])
        self.cut += int(batch['cut'].sum())
        self.clips += len(batch['id'])

    def settle(self):
        """Fetches what is still on the device -> [(watch, ids)] of those steps, in order."""
        known = len(self.watch) - len(self.ids)
        fetched = jax.device_get(self.watch[known:])
        self.watch[known:] = [{k: float(v) for k, v in one.items()} for one in fetched]
        news, self.ids = list(zip(self.watch[known:], self.ids, strict=True)), []
        return news

    def line(self):
        """Means over the steps that were taken (over all, if none was), once settled."""
        good = [one for one in self.watch if not one['skipped']] or self.watch
        means = {key: float(np.mean([one[key] for one in good])) for key in good[0]}
        means['skipped'] = int(sum(one['skipped'] for one in self.watch))
        means['lr'] = self.watch[-1]['lr']
        return means | {'cut_texts': self.cut / self.clips}

    def to_info(self):
        """What a checkpoint in the middle of a window must remember of it, once settled."""
        return plain({'watch': self.watch, 'cut': self.cut, 'clips': self.clips})

    @classmethod
    def from_info(cls, info):
        """The window that `to_info` told of."""
        watch = [{key: float(value) for key, value in one.items()} for one in info['watch']]
        return cls(watch, [], info['cut'], info['clips'])
