"""What a resolved configuration stands for: the model, the optimiser and the views of a stage."""

import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from long_vivit import backbones, flops, long_text, masking, optim, stage_loss, tuning
from long_vivit.inputs import tubes
from long_vivit.inputs.pipeline import Examples, Order, View
from long_vivit.models import sequence
from long_vivit.models.attention import resolve
from long_vivit.models.dual import DualEncoder
from long_vivit.models.pool import num_cls
from long_vivit.models.positions import TIME_SCALE, waves
from long_vivit.sharding import SEQ, TENSOR, axis_size
from long_vivit.state import State, unflatten
from long_vivit.step import make_step

# Scale of fresh text positions. For one picture the order of the words hardly matters, and loud
# positions hide them: the image stage of the small recipe then stayed at chance for 50 steps. For
# videos order is the point: loud positions let order twins be told apart hundreds of steps earlier
# (see also TIME_SCALE in models/positions.py).
QUIET, LOUD = 0.05, 0.3
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
# Fields that the encoders take as they are. Runs that were begun before there were some of them
# lack those in their config.json: for them the encoders' own defaults stand.
CHOICES = ('activation', 'norm_epsilon', 'mlp_width')
VIDEO_CHOICES = (*CHOICES, 'cls_repeat', 'positions', 'norm_input', 'head')
TEXT_CHOICES = (*CHOICES, 'head_bias', 'positions')


def view(run, stage, *, image=False):
    """How `stage` looks at its examples when training; `image`: at the images it mixes in."""
    frames, own = 1 if image else stage.frames, vars(stage)  # of runs before some fields are new
    videos = {} if frames == 1 else {
        'token_budget': own.get('token_budget', 0),
        'tubes': tubes.parse(own.get('tubes', '')),
    }  # fmt: skip
    return View(
        frames=frames,
        pixels=stage.pixels,
        patch=own.get('patch') or run.model.video.patch,
        tubelet=1 if frames == 1 else own.get('tubelet') or run.model.video.tubelet,
        sampler=stage.sampler,
        fps=stage.fps,
        mask_kind=stage.mask_kind,
        mask_rate=stage.mask_rate,
        text='any' if image and stage.text == 'long_caption' else stage.text,
        text_length=stage.text_length,
        scaling=vars(run.data).get('scaling', 'bilinear'),
        time_limit_s=run.data.time_limit_s,
        max_missing=run.data.max_missing,
        short_text=getattr(stage, 'short_text', ''),  # not there in runs of before
        short_length=getattr(stage, 'short_length', 0),
        sentences=getattr(stage, 'sentences', 'all'),
        motion_uniform=own.get('motion_uniform', 0.0),
        **videos,
    )


def eval_view(run, stage):
    """How `stage` looks at its examples when scoring: all patches, a sampler that does not draw."""
    return view(run, stage).evaluation(stage.eval_sampler)


def image_view(run, stage):
    """How `stage` would look at still images to score them: by the image stem, all patches."""
    backbones.check_image(run, stage, view(run, stage))
    still = view(run, stage, image=True).evaluation('mid')
    return replace(still, text=vars(run.eval).get('images_text', 'caption'))


def model(run, stage, vocab, key):
    """The dual encoder of a stage, fresh; its position tables fit the stage's inputs.

    It is for the ambient mesh: see `attention_of`.
    """
    video, text = run.model.video, run.model.text
    loss = run.loss  # of runs before there was the sigmoid loss it has no `kind`
    dtype = DTYPES[run.model.dtype]
    looks = view(run, stage)
    attention, _ = attention_of(run)
    return DualEncoder(
        video={
            'grid': looks.grid,
            'patch': looks.patch,
            'tubelet': looks.tubelet,
            'tubes': tuple(tube.kernel for tube in looks.tubes),
            'padded': looks.token_budget > 0,
            'width': video.width,
            'depth': video.depth,
            'heads': video.heads,
            'pool': video.pool,
            'attention': attention,
            'split': run.model.sequence,
            'remat': video.remat,
            'dtype': dtype,
            **chosen(video, VIDEO_CHOICES),
            **tuning.parts(run, stage),
            **backbones.fields(run, stage, looks),
        },
        text={
            'vocab': vocab,
            'length': text.length or stage.text_length,
            'position_scale': QUIET if stage.frames == 1 else LOUD,
            'width': text.width,
            'depth': text.depth,
            'heads': text.heads,
            'kind': text.kind,
            'remat': video.remat,
            'dtype': dtype,
            'buckets': long_text.buckets_of(stage),
            **chosen(text, TEXT_CHOICES),
        },
        embed=run.model.embed,
        temperature=loss.temperature,
        logit_bias=loss.bias if vars(loss).get('kind') == 'sigmoid' else None,
        rngs=nnx.Rngs(params=key),
    )


