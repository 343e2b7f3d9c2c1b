"""Parameters to start from, read from where another run left them."""

from pathlib import Path

from long_vivit.stage import taught
from long_vivit.workdir import Workdir


def init_params(path):
    """The model in a checkpoint, or in the last finished stage of a work directory: a flat dict."""
    folder = Path(path)
    if (folder / 'config.json').is_file():
        workdir = Workdir(folder)
        run = workdir.read_config()
        done = [stage.name for stage in run.stages if workdir.finished(stage.name)]
        if not done:
            raise ValueError(f'init: {path} has no finished stage to start from')
        return taught(workdir.checkpoints(done[-1]))
    return taught(folder)
