"""Rows of a sweep: what each cell reached and took, a line of rows.jsonl; means by variant.

row = {
    'cell': 'long.mask_rate=0.5/seed0', 'variant': 'long.mask_rate=0.5', 'seed': 0,
    'grids': ['masking'], 'difference': {'stages.long.mask_rate': 0.5},
    'stage': 'long', 'frames': 64, 'pixels': 64, 'mask_rate': 0.5, 'mask_kind': 'random',
    'num_parameters', 'num_trained', 'tokens_per_clip', 'flops_per_clip' (training, analytic: whole
    numbers, means over the stage's masking rates),
    'peak_bytes': of the compiled step at the cell's own shapes and batch,
    'memory': [{'size': 'B', 'frames': 128, 'remat', 'rate', 'tokens', 'peak_bytes', ...}],
    'clips_per_s', 'seconds', 'steps', 'measured_peak_bytes', 'measured_peak_of', 'jobs', 'device',
    'text_to_video': {'recall_at_1', 'recall_at_5', 'recall_at_10'}, 'video_to_text': {...},
    'twin_accuracy', 'chance_at_1', 'shuffled': {...}, 'one_frame': {...} as the four above,
    'protocol': {...}, 'versions': {...}, 'commit': '0123abc...' or '', '... changed' if not clean
}
"""

import importlib.metadata
import platform
import re
import statistics
import subprocess
from pathlib import Path

WAYS = ('text_to_video', 'video_to_text')
RECALLS = ('recall_at_1', 'recall_at_5', 'recall_at_10')
NEEDED = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'grain', 'av')


def row_of(cell, result, facts, *, jobs, device, commit):
    """The row of a taught cell.

    Args:
      result: what the last stage recorded as finished. facts: what costs.py wrote of the variant.
      device: in words. commit: of the code, see `commit_of`.
    """
    stage = cell.whole.stages[-1]
    scores = result['scores']
    facts = {key: value for key, value in facts.items() if key != 'request'}
    return {
        'cell': cell.name,
        'variant': cell.variant,
        'seed': cell.seed,
        'grids': list(cell.grids),
        'difference': cell.difference,
        'stage': stage.name,
        **{key: getattr(stage, key) for key in ('frames', 'pixels', 'mask_rate', 'mask_kind')},
        **facts,
        **{key: result[key] for key in ('clips_per_s', 'seconds', 'steps')},
        'measured_peak_bytes': result['peak_memory_bytes'],
        'measured_peak_of': result['peak_memory_of'],
        'jobs': jobs,
        'device': device,
        **recall_of(scores['ordered']),
        'chance_at_1': scores['ordered'][WAYS[0]]['chance_at_1'],
        **{name: recall_of(score) for name, score in scores.items() if name != 'ordered'},
        'protocol': result['protocol'],
        'versions': versions(),
        'commit': commit,
    }


def recall_of(score):
    """Recall both ways and order twins, of a score as results.json has it."""
    found = {way: {key: score[way][key] for key in RECALLS} for way in WAYS}
    return found | {'twin_accuracy': score['twin_accuracy']}


def versions():
    """{package: version} of what computes; Python's as well."""
    found = {'python': platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in NEEDED}


def commit_of(folder):
    """The commit checked out in `folder`, with ' changed' where files differ; '' without git."""

    def git(*words):
        done = subprocess.run(['git', '-C', str(folder), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ''

    try:
        commit = git('rev-parse', 'HEAD')
    except FileNotFoundError:
        return ''
    return commit + (' changed' if commit and git('status', '--porcelain', '-uno') else '')


def device_of(log):
    """What a run said of its devices in its log; '' where it is not there."""
    text = Path(log).read_text(errors='replace') if Path(log).exists() else ''
    found = re.search(r'^.*: \w+ on (.+)$', text, re.M)
    return found[1] if found else ''


def recall(row, k=1):
    """Recall at k of a row, the mean of both ways."""
    return sum(row[way][f'recall_at_{k}'] for way in WAYS) / len(WAYS)


def spread(values):
    """(mean, sample standard deviation) of the values that are there; deviation None for one."""
    values = [value for value in values if value is not None]
    if not values:
        return None, None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return statistics.mean(values), deviation


def by_variant(rows):
    """{variant: its rows, a seed each}, in the order of their first rows."""
    found = {}
    for row in rows:
        found.setdefault(row['variant'], []).append(row)
    return found


def peak(row, size, frames, remat, rate=None):
    """Bytes of a row's variant at a ViT size (None: not compiled); rate: None for its own."""
    rate = row['mask_rate'] if rate is None else rate
    for one in row['memory']:
        if (one['size'], one['frames'], one['remat'], one['rate']) == (size, frames, remat, rate):
            return one['peak_bytes']
    return None


def reading(memory, variant, rate, size, frames, remat):
    """The row of memory.jsonl of a variant at a masking rate and a shape, or None.

    Beside what a row's `memory` has: 'variant', 'video_to_text_bytes', None for tubes and token
    budgets, and 'of', equal where lines go together (see sweep.py).
    """
    wanted = variant, rate, size, frames, remat
    for one in memory:
        if tuple(one[key] for key in ('variant', 'rate', 'size', 'frames', 'remat')) == wanted:
            return one
    return None
