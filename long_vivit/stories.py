"""The built-in stories, built where a run wants them and nobody has."""

from pathlib import Path

from long_vivit import children, weights

NAME = 'shape_stories'


def build_missing(run, say):
    """Builds the stories into `data.dir` where a run reads them, or their tokenizer.

    The tokenizer is what a build leaves last: where it lies, nothing is built, whatever else there
    is (opening that says what is wrong); where it does not, the build goes on with what is missing.
    Raises ValueError where the build fails; it has said why.
    """
    folder = Path(run.data.dir) / NAME
    specs = [s for stage in run.stages for s in (stage.train, stage.eval, stage.image_train)]
    reads = any(spec.startswith(f'{NAME}/') for spec in specs)
    spells = not run.data.tokenizer and not weights.split(run.init)
    if (folder / 'tokenizer.json').exists() or not (reads or spells):
        return
    what = '' if reads else ', for its tokenizer (data.tokenizer names another)'
    say(f'{folder} is not there yet{what}: building it, once, in two to three minutes')
    command = ['-m', 'long_vivit.build_data', NAME, '--data_dir', run.data.dir]
    if children.run(command):
        raise ValueError(f'data.dir: {folder} could not be built (see above)')
