"""From the tokens of a video to one vector of their width."""

import jax
import jax.numpy as jnp
from flax import nnx

from long_vivit.models.blockwise import product
from long_vivit.models.layers import EPSILON, Attention, LayerNorm, Linear, activated

POOLS = ('mean', 'cls', 'map')


def num_cls(k, grid):
    """How many copies of the learnt token stand beside `k` patches of a grid (t, h, w): int >= 1.

    An image has one for h * w patches. With as many for each time slice the token weighs as much
    against the patches, so that a still video comes out as its frame does.
    """
    return max(1, round(k / (grid[1] * grid[2])))


class MapPool(nnx.Module):
    """Attention of a learnt probe, then an MLP on a normalised copy: x [b, n, d] -> float32 [b, d].

    The head of SigLIP (arXiv 2303.15343), from "Scaling Vision Transformers" (arXiv 2106.04560,
    section 3.2). Its one row of weights for each head is split over devices as the tokens are.
    """

    def __init__(
        self, width, heads, *, activation='gelu', norm_epsilon=EPSILON, mlp_width=0, dtype, rngs
    ):
        mlp_width = mlp_width or 4 * width
        self.probe = nnx.Param(width**-0.5 * jax.random.normal(rngs.params(), (width,)))
        self.attention = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(width, epsilon=norm_epsilon)
        self.up = Linear(width, mlp_width, dtype=dtype, rngs=rngs)
        self.down = Linear(mlp_width, width, dtype=dtype, rngs=rngs)
        self.activation, self.dtype = activation, dtype

    def __call__(self, x, lengths=None):
        """lengths [b]: how many first tokens of each are looked at; None: all."""
        own = self.attention
        query = own.project(self.probe[...][None, None], slice(1))[0, 0, 0]
        key, value = own.project(x, slice(1, 3))
        query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
        logits = product('mf,bnmf->bmn', query, key)
        if lengths is not None:
            seen = jnp.arange(x.shape[1]) < lengths[:, None]
            logits = jnp.where(seen[:, None], logits, -jnp.inf)
        weights = jax.nn.softmax(logits)
        y = product('bmn,bnmf->bmf', weights.astype(self.dtype), value).astype(self.dtype)
        y = own.join(y[:, None])[:, 0]
        y = y + activated(self.activation, self.down, self.up(self.norm(y)))
        return y.astype(jnp.float32)
