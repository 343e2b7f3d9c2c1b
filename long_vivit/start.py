"""What the first step of a stage starts from: the stage before, a checkpoint, weights of others."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from long_vivit import config, long_text, newcomers, recipe, recut, weights
from long_vivit.checkpoints import read_flat
from long_vivit.inputs.text import Tokenizer
from long_vivit.names import below, flatten
from long_vivit.warm_start import warm_start
from long_vivit.workdir import Workdir

# Parts of a model that weights of others may lack as a whole; they then start afresh.
PARTS = ('video/head/', 'text/', 'log_scale', 'logit_bias')


class Start(NamedTuple):
    """Parameters to start from: names and shapes of the stage's model, lines for people."""

    params: dict
    lines: list[str]


def start_params(run, stage, workdir, vocab):
    """Where a stage starts from -> Start; None where it starts from nothing.

    That is the stage before, else `init`: a checkpoint, a work directory, or weights of others.
    """
    names = [other.name for other in run.stages]
    before = names.index(stage.name) - 1
    if before < 0 and not run.init:
        return None
    source = run.init if before < 0 else names[before]
    if before < 0 and weights.split(run.init):
        params, lines = of_others(run.init, run, stage, vocab)
    else:
        flat = init_params(source) if before < 0 else taught(workdir.checkpoints(source))
        params, lines = shaped(run, stage, flat, vocab)
    head = f'{stage.name}: starts from {source}'
    return Start(params, [head, *(f'  {line}' for line in lines)])


def shaped(run, stage, flat, vocab, drop=()):
    """Parameters of ours in the names and shapes of the stage's model -> Start.

    drop: regexes of names to leave out, as of `warm_start`, which may raise ValueError.
    """
    lines = []
    if stage.frames > 1 and not weights.split(run.init) and taught_on_images(flat):
        fresh = recipe.order_tables(run, stage, flat)
        flat = flat | fresh
        if fresh:
            lines.append(f'{", ".join(fresh)}: afresh, since images have no order')
    like = flatten(model_like(run, stage, vocab))
    flat, more = newcomers.settled(run, stage, vocab, flat, like)
    adapted = fitted(run, flat, like, drop)
    return Start(adapted.params, lines + more + adapted.lines)


def fitted(run, flat, like, drop=()):
    """`warm_start` as model.text has it: how positions are stretched, or that there is no table."""
    keep = long_text.stretch_keep(run)
    flat, recut_lines = recut.stems(flat, like)
    if 'text/positions' in like or 'text/positions' not in flat:
        adapted = warm_start(flat, like, drop=drop, keep=keep)
        return adapted._replace(lines=[*recut_lines, *adapted.lines])
    adapted = warm_start(flat, like, drop=[*drop, 'text/positions'])
    why = 'model.text.positions is rotary: where words stood is to be learnt anew'
    return adapted._replace(lines=[*recut_lines, why, *adapted.lines])


def taught_on_images(flat):
    """Whether these are parameters of our own stage of images, which learnt no order.

    Those that began as weights of others, in another run, have texts that are worth keeping. They
    are known by their table of one time, which is zero and which no stage of images changes.
    """
    time = flat.get('video/positions/time', np.ones(1))
    return not recipe.knows_order(flat) and bool(np.any(time))


def of_others(init, run, stage, vocab, drop=()):
    """FAMILY:PATH in the names and shapes of the stage's model -> Start.

    Whole parts that these weights lack are drawn as the run's first stage draws them. drop: as of
    `shaped`. Raises ValueError as `weights.read` and `warm_start` do.
    """
    like = flatten(model_like(run, stage, vocab))
    flat, lines = weights.read(init, like)
    lines += scaled_otherwise(init, recipe.view(run, stage).scaling)
    lacking = [part for part in PARTS if not any(name.startswith(part) for name in flat)]
    if fresh := [name for name in like if name.startswith(tuple(lacking))]:
        lines.append(f'{", ".join(lacking)}: afresh, these weights have none')
        flat |= newcomers.drawn(run, run.stages[0], vocab, fresh)
    flat, more = newcomers.settled(run, stage, vocab, flat, like)
    adapted = fitted(run, flat, like, drop)
    return Start(adapted.params, [*lines, *more, *adapted.lines])


