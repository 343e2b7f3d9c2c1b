"""What a mesh must divide, said before anything is built."""

import jax
import pytest

from long_vivit import estimate, hardware
from tests import tiny_run


def test_images_that_are_scored_must_split_as_well():
    """The patches of a clip do, those of an image, 7 x 7, do not; images are scored whole."""
    fields = {'mesh': 'data=1,seq=2', 'stages__short__pixels': 112, 'run': ('short',)}
    devices = jax.devices()[:2]
    hardware.mesh_of(tiny_run.resolved('no_data', 'no_run', **fields), devices)
    run = tiny_run.resolved('no_data', 'no_run', **fields, eval__images='shape_stories/image:test')
    with pytest.raises(ValueError, match='eval.images: 49 patches of 1 frames do not split') as one:
        hardware.mesh_of(run, devices)
    assert len(str(one.value).splitlines()) == 2
    hardware.mesh_of(estimate.changed(run, {'mesh': 'data=2'}), devices)
