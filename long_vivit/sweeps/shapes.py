"""A variant at the paper's sizes: the same choices, with ViT-B or ViT-L and minutes of video.

What a variant chooses stays: backbone, masking, what is trained, pooling. What follows from the
machine that it was taught on is replaced: widths, frames, pixels, batch, texts. Choices that are
counted in units of that size go along with it, as `sized` says.
"""

import re

from long_vivit import estimate, rules

# The text towers that the paper puts beside its encoders, as configs/long.py has them, and e.
TEXT = {'B': ({'width': 512, 'depth': 8, 'heads': 8}, 512),
        'L': ({'width': 768, 'depth': 12, 'heads': 12}, 768)}  # fmt: skip
VOCAB = 49_408  # CLIP's: a table of words as large as those of real texts


def at(run, base, memory, *, size, frames, remat, rate=None):
    """The last stage of a resolved `run` at a ViT size, as a Run of that stage alone.

    Args:
      base: the resolved base of the sweep: its patch, tubelet and width are what those of `memory`
        stand for.
      memory: the section of configs/sweep.py. frames: of the video; an image stays one.
      rate: a masking rate in place of the stage's own; None keeps that.

    Such a Run is to be compiled, not to be taught: a batch of one has no negatives.
    """
    stage, text = run.stages[-1], TEXT[size]
    path = f'stages.{stage.name}.'
    changes = {
        'model.video.size': size,
        **{f'model.video.{key}': x for key, x in rules.SIZES[size]._asdict().items()},
        'model.video.remat': remat,
        'model.video.mlp_width': 0,
        **{f'model.text.{key}': x for key, x in text[0].items()},
        'model.text.length': 0,
        'model.text.mlp_width': 0,
        'model.embed': text[1],
        'model.dtype': memory['dtype'],
        'model.attention': 'blockwise',
        path + 'pixels': memory['pixels'],
        path + 'batch': memory['batch'],
        path + 'micro_batch': 0,
        path + 'text_length': memory['text_length'],
        path + 'text_buckets': (),
        **sized(run, base, memory, size, frames),
    }
    if stage.frames > 1:
        changes[path + 'frames'] = frames
    if rate is not None:
        changes[path + 'mask_rate'] = rate
    alone = type(run)(**{**vars(run), 'run': (stage.name,), 'stages': (stage,)})
    return estimate.changed(alone, changes)


def sized(run, base, memory, size, frames):
    """{path: value} of the choices that grow with the model or with the picture.

    Patches and tubelets keep their ratio to the base's, the widths of adapters and LoRA theirs to
    the encoder's, a token budget its share of all tokens; each trained layer stands for
    `memory.layers`.
    """
    stage, video, own = run.stages[-1], run.model.video, base.model.video
    path, model = f'stages.{stage.name}.', 'model.video.'
    units = {'patch': memory['patch'] / own.patch, 'tubelet': memory['tubelet'] / own.tubelet}
    found = {model + key: round(getattr(video, key) * unit) for key, unit in units.items()}
    has = {**vars(video), **vars(stage)}  # not all of them in runs of before
    for key, unit in units.items():
        if vars(stage).get(key):  # in place of the model's
            found[path + key] = round(getattr(stage, key) * unit)
    for key in ('adapter_width', 'lora_rank'):
        if has.get(key):
            found[model + key] = round(has[key] * rules.SIZES[size].width / video.width)
    if stage.last_layers:
        found[path + 'last_layers'] = memory['layers'] * stage.last_layers
    if part := re.fullmatch(r'(first|last):(\d+)', has.get('tune', '')):
        found[path + 'tune'] = f'{part[1]}:{memory["layers"] * int(part[2])}'
    if has.get('tubes'):
        found[path + 'tubes'] = 'tubevit'  # a set for few small frames stands for TubeViT's own
    if has.get('token_budget'):
        pixels = memory['pixels'] / stage.pixels / units['patch']
        times = frames / stage.frames / units['tubelet']
        found[path + 'token_budget'] = round(has['token_budget'] * times * pixels**2)
    return found


def wanted(run, base, memory, rates=()):
    """The shapes to compile a variant at: dicts of what `at` takes, and the Run that it gives.

    rates: masking rates besides its own, for variants that have no other way to choose patches.
    """
    stage = run.stages[-1]
    if any(vars(stage).get(field) for field in ('tubes', 'token_budget')):
        rates = ()
    for size in memory['sizes']:
        for frames in memory['frames'] if stage.frames > 1 else (1,):
            for remat in memory['remats']:
                for rate in dict.fromkeys((stage.mask_rate, *rates)):
                    shape = {'size': size, 'frames': frames, 'remat': remat, 'rate': rate}
                    yield shape, at(run, base, memory, **shape)
