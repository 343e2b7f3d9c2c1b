"""TFDS builder of Shape Stories. `python -m long_vivit.build_data shape_stories` runs it.

Needs no TensorFlow: `Builder(data_dir=..., config='long', file_format='array_record')`.
"""

import dataclasses
import os

import numpy as np
import tensorflow_datasets as tfds

from data.shape_stories import examples, world

DESCRIPTION = """
Videos of coloured shapes that do things one after the other, and captions that tell what happens
in which order. Both films of a pair hold the very same shots in two orders.
"""
ABOUT = {
    'image': 'One frame: an object at a place, or two side by side.',
    'short': '16 frames at 2 frames per second: 2 to 4 events, told in one sentence.',
    'long': '64 frames at 1 frame per second: 8 to 16 events; a summary and a narrative.',
    'episodes': 'As long, but all films begin with the same 8 events, as those of a series do.',
}


@dataclasses.dataclass(eq=False)
class StoriesConfig(tfds.core.BuilderConfig):
    """A TFDS configuration that carries the world's numbers (frames, events, sizes)."""

    setting: world.Setting | None = None


class Builder(tfds.core.GeneratorBasedBuilder):
    """Shape Stories. Set the attributes below before `download_and_prepare` to change them.

    Attributes:
      sizes: {'train': n, 'test': n} number of films; {} = the configuration's. A smaller split
        is the beginning of the full one.
      seed: of everything random.
      workers: processes that draw and encode.
      progress: called with (split, films made so far, films in all) after every film.
    """

    VERSION = tfds.core.Version(world.VERSION)
    RELEASE_NOTES = {
        '1.1.0': 'Films that decode in half the time.',
        '1.0.0': 'First release.',
    }
    BUILDER_CONFIGS = [
        StoriesConfig(name=name, description=ABOUT[name], setting=setting)
        for name, setting in world.SETTINGS.items()
    ]

    sizes: dict = {}
    seed: int = world.SEED
    workers: int = os.cpu_count() or 1
    progress = staticmethod(lambda split, done, total: None)

    @property
    def setting(self) -> world.Setting:
        """The world's numbers with this builder's sizes."""
        return dataclasses.replace(self.builder_config.setting, **self.sizes)

    @property
    def settings_record(self) -> dict:
        """Everything that decides what is built; stored with it as `metadata`."""
        return {'seed': self.seed, **dataclasses.asdict(self.setting)}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    'id': tfds.features.Text(),
                    'video': tfds.features.Scalar(np.object_),
                    'caption': tfds.features.Text(),
                    'long_caption': tfds.features.Text(),
                    'group': tfds.features.Scalar(np.int64),
                    'label': tfds.features.Text(),
                }
            ),
            # Keeps the films of a pair next to each other.
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        self.info.metadata.update(self.settings_record)
        return {split: self._generate_examples(split) for split in world.SPLITS}

    def _generate_examples(self, split):
        total = self.setting.size(split)
        records = examples.make_split(self.seed, self.setting, split, self.workers)
        for i, record in enumerate(records):
            yield i, record
            self.progress(split, i + 1, total)
