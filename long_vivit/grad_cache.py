"""Gradient caching: the exact gradients of a batch that the encoders take in parts.

A contrastive loss needs the embeddings of the whole batch, but only the embeddings. So they are
computed first, part by part, without keeping any activations; then the loss and its gradients in
the embeddings; then each part again, now with its gradients in the parameters, which add up (Gao et
al., arXiv 2101.06983). Memory is that of one micro-batch, the price is one more forward pass.

Both passes must see the same model: nothing in it may be random. Patches are chosen on the host.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec

from long_vivit.sharding import axis_size, batch_axes


def value_and_grad(embed, loss_of, model, batch, micro_batch):
    """-> ((loss, watch), gradients in the model), as jax.value_and_grad of the two functions gives.

    Args:
      embed: (model, batch) -> a tuple of embeddings, [b, e]; row i from row i of the batch alone.
      loss_of: (model, embeddings, batch) -> loss, watch; of the model it uses few parameters.
      micro_batch: rows that `embed` takes at once, over all devices.

    Raises ValueError: micro_batch does not divide the batch, or devices do not divide it.
    """
    b = len(batch['ok'])
    check(b, micro_batch, axis_size(batch_axes()))
    parts = jax.tree.map(lambda x: _split(x, b // micro_batch), batch)
    _, z = jax.lax.scan(lambda _, part: ((), embed(model, part)), (), parts)
    whole = jax.value_and_grad(loss_of, (0, 1), has_aux=True)
    value, (grads, of_z) = whole(model, jax.tree.map(_join, z), batch)
    of_z = jax.tree.map(lambda x: _split(x, b // micro_batch), of_z)

    def add(grads, one):
        part, of_z = one
        _, pull = jax.vjp(lambda model: embed(model, part), model)
        more = jax.tree.map(lambda x, y: x + y.astype(x.dtype), grads, *pull(of_z))
        return more, None

    summed = jax.tree.map(lambda x: x.astype(jnp.float32), grads)
    summed, _ = jax.lax.scan(add, summed, (parts, of_z))
    return value, jax.tree.map(lambda x, like: x.astype(like.dtype), summed, grads)


def check(b, micro_batch, num_parts):
    """Raises ValueError unless `micro_batch` divides b and is split evenly over the devices."""
    if b % micro_batch or micro_batch % num_parts:
        raise ValueError(
            f'stages.NAME.micro_batch: {micro_batch} must divide the batch of {b} pairs and be a '
            f'multiple of {num_parts}, the parts that the mesh splits the batch into'
        )


def _split(x, num):
    """[b, ...] -> [num, b / num, ...]: part j has the rows j, j + num, j + 2 num, ...

    Each device holds a run of rows of the batch and, of each part, the rows that it holds already.
    """
    x = rearrange(x, '(m n) ... -> n m ...', n=num)
    axes = batch_axes()
    if not axes:
        return x
    free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 2)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(None, axes, *free))


def _join(x):
    """The inverse of `_split`."""
    return rearrange(x, 'n m ... -> (m n) ...')
