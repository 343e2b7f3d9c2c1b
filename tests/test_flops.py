"""Analytic FLOPs: every product of the step's program, XLA's own count, and the known table."""

import math

import jax
import jax.extend.core
import jax.numpy as jnp
import pytest
from flax import nnx

from long_vivit import chips, flops, optim, recipe, tuning
from long_vivit.models.dual import DualEncoder
from long_vivit.state import State
from long_vivit.step import make_step
from tests import tiny_run
from tests.tiny_models import FAST

# Shallow enough to be written out, wide enough that products outweigh the rest. Nothing of it runs.
WIDTH, DEPTH, TEXT_WIDTH, TEXT_DEPTH, EMBED = 256, 2, 128, 1, 64
B, K, VALUES, LENGTH = 4, 96, 2 * 8 * 8 * 3, 32


def lowered(*, tune='all', text='train', pool='mean', remat='none', sees=None, **choices):
    """The training step of a toy: (traced by JAX, analytic FLOPs).

    sees: what a backbone that tells slices apart computes; None: joint attention.
    """
    common = {'heads': 4, 'remat': remat, 'dtype': jnp.float32}
    embed = EMBED if choices.get('head', True) else WIDTH

    def build():
        return DualEncoder(
            video=common | {'grid': (8, 4, 4), 'patch': 8, 'tubelet': 2, 'width': WIDTH,
                            'depth': DEPTH, 'pool': pool, 'attention': 'dense', **choices},
            text=common | {'vocab': 50, 'length': LENGTH, 'position_scale': 0.3,
                           'width': TEXT_WIDTH, 'depth': TEXT_DEPTH, 'kind': 'bidirectional'},
            embed=embed, temperature=0.07, rngs=nnx.Rngs(0),
        )  # fmt: skip

    like = jax.eval_shape(build)
    options = {'lr': 1e-3, 'steps': 9, 'warmup_steps': 1}
    tune = tuning.parsed(tune, text)
    tx = optim.make(like, **options, tune=tune)
    step = make_step(
        tx, optim.lr_schedule(**options), max_scale=100.0, label_smoothing=0.0, ema_decay=0.0,
        **tune.cuts(DEPTH),
    )  # fmt: skip
    state = jax.eval_shape(lambda: State(jnp.int32(0), build(), tx.init(build())))
    shapes = {
        'patches': ((B, K, VALUES), jnp.uint8), 'where': ((B, K, 3), jnp.int32),
        'tokens': ((B, LENGTH), jnp.int32), 'lengths': ((B,), jnp.int32),
        'ok': ((B,), jnp.bool_), 'text_key': ((B,), jnp.int32),
    }  # fmt: skip
    batch = {key: jax.ShapeDtypeStruct(*shape) for key, shape in shapes.items()}
    num_cls = K // 16 if choices.get('cls_repeat') else 1
    joint = flops.Tower(
        WIDTH, DEPTH, K + (pool == 'cls') * num_cls, **tune.layers(DEPTH),
        **{k: x for k, x in choices.items() if k in flops.Tower._fields},
    )  # fmt: skip
    count = flops.training_step(
        text=flops.Tower(TEXT_WIDTH, TEXT_DEPTH, LENGTH, TEXT_DEPTH * tune.text),
        batch=B, num_patches=K, patch_values=VALUES, embed=embed,
        head=choices.get('head', True), trains=flops.Trains(**tune.outside()),
        **(sees or {'video': joint, 'probe': pool == 'map'}),
    )  # fmt: skip
    return jax.jit(step).trace(state, batch), count


def products(jaxpr):
    """FLOPs of all matrix products of a program, loops counted as often as they run."""
    total = 0
    for eqn in jaxpr.eqns:
        times = eqn.params.get('length', 1)
        if eqn.primitive.name == 'dot_general':
            (contracted, _), _ = eqn.params['dimension_numbers']
            summed = math.prod(eqn.invars[0].aval.shape[dim] for dim in contracted)
            total += 2 * summed * math.prod(eqn.outvars[0].aval.shape)
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            total += times * products(inner)
    return total


