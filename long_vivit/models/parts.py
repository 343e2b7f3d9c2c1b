"""A layer's work in parts, one after the other: values in between are held for one part only.

What a layer holds while it works is many times what it is given: an MLP's hidden values are four
times as wide, attention has four more arrays of tokens and their gradients. With remat only the
layer's input waits for the backward pass, so the rest is needed for one part at a time. A part is
large enough to keep a device busy; a batch that fits in one part is not split.

Parts are taken with a stride, so that each device has its share of every part. On several devices
the gradients of a layer are summed over devices once for each part, where the compiler does not
move the sum out of the loop.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from long_vivit.sharding import BATCH, SEQ, axis_size

TOKENS = 16_384  # of one device, worked at together
BLOCK_INPUT, ATTENTION = 'block_input', 'attention'  # names for remat


def num_batch_parts(b, n):
    """Into how many equal parts a batch [b, n, d] is split: the fewest of at most TOKENS tokens.

    At most one for each example that a device has; longer ones are for `over_tokens`.
    """
    own, devices = max(1, b // axis_size(BATCH)), axis_size(SEQ)
    fits = (j for j in range(1, own) if own % j == 0 and own // j * n <= TOKENS * devices)
    return next(fits, own)


def split(x, num_parts):
    """x [b, ...] -> [j, b / j, ...]."""
    return rearrange(x, '(b j) ... -> j b ...', j=num_parts)


def merge(x):
    """What `split` undoes: x [j, b, ...] -> [b * j, ...]."""
    return rearrange(x, 'j b ... -> (b j) ...')


def over_tokens(f, x):
    """f(x) [b, n, d] for an f that takes each token by itself, in parts of at most TOKENS tokens.

    For the backward pass only x is kept. Tokens are padded with zeros to equal parts.
    """
    b, n, _ = x.shape
    own = max(1, b // axis_size(BATCH)) * n // axis_size(SEQ)
    num_parts = min(n, -(-own // TOKENS))
    if num_parts <= 1:
        return f(x)
    x = jnp.pad(x, [(0, 0), (0, -n % num_parts), (0, 0)])
    x = rearrange(x, 'b (n j) d -> j b n d', j=num_parts)
    y = jax.lax.map(jax.checkpoint(f, prevent_cse=False), x)
    return rearrange(y, 'j b n d -> b (n j) d')[:, :n]


def bits(x):
    """x as whole numbers of its width, [...] -> uint16 or uint32 [...]. Not to be differentiated.

    XLA on CPU computes bfloat16 in float32: values that a loop carries or stacks would be held as
    float32, whole and besides.
    """
    return jax.lax.bitcast_convert_type(x, jnp.uint16 if x.dtype.itemsize == 2 else jnp.uint32)


def of_bits(x, dtype):
    """What `bits` undoes; what has the dtype already is passed on."""
    return x if x.dtype == dtype else jax.lax.bitcast_convert_type(x, dtype)


def kept(x, name):
    """x, marked by `name` for the policies of remat, stored as `bits`. Not to be differentiated."""
    return of_bits(checkpoint_name(bits(x), name), x.dtype)


@jax.custom_jvp
def block_input(x):
    """x, kept as what a block was given."""
    return kept(x, BLOCK_INPUT)


@block_input.defjvp
def _block_input_jvp(primals, tangents):
    return kept(*primals, BLOCK_INPUT), *tangents
