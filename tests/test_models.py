"""The two encoders: against a plain numpy form, and what must not change what they say."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from long_vivit.models.dual import DualEncoder
from long_vivit.models.layers import REMAT
from long_vivit.models.positions import waves
from long_vivit.models.text import TextEncoder
from long_vivit.models.video import VideoEncoder, unit
from long_vivit.names import below, flatten, unflatten
from long_vivit.rules import SIZES
from long_vivit.warm_start import warm_start
from tests import tiny_models
from tests.tiny_models import FAST, GRID, PATCH, TEXT, TUBELET, batch, changed, dual

pytestmark = pytest.mark.usefixtures('quick_compilation')

# The towers of the paper and of CLIP; tests/test_model_choices.py has what other towers have.
POOLS, KINDS = ('mean', 'cls'), ('bidirectional', 'causal')


@partial(jax.jit, compiler_options=FAST)
def embed_video(model, patches, where):
    return model.video(patches, where)


@partial(jax.jit, compiler_options=FAST)
def embed_text(model, tokens, lengths):
    return model.text(tokens, lengths)


# By the formulas, in float64 ----------------------------------------------------------------


def slow_norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p['scale'] + p['bias']


def slow_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def slow_trunk(x, p, causal=False):
    """One sequence x [n, d] through the stacked blocks; p: {name: array} of the trunk."""
    blocks = below(p, 'blocks')
    for layer in range(len(blocks['up/kernel'])):
        q = {name: leaf[layer] for name, leaf in blocks.items()}
        y = slow_norm(x, below(q, 'norm_1'))
        heads = []
        for head in range(q['attention/qkv'].shape[2]):
            query, key, value = (
                y @ q['attention/qkv'][:, i, head] + q['attention/qkv_bias'][i, head]
                for i in range(3)
            )
            logits = query @ key.T / np.sqrt(key.shape[-1])
            if causal:
                logits = np.where(np.tri(len(x), dtype=bool), logits, -np.inf)
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            heads.append(weights @ value @ q['attention/out'][head])
        x = x + sum(heads) + q['attention/out_bias']
        y = slow_norm(x, below(q, 'norm_2'))
        y = slow_gelu(y @ q['up/kernel'] + q['up/bias'])
        x = x + y @ q['down/kernel'] + q['down/bias']
    return slow_norm(x, below(p, 'norm'))


def slow_unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def slow_video(model, patches, where):
    p = {name: np.asarray(leaf, np.float64) for name, leaf in flatten(model.video).items()}
    still = patches.shape[-1] == PATCH**2 * 3
    stem = below(p, 'image_embed' if still else 'tubelet_embed')
    rows = []
    for pixels, places in zip(patches / 127.5 - 1, where, strict=True):
        x = pixels @ stem['kernel'] + stem['bias']
        for row, (t, h, w) in zip(x, places, strict=True):
            row += p['positions/space'][h, w]
            if not still:
                row += p['positions/time'][t]
        if 'cls' in p:
            x = np.concatenate([p['cls'][None], x])
        x = slow_trunk(x, below(p, 'trunk'))
        rows.append((x[0] if 'cls' in p else x.mean(0)) @ p['head/kernel'])
    return slow_unit(np.stack(rows))


def slow_text(model, tokens, lengths, causal):
    p = {name: np.asarray(leaf, np.float64) for name, leaf in flatten(model.text).items()}
    rows = []
    for ids, length in zip(tokens, lengths, strict=True):
        x = p['embed'][ids[:length]] + p['positions'][:length]
        x = slow_trunk(x, below(p, 'trunk'), causal)
        rows.append((x[-1] if causal else x.mean(0)) @ p['head/kernel'])
    return slow_unit(np.stack(rows))


@pytest.mark.parametrize('attention', ['dense', 'blockwise'])
@pytest.mark.parametrize('pool', POOLS)
@pytest.mark.parametrize('tubelet', [1, TUBELET])
def test_video_encoder_is_its_formula(tubelet, pool, attention):
    """Images and videos, both ways of pooling: one model has both stems."""
    model = dual(video={'pool': pool, 'attention': attention})
    one = batch(tubelet=tubelet)
    z = embed_video(model, one['patches'], one['where'])
    assert z.dtype == jnp.float32
    np.testing.assert_allclose(z, slow_video(model, one['patches'], one['where']), atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_text_encoder_is_its_formula(kind):
    model = dual(text={'kind': kind})
    one = batch(b=6)
    z = embed_text(model, one['tokens'], one['lengths'])
    assert z.dtype == jnp.float32 and len(set(one['lengths'].tolist())) > 2
    wanted = slow_text(model, one['tokens'], one['lengths'], kind == 'causal')
    np.testing.assert_allclose(z, wanted, atol=1e-5)


# Stills, stems, sets ------------------------------------------------------------------------


def stills(num_slices, b=3):
    """Pictures as images [b, h*w, ...], and the same shown still for `num_slices` tubelets."""
    rng = np.random.default_rng(0)
    places = tiny_models.everywhere((1, *GRID[1:]))
    pixels = rng.integers(0, 256, (b, len(places), PATCH**2 * 3), np.uint8)
    where = np.broadcast_to(places, (b, *places.shape)).astype(np.int32)
    film = np.tile(pixels, (1, num_slices, TUBELET))
    film_where = np.concatenate([where + [[t, 0, 0]] for t in range(num_slices)], 1)
    return (pixels, where), (film, film_where.astype(np.int32))


@pytest.fixture(scope='module')
def image_and_video_model():
    """A model of images, and the video model that starts from it, without its times."""
    image = dual(video={'grid': (1, *GRID[1:]), 'tubelet': 1})
    shapes = tiny_models.like()
    params = warm_start(flatten(image), flatten(shapes)).params
    assert np.abs(params['video/positions/time']).max() > 0.1
    params['video/positions/time'] = np.zeros_like(params['video/positions/time'])
    return image, unflatten(shapes, jax.tree.map(jnp.asarray, params))


def test_a_still_video_embeds_as_its_image(image_and_video_model):
    """Token by token before the trunk, and as a whole behind it, but for the times."""
    image_model, video_model = image_and_video_model
    image, film = stills(GRID[0])
    tokens = image_model.video.tokens(*image)
    film_tokens = video_model.video.tokens(*film)
    np.testing.assert_allclose(film_tokens, jnp.tile(tokens, (1, GRID[0], 1)), atol=2e-6)
    z = embed_video(image_model, *image)
    np.testing.assert_allclose(embed_video(video_model, *film), z, atol=2e-6)
    assert np.linalg.norm(z[0] - z[1]) > 1e-2  # else any two would agree


def test_a_masked_still_video_embeds_as_its_masked_image(image_and_video_model):
    """Tube masking: the same places of every slice."""
    image_model, video_model = image_and_video_model
    (pixels, where), (film, film_where) = stills(GRID[0])
    keep = [1, 2, 6]
    many = np.concatenate([np.array(keep) + t * pixels.shape[1] for t in range(GRID[0])])
    z = embed_video(image_model, pixels[:, keep], where[:, keep])
    z_film = embed_video(video_model, film[:, many], film_where[:, many])
    np.testing.assert_allclose(z_film, z, atol=2e-6)
    assert np.linalg.norm(z - embed_video(image_model, pixels, where)) > 1e-2


def test_a_stem_serves_its_own_kind_only():
    """What images say does not depend on a bit of the tubelet stem, nor videos on the image's."""
    model = dual()
    still, film = ([one['patches'], one['where']] for one in (batch(tubelet=1), batch()))
    for prefix, moves, stays in (
        ('video/tubelet_embed', film, still),
        ('video/image_embed', still, film),
        ('video/positions/time', film, still),
    ):
        other = changed(model, prefix)
        np.testing.assert_array_equal(embed_video(other, *stays), embed_video(model, *stays))
        assert np.abs(embed_video(other, *moves) - embed_video(model, *moves)).max() > 1e-2
    both = changed(model, 'video/trunk')
    for one in (still, film):
        assert np.abs(embed_video(both, *one) - embed_video(model, *one)).max() > 1e-2