def chosen(section, fields):
    """{field: value} of those that the section has."""
    return {name: vars(section)[name] for name in fields if name in vars(section)}


def attention_of(run):
    """The video encoder's attention on this backend and the ambient mesh, by name, and why.

    Raises ValueError: see `attention.resolve` and `sequence.resolve`.
    """
    video, seq = run.model.video, axis_size(SEQ)
    dtype, head_width = DTYPES[run.model.dtype], video.width // video.heads
    ring = seq > 1 and split_of(run, seq, axis_size(TENSOR))[0] == 'ring'
    return resolve(run.model.attention, jax.default_backend(), dtype, head_width, ring=ring)


def split_of(run, seq, tensor):
    """How devices share a video's tokens on a mesh of such axes, by name, and why."""
    return sequence.resolve(run.model.sequence, run.model.video.heads, seq, tensor)


def knows_order(flat):
    """Whether the parameters of a model have more than the one time of images."""
    tables = [flat.get(f'video/positions/{name}') for name in ('time', 'joint')]
    return any(np.ptp(table, axis=0).any() for table in tables if table is not None)


def order_tables(run, stage, flat):
    """The fresh tables, by name, of what the model of images `flat` knows nothing of: order.

    A video stage after an image stage starts with them: repeated, the one time that images have
    would make all times the same. In a joint table the fresh times are added to the images' places.
    A tower that is not trained keeps its own, since it could not learn to read them.
    """
    time = TIME_SCALE * waves(view(run, stage).grid[0], run.model.video.width)
    joint = flat.get('video/positions/joint')
    video = {'time': time} if joint is None else {'joint': joint + time[:, None, None]}
    tune = tuning.of(stage)
    fresh = {f'video/positions/{name}': table for name, table in video.items() if tune.within()}
    if 'text/positions' in flat and tune.text and not long_text.kept_rows(run, stage):
        rows = run.model.text.length or stage.text_length
        fresh['text/positions'] = LOUD * waves(rows, run.model.text.width)
    return fresh


def stage_key(run, stage):
    """The random key of a stage's fresh parameters."""
    number = [other.name for other in run.stages].index(stage.name)
    return jax.random.fold_in(jax.random.key(run.seed), number)


def optimiser(run, stage, vocab):
    """The `optim.Optimiser` of what a stage trains of its model."""
    like = jax.eval_shape(lambda: model(run, stage, vocab, jax.random.key(0)))
    fields = run.optim
    return optim.make(
        like, lr=stage.lr, steps=stage.steps, warmup_steps=stage.warmup_steps, b1=fields.b1,
        b2=fields.b2, eps=fields.eps, moment_dtype=DTYPES[fields.moment_dtype],
        weight_decay=fields.weight_decay, clip=fields.clip,
        freeze=tuple(filter(None, fields.freeze)), tune=tuning.of(stage),
        video_lr=fields.video_lr, text_lr=fields.text_lr, layer_decay=fields.layer_decay,
        kept_rows=long_text.kept_rows(run, stage),
    )  # fmt: skip


