"""A grid of variants on the built-in stories, to choose how to pay for long videos.

    configs/sweep.py          overnight on a laptop: the findings below, three seeds
    configs/sweep.py:laptop   the same questions, smaller
    configs/sweep.py:tiny     three cells of some seconds, for tests

Written for `python -m long_vivit.sweep`. A sweep of your own is a file like this one.
"""

from ml_collections import ConfigDict

from configs import long


def fields() -> ConfigDict:
    """All fields of a sweep at their defaults."""
    config = ConfigDict(
        {
            'workdir': 'runs/sweep',  # folder for the rows, the cells and all else of this sweep
            'base': long.get_config(),  # the run that all cells change: --config.base.PATH=VALUE
            'seeds': (0, 1, 2),  # whole numbers >= 0, each once; every variant is taught with each
            'seeds_from': '',  # a stage of the base: those before it are taught with the first seed
            #                    only; '' = all stages are taught with each seed
            'only': (),  # names in `grids` to teach, such as ('masking',); () = all of them
            # {name: (product, ...)}; a product is {field of the base: (value, ...)}, and stands for
            # all its combinations. What is in several of them is taught once.
            'grids': {},
            'memory': memory(),
        }
    )
    config.lock()
    config.grids.unlock()
    return config


def memory() -> dict:
    """Shapes at which the memory of each variant is compiled, without running it.

    The variant's choices stay; widths, depths and so on are those of the encoder named, the text
    towers those of configs/long.py:base and :large. Numbers in units of the small run go along.
    """
    return {
        'sizes': ('B', 'L'),  # B and L, as model.video.size; () = none, which saves minutes
        'frames': (16, 128, 256),  # each >= 2
        'remats': ('none',),  # each as model.video.remat: none | dots | attention | full
        'rates': (0.0, 0.75),  # of --memory: masking rates besides a variant's own; 0 <= x < 1
        'pixels': 256,  # >= 1
        'patch': 16,  # of a variant with the base's patch; others in proportion; >= 1
        'tubelet': 2,  # the same of tubelets; >= 1
        'layers': 4,  # trained for each of a variant's last_layers; >= 1
        'text_length': 256,  # tokens, >= 3
        'batch': 1,  # pairs in a step, >= 1
        'dtype': 'bfloat16',  # of activations: float32 | bfloat16
        'limit_gb': 16.0,  # 10^9 bytes, the line that is drawn; the paper's is 16; > 0
    }


SIZES = ('', 'tiny')


def get_config(size: str = '') -> ConfigDict:
    """The sweep of a word of SIZES."""
    if size not in SIZES:
        raise ValueError(
            f'configs/sweep.py:{size}: {size!r} is no size; it must be one of {SIZES}.'
        )
    config = fields()
    if size == 'tiny':
        tiny(config)
    else:
        config.grids.update(FINDINGS)
    return config


RATE, KIND = 'stages.long.mask_rate', 'stages.long.mask_kind'
LAST = 'stages.long.last_layers'
FINDINGS = {
    # joint space-time attention stays within 2 points of unmasked R@1 at 75%
    'masking': ({RATE: (0.0, 0.5, 0.75, 0.9)}, {KIND: ('tube', 'slice'), RATE: (0.75,)}),
    # last-k and 75% masking in the long stage: memory against full tuning, recall kept
    'last': ({LAST: (0, 1, 2), RATE: (0.0, 0.75)},),
}


def tiny(config: ConfigDict) -> None:
    """Three cells of some seconds."""
    config.workdir = 'runs/sweep_tiny'
    config.seeds = (0,)
    run = config.base
    run.run = ('short', 'long')
    run.model.video.update(width=16, depth=2, heads=2)
    run.model.text.update(width=16, depth=1, heads=2)
    run.model.embed = 16
    small = {'pixels': 32, 'batch': 8, 'eval_batch': 16, 'steps': 4}
    for name, frames, text_length in (('short', 4, 16), ('long', 8, 32)):
        few = f'shape_stories/{name}:test[:32]'
        run.stages[name].update(frames=frames, text_length=text_length, eval=few, **small)
    config.grids.update(masking=({RATE: (0.0, 0.75)},), last=({LAST: (1,)},))
    config.memory.update(sizes=(), rates=(0.0,))
