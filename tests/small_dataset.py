"""A TFDS data set of a few records for the tests; its videos are no videos."""

import numpy as np
import tensorflow_datasets as tfds


class SmallSet(tfds.core.GeneratorBasedBuilder):
    """Two configurations: records by themselves, and pairs of twins without long captions."""

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name='single', description='Records by themselves.'),
        tfds.core.BuilderConfig(name='twins', description='Pairs of twins.'),
    ]

    def _info(self):
        features = {
            'id': tfds.features.Text(),
            'video': tfds.features.Scalar(np.object_),
            'caption': tfds.features.Text(),
            'group': tfds.features.Scalar(np.int64),
            'label': tfds.features.Text(),
        }
        if self.builder_config.name == 'single':
            features['long_caption'] = tfds.features.Text()
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {
            'train': self._generate_examples('train', 6),
            'test': self._generate_examples('test', 2),
        }

    def _generate_examples(self, split, num_records):
        for i in range(num_records):
            single = self.builder_config.name == 'single'
            record = {
                'id': f'{split} {i}',
                'video': f'\x00video {i}'.encode(),
                'caption': f'Caption {i}, café.',
                'group': i if single else i // 2,
                'label': '',
            }
            yield i, record | ({'long_caption': f'Long {i}.'} if single else {})
