"""The streamed loss over the devices of a mesh: videos stay, texts travel around a ring.

Each device holds its own rows of the batch. At each hop it takes its videos with the texts that are
with it, tile by tile, and hands the texts on, with what is known of them so far; after as many hops
as there are devices both are home again. The backward pass goes around once more, and the gradients
of the texts travel with them. No device ever holds the texts of all, nor more than a tile of the
matrix. Over one device the ring has one hop: that is the tiled form.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from long_vivit.losses import tiles
from long_vivit.losses.pairs import sides
from long_vivit.sharding import axis_size, batch_axes


class Plan(NamedTuple):
    """How the work is split."""

    axes: tuple  # names of the axes of the ambient mesh that form the ring
    hops: int  # devices in the ring
    tile: int  # at most so many pairs on a side of a tile


def on_one(tile):
    """The plan in which every device does all the work."""
    return Plan((), 1, tile)


def around(tile, batch):
    """The plan in which the devices that split the batch each do their share.

    Raises ValueError where they cannot split it evenly.
    """
    axes = batch_axes()
    count = axis_size(axes)
    if batch % count:
        raise ValueError(
            f'stages.NAME.batch: {batch} pairs cannot be split over {count} devices '
            f'({" x ".join(axes)}); set it to a multiple of {count}'
        )
    return Plan(axes, count, tile)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def streamed(formula, plan, z_video, z_text, scale, bias, ok, text_key, video_key=None):
    """The loss of a `tiles.Formula`, the mean over ok pairs; memory O(tile + b e / hops).

    z_video, z_text: [b, e]. scale, bias: float32 []. ok: bool [b]. Both keys: int32 [b].
    Returns the loss, float32 [], and the dict of `tiles.watch`, which has no gradient.
    """
    given = z_video, z_text, scale, bias, ok, text_key, video_key
    return _streamed_forward(formula, plan, *given)[0]


def _streamed_forward(formula, plan, z_video, z_text, scale, bias, ok, text_key, video_key):
    given = (*sides(z_video, z_text, ok, text_key, video_key), scale, bias)
    run = _on_each(plan, partial(_forward, formula, plan), 'rrww', 'wwr')
    loss, watch, kept = run(*given)
    return (loss, watch), (given, kept)


def _streamed_backward(formula, plan, stored, slopes):
    given, kept = stored
    run = _on_each(plan, partial(_backward, formula, plan), 'rrwwrw', 'rrww')
    return *run(*given, kept, slopes[0]), None, None, None


streamed.defvjp(_streamed_forward, _streamed_backward)


def _on_each(plan, function, arguments, results):
    """`function` on each device; of its arguments and results some are this device's rows, 'r',
    and some are the whole on every device, 'w'.

    Axes of the mesh that are not in the ring do the same work.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function
    specs = {'r': PartitionSpec(plan.axes or None), 'w': PartitionSpec()}
    # Nothing here is differentiated by jax, which is what the check of replication is for.
    return jax.shard_map(
        function, in_specs=tuple(specs[x] for x in arguments),
        out_specs=tuple(specs[x] for x in results), check_vma=False,
    )  # fmt: skip


def _hand_on(tree, plan):
    """Each device's arrays to the next device; only neighbours talk, in the order of the mesh."""
    if plan.hops == 1:
        return tree
    pairs = [(i, (i + 1) % plan.hops) for i in range(plan.hops)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, plan.axes, pairs), tree)


def _total(plan):
    """x -> its sum over the ring."""
    return (lambda x: jax.lax.psum(x, plan.axes)) if plan.axes else (lambda x: x)


def _forward(formula, plan, videos, texts, scale, bias):
    """Loss, watch, and what the backward pass needs of this device's videos and texts."""
    videos, texts = tiles.cut(videos, plan.tile), tiles.cut(texts, plan.tile)
    nothing = tiles.start(formula, videos.ok.shape)

    def hop(carry, _):
        texts, of_videos, of_texts = carry
        ahead = _hand_on(texts, plan)  # asked for first: it travels during the work
        of_videos, of_texts = tiles.forward(
            formula, videos, texts, of_videos, of_texts, scale, bias
        )
        return (ahead, of_videos, _hand_on(of_texts, plan)), None

    first = texts, nothing, nothing
    (_, of_videos, of_texts), _ = jax.lax.scan(hop, first, length=plan.hops)
    losses, kept_videos, kept_texts = formula.finish(of_videos, of_texts, scale, bias)
    total = _total(plan)
    num_ok = jnp.maximum(total(videos.ok.sum(dtype=jnp.float32)), 1)
    loss = total(jnp.where(videos.ok, losses, 0).sum()) / num_ok
    return loss, tiles.watch(of_videos[1], of_texts[1], videos.ok, total), (kept_videos, kept_texts)


def _backward(formula, plan, videos, texts, scale, bias, kept, slope):
    """Gradients of slope * loss in z_video, z_text, scale and bias."""
    n, dtypes = len(videos.ok), (videos.z.dtype, texts.z.dtype)
    videos, texts = tiles.cut(videos, plan.tile), tiles.cut(texts, plan.tile)
    kept_videos, kept_texts = kept
    zeros = jnp.zeros(videos.z.shape, jnp.float32)

    def hop(carry, _):
        texts, kept_texts, grads = carry
        ahead = _hand_on((texts, kept_texts), plan)
        grads = tiles.backward(formula, videos, texts, kept_videos, kept_texts, grads, scale, bias)
        return (*ahead, grads._replace(texts=_hand_on(grads.texts, plan))), None

    first = texts, kept_texts, tiles.Grads(zeros, zeros, jnp.zeros(()))
    (_, _, grads), _ = jax.lax.scan(hop, first, length=plan.hops)
    total = _total(plan)
    slope = slope / jnp.maximum(total(videos.ok.sum(dtype=jnp.float32)), 1)
    # logits = scale * cosine + bias: the sum of slope * cosine is that of z_video * its gradient.
    of_scale = total(jnp.vdot(videos.z.astype(jnp.float32), grads.videos, precision='highest'))
    of_z = [
        (scale * slope * tiles.uncut(x, n)).astype(dtype)
        for x, dtype in zip(grads[:2], dtypes, strict=True)
    ]
    return *of_z, slope * of_scale, slope * total(grads.bias)
