"""Rotary positions of the text: attention knows distances, and there is no table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from long_vivit.models.positions import turned
from long_vivit.models.text import TextEncoder
from long_vivit.names import names
from tests.tiny_models import dual, like

pytestmark = pytest.mark.usefixtures('quick_compilation')

N, HEADS, F = 12, 2, 8


def drawn(seed, n=N):
    x = np.random.default_rng(seed).standard_normal((3, n, HEADS, F))
    return jnp.asarray(x, jnp.float32)


def test_products_depend_on_the_distance_only():
    """The same query and key at all places: the products lie along diagonals."""
    query, key = (jnp.broadcast_to(drawn(seed, 1), (3, N, HEADS, F)) for seed in (0, 1))
    products = np.asarray(jnp.einsum('bqmf,bkmf->bmqk', turned(query), turned(key)))
    for distance in range(-N + 1, N):
        diagonal = np.diagonal(products, distance, axis1=2, axis2=3)
        np.testing.assert_allclose(diagonal, diagonal[..., :1] + 0 * diagonal, rtol=0, atol=2e-5)
    assert np.ptp(products[..., 0, :], axis=-1).min() > 0.1  # and do depend on it


def test_each_pair_turns_by_its_own_speed():
    """Written out with complex numbers: pair i at place n by n * 10000^(-i / (f/2)) radians."""
    x = drawn(2)
    pairs = np.asarray(x[..., : F // 2], np.float64) + 1j * np.asarray(x[..., F // 2 :])
    speeds = 10_000.0 ** (-np.arange(F // 2) / (F // 2))
    wanted = pairs * np.exp(1j * np.arange(N)[:, None, None] * speeds)
    np.testing.assert_allclose(
        turned(x), np.concatenate([wanted.real, wanted.imag], -1), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize('kind', ['causal', 'bidirectional'])
def test_the_encoder_has_no_table_knows_order_and_takes_any_length(kind):
    tower = TextEncoder(
        vocab=30, length=8, position_scale=0.3, width=16, depth=2, heads=2, embed=8, kind=kind,
        remat='none', dtype=jnp.float32, positions='rotary', rngs=nnx.Rngs(0),
    )  # fmt: skip
    assert 'positions' not in names(tower)
    tokens = np.random.default_rng(0).integers(3, 30, (1, 40)).astype(np.int32)
    swapped = tokens.copy()
    swapped[0, [10, 20]] = tokens[0, [20, 10]]
    assert tokens[0, 10] != tokens[0, 20]
    one, other = (tower(x, np.array([40])) for x in (tokens, swapped))
    assert np.abs(one - other).max() > 1e-4
    # What stands together reads the same, wherever it stands: padding before it is not looked at.
    padded = np.pad(tokens, [(0, 0), (0, 9)])
    np.testing.assert_allclose(tower(padded, np.array([40])), one, rtol=0, atol=1e-6)


def test_a_learned_table_stays_what_it_was():
    """The choice costs nothing where it is not taken: the same parameters, the same program."""
    plain, named = like(), like(text={'positions': 'learned', 'buckets': ()})
    assert jax.tree.structure(plain) == jax.tree.structure(named)
    assert 'text/positions' in names(dual())
    assert 'text/positions' not in names(dual(text={'positions': 'rotary'}))


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="model.text.positions is 'alibi'; it must be one of"):
        like(text={'positions': 'alibi'})
