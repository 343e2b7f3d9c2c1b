"""What the section `model` of a configuration may hold: the part of rules.py that is about it."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from long_vivit import masking, weights
from long_vivit.allowed import at_least, one_of, positive
from long_vivit.inputs.patches import MOTION
from long_vivit.models.slices import FRAME_POOLS, KINDS


class Size(NamedTuple):
    """A transformer's shape."""

    width: int
    depth: int
    heads: int


SIZES = {
    'Ti': Size(192, 12, 3),
    'S': Size(384, 12, 6),
    'B': Size(768, 12, 12),
    'L': Size(1024, 24, 16),
}
SLICED = ('factorised', 'factorised_encoder', 'frames')
ACTIVATIONS = ('gelu', 'gelu_erf', 'quick_gelu')

MODEL_RULES = {
    'model.video.size': one_of(*SIZES, 'custom'),
    'model.video.patch': at_least(1),
    'model.video.tubelet': at_least(1),
    'model.video.backbone': one_of(*KINDS),
    'model.video.frame_pool': one_of(*FRAME_POOLS),
    'model.video.temporal_depth': at_least(1),
    'model.video.pool': one_of('mean', 'cls', 'map'),
    'model.video.activation': one_of(*ACTIVATIONS),
    'model.video.norm_epsilon': positive,
    'model.video.mlp_width': at_least(0),
    'model.video.adapter_width': at_least(0),
    'model.video.lora_rank': at_least(0),
    'model.video.positions': one_of('split', 'joint'),
    'model.video.remat': one_of('none', 'dots', 'attention', 'full', 'offload'),
    'model.text.width': at_least(1),
    'model.text.depth': at_least(1),
    'model.text.heads': at_least(1),
    'model.text.length': at_least(0),
    'model.text.kind': one_of('bidirectional', 'causal', 'padded'),
    'model.text.activation': one_of(*ACTIVATIONS),
    'model.text.norm_epsilon': positive,
    'model.text.mlp_width': at_least(0),
    'model.text.positions': one_of('learned', 'rotary'),
    'model.text.stretch': one_of('kps', 'interpolate'),
    'model.text.keep': at_least(-1),
    'model.embed': at_least(1),
    'model.dtype': one_of('float32', 'bfloat16'),
    'model.attention': one_of('auto', 'blockwise', 'dense', 'cudnn', 'splash'),
    'model.sequence': one_of('auto', 'ulysses', 'ring'),
}


def model_faults(config: dict) -> Iterator[str]:
    """Widths, depths and heads of the encoders, and choices that do not go together."""
    video, text = config['model']['video'], config['model']['text']
    size = SIZES.get(video['size'])
    for field in Size._fields:
        value = video[field]
        if size and value not in (0, getattr(size, field)):
            yield (
                f'model.video.{field}: {value} contradicts size {video["size"]!r}, which has '
                f"{getattr(size, field)}; set it to 0, or the size to 'custom'."
            )
        elif video['size'] == 'custom' and value < (0 if config['model']['from_init'] else 1):
            # (With from_init a 0 is one that `init` could not fill, and why is said.)
            yield f"model.video.{field}: {value} with size 'custom'; it must be at least 1."
    width, embed = size.width if size else video['width'], config['model']['embed']
    if not video['head'] and embed != width:
        yield (
            f'model.video.head: False, but model.embed = {embed} is not the width {width} of the '
            'video encoder; make them equal, or set it to True.'
        )
    attention = config['model']['attention']
    if config['model']['sequence'] == 'ring' and attention not in ('auto', 'blockwise'):
        yield (
            f"model.sequence: 'ring' computes in blocks of its own, not as model.attention = "
            f"{attention!r} says; set that to 'blockwise', or this to 'auto'."
        )
    for name, tower in (('video', video), ('text', text)):
        if tower['heads'] > 0 and tower['width'] % tower['heads']:
            yield (
                f'model.{name}.width: {tower["width"]} is not divisible by '
                f'model.{name}.heads = {tower["heads"]}.'
            )
    yield from position_faults(text)
    yield from table_faults(config)
    yield from backbone_faults(video)