def training(run, stage, vocab):
    """The two functions of a stage: init() -> State, and step(state, batch) -> (state, watch).

    For the ambient mesh, in which they must be called too.
    """
    tune, ema_decay = tuning.of(stage), run.optim.ema
    updates = optimiser(run, stage, vocab)

    def init(params=None):
        """A fresh State; `params`, a flat dict of arrays, stand in for the fresh parameters."""
        fresh = model(run, stage, vocab, stage_key(run, stage))
        if params is not None:
            fresh = unflatten(fresh, params)
        ema = jax.tree.map(jnp.copy, fresh) if ema_decay else None
        return State(jnp.zeros((), jnp.int32), fresh, updates.init(fresh), ema)

    step = make_step(
        updates,
        optim.lr_schedule(stage.lr, stage.steps, stage.warmup_steps),
        **tune.cuts(run.model.video.depth),
        ema_decay=ema_decay,
        micro_batch=stage.micro_batch,
        **stage_loss.options(run, stage),
    )
    return init, step


def batch_like(run, stage, rate=None):
    """The arrays of a global training batch of the stage's videos: dict of ShapeDtypeStruct.

    rate: the masking rate; None: the lowest of the stage, whose batches are the largest.
    """
    rate = min(masking.shares(stage)) if rate is None else rate
    looks, b = replace(view(run, stage), mask_rate=rate), stage.batch
    k = sum(k for k, _ in looks.shapes)
    each = tuple(jax.ShapeDtypeStruct((b, *shape), jnp.uint8) for shape in looks.shapes)
    shapes = {
        'where': ((b, k, 3), jnp.float32 if looks.tubes else jnp.int32),
        'tokens': ((b, stage.text_length), jnp.int32),
        'lengths': ((b,), jnp.int32),
        'ok': ((b,), jnp.bool_),
        'text_key': ((b,), jnp.int32),
        'video_key': ((b,), jnp.int32),
    }
    if looks.short_text:
        shapes |= {
            'short_tokens': ((b, looks.short_length), jnp.int32),
            'short_lengths': ((b,), jnp.int32),
            'short_key': ((b,), jnp.int32),
        }
    arrays = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
    return {'patches': each if looks.tubes else each[0]} | arrays


def step_flops(run, stage, *, batch, num_patches, patch_values, text_tokens=0):
    """FLOPs of a training step of `stage` on a batch of this shape, all devices; see `flops`.

    text_tokens: what is read of a text, the mean; 0: the stage's text_length.
    """
    video, text = run.model.video, run.model.text
    tune = tuning.of(stage)
    video_has, text_has = chosen(video, VIDEO_CHOICES), chosen(text, TEXT_CHOICES)

    def reads(num_tokens):
        live = text.depth if tune.text else 0
        return flops.Tower(text.width, text.depth, num_tokens, live, text_has.get('mlp_width', 0))

    looks, found = view(run, stage), {'num_patches': num_patches, 'patch_values': patch_values}
    sees = backbones.step_towers(run, stage, looks, **found)
    if sees is None:
        tokens = num_patches
        if video.pool == 'cls':
            repeated = video_has.get('cls_repeat', False)
            tokens += num_cls(num_patches, looks.grid) if repeated else 1
        tower = flops.Tower(
            video.width, video.depth, tokens, mlp_width=video_has.get('mlp_width', 0),
            **tune.layers(video.depth), **tuning.parts(run, stage),
        )  # fmt: skip
        sees = {'video': tower, 'probe': int(video.pool == 'map')}
    counted = flops.training_step(
        text=reads(text_tokens or stage.text_length), batch=batch, embed=run.model.embed,
        head=video_has.get('head', True), trains=flops.Trains(**tune.outside()), **found, **sees,
    )  # fmt: skip
    if stage.short_text:
        short = reads(stage.short_length)
        counted += flops.second_branch(short, batch=batch, embed=run.model.embed)
    return counted


def num_threads(run):
    """Threads that read and decode: as configured, else one for each core.

    Half as many where the cores are also what computes: more would slow both, since most of the
    work around the decoder holds Python's lock.
    """
    cores = len(os.sched_getaffinity(0))
    return run.data.threads or (max(1, cores // 2) if jax.default_backend() == 'cpu' else cores)


def examples(run, stage, source, tokenizer, *, image=False):
    """The training stream of a stage over an opened source."""
    seed = [run.seed, *stage.name.encode(), int(image)]
    order = Order(len(source), source.group_size, seed)
    return Examples(source, order, view(run, stage, image=image), tokenizer, seed)
