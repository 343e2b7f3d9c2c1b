"""CLIP -> short video -> long video: minutes and long captions from a CLIP checkpoint.

    python -m long_vivit.train --config configs/clip_long.py --config.init=clip:PATH \\
        --config.data.train=videos:PATH/train.jsonl --config.data.eval=videos:PATH/test.jsonl

    configs/clip_long.py         16 and 64 frames: ViT-B/32 or B/16 on one GPU
    configs/clip_long.py:large   16 and 128 frames, bfloat16: L/14 on a node or a pod

PATH is a folder as Hugging Face lays CLIP out; `open_clip:`, `openai:` and `longclip:` read the
layouts of others. Widths, depths, activations and so on follow the weights (model.from_init), the
tokenizer is theirs, the image tower looks at tubelets, and the text grows from 77 tokens to 248 in
the long stage (Long-CLIP, arXiv 2403.15378). The first step starts from a model that scores a still
video as CLIP does its frame.

Pixels are those of CLIP at 224; for L/14-336 set both stages' pixels to 336. Learning rates are our
choice: a tenth of what starts from nothing and ten times Long-CLIP's 1e-6, which is for images.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(size: str = '') -> ConfigDict:
    """The recipe for one GPU, or with the word `large` for many."""
    if size not in ('', 'large'):
        raise ValueError(f"configs/clip_long.py:{size}: {size!r} is no size; use 'large' or none.")
    large = size == 'large'
    config = base.get_config()
    config.workdir = f'runs/clip_long_{size}' if size else 'runs/clip_long'
    config.run = ('short', 'long')
    config.model.from_init = True
    config.model.video.remat = 'full' if large else 'attention'
    config.model.dtype = 'bfloat16' if large else 'float32'
    config.data.scaling = 'bicubic'  # as CLIP's pictures
    config.optim.weight_decay = 0.01  # as Long-CLIP; little is to be unlearnt
    config.loss.label_smoothing = 0.1  # as Long-CLIP
    config.model.text.keep = 20  # as Long-CLIP: where short texts stand nothing changes
    # Long texts alone would make short ones forgotten. A batch of 16 has 15 components, hence 8.
    config.loss.short_weight, config.loss.components = 1.0, 32 if large else 8
    config.stages.short = base.stage(
        frames=16,
        pixels=224,
        mask_kind='random',
        mask_rate=0.5,
        text_length=77,
        batch=1024 if large else 32,
        eval_batch=32,
        steps=5_000 if large else 1_000,
        lr=1e-5,
    )
    config.stages.long = base.stage(
        frames=128 if large else 64,
        pixels=224,
        mask_kind='random',
        mask_rate=0.75,
        text='any',
        text_length=248,
        text_buckets=(32, 77, 128, 176, 248),  # close together: no group goes much too far
        short_text='caption',
        short_length=77,
        batch=512 if large else 16,
        eval_batch=8,
        steps=5_000 if large else 1_000,
        lr=5e-6,
    )
    return config