@pytest.mark.parametrize('pool', POOLS)
def test_a_video_is_a_set_of_patches(pool):
    """Another order of patches with their places changes nothing; of patches alone, much."""
    model = dual(video={'pool': pool})
    one = batch()
    order = np.random.default_rng(0).permutation(one['where'].shape[1])
    z = embed_video(model, one['patches'], one['where'])
    moved = embed_video(model, one['patches'][:, order], one['where'][:, order])
    np.testing.assert_allclose(moved, z, atol=2e-6)
    mixed = embed_video(model, one['patches'][:, order], one['where'])
    assert np.abs(mixed - z).max() > 1e-2


@pytest.mark.parametrize('dim', [0, 1, 2])
def test_each_coordinate_has_a_say(dim):
    model = dual()
    one = batch()
    other = one['where'].copy()
    other[..., dim] = GRID[dim] - 1 - other[..., dim]
    moved = embed_video(model, one['patches'], other)
    assert np.abs(moved - embed_video(model, one['patches'], one['where'])).max() > 1e-2


@pytest.mark.parametrize('num_slices', [1, GRID[0]])
def test_tubelets_of_one_frame_have_a_time_where_there_are_times(num_slices):
    """A patch of one frame may be a video's: what a table of several times adds is added."""
    model = dual({'tubelet': 1, 'grid': (num_slices, *GRID[1:])})
    one = batch(tubelet=1, grid=(num_slices, *GRID[1:]), k=6)
    other = changed(model, 'video/positions/time')
    moved = embed_video(other, one['patches'], one['where']) - embed_video(
        model, one['patches'], one['where']
    )
    assert (np.abs(moved).max() > 1e-2) == (num_slices > 1)