def scaled_otherwise(init, own):
    """A line where pictures are scaled in another way than those that weights were taught with."""
    theirs = weights.describe(init).scaling
    if own == theirs:
        return []
    return [f'pictures: scaled {own}, those that these weights know were {theirs} (data.scaling)']


def check_weights(run):
    """Holds the configuration against weights of others that it starts from; reads no tensor.

    Raises ValueError with a line for each field of the architecture that is another one, and as
    `weights.describe` does.
    """
    if not weights.split(run.init):
        return
    given = dict(config.flat(run))
    faults = [
        f'{path}: {given[path]!r}, but {run.init} has {value!r}'
        for path, value in weights.describe(run.init).fields.items()
        if path.startswith('model.') and given[path] != value
    ]
    if faults:
        head = f'the model is not that of the weights, {len(faults)} field(s):'
        tail = 'set model.from_init to True, and the fields follow the weights'
        raise ValueError('\n  '.join([head, *faults, tail]))


def init_params(path):
    """The model in a checkpoint, or in the last finished stage of a work directory."""
    folder = Path(path)
    if (folder / 'config.json').is_file():
        workdir = Workdir(folder)
        run = workdir.read_config()
        done = [stage.name for stage in run.stages if workdir.finished(stage.name)]
        if not done:
            raise ValueError(f'init: {path} has no finished stage to start from')
        return taught(workdir.checkpoints(done[-1]))
    return taught(folder)


def taught(folder, which=''):
    """The model's parameters in a checkpoint, or in the last of a folder of them, as a flat dict.

    which: 'mean', the running mean; 'raw', without it; '', the mean where there is one.
    Raises ValueError: there is no mean.
    """
    flat = read_flat(folder)
    mean = below(flat, 'ema')
    if which == 'mean' and not mean:
        raise ValueError(f'{folder}: has no running mean; it was taught with optim.ema=0')
    return mean if mean and which != 'raw' else below(flat, 'model')


def model_like(run, stage, vocab):
    """The stage's model as shapes."""
    return jax.eval_shape(lambda: recipe.model(run, stage, vocab, jax.random.key(0)))


def tokenizer(run):
    """The configured tokenizer, else that of the weights, else the one with the built-in data.

    Raises ValueError: there is none, or its numbers are not those that the weights know.
    """
    found = weights.describe(run.init) if weights.split(run.init) else None
    loaded = Tokenizer.load(_tokenizer_path(run, found))
    if found and found.vocab and loaded.vocab_size != found.vocab:
        raise ValueError(
            f'data.tokenizer: {run.data.tokenizer or found.tokenizer} has {loaded.vocab_size} '
            f'tokens, but the weights {run.init} know {found.vocab}; leave it empty for their own'
        )
    return loaded


def _tokenizer_path(run, found):
    if run.data.tokenizer:
        return Path(run.data.tokenizer)
    if found and found.vocab:
        if not found.tokenizer:
            raise ValueError(
                f'data.tokenizer: no tokenizer lies beside {run.init}; put its tokenizer.json, or '
                'vocab.json and merges.txt, or bpe_simple_vocab_16e6.txt.gz there, or name one'
            )
        return Path(found.tokenizer)
    file = Path(run.data.dir) / 'shape_stories' / 'tokenizer.json'
    if not file.is_file():
        raise ValueError(
            f'data.tokenizer: none is set and {file} does not exist; build the built-in set with '
            '`python -m long_vivit.build_data shape_stories`, or name a tokenizer.json'
        )
    return file
