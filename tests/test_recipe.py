"""What a configuration stands for."""

import jax
import pytest

from long_vivit import estimate, hardware, layout, optim, recipe, stage_loss
from long_vivit.inputs.pipeline import HOST_ONLY, Batches
from long_vivit.inputs.sources import open_source
from long_vivit.inputs.text import Tokenizer
from long_vivit.names import flatten
from tests import tiny_run
from tests.test_sequence import mesh_of


@pytest.mark.parametrize('name', tiny_run.STAGES)
def test_the_shapes_foretold_are_those_of_a_batch(name, tiny_stories, tmp_path):
    run = tiny_run.resolved(tiny_stories, tmp_path)
    stage = run.stages[tiny_run.STAGES.index(name)]
    source = open_source(stage.train, data_dir=run.data.dir, text=stage.text)
    tokenizer = Tokenizer.load(tiny_stories / 'shape_stories/tokenizer.json')
    examples = recipe.examples(run, stage, source, tokenizer)
    batch = Batches(videos=examples, batch=stage.batch, steps=1)[0]
    came = {key: (x.shape, x.dtype) for key, x in batch.items() if key not in HOST_ONLY}
    assert came == {k: (x.shape, x.dtype) for k, x in recipe.batch_like(run, stage).items()}


def test_the_sigmoid_loss_has_a_bias_that_does_not_decay(tiny_stories, tmp_path):
    """It starts at loss.bias and is trained; the NCE loss has none."""
    run = tiny_run.resolved(tiny_stories, tmp_path, loss__kind='sigmoid', loss__bias=-7.0)

    def model():
        return recipe.model(run, run.stages[0], 20, jax.random.key(0))

    assert float(jax.jit(lambda: model().logit_bias[...])()) == -7
    like = jax.eval_shape(model)
    rule = optim.rules(like)['logit_bias']
    assert rule.trained and not rule.decay
    assert layout.dims_of('logit_bias') == ()
    plain = tiny_run.resolved(tiny_stories, tmp_path)
    other = jax.eval_shape(lambda: recipe.model(plain, plain.stages[0], 20, jax.random.key(0)))
    assert flatten(like).keys() - flatten(other).keys() == {'logit_bias'}


def test_fields_of_the_loss_reach_the_step(tiny_stories, tmp_path):
    """Sigmoid, tiled, in micro-batches: the step has the shapes of the plain one and a bias."""
    fields = {'loss__kind': 'sigmoid', 'loss__form': 'tiled', 'loss__tile': 3}
    run = tiny_run.resolved(tiny_stories, tmp_path, **fields, stages__short__micro_batch=4)
    stage = run.stages[1]
    init, step = recipe.training(run, stage, 20)
    like = jax.eval_shape(init), recipe.batch_like(run, stage)
    state, watch = jax.eval_shape(step, *like)
    shapes, wanted = (
        {k: (x.shape, x.dtype) for k, x in flatten(s).items()} for s in (state, like[0])
    )
    assert shapes == wanted
    assert 'bias' in watch
    text = str(jax.make_jaxpr(step)(*like))
    assert 'f32[3,3]' in text  # the last tile: 8 pairs are three tiles of 3, 3 and 2
    assert stage_loss.in_words(run, stage) == (
        'sigmoid loss, tiled, tiles of at most 3 x 3 pairs, the encoders take 4 of 8 pairs at once'
    )
    assert stage_loss.in_words(tiny_run.resolved(tiny_stories, tmp_path), stage) == (
        'nce loss, dense, the encoders take 4 of 8 pairs at once'
    )
    plain = tiny_run.resolved(tiny_stories, tmp_path)
    assert stage_loss.in_words(plain, plain.stages[1]) == ''


def test_auto_attention_is_what_runs_on_the_mesh(tiny_stories, tmp_path, monkeypatch):
    """On a TPU: splash, but blockwise where two heads over four devices make a ring."""
    run = tiny_run.resolved(tiny_stories, tmp_path, model__attention='auto')
    monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
    assert recipe.attention_of(run)[0] == 'splash'
    with jax.set_mesh(mesh_of(seq=2)):
        assert recipe.attention_of(run)[0] == 'splash'
        name, why = recipe.attention_of(with_fields(run, sequence='ring'))
        assert name == 'blockwise' and 'ring' in why
    with jax.set_mesh(mesh_of(seq=4)):
        assert recipe.attention_of(run)[0] == 'blockwise'
        with pytest.raises(ValueError, match="model.attention is 'splash', but a ring over"):
            recipe.attention_of(with_fields(run, attention='splash'))
    # Without devices along seq there is no ring, whatever is named.
    assert recipe.attention_of(with_fields(run, sequence='ring'))[0] == 'splash'


def test_faults_of_the_mesh_come_together(tiny_stories, tmp_path):
    fields = {'model__sequence': 'ulysses', 'mesh': 'data=2,seq=4', 'stages__short__micro_batch': 1}
    run = tiny_run.resolved(tiny_stories, tmp_path, stages__image__batch=9, **fields)
    with pytest.raises(ValueError) as caught:
        hardware.mesh_of(run, jax.devices()[:8])
    _, *faults = str(caught.value).splitlines()
    wanted = [
        "model.sequence is 'ulysses', but 2 heads do not divide by seq=4",
        'stages.image.batch: 9 does not split over dcn=1 x data=2 x fsdp=1',
        'stages.short.micro_batch: 1 does not split over dcn=1 x data=2 x fsdp=1',
    ]
    assert len(faults) == len(wanted), faults
    assert all(map(str.startswith, map(str.strip, faults), wanted)), faults


def with_fields(run, **fields):
    return estimate.changed(run, {f'model.{name}': value for name, value in fields.items()})