@pytest.mark.parametrize(
    'options',
    [
        {}, {'tune': 'last:1'}, {'pool': 'cls'}, {'pool': 'cls', 'cls_repeat': True},
        {'pool': 'map', 'mlp_width': 96, 'head': False, 'tune': 'last:1'},
        {'tune': 'adapters+stem', 'adapter_width': 24},
        {'tune': 'lora+stem', 'lora_rank': 8, 'mlp_width': 96},
        {'tune': 'adapters+lora', 'adapter_width': 24, 'lora_rank': 8, 'text': 'frozen'},
        {'tune': 'last:1', 'adapter_width': 24},
        {'tune': 'first:1', 'adapter_width': 24}, {'tune': 'stem', 'text': 'frozen'},
        {'tune': 'none'}, {'tune': 'head', 'text': 'frozen'},
        {'tune': 'head+stem', 'pool': 'map'}, {'tune': 'none', 'pool': 'map'},
        {'tune': 'stem', 'pool': 'map'},
    ],
    ids=str,
)  # fmt: skip
def test_every_product_is_counted_once(options):
    """To the last one: of a step that keeps all it needs, so that nothing is computed twice.

    So no gradient of a frozen weight is computed, to be dropped afterwards. The one exception is
    what goes into the pair of `down`, which `layers.activated` keeps its input of only.
    """
    traced, count = lowered(**options)
    hidden = options.get('mlp_width', 4 * WIDTH)
    again = DEPTH * 2 * B * K * hidden * options.get('lora_rank', 0)
    assert products(traced.jaxpr.jaxpr) == count + again


def test_what_is_computed_again_is_not_counted():
    """With remat the program has more products, and utilisation does not rise by it."""
    traced, count = lowered(remat='full')
    assert products(traced.jaxpr.jaxpr) > 1.2 * count


SLICES, EACH = 8, K // 8
FACTORISED = {'video': flops.Tower(WIDTH, DEPTH, K, DEPTH, looks=(EACH, SLICES))}
BY_SLICES = {'video': flops.Tower(WIDTH, DEPTH, K, DEPTH, looks=(EACH,)),
             'above': flops.Tower(WIDTH, 3, SLICES, 3)}  # fmt: skip


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'backbone': 'factorised', 'sees': FACTORISED},
        {'backbone': 'factorised_encoder', 'temporal_depth': 3, 'sees': BY_SLICES},
    ],
    ids=['joint', 'factorised', 'encoder'],
)
def test_against_the_count_of_xla(options):
    """Of the towers written out; XLA adds normalisation, softmax and GELU, a few in a hundred."""
    traced, count = lowered(**options)
    cost = traced.lower().compile(compiler_options=FAST).cost_analysis()
    assert count <= cost['flops'] <= 1.05 * count


def test_against_the_published_table():
    """TFLOP of training ViT-B and ViT-L on one video, by 72 n d^2 + 12 n^2 d for each layer."""
    for tokens, base, large in ((512, 0.29, 1.01), (8192, 11.6, 34.6), (32768, 135, 376)):
        for width, depth, wanted in ((768, 12, base), (1024, 24, large)):
            got = flops.Tower(width, depth, tokens, depth).training() / 1e12
            assert got == pytest.approx(wanted, rel=0.02)


def test_of_a_configured_stage(tmp_path):
    """Half of the patches are masked away: 4 tokens of each slice become 2."""
    run = tiny_run.resolved(tmp_path, tmp_path)
    image, short, _ = run.stages
    video, text = flops.Tower(16, 1, 2 * 2, 1), flops.Tower(16, 1, 16, 1)
    values = 2 * 16 * 16 * 3
    wanted = flops.training_step(video, text, batch=8, num_patches=4, patch_values=values, embed=16)
    assert recipe.step_flops(run, short, batch=8, num_patches=4, patch_values=values) == wanted
    like = recipe.batch_like(run, image)['patches'].shape
    assert like == (8, 4, 16 * 16 * 3)


def test_chips_by_name_and_by_kind():
    assert chips.of_kind('TPU v5 lite') == chips.named('v5e')
    assert chips.of_kind('NVIDIA H200').peak_flops == 989e12
    assert chips.named('rtx4090').memory_bytes == 24e9
    assert chips.of_kind('cpu') is None
    assert chips.of_kind('NVIDIA H100') is None  # PCIe or SXM? not known, so not guessed
    kinds = [kind for chip in chips.CHIPS.values() for kind in chip.kinds]
    assert len(kinds) == len(set(kinds))
    with pytest.raises(ValueError, match='--chip=h300: not known; it must be one of v4, v5e'):
        chips.named('h300')