# Text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', KINDS)
def test_padding_says_nothing(kind):
    """Not a bit of z depends on the ids behind the text, nor does a longer padding change it."""
    model = dual(text={'kind': kind})
    tokens, lengths = batch()['tokens'], np.array([2, 3, 4, 3], np.int32)
    z = embed_text(model, tokens, lengths)
    filled = np.where(np.arange(tokens.shape[1]) < lengths[:, None], tokens, 7)
    np.testing.assert_array_equal(embed_text(model, filled.astype(np.int32), lengths), z)
    np.testing.assert_allclose(embed_text(model, tokens[:, :4], lengths), z, atol=2e-6)
    assert np.abs(embed_text(model, tokens, lengths - 1) - z).max() > 1e-2


def test_causal_text_sees_nothing_ahead():
    """The outputs before a changed token stay; for both-ways text they do not."""

    @partial(jax.jit, compiler_options=FAST)
    def outputs(model, x, lengths):
        return model.text.trunk(x, lengths)

    x = np.random.default_rng(0).standard_normal((2, 6, TEXT['width'])).astype(np.float32)
    y, lengths = x.copy(), np.array([6, 6], np.int32)
    y[:, 4] = -x[:, 4]
    for kind in KINDS:
        model = dual(text={'kind': kind})
        moved = np.abs(outputs(model, x, lengths) - outputs(model, y, lengths)).max((0, 2)) > 1e-3
        assert moved.tolist() == [kind != 'causal'] * 4 + [True] * 2, kind


# Numbers ------------------------------------------------------------------------------------


def test_embeddings_are_unit_vectors():
    model, one = dual(), batch(b=6)
    for z in jax.jit(lambda model: model(one), compiler_options=FAST)(model):
        np.testing.assert_allclose(np.linalg.norm(z, axis=-1), 1, atol=1e-6)


def test_unit_of_zero_is_zero_with_finite_slope():
    x = jnp.zeros((2, 4)).at[1, 2].set(3.0)
    z, back = jax.vjp(unit, x)
    np.testing.assert_array_equal(z, [[0] * 4, [0, 0, 1, 0]])
    assert np.isfinite(back(jnp.ones_like(z))[0]).all()


def test_half_precision_computes_on_full_precision_parameters():
    half = {'dtype': jnp.bfloat16}
    narrow, model, one = dual(video=half, text=half), dual(), batch(b=6)

    def loss(model):
        z_video, z_text = model(one)
        return (z_video * z_text).sum()

    for tree in (narrow, jax.eval_shape(jax.grad(loss), narrow)):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype(jnp.float32)}
    assert narrow.video.tokens(one['patches'], one['where']).dtype == jnp.bfloat16
    video, text = (one['patches'], one['where']), (one['tokens'], one['lengths'])
    for function, given in ((embed_video, video), (embed_text, text)):
        x, y = function(narrow, *given), function(model, *given)
        assert x.dtype == jnp.float32
        cosine = (x * y).sum(-1)
        assert (cosine > 0.999).all() and not np.array_equal(x, y)


# What is computed again, and what not at all --------------------------------------------------


def video_loss(video, one, num_frozen=0):
    z = video(one['patches'], one['where'], num_frozen=num_frozen)
    return z[0, 0] + z[1, 1] - z[2, 0]


loss_and_grads = jax.jit(jax.value_and_grad(video_loss), static_argnums=2, compiler_options=FAST)


