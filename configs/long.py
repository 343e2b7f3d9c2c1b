"""Image -> short video -> long video: the recipe this project is about.

    configs/long.py          small: trains on two CPU cores with the built-in stories
    configs/long.py:base     ViT-B, 128 frames
    configs/long.py:large    ViT-L, 256 frames

`base` and `large` follow arXiv 2312.07395, which gives the encoders, 16 and 128 or 256 frames at
1 frame per second, tubelets of 2 x 16 x 16, and for the long stage 75% random masking with only
the last four layers trained (section 3 and 6.1). 256 pixels are read off its token counts. It
publishes no batch sizes, learning rates, steps, joint width or share of images: those are our
choice. Neither brings data: name yours with `--config.data.train=videos:PATH.jsonl`, and images to
mix into the short stage with `--config.stages.short.image_train=videos:IMAGES.jsonl
--config.stages.short.image_ratio=0.1`.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(size: str = '') -> ConfigDict:
    """The small recipe, or with the word `base` or `large` the paper's."""
    if size not in ('', 'base', 'large'):
        raise ValueError(
            f"configs/long.py:{size}: {size!r} is no size; use 'base', 'large' or nothing."
        )
    config = base.get_config()
    config.workdir = f'runs/long_{size}' if size else 'runs/long'
    if size:
        paper(config, large=size == 'large')
    else:
        small(config)
    return config


def small(config: ConfigDict) -> None:
    """Some minutes on a laptop, from nothing, on the built-in stories."""
    config.model.video.update(width=128, depth=4, heads=4, patch=16)
    # One position table for all stages: stretched, it would blur which words stand together.
    # Half as wide as the video tower: as wide, it takes half of the long stage's time and memory.
    config.model.text.update(width=64, depth=2, heads=2, length=212)
    config.model.embed = 128
    config.loss.temperature = 0.03
    config.stages.image = base.stage(
        train='shape_stories/image:train',
        eval='shape_stories/image:test[:256]',
        frames=1,
        pixels=64,
        text_length=16,
        batch=128,
        steps=120,
        lr=2e-3,
    )
    config.stages.short = base.stage(
        train='shape_stories/short:train',
        eval='shape_stories/short:test[:256]',
        frames=16,
        pixels=64,
        mask_kind='random',
        mask_rate=0.5,
        text_length=52,
        image_train='shape_stories/image:train',  # every tenth batch, so that looks are kept up
        image_ratio=0.1,
        batch=32,
        steps=780,
        lr=1.5e-3,
    )
    config.stages.long = base.stage(
        train='shape_stories/long:train',
        eval='shape_stories/long:test[:256]',
        frames=64,
        pixels=64,
        mask_kind='random',
        mask_rate=0.75,
        text='long_caption',
        text_length=212,
        batch=32,
        steps=500,
        lr=1e-3,
    )


def paper(config: ConfigDict, large: bool) -> None:
    """ViT-B with a text tower of BERT-medium's shape, or ViT-L with one of BERT-base's."""
    config.model.video.update(size='L' if large else 'B', remat='full')
    config.model.text.update(
        width=768 if large else 512, depth=12 if large else 8, heads=12 if large else 8
    )
    config.model.embed = 768 if large else 512
    config.model.dtype = 'bfloat16'
    config.checkpoint.every = 1000
    config.log.every = 50
    config.eval.every = 5000
    config.stages.image = base.stage(
        frames=1, text_length=64, batch=4096, steps=100_000, lr=1e-3, warmup_steps=10_000
    )
    first_seconds = {'sampler': 'first_fps', 'eval_sampler': 'first_fps', 'fps': 1.0}
    config.stages.short = base.stage(
        frames=16,
        text_length=64,
        batch=1024,
        steps=50_000,
        lr=1e-4,
        warmup_steps=2_000,
        **first_seconds,
    )
    one_per_second = {'sampler': 'fps', 'eval_sampler': 'fps', 'fps': 1.0}
    config.stages.long = base.stage(
        frames=256 if large else 128,
        mask_kind='random',
        mask_rate=0.75,
        last_layers=4,
        text='any',
        text_length=256,
        batch=256,
        eval_batch=32,
        steps=10_000,
        lr=5e-5,
        warmup_steps=500,
        **one_per_second,
    )
