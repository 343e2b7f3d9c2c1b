"""A dual encoder of a few thousand parameters, and batches for it."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from long_vivit.models.dual import DualEncoder
from long_vivit.names import flatten, unflatten

# Options for `jax.jit`: the same function, compiled in a fraction of the time.
FAST = {'xla_backend_optimization_level': 0}
GRID, PATCH, TUBELET = (3, 2, 4), 2, 2
VOCAB, LENGTH, EMBED = 11, 6, 8
VIDEO = {
    'grid': GRID,
    'patch': PATCH,
    'tubelet': TUBELET,
    'width': 16,
    'depth': 2,
    'heads': 2,
    'pool': 'mean',
    'attention': 'dense',
    'remat': 'none',
    'dtype': jnp.float32,
}
TEXT = {
    'vocab': VOCAB,
    'length': LENGTH,
    'position_scale': 0.3,
    'width': 12,
    'depth': 2,
    'heads': 3,
    'kind': 'bidirectional',
    'remat': 'none',
    'dtype': jnp.float32,
}


def like(video=None, text=None, **scalars):
    """The shapes of a DualEncoder; `video` and `text` change fields of VIDEO and TEXT."""
    towers = {'video': VIDEO | (video or {}), 'text': TEXT | (text or {})}
    return jax.eval_shape(
        lambda: DualEncoder(**towers, embed=EMBED, temperature=0.07, rngs=nnx.Rngs(0), **scalars)
    )


def dual(video=None, text=None, seed=0, logit_bias=None):
    """A DualEncoder with no parameter at a special value such as zero.

    Its numbers come from numpy: to compile a true initialisation takes longer than most tests.
    """
    rng = np.random.default_rng(seed)
    shapes = like(video, text, logit_bias=logit_bias)

    def draw(name, leaf):
        if name == 'log_scale':
            return jnp.log(1 / jnp.float32(0.07))
        if name == 'logit_bias':
            return jnp.float32(logit_bias)
        around = 1 if name.endswith('scale') else 0
        return jnp.asarray(around + 0.25 * rng.standard_normal(leaf.shape), leaf.dtype)

    return unflatten(shapes, {name: draw(name, leaf) for name, leaf in flatten(shapes).items()})


def changed(model, prefix, seed=5):
    """The model with noise on the parameters below a prefix, the others as they are."""
    rng = np.random.default_rng(seed)
    some = {name: leaf for name, leaf in flatten(model).items() if name.startswith(prefix)}
    assert some
    for name, leaf in some.items():
        some[name] = leaf + jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype)
    return unflatten(model, flatten(model) | some)


def everywhere(grid):
    """int32 [t*h*w, 3]: every place of a grid."""
    return np.stack(np.meshgrid(*map(np.arange, grid), indexing='ij'), -1).reshape(-1, 3)


def batch(b=4, k=10, grid=GRID, tubelet=TUBELET, seed=0):
    """A batch as the input pipeline makes them: k random places of the grid for each video."""
    rng = np.random.default_rng(seed)
    places = everywhere(grid)
    where = np.stack([places[np.sort(rng.permutation(len(places))[:k])] for _ in range(b)])
    lengths = rng.integers(2, LENGTH + 1, b)
    tokens = rng.integers(3, VOCAB, (b, LENGTH)) * (np.arange(LENGTH) < lengths[:, None])
    return {
        'patches': rng.integers(0, 256, (b, k, tubelet * PATCH**2 * 3), np.uint8),
        'where': where.astype(np.int32),
        'tokens': tokens.astype(np.int32),
        'lengths': lengths.astype(np.int32),
        'ok': np.ones(b, bool),
        'text_key': np.arange(b, dtype=np.int32),
    }
