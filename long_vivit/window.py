"""The steps between two lines of the curves: what was watched in them, and their means."""

from collections import Counter
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
    texts: Counter = field(default_factory=Counter)  # see `texts_of`

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
                'texts': texts_of(batch, b),
            }
        )

    def settle(self):
        """Fetches what is still on the device, or with other hosts, of the steps not yet settled.

        Returns:
          [(watch, ids)] of those steps, in order; ids only where the step was skipped. What was
          broken in them on any host: [(step, id, reason, detail)]. And their texts, counted.
        """
        known = len(self.watch) - len(self.unsettled)
        fetched = jax.device_get(self.watch[known:])
        self.watch[known:] = [{k: float(v) for k, v in one.items()} for one in fetched]
        for one, step in zip(self.watch[known:], self.unsettled, strict=True):
            if not one['skipped']:
                step['ids'] = []
        steps = list(zip(*hosts.gathered(self.unsettled), strict=True))  # [steps][hosts]
        texts = Counter()
        for step in steps:
            for key in step[0]['texts']:
                texts[key] += round(np.mean([host['texts'][key] for host in step]))
        self.texts.update(texts)
        # Hosts that share rows tell the same twice.
        ids = [list(dict.fromkeys(chain(*(host['ids'] for host in step)))) for step in steps]
        broken = {tuple(row) for step in steps for host in step for row in host['broken']}
        self.unsettled = []
        return list(zip(self.watch[known:], ids, strict=True)), sorted(broken), texts

    def line(self):
        """Means over the steps that were taken (over all, if none was), once settled."""
        good = [one for one in self.watch if not one['skipped']] or self.watch
        means = {key: float(np.mean([one[key] for one in good])) for key in good[0]}
        means['skipped'] = int(sum(one['skipped'] for one in self.watch))
        means['lr'] = self.watch[-1]['lr']
        means['cut_texts'] = share(self.texts, ('videos', 'images'))
        for source in self.sources():
            means[f'cut_texts_{source}'] = share(self.texts, (source,))
            if f'{source}/short' in self.texts:
                means[f'cut_short_texts_{source}'] = share(self.texts, (f'{source}/short',))
        return means

    def sources(self):
        """Which of 'videos' and 'images' the window has steps of."""
        return [source for source in ('videos', 'images') if source in self.texts]

    def cuts(self, stage):
        """{what: a sentence} for each length of the stage that cuts texts of a source."""
        found = {}
        for source in self.sources():
            for kind, name, what in (
                (source, 'text_length', 'texts'),
                (f'{source}/short', 'short_length', 'short texts'),
            ):
                if self.texts[f'{kind}/cut']:
                    found[kind] = (
                        f'{share(self.texts, (kind,)):.0%} of the {what} of {source} are longer '
                        f'than stages.{stage.name}.{name}={getattr(stage, name)} tokens and are '
                        'cut there'
                    )
        return found

    def to_info(self):
        """What a checkpoint in the middle of a window must remember of it, once settled."""
        return plain({'watch': self.watch, 'texts': self.texts})

    @classmethod
    def from_info(cls, info):
        """The window that `to_info` told of; before texts were counted by source, it had none."""
        watch = [{key: float(value) for key, value in one.items()} for one in info['watch']]
        return cls(watch, [], Counter(info.get('texts')))


def texts_of(batch, b):
    """The texts of a step, counted: {source: b, source/cut: how many were longer than the stage's
    text_length}; where there are second texts, the same under source/short.

    batch: this host's; where hosts share rows, all do alike, so that the mean over hosts is right.
    """
    source = batch['source'][0]  # a step takes one kind only
    found = {source: b, f'{source}/cut': float(batch['cut'].mean() * b)}
    if 'short_cut' in batch:
        found |= {f'{source}/short': b}
        found |= {f'{source}/short/cut': float(batch['short_cut'].mean() * b)}
    return found


def share(texts, kinds):
    """The share of the texts of some kinds, keys of `texts`, that were cut; 0 of none."""
    cut = sum(texts[f'{kind}/cut'] for kind in kinds)
    return cut / max(1, sum(texts[kind] for kind in kinds))
