"""Image -> short video: the first two stages of configs/long.py, with the same sizes."""

from ml_collections import ConfigDict

from configs import long


def get_config(size: str = '') -> ConfigDict:
    """The small recipe, or with the word `base` or `large` the paper's, without its long stage."""
    config = long.get_config(size)
    config.workdir = f'runs/short_{size}' if size else 'runs/short'
    config.run = ('image', 'short')
    return config
