"""The built-in stories, built where a run wants them and nobody has."""

import subprocess
import sys
from pathlib import Path

NAME = 'shape_stories'


def build_missing(run, say):
    """Builds the stories into `data.dir` where a stage reads them and their folder is not there.

    A folder that is there is left alone, whatever is in it: opening it says what is wrong.
    Raises ValueError where the build fails; it has said why.
    """
    folder = Path(run.data.dir) / NAME
    specs = [s for stage in run.stages for s in (stage.train, stage.eval, stage.image_train)]
    if folder.exists() or not any(spec.startswith(f'{NAME}/') for spec in specs):
        return
    say(f'{folder} is not there yet: building it, once, in two to three minutes')
    command = [sys.executable, '-m', 'long_vivit.build_data', NAME, '--data_dir', run.data.dir]
    if subprocess.run(command).returncode:
        raise ValueError(f'data.dir: {folder} could not be built (see above)')
