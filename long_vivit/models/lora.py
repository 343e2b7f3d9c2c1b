"""LoRA: a weight that stays, W, and what is learnt beside it, W + a b, of a low rank.

Hu et al., arXiv 2106.09685, with alpha = rank always: the product is added as it is, so that a
checkpoint says all (turning alpha does what turning the learning rate does, section 4.1 there). a
is drawn so that x a is as large whatever the rank: together with a rate for Adam that also holds
for the first steps of a b. b starts at zero, so that the model starts as it was.

In attention each of queries, keys and values has a pair of its own; the output has one, and both
products of the MLP. `merged` gives the plain weights.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

# (end of a pair's name, the weight beside it, how a and b of stacked layers make what is added)
PAIRS = (
    ('qkv_lora', 'qkv', 'l d s r, l s r m f -> l d s m f'),
    ('out_lora', 'out', 'l m f r, l r d -> l m f d'),
    ('lora', 'kernel', 'l i r, l r o -> l i o'),
)
NAME = r'(.*/)?(\w+_)?lora/[ab]'  # of a or b, the whole name


class Lora(nnx.Module):
    """x -> x a b, in `dtype`; a is drawn with the fan-in of the weight, b is zero.

    Args:
      into, back: shapes of a and b. fan_in: how many values a sums over.
      products: the einsum of x with a, and that of the result with b.
    """

    def __init__(self, into, back, *, products, fan_in, dtype, key):
        self.a = nnx.Param(fan_in**-0.5 * jax.random.normal(key, into))
        self.b = nnx.Param(jnp.zeros(back))
        self.products, self.dtype = products, dtype

    def __call__(self, x, at=()):
        """`at`: indices of a and of b, where only a part of them is asked for."""
        first, second = self.products
        a, b = (self.a[...], self.b[...]) if not at else (self.a[at[0]], self.b[at[1]])
        y = jnp.einsum(first, x.astype(self.dtype), a.astype(self.dtype))
        return jnp.einsum(second, y, b.astype(self.dtype))


def of_linear(num_in, num_out, rank, *, dtype, key):
    """The pair of a kernel [i, o]; None for rank 0."""
    if not rank:
        return None
    products = '...i,ir->...r', '...r,ro->...o'
    return Lora(
        (num_in, rank), (rank, num_out), products=products, fan_in=num_in, dtype=dtype,
        key=jax.random.fold_in(key, 1),
    )  # fmt: skip


def of_attention(width, heads, rank, *, dtype, keys):
    """The pairs of qkv [d, 3, m, f] and out [m, f, d]; None twice for rank 0."""
    if not rank:
        return None, None
    f, how = width // heads, {'fan_in': width, 'dtype': dtype}
    qkv, out = (jax.random.fold_in(key, 1) for key in keys)
    return (
        Lora(
            (width, 3, rank), (3, rank, heads, f), key=qkv, **how,
            products=('bnd,dsr->sbnr', 'sbnr,srmf->sbnmf'),
        ),
        Lora(
            (heads, f, rank), (rank, width), key=out, **how,
            products=('bnmf,mfr->bnr', 'bnr,rd->bnd'),
        ),
    )  # fmt: skip


def has_lora(flat):
    """Whether there are pairs among the parameters {name: array}."""
    return any(re.fullmatch(NAME, name) for name in flat)


def merged(flat):
    """{name: array} of the model without LoRA whose weights are W + a b, in W's dtype.

    Sums in float64. What has no pair is passed on as it is.
    Raises ValueError: a pair without its weight, or half a pair.
    """
    plain = {name: leaf for name, leaf in flat.items() if not re.fullmatch(NAME, name)}
    for stem in sorted({name[:-2] for name in flat if re.fullmatch(NAME, name)}):
        end, weight, product = next(row for row in PAIRS if stem.endswith(row[0]))
        name = stem.removesuffix(end) + weight
        missing = [one for one in (name, f'{stem}/a', f'{stem}/b') if one not in flat]
        if missing:
            raise ValueError(f'{stem}: cannot be merged, there is no {", ".join(missing)}')
        a, b = (np.asarray(flat[f'{stem}/{one}'], np.float64) for one in 'ab')
        added = np.einsum(product.replace(' ', ''), a, b)
        like = np.asarray(flat[name])
        plain[name] = (like.astype(np.float64) + added).astype(like.dtype)
    return plain