@pytest.mark.parametrize('remat', [name for name in REMAT if name != 'none'])
def test_computing_again_changes_no_number(remat):
    one = batch()
    loss, grads = loss_and_grads(dual().video, one, 0)
    other, other_grads = loss_and_grads(dual(video={'remat': remat}).video, one, 0)
    np.testing.assert_allclose(loss, other, rtol=1e-6)
    for name, grad in flatten(grads).items():
        wanted, got = np.asarray(grad), np.asarray(flatten(other_grads)[name])
        np.testing.assert_allclose(got, wanted, atol=2e-6 * max(1, np.abs(wanted).max()))


def test_image_gradients_leave_the_time_positions_and_the_tubelet_stem_alone():
    _, grads = loss_and_grads(dual().video, batch(tubelet=1), 0)
    for name, grad in flatten(grads).items():
        untouched = name.startswith(('tubelet_embed', 'positions/time'))
        assert bool((grad == 0).all()) == untouched, name


def temporary_bytes(num_frozen=0, **fields):
    """What a loss with its gradients needs beside its arguments and results; nothing is run."""
    grid = (8, 8, 8)
    video = tiny_models.like({'grid': grid, 'attention': 'blockwise', **fields}).video
    one = batch(4, k=512, grid=grid)
    shapes = {key: jax.ShapeDtypeStruct(one[key].shape, one[key].dtype) for key in one}
    compiled = loss_and_grads.lower(video, shapes, num_frozen).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.fixture(scope='module')
def deep_bytes():
    return temporary_bytes(depth=8)


def test_computing_again_saves_memory(deep_bytes):
    dots, full = (temporary_bytes(depth=8, remat=remat) for remat in ('dots', 'full'))
    assert full < 0.6 * dots < 0.6 * 0.8 * deep_bytes, (full, dots, deep_bytes)


def test_nothing_below_the_trained_layers_gets_a_gradient():
    """Exact zeros below, and above them the gradients that all-layers training has."""
    depth, num_frozen = 4, 3
    video, one = dual(video={'depth': depth, 'pool': 'cls'}).video, batch()
    loss, grads = loss_and_grads(video, one, num_frozen)
    full_loss, full = loss_and_grads(video, one, 0)
    np.testing.assert_allclose(loss, full_loss, rtol=1e-6)
    full = flatten(full)
    for name, grad in flatten(grads).items():
        if name.startswith('trunk/blocks/'):
            np.testing.assert_array_equal(grad[:num_frozen], 0, err_msg=name)
            free, wanted = grad[num_frozen:], full[name][num_frozen:]
        elif name.startswith(('trunk/norm', 'head')):
            free, wanted = grad, full[name]
        else:
            assert name.startswith(('image_embed', 'tubelet_embed', 'positions', 'cls')), name
            np.testing.assert_array_equal(grad, 0, err_msg=name)
            continue
        tolerance = 1e-5 * np.abs(wanted).max()
        assert tolerance > 0 or 'bias' in name, name
        np.testing.assert_allclose(free, wanted, atol=tolerance, err_msg=name)
    assert np.abs(full['positions/space']).max() > 1e-3


def test_no_activation_below_the_trained_layers_is_kept(deep_bytes):
    """With one trained layer of eight, about the memory of a model of one layer."""
    frozen, one_layer = temporary_bytes(7, depth=8), temporary_bytes(depth=1)
    assert frozen < 1.2 * one_layer < 0.5 * deep_bytes, (frozen, one_layer, deep_bytes)


# Fresh parameters ---------------------------------------------------------------------------


def test_fresh_parameters():
    """Kernels with variance 1 / fan-in, biases at 0, scales at 1, layers unlike each other."""
    tower = {'width': 64, 'heads': 4, 'depth': 3}

    def build(seed):
        rngs = nnx.Rngs(seed)
        video = tiny_models.VIDEO | tower | {'pool': 'cls'}
        return DualEncoder(video=video, text=TEXT, embed=32, temperature=0.05, rngs=rngs)

    fresh = jax.jit(build, static_argnums=0, compiler_options=FAST)
    flat = {name: np.asarray(leaf) for name, leaf in flatten(fresh(0)).items()}
    fan_in = {'up/kernel': 64, 'down/kernel': 256, 'attention/qkv': 64, 'attention/out': 64}
    for name, rows in fan_in.items():
        kernel = flat[f'video/trunk/blocks/{name}']
        assert kernel.std() * np.sqrt(rows) == pytest.approx(1, rel=0.05), name
        assert np.abs(kernel[0] - kernel[1]).max() > 0.1 / np.sqrt(rows)
    for name, leaf in flat.items():
        if name.endswith(('bias', 'cls')):
            assert not leaf.any(), name
        elif name.endswith('/scale'):
            assert (leaf == 1).all(), name
    assert flat['log_scale'] == pytest.approx(np.log(20))
    other = flatten(fresh(1))
    assert not np.array_equal(flat['video/head/kernel'], other['video/head/kernel'])


