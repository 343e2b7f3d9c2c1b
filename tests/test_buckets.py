"""Buckets of the text tower: the same vectors and gradients, and no token more than it takes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from long_vivit import layout, optim, sharding
from long_vivit.models import buckets
from long_vivit.models.text import TextEncoder
from long_vivit.names import flatten, unflatten
from long_vivit.retrieval import embed_texts
from long_vivit.state import State
from long_vivit.step import make_step
from tests.tiny_models import FAST, batch, dual

pytestmark = pytest.mark.usefixtures('quick_compilation')

LONGEST, BUCKETS = 248, (32, 77, 248)
LENGTHS = (22, 205, 32, 33, 2, 77, 78, 248, 247, 31, 12, 100)  # 20 and 200 words come first


def encoder(buckets=(), length=LONGEST, **changes):
    """A text encoder; its numbers come from numpy, which has nothing to compile."""
    fields = {
        'vocab': 50, 'length': length, 'position_scale': 0.3, 'width': 16, 'depth': 2, 'heads': 2,
        'embed': 8, 'kind': 'bidirectional', 'remat': 'none', 'dtype': jnp.float32,
    }  # fmt: skip
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(
        lambda: TextEncoder(**fields | changes, buckets=buckets, rngs=nnx.Rngs(0))
    )
    drawn = {
        name: jnp.asarray(
            name.endswith('scale') + 0.25 * rng.standard_normal(leaf.shape), 'float32'
        )
        for name, leaf in flatten(shapes).items()
    }
    return unflatten(shapes, drawn)


def texts(lengths, longest=LONGEST):
    lengths = np.array(lengths, np.int32)
    tokens = np.random.default_rng(0).integers(3, 50, (len(lengths), longest))
    return (tokens * (np.arange(longest) < lengths[:, None])).astype(np.int32), lengths


@pytest.mark.parametrize(
    'fields',
    [{'kind': 'causal'}, {'positions': 'rotary', 'remat': 'full', 'depth': 1}],
    ids=lambda f: ' '.join(map(str, f.values())),
)
def test_the_vectors_and_gradients_are_those_of_the_whole_length(fields):
    tokens, lengths = texts(LENGTHS)
    aim = np.random.default_rng(1).standard_normal((len(lengths), 8)).astype(np.float32)

    @functools.partial(jax.jit, compiler_options=FAST)
    @functools.partial(jax.value_and_grad, has_aux=True)
    def both(model):
        z = model(tokens, lengths)
        return (z * aim).sum(), z

    (_, z), grads = both(encoder(BUCKETS, **fields))
    (_, wanted), of_whole = both(encoder(**fields))
    np.testing.assert_allclose(z, wanted, rtol=0, atol=1e-6)
    whole = flatten(of_whole)
    for name, grad in flatten(grads).items():
        np.testing.assert_allclose(grad, whole[name], rtol=1e-4, atol=2e-5, err_msg=name)


def test_alone_and_among_long_ones_a_text_has_the_same_vector():
    """The first two are of 20 and 200 words; alone they are cut to their own length."""
    tokens, lengths = texts(LENGTHS[:2])
    one = encoder(BUCKETS, depth=1)
    z = jax.jit(lambda *texts: one(*texts), compiler_options=FAST)(tokens, lengths)
    for row, length in enumerate(lengths):
        alone = encoder(depth=1)(tokens[row : row + 1, :length], lengths[row : row + 1])
        np.testing.assert_allclose(z[row], alone[0], rtol=0, atol=1e-6)


@settings(max_examples=12)
@given(st.lists(st.integers(2, 50), min_size=1, max_size=16))
def test_each_row_goes_as_far_as_its_group_needs(lengths):
    """The encoder here says how much it was given; the order of the rows comes back."""
    ends = (8, 20, 50)

    def encode(x, sizes):
        return jnp.stack([jnp.full(len(x), x.shape[1]), sizes, x[:, 0, 0]], axis=1)

    tokens = np.arange(len(lengths))[:, None] * np.ones((1, 50), np.int32)
    given = jnp.array(lengths, jnp.int32)
    found = buckets.in_buckets(lambda t: t[..., None], encode, jnp.asarray(tokens), given, ends[:2])
    width, sizes, rows = np.asarray(found).T
    np.testing.assert_array_equal(sizes, lengths)
    np.testing.assert_array_equal(rows, np.arange(len(lengths)))
    groups = buckets.num_groups(len(lengths), 1)
    assert groups == {0: 4, 2: 2}.get(len(lengths) % 4, 1)
    for group in np.split(np.argsort(lengths, kind='stable'), groups):
        longest = max(lengths[row] for row in group)
        assert set(width[group]) == {next(end for end in ends if end >= longest)}


def test_one_program_whatever_the_lengths():
    tower = encoder(BUCKETS, depth=1)
    encode = jax.jit(lambda tokens, lengths: tower(tokens, lengths), compiler_options=FAST)
    for lengths in ((5,) * 4, (240,) * 4, (5, 240, 5, 240)):
        encode(*texts(lengths))
    assert encode._cache_size() == 1


def test_buckets_above_the_text_change_nothing():
    assert buckets.ends((32, 77, 248), 60) == (32, 60)
    assert buckets.ends((77, 32, 32), 32) == (32,)
    tokens, lengths = texts((5, 30), longest=32)
    program = jax.make_jaxpr(encoder(BUCKETS).__call__)(tokens, lengths)
    assert 'cond' not in str(program)
    assert 'cond' in str(jax.make_jaxpr(encoder((31,)).__call__)(tokens, lengths))


def test_a_tower_that_reads_padding_takes_none():
    with pytest.raises(ValueError, match="'padded' reads every place"):
        encoder(BUCKETS, kind='padded')


# Training on a mesh ---------------------------------------------------------------------------

FIELDS = {'lr': 0.01, 'steps': 10, 'warmup_steps': 0}
VIDEO = {'depth': 1, 'heads': 2, 'width': 16, 'attention': 'blockwise'}
TEXT = {'depth': 1, 'heads': 2, 'width': 16, 'vocab': 16, 'kind': 'causal'}
B = 16


def trained(mesh, text_buckets, micro_batch=0):
    """One step of a tiny model -> what was watched, and the parameters by name, on the host."""
    model = dual(video=VIDEO, text=TEXT | {'buckets': text_buckets})
    optimiser = optim.make(model, **FIELDS, clip=1.0, eps=1e-2)
    state = State(jnp.zeros((), jnp.int32), model, optimiser.init(model))
    lies, _ = layout.shardings(state, mesh)
    state = layout.spread(jax.tree.map(np.asarray, state), lies)
    step = make_step(
        optimiser, optim.lr_schedule(**FIELDS), max_scale=100.0, label_smoothing=0.1, num_frozen=0,
        ema_decay=0.0, micro_batch=micro_batch,
    )  # fmt: skip
    here = batch(b=B, k=8, seed=3)
    here['ok'][5] = False
    here['text_key'][[1, 6]] = 3
    step = jax.jit(step, compiler_options=FAST, out_shardings=(lies, sharding.everywhere(mesh)))
    with jax.set_mesh(mesh):
        state, watch = step(state, sharding.place(mesh, here, B))
    return jax.device_get(watch), {k: np.asarray(x) for k, x in flatten(state.model).items()}


@pytest.fixture(scope='module')
def one_device():
    return trained(sharding.make_mesh(devices=jax.devices()[:1]), ())


@pytest.mark.parametrize(
    ('spec', 'micro_batch'),
    [('data=8', 0), ('data=2,fsdp=2,tensor=2', 8)],
)
def test_training_on_a_mesh_is_that_of_one_device_without_buckets(one_device, spec, micro_batch):
    """With a broken clip, equal captions, split parameters, and parts of a batch."""
    watch, params = trained(sharding.make_mesh(spec), (3, 4), micro_batch)
    for key, value in one_device[0].items():
        np.testing.assert_allclose(watch[key], value, rtol=1e-4, atol=1e-5, err_msg=key)
    for name, value in one_device[1].items():
        np.testing.assert_allclose(params[name], value, rtol=1e-4, atol=2e-5, err_msg=name)


# Scoring --------------------------------------------------------------------------------------


class Words:
    """A tokenizer for which a text is its number of words."""

    def encode(self, texts, length):
        from long_vivit.inputs.text import Tokens

        counts = np.array([len(text.split()) + 2 for text in texts], np.int32)
        ids = (np.arange(1, length + 1) * (np.arange(length) < counts[:, None])) % 50
        return Tokens(ids.astype(np.int32), np.minimum(counts, np.int32(length)), counts)


def test_scoring_gives_the_vectors_in_the_order_of_the_texts():
    words = [3, 200, 40, 9, 120, 1, 75, 76, 30]
    given = ['word ' * count for count in words]

    class Dual(nnx.Module):
        def __init__(self, text):
            self.text = text

    found, num_cut = embed_texts(
        Dual(encoder(BUCKETS, depth=1)), Words(), given, length=160, batch=4
    )
    tokens = Words().encode(given, 160)
    wanted = encoder(depth=1)(tokens.ids, tokens.lengths)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert num_cut == 1