def backbone_faults(video: dict) -> Iterator[str]:
    """Choices for the video encoder that its backbone cannot take."""
    backbone = video['backbone']
    if backbone != 'frames' and video['frame_pool'] != 'mean':
        yield (
            f"model.video.frame_pool: {video['frame_pool']!r} is of backbone 'frames' only, and "
            f"model.video.backbone is {backbone!r}; leave it at 'mean'."
        )
    if backbone == 'frames' and video['positions'] == 'joint':
        yield (
            "model.video.positions: 'joint' has no place apart from its times, and "
            "model.video.backbone 'frames' encodes each slice without them; use 'split'."
        )
    if backbone in SLICED and video['pool'] == 'cls' and not video['cls_repeat']:
        yield (
            'model.video.cls_repeat: False, but with model.video.backbone '
            f'{backbone!r} each time slice has its own learnt token; set it to True.'
        )


def backbone_mask_faults(config: dict, name: str) -> Iterator[str]:
    """Where the mask of a stage leaves what the backbone cannot take."""
    stage, video, path = config['stages'][name], config['model']['video'], f'stages.{name}.'
    images = stage['image_ratio'] > 0 or config['eval']['images']
    backbone, kind = video['backbone'], stage['mask_kind']
    tubelet = stage['tubelet'] or video['tubelet']
    many = stage['frames'] // tubelet > 1
    if not many or not masking.ever(stage):
        return
    if kind in KINDS[backbone]:
        if backbone in SLICED and tubelet == 1 and kind != 'frame' and images:
            yield (
                f'{path}mask_kind: {kind!r}, but with a tubelet of 1 images (image_ratio, '
                f'eval.images) look like frames, and model.video.backbone {backbone!r} could not '
                "tell them from a masked video; use 'frame', or mask_rate 0, or no images."
            )
        return
    drawn = ', and this draws them one by one of all' if kind in ('random', MOTION) else ''
    why = {
        'factorised': 'attends over time at each place, so a place must be kept in all slices',
        'factorised_encoder': 'encodes each time slice by itself, equally many patches of each',
        'frames': 'encodes each time slice by itself, equally many patches of each',
    }[backbone]
    yield (
        f'{path}mask_kind: {kind!r}, but model.video.backbone {backbone!r} {why}{drawn}; use '
        f'{" or ".join(KINDS[backbone])}, or mask_rate 0.'
    )


def position_faults(text: dict) -> Iterator[str]:
    """Positions of the text that do not go with the rest of the text encoder."""
    if text['stretch'] == 'interpolate' and text['keep'] > 0:
        yield (
            f"model.text.keep: {text['keep']} rows with model.text.stretch = 'interpolate', which "
            "moves all; set this to 0, or that to 'kps'."
        )
    if text['positions'] != 'rotary':
        return
    for field in ('keep', 'length'):
        if text[field] > 0:
            yield (
                f'model.text.{field}: {text[field]} rows of a table, which '
                "model.text.positions = 'rotary' has not; set it to 0."
            )
    if text['kind'] == 'padded':
        yield "model.text.positions: 'rotary' with kind 'padded', which takes the table's last row."
    if text['heads'] > 0 and text['width'] // text['heads'] % 2:
        yield (
            f'model.text.heads: {text["heads"]} of {text["width"] // text["heads"]} values each; '
            "positions 'rotary' turns pairs of values, which needs an even number."
        )


def text_rows(config: dict, rows: int) -> int:
    """The model.text.length with which a table of so many rows to start from loses none.

    0: it loses none as it is. The first stage's table has as many rows as its texts have tokens,
    where model.text.length is 0, and what it starts from is cut to them.
    """
    text, stages = config['model']['text'], config['stages']
    lengths = [stages[name]['text_length'] for name in config['run'] if name in stages]
    if text['length'] or text['positions'] == 'rotary' or not lengths or rows <= lengths[0]:
        return 0
    return max(rows, *lengths)


def table_faults(config: dict) -> Iterator[str]:
    """Rows of the text's position table, of weights of others, that the first stage would drop."""
    init, rows = config['init'], 0
    family, _ = weights.split(init) or ('', '')
    if family and family not in weights.TEXTLESS and not config['model']['text']['length']:
        with contextlib.suppress(ValueError):  # which is said where these weights are read
            rows = weights.describe(init).text_length
    if wanted := text_rows(config, rows):
        first = next(name for name in config['run'] if name in config['stages'])
        yield (
            f'model.text.length: 0 leaves the first {config["stages"][first]["text_length"]} of '
            f'the {rows} rows that {init} has, as many as stages.{first}.text_length; the others '
            f'would be lost: set model.text.length={wanted}.'
        )