@pytest.mark.parametrize('num_rows,width', [(1, 8), (2, 8), (16, 32), (64, 33)])
def test_waves_tell_rows_apart_and_neighbours_alike(num_rows, width):
    table = np.asarray(waves(num_rows, width))
    assert table.shape == (num_rows, width) and table.dtype == np.float32
    assert np.abs(table).max() <= 1
    far = np.linalg.norm(table[:, None] - table[None], axis=-1)
    assert (far[~np.eye(num_rows, dtype=bool)] > 0.1).all()
    if num_rows > 2:
        assert np.diagonal(far, 1).max() < np.diagonal(far, num_rows // 2).min()


# Sizes --------------------------------------------------------------------------------------


def count(size, **fields):
    fields = {'patch': 16, 'attention': 'blockwise', 'remat': 'none', 'dtype': jnp.float32} | fields

    def build():
        return VideoEncoder(**SIZES[size]._asdict(), **fields, rngs=nnx.Rngs(0))

    return {name: leaf.size for name, leaf in flatten(jax.eval_shape(build)).items()}


@pytest.mark.parametrize(
    'size,published',
    [('Ti', 5_717_416), ('S', 22_050_664), ('B', 86_567_656), ('L', 304_326_632)],
)
def test_a_size_is_the_vision_transformer_of_that_name(size, published):
    """ViT/16 at 224 pixels with a class token and a head of 1,000 classes (arXiv 2010.11929,
    2012.12877), but for the 1,000 biases of the head; one row of time stands for the position of
    the class token."""
    found = count(size, grid=(1, 14, 14), tubelet=1, pool='cls', embed=1000)
    assert sum(found.values()) == published - 1000


@pytest.mark.parametrize('size,millions', [('B', 86), ('L', 307)])
def test_the_paper_s_towers_are_as_large_as_it_says(size, millions):
    """LongViViT section 3.1; a tubelet stem of 2 x 16 x 16 and 128 frames are small beside it."""
    found = count(size, grid=(64, 16, 16), tubelet=2, pool='mean', embed=512)
    whole = sum(found.values()) / 1e6
    assert abs(whole / millions - 1) < 0.025, whole
    width = SIZES[size].width
    assert found['video/tubelet_embed/kernel'.removeprefix('video/')] == 2 * 16 * 16 * 3 * width
    assert found['positions/space'] + found['positions/time'] == (256 + 64) * width


def test_text_tower_count():
    """vocabulary and positions, 12 d^2 + 13 d a block, the last norm and the head."""
    d, layers = 512, 8

    def build():
        fields = {'vocab': 1000, 'length': 64, 'width': d, 'depth': layers, 'heads': 8}
        return TextEncoder(**(TEXT | fields), embed=256, rngs=nnx.Rngs(0))

    sizes = [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(build))]
    assert sum(sizes) == (1000 + 64) * d + layers * (12 * d * d + 13 * d) + 2 * d + 256 * d


# What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    'video,text,words',
    [
        ({'pool': 'max'}, {}, "model.video.pool is 'max'.*mean, cls"),
        ({'remat': 'some'}, {}, "remat is 'some'.*none, dots, attention, full, offload"),
        ({}, {'kind': 'both'}, "model.text.kind is 'both'.*bidirectional, causal"),
    ],
)
def test_unknown_words_are_refused_with_those_there_are(video, text, words):
    with pytest.raises(ValueError, match=words):
        dual(video, text)


def test_an_unknown_attention_is_refused():
    model = dual({'attention': 'flash'})
    with pytest.raises(ValueError, match="model.attention is 'flash'"):
        embed_video(model, batch()['patches'], batch()['where'])


def test_videos_are_refused_by_a_model_of_images():
    model = dual({'tubelet': 1})
    with pytest.raises(ValueError, match='patches of 24 values.*images of 12: set model.video.tub'):
        embed_video(model, batch()['patches'], batch()['where'])


def test_a_text_longer_than_the_positions_is_refused():
    tokens = np.ones((2, TEXT['length'] + 1), np.int32)
    with pytest.raises(ValueError, match='text of 7 tokens, but the position table has 6'):
        embed_text(dual(), tokens, np.array([3, 3], np.int32))
