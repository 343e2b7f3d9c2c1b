"""What a resolved configuration stands for: the model, the optimiser and the views of a stage."""

import os

import jax
import jax.numpy as jnp
from flax import nnx

from long_vivit import flops, optim
from long_vivit.inputs.patches import num_kept
from long_vivit.inputs.pipeline import Examples, Order, View
from long_vivit.losses import form
from long_vivit.models import sequence
from long_vivit.models.attention import resolve
from long_vivit.models.dual import DualEncoder
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


def view(run, stage, *, image=False):
    """How `stage` looks at its examples when training; `image`: at the images it mixes in."""
    frames = 1 if image else stage.frames
    return View(
        frames=frames,
        pixels=stage.pixels,
        patch=run.model.video.patch,
        tubelet=1 if frames == 1 else run.model.video.tubelet,
        sampler=stage.sampler,
        fps=stage.fps,
        mask_kind=stage.mask_kind,
        mask_rate=stage.mask_rate,
        text='any' if image and stage.text == 'long_caption' else stage.text,
        text_length=stage.text_length,
        time_limit_s=run.data.time_limit_s,
        max_missing=run.data.max_missing,
    )


def eval_view(run, stage):
    """How `stage` looks at its examples when scoring: all patches, a sampler that does not draw."""
    return view(run, stage).evaluation(stage.eval_sampler)


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
            'width': video.width,
            'depth': video.depth,
            'heads': video.heads,
            'pool': video.pool,
            'attention': attention,
            'split': run.model.sequence,
            'remat': video.remat,
            'dtype': dtype,
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
        },
        embed=run.model.embed,
        temperature=loss.temperature,
        logit_bias=loss.bias if vars(loss).get('kind') == 'sigmoid' else None,
        rngs=nnx.Rngs(params=key),
    )


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


def order_tables(run, stage):
    """The fresh tables, by name, of what a model of images knows nothing of: order.

    A video stage after an image stage starts with them: repeated, the one time that images have
    would make all times the same.
    """
    rows = run.model.text.length or stage.text_length
    return {
        'video/positions/time': TIME_SCALE * waves(view(run, stage).grid[0], run.model.video.width),
        'text/positions': LOUD * waves(rows, run.model.text.width),
    }


def stage_key(run, stage):
    """The random key of a stage's fresh parameters."""
    number = [other.name for other in run.stages].index(stage.name)
    return jax.random.fold_in(jax.random.key(run.seed), number)


def training(run, stage, vocab):
    """The two functions of a stage: init() -> State, and step(state, batch) -> (state, watch).

    For the ambient mesh, in which they must be called too.
    """
    like = jax.eval_shape(lambda: model(run, stage, vocab, jax.random.key(0)))
    depth, fields = run.model.video.depth, run.optim
    optimiser = optim.make(
        like, lr=stage.lr, steps=stage.steps, warmup_steps=stage.warmup_steps, b1=fields.b1,
        b2=fields.b2, eps=fields.eps, moment_dtype=DTYPES[fields.moment_dtype],
        weight_decay=fields.weight_decay, clip=fields.clip,
        freeze=tuple(filter(None, fields.freeze)), last_layers=stage.last_layers, depth=depth,
    )  # fmt: skip

    def init(params=None):
        """A fresh State; `params`, a flat dict of arrays, stand in for the fresh parameters."""
        fresh = model(run, stage, vocab, stage_key(run, stage))
        if params is not None:
            fresh = unflatten(fresh, params)
        ema = jax.tree.map(jnp.copy, fresh) if fields.ema else None
        return State(jnp.zeros((), jnp.int32), fresh, optimiser.init(fresh), ema)

    step = make_step(
        optimiser,
        optim.lr_schedule(stage.lr, stage.steps, stage.warmup_steps),
        num_frozen=depth - stage.last_layers if stage.last_layers else 0,
        ema_decay=fields.ema,
        micro_batch=stage.micro_batch,
        kind=run.loss.kind,
        max_scale=run.loss.max_scale,
        label_smoothing=run.loss.label_smoothing,
        form=run.loss.form,
        tile=run.loss.tile,
    )
    return init, step


def loss_in_words(run, stage):
    """How a stage of a large batch comes by its loss, in a line; '' where that is plain."""
    loss, b = run.loss, stage.batch
    words = [form.in_words(loss.kind, loss.form, b, loss.tile)]
    if stage.micro_batch:
        words.append(f'the encoders take {stage.micro_batch} of {b} pairs at once')
    plain = not stage.micro_batch and form.chosen(loss.form, b) == 'dense'
    return '' if plain else ', '.join(words)


def batch_like(run, stage):
    """The arrays of a global training batch of the stage's videos: dict of ShapeDtypeStruct."""
    looks, b = view(run, stage), stage.batch
    k = num_kept(looks.mask_kind, looks.grid, looks.mask_rate)
    shapes = {
        'patches': ((b, k, looks.tubelet * looks.patch**2 * 3), jnp.uint8),
        'where': ((b, k, 3), jnp.int32),
        'tokens': ((b, stage.text_length), jnp.int32),
        'lengths': ((b,), jnp.int32),
        'ok': ((b,), jnp.bool_),
        'text_key': ((b,), jnp.int32),
    }
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def step_flops(run, stage, *, batch, num_patches, patch_values):
    """FLOPs of a training step of `stage` on a batch of this shape, all devices; see `flops`."""
    video, text = run.model.video, run.model.text
    tokens = num_patches + (video.pool == 'cls')
    return flops.training_step(
        flops.Tower(video.width, video.depth, tokens, stage.last_layers or video.depth),
        flops.Tower(text.width, text.depth, stage.text_length, text.depth),
        batch=batch, num_patches=num_patches, patch_values=patch_values, embed=run.model.embed,
    )  # fmt: skip


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
