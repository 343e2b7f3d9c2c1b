"""A few steps of a tiny model on some mesh, to be compared with the same steps on one device."""

import jax
import jax.numpy as jnp
import numpy as np

from long_vivit import layout, optim, sharding
from long_vivit.names import flatten
from long_vivit.state import State
from long_vivit.step import make_step
from tests.tiny_models import FAST, batch, dual

B, K = 8, 8
VIDEO = {'depth': 1, 'heads': 2, 'width': 16, 'attention': 'blockwise'}
TEXT = {'depth': 1, 'heads': 2, 'width': 16, 'vocab': 16}
# A large eps: Adam divides gradients that ought to be 0, such as those of the key's bias, by
# themselves, and what is left of them after rounding is not the same on one device and on eight.
FIELDS = {'lr': 0.01, 'steps': 10, 'warmup_steps': 0}
EPS = 1e-2


def start():
    """The State before the first step, on the host."""
    model = dual(video=VIDEO, text=TEXT)
    optimiser = optim.make(model, **FIELDS, weight_decay=0.1, clip=1.0, eps=EPS)
    return optimiser, State(jnp.zeros((), jnp.int32), model, optimiser.init(model))


def global_batch(number):
    """The batch of a step: one broken video, two equal captions that lie on different devices."""
    one = batch(b=B, k=K, seed=number)
    one['ok'][5 + number] = False
    one['text_key'][[1, 6]] = 3
    return one


def run(mesh, count=2):
    """`count` steps on a mesh -> what was watched, {name: [count]}, and the State by name."""
    optimiser, state = start()
    lies, _ = layout.shardings(state, mesh)
    state = layout.spread(jax.tree.map(np.asarray, state), lies)
    step = make_step(
        optimiser, optim.lr_schedule(**FIELDS), max_scale=100.0, label_smoothing=0.1, num_frozen=0,
        ema_decay=0.0,
    )  # fmt: skip
    everywhere = sharding.everywhere(mesh)
    step = jax.jit(step, compiler_options=FAST, out_shardings=(lies, everywhere))
    watched, rows = [], sharding.rows_here(mesh, B)
    with jax.set_mesh(mesh):
        for number in range(count):
            here = {key: x[rows] for key, x in global_batch(number).items()}
            state, watch = step(state, sharding.place(mesh, here, B))
            watched.append(jax.device_get(watch))
    return {key: np.stack([one[key] for one in watched]) for key in watched[0]}, flatten(state)
