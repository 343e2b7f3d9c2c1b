"""What the fields about long texts stand for: rows that stay, how a table stretches, buckets."""

import numpy as np

from long_vivit import weights
from long_vivit.models import buckets
from long_vivit.sharding import axis_size, batch_axes


def kept_rows(run, stage):
    """{name: first rows} that do not change in a stage, for `optim.make`; {} where all are trained.

    A stage whose texts start from nothing has no rows worth keeping. It is told by the
    configuration, not by the weights, so that it holds after any saving, loading and going on.
    """
    text = vars(run.model.text)  # runs of before lack some fields
    keep = text.get('keep', -1) if text.get('stretch') == 'kps' else 0
    family, _ = weights.split(run.init) or ('', '')
    given = bool(run.init) and family not in weights.TEXTLESS
    starts = given or stage.name != run.stages[0].name
    return {'text/positions': keep} if starts and keep > 0 else {}


def stretch_keep(run):
    """The `keep` of `warm_start`, as model.text says."""
    text = vars(run.model.text)
    if text.get('stretch') == 'interpolate':
        return 0
    return None if text.get('keep', -1) < 0 else text['keep']


def buckets_of(stage):
    """The stage's text_buckets; () in runs of before there were any."""
    return vars(stage).get('text_buckets', ())


def in_words(run, stage):
    """What a stage does with its texts on the ambient mesh, in a line; '' where nothing special."""
    words, rows = [], stage.micro_batch or stage.batch
    ends = buckets.ends(buckets_of(stage), stage.text_length)
    if kept := kept_rows(run, stage).get('text/positions'):
        words.append(f'the first {kept} rows of text/positions stay as they are')
    if len(ends) > 1:
        groups = buckets.num_groups(rows, axis_size(batch_axes()))
        words.append(
            f'{groups} group(s) of {rows // groups} texts, each read up to '
            f'{", ".join(map(str, ends[:-1]))} or {ends[-1]} tokens'
        )
    return '; '.join(words)


def tokens_read(stage, lengths):
    """Tokens that the text tower needs to read of a text: the mean over `lengths` [b]."""
    ends = np.array(buckets.ends(buckets_of(stage), stage.text_length))
    return round(ends[np.searchsorted(ends, lengths)].mean())
