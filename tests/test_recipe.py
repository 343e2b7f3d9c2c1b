"""What a configuration stands for."""

import pytest

from long_vivit import recipe
from long_vivit.inputs.pipeline import HOST_ONLY, Batches
from long_vivit.inputs.sources import open_source
from long_vivit.inputs.text import Tokenizer
from tests import tiny_run


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
