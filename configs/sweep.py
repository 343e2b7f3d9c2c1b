"""A grid of variants on the built-in stories, to choose how to pay for long videos.

    configs/sweep.py          the findings below, on films of a minute: many hours
    configs/sweep.py:laptop   the same questions, smaller: about an hour
    configs/sweep.py:tiny     three cells of some seconds, for tests

Written for `python -m long_vivit.sweep`. A sweep of your own is a file like this one.
"""

import copy

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
            # all its combinations. What is in several of them is taught once. Grids go by their
            # names in order, and all variants of a seed before the next seed.
            'grids': {},
            'memory': memory(),
        }
    )
    config.lock()
    config.grids.unlock()
    return config


def memory() -> dict:
    """Shapes at which the memory of each variant is compiled, without running it.

    With --memory so is a video-to-text step on its encoder, at the same sizes, frames and remats;
    not for tubes and token budgets. The variant's choices stay; widths, depths and so on are those
    of the encoder named, the text towers those of configs/long.py:base and :large. Numbers in units
    of the small run go along.
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
        # Video-to-text: a frozen language model, and what is new, its looks at the video and the
        # resampler. Of 350M parameters with CLIP's vocabulary, and 180M new ones; the paper's
        # smaller one has 400M of a kind it does not name.
        'language': {
            'width': 1024,  # a multiple of heads; >= 1
            'depth': 24,  # layers, each with a new look at the video; >= 1
            'heads': 16,  # >= 1
            'latents': 64,  # vectors that the resampler makes of a video; >= 1
            'resampler_depth': 6,  # layers of the resampler; >= 1
        },
    }


SIZES = ('', 'laptop', 'tiny')


def get_config(size: str = '') -> ConfigDict:
    """The sweep of a word of SIZES."""
    if size not in SIZES:
        raise ValueError(
            f'configs/sweep.py:{size}: {size!r} is no size; it must be one of {SIZES}.'
        )
    config = fields()
    config.base.stages.short.update(image_train='', image_ratio=0.0)
    # Whole columns, for all backbones alike: not all of them can take patches drawn one by one.
    for name in ('short', 'long'):
        config.base.stages[name].mask_kind = 'tube'
    if size == 'tiny':
        tiny(config)
        return config
    config.grids.update(copy.deepcopy(FINDINGS))
    if size == 'laptop':
        laptop(config)
    return config


RATE, KIND = 'stages.long.mask_rate', 'stages.long.mask_kind'
LAST, TUNE, TUNE_SHORT = 'stages.long.last_layers', 'stages.long.tune', 'stages.short.tune'
TUBES, BUDGET, FPS = 'stages.long.tubes', 'stages.long.token_budget', 'stages.long.fps'
TEXT = 'stages.long.text_tower'
BACKBONE, POOL = 'model.video.backbone', 'model.video.frame_pool'
ADAPTERS = {'model.video.adapter_width': (32,)}
LORA = {'model.video.lora_rank': (8,)}
IMAGE_TO_VIDEO = {'run': (('image', 'short'),)}
WHOLE = {RATE: (0.0,)}  # with what saves tokens by itself: a quarter of them, as 75% masking
TUBES_64 = '8x8x8/16x32x32+12x4x4/16x32x32@4x8x8+4x12x12/8x32x32@0x16x16+1x16x16/4x32x32'  # 128
TUBES_16 = '8x8x8/8x32x32+12x4x4/4x32x32@4x8x8+4x12x12/8x32x32@0x16x16+1x16x16/6x32x32'  # 32
FINDINGS = {
    # Joint space-time attention stays within 2 points of unmasked R@1 at 75%, others fall by more;
    # frame-level encoders stay at chance on order twins.
    'backbones': (
        {BACKBONE: ('joint', 'factorised', 'factorised_encoder', 'frames'), RATE: (0.0, 0.75)},
    ),
    # Pooling over frames: attention does not rescue them on order, a temporal transformer does.
    'pooling': ({BACKBONE: ('frames',), POOL: ('mean', 'attention', 'temporal')},),
    # Which patches to leave out, and how many; does motion beat random?
    'masking': (
        {RATE: (0.0, 0.5, 0.75)},
        {KIND: ('random', 'motion'), RATE: (0.75, 0.9, 0.95)},
        {'stages.long.unmasked_tail': (0.2,)},
    ),
    # Last-k in the long stage: memory against full tuning, recall kept. From short videos to long
    # ones nothing is lost by adapters. Then the first layers, tubelets alone, either tower frozen,
    # and attention over time alone, which the factorised encoder has.
    'tuning': (
        {LAST: (0, 1), RATE: (0.0, 0.75)},
        {TUNE: ('adapters+stem',), **ADAPTERS},
        {TUNE: ('lora+stem',), **LORA},
        {TUNE: ('first:1', 'stem', 'none')},
        {TEXT: ('frozen',)},
        {BACKBONE: ('factorised',), TUNE: ('all', 'temporal+stem')},
    ),
    # From images to short videos, where the run ends: all trained, adapters, LoRA.
    'image_to_video': (
        {**IMAGE_TO_VIDEO},
        {**IMAGE_TO_VIDEO, TUNE_SHORT: ('adapters+stem',), **ADAPTERS},
        {**IMAGE_TO_VIDEO, TUNE_SHORT: ('lora+stem',), **LORA},
    ),
    # A quarter of the tokens in other ways than masking: coarse time (the paper's tubelets of four
    # frames are half of the tokens, and half of those are masked), coarse space, sparse tubes of
    # TubeViT's four sizes at half the pixels, a budget.
    'inputs': (
        {RATE: (0.0, 0.75)},
        {'stages.long.tubelet': (4,), RATE: (0.5,)},
        {'stages.long.tubelet': (8,), **WHOLE},
        {'stages.long.patch': (32,), **WHOLE},
        {TUBES: (TUBES_64,), **WHOLE},
        {BUDGET: (128,), KIND: ('random',), **WHOLE},
    ),
}


def laptop(config: ConfigDict) -> None:
    """About an hour on two cores with --jobs=2: short videos, a smaller encoder, few steps.

    The long stage is one of 16 frames, behind one of 8.
    """
    config.workdir = 'runs/sweep_laptop'
    config.seeds_from = 'long'
    config.memory.frames = (128,)
    config.base.model.video.width = 96
    image, short, long_ = (config.base.stages[name] for name in ('image', 'short', 'long'))
    image.steps = 80
    short.update(frames=8, steps=300)
    same = {key: short[key] for key in ('train', 'eval', 'text', 'text_length')}
    long_.update(frames=16, steps=80, **same)
    # A budget takes frames at `fps`, and these films have two a second.
    fewer = {BUDGET: {BUDGET: (32,), FPS: (2.0,)}, TUBES: {TUBES: (TUBES_16,)}}
    for one in config.grids.inputs:
        for path in fewer.keys() & one.keys():
            one.update(fewer[path])


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
    config.grids.update(backbones=({RATE: (0.0, 0.75)},), tuning=({LAST: (0, 1)},))
    config.memory.update(sizes=(), rates=(0.0,))
