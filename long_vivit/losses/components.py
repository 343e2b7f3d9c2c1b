"""The coarse part of a batch of features: primary component matching (Long-CLIP, arXiv 2403.15378).

A short text says little of a video, so it is compared with what is left of the videos when all but
the k main directions of the batch are taken out. On paper, with X the features of the batch, one a
row, m their mean and V_k the first k right singular vectors of X - m:

    coarse = (X - m) V_k V_k^T + m

Only the projector V_k V_k^T matters, not the vectors in it: they may turn, or be equally strong,
and the result stays. Its differential, with (l_i, v_i) the eigenpairs of S = (X - m)^T (X - m):

    d(V_k V_k^T) = sum over kept i, dropped j of (A_ij + A_ij^T) / (l_i - l_j)
    A_ij = v_i v_i^T dS v_j v_j^T

Gaps within the kept and within the dropped never appear, so duplicates and equal eigenvalues are
no trouble. Of an eigenpair on each side of the cut that are equally strong, the projector has no
derivative in the directions that mix the two: there the gradient is 0, in all others what it is.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from long_vivit.sharding import axis_size, batch_axes

# Shares of the largest eigenvalue, which is known to some 1e-7 of itself, and the others no better:
# what is weaker than NOTHING is no component, a smaller gap than TIE may be none.
NOTHING, TIE = 1e-6, 1e-5
TINY = 1e-30
highest = partial(jnp.matmul, precision='highest')


def coarse(
    z, ok, *, components, basis_gradient='full', components_scope='global', renormalise=False
):  # fmt: skip
    """The rows of a batch without what lies outside their main components, in float32.

    Args:
      z: [b, e], unit vectors. ok: bool [b]; rows that are not have no say in the others.
      components: k; from `most(rows, e)` on there is nothing to take out and `z` comes back.
      basis_gradient: 'full' through mean and basis, 'stop' takes the basis for a constant: that is
        another gradient, not an approximation of the first.
      components_scope: mean and basis of the 'global' batch, or on each device the 'local' ones of
        its own rows.
      renormalise: makes unit vectors of them; else they are somewhat shorter, as released.

    Returns:
      float32 [b, e], and `removed`, float32 []: the share of the variance that was taken out.
    """
    z, axes = z.astype(jnp.float32), batch_axes() if components_scope == 'local' else ()
    on_rows = partial(_of_rows, components=components, stop=basis_gradient == 'stop')
    if axes:
        rows = PartitionSpec(axes)
        on_rows = jax.shard_map(
            on_rows, in_specs=(rows, rows), out_specs=(rows, rows), check_vma=False
        )
    found, centred = on_rows(z, ok)
    taken = jnp.where(ok[:, None], z - found, 0)
    removed = jnp.square(taken).sum() / jnp.maximum(jnp.square(centred).sum(), TINY)
    if renormalise:
        found /= jnp.sqrt(jnp.maximum(jnp.square(found).sum(1, keepdims=True), TINY))
    return found, jax.lax.stop_gradient(removed)


def most(rows, e):
    """How many components a batch of so many rows of width `e` can have; the mean costs one."""
    return min(rows - 1, e)


def rows_together(scope, batch):
    """How many of `batch` rows share a basis under the ambient mesh."""
    return batch // axis_size(batch_axes()) if scope == 'local' else batch


def in_words(batch, *, components, basis_gradient, components_scope, renormalise):
    """What a run says of its second loss: 'short texts against 32 components of 64 pairs'."""
    if not components:
        return 'short texts'
    rows = rows_together(components_scope, batch)
    of = f'{rows} pairs' + (f' on each of {batch // rows} devices' if rows < batch else '')
    stopped = ', basis held fixed' if basis_gradient == 'stop' else ''
    return (
        f'short texts against {components} components of {of}{stopped}'
        + (', renormalised' if renormalise else '')
    )  # fmt: skip


def warning(components, scope, stage, e):
    """A sentence where `coarse` would have nothing to take out in a stage, with what to change."""
    rows = rows_together(scope, stage.batch)
    if not components or components < most(rows, e):
        return ''
    num = stage.batch // rows
    ways = [f'stages.{stage.name}.batch to {(components + 2) * num} or more']
    if num > 1:
        ways.append("loss.components_scope to 'global'")
    ways.append(f'loss.components below {most(rows, e)}' if rows > 2 else 'loss.components to 0')
    return (
        f'loss.components: {rows} pairs{" on a device" if num > 1 else ""} have no more than '
        f'{most(rows, e)} components, so that keeping {components} leaves nothing out and short '
        f'texts are compared with the whole videos; set {", or ".join(ways)}'
    )


def _of_rows(z, ok, *, components, stop):
    """The coarse rows of [n, e], all of one basis, and the rows less their mean."""
    ok, num_ok = ok[:, None], ok.sum(dtype=jnp.float32)
    mean = jnp.where(ok, z, 0).sum(0) / jnp.maximum(num_ok, 1)
    centred = jnp.where(ok, z - mean, 0)
    if components >= most(*z.shape):
        return z, centred
    found = _main_part(centred, components, stop) + mean
    return jnp.where(ok & (num_ok - 1 > components), found, z), centred


def _main_part(x, k, stop):
    """x V_k V_k^T of x [n, e], by the smaller one of its covariance and Gram matrices."""
    n, e = x.shape
    if e <= n:
        basis = projector(highest(x.T, x), k)
        return highest(x, jax.lax.stop_gradient(basis) if stop else basis)
    if not stop:
        return highest(projector(highest(x, x.T), k), x)
    fixed = jax.lax.stop_gradient(x)
    values, vectors = jnp.linalg.eigh(highest(fixed, fixed.T))
    values, vectors = values[-k:], vectors[:, -k:]
    real = values > NOTHING * values[-1]
    basis = highest(fixed.T, vectors * jnp.where(real, jax.lax.rsqrt(jnp.abs(values)), 0))
    return highest(highest(x, basis), basis.T)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def projector(s, k):
    """The projector on the k strongest eigenvectors of s, symmetric float32 [n, n], none negative.

    Eigenvectors that are nothing but rounding are left out: there may be less than k. The gradient
    is that of the differential above.
    """
    return _forward(s, k)[0]


def _forward(s, k):
    values, vectors = jnp.linalg.eigh(s)
    strongest = jnp.maximum(values[-1], TINY)
    values = values / strongest
    kept = (jnp.arange(len(s)) >= len(s) - k) & (values > NOTHING)
    main = jnp.where(kept, vectors, 0)[:, -k:]
    return highest(main, main.T), (values, vectors, kept, strongest)


def _backward(k, stored, slope):
    values, vectors, kept, strongest = stored
    gaps = values[:, None] - values
    apart = kept[:, None] & ~kept & (gaps > TIE)
    inverse = jnp.where(apart, 1 / jnp.where(apart, gaps, 1), 0) / strongest
    turned = highest(highest(vectors.T, (slope + slope.T) / 2), vectors)
    back = highest(highest(vectors, (inverse + inverse.T) * turned), vectors.T)
    return (back,)


projector.defvjp(_forward, _backward)
