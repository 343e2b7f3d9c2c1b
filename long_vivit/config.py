"""Configurations: from the command line, checked, to plain read-only values.

    if __name__ == '__main__':
        config.main(train, default='configs/long.py')   # train(run: Run) -> None

This is the only module that reads ConfigDict. The rest of the program gets plain Python values
from a `Run`; what is allowed is written in rules.py, the fields themselves in configs/base.py.
"""

import difflib
import importlib.util
import json
import linecache
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from long_vivit import rules


class Run:
    """A section of a resolved configuration: read-only attributes holding plain Python values.

    Values are bool, int, float, str, a tuple, or another Run. The outermost one has every field
    of configs/base.py, with these differences:

    * `stages` is the tuple of the stages to teach, in order, each with its `name`;
    * data.train and data.eval have been written into the stages;
    * model.video has the width, depth and heads that its size stands for.

    `vars(section)` gives the fields as a dict, for keyword arguments.
    """

    def __init__(self, **fields: Any):
        vars(self).update(fields)

    def __setattr__(self, name: str, value: Any):
        raise AttributeError(f'{name!r} cannot be set: a resolved configuration is read-only.')

    def __delattr__(self, name: str):
        raise AttributeError(f'{name!r} cannot be removed: a resolved configuration is read-only.')

    def __getattr__(self, name: str):
        near = difflib.get_close_matches(name, vars(self), 1)
        hint = f'; nearest: {near[0]!r}' if near else ''
        raise AttributeError(f'no field {name!r} in this section{hint}')

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return f'Run({", ".join(f"{k}={v!r}" for k, v in vars(self).items())})'


def resolve(cfg: ConfigDict) -> Run:
    """The checked configuration as plain values; see `Run`. Raises as `check` does."""
    check(cfg)
    plain = plain_values(cfg)
    stages = []
    for name in plain['run']:
        stage = plain['stages'][name]
        for kind in ('train', 'eval'):
            stage[kind] = plain['data'][kind] or stage[kind]
        stages.append({'name': name, **stage})
    video = plain['model']['video']
    if video['size'] != 'custom':
        video.update(rules.SIZES[video['size']]._asdict())
    return frozen({**plain, 'stages': stages})


def check(cfg: ConfigDict) -> None:
    """Raises one ValueError with all faults, a line each: `path: what is given; what is allowed`"""
    faults = list(rules.faults(plain_values(cfg), plain_values(base_config())))
    if faults:
        count = 'one fault' if len(faults) == 1 else f'{len(faults)} faults'
        raise ValueError('\n  '.join([f'the configuration has {count}:', *faults]))


def base_config() -> ConfigDict:
    """configs/base.py, imported late: reading a stored run must not need the configs folder."""
    from configs import base

    return base.get_config()


def plain_values(cfg: ConfigDict) -> dict:
    """Nested dicts of plain values. `--config.run=image,short` arrives as one word: split it."""
    plain = cfg.to_dict()
    if isinstance(plain.get('run'), tuple | list):
        plain['run'] = tuple(
            word.strip() if isinstance(word, str) else word
            for entry in plain['run']
            for word in (entry.split(',') if isinstance(entry, str) else [entry])
        )
    return plain


def frozen(value: Any) -> Any:
    """dict -> Run, list -> tuple, all the way down."""
    if isinstance(value, dict):
        return Run(**{k: frozen(v) for k, v in value.items()})
    if isinstance(value, list | tuple):
        return tuple(frozen(v) for v in value)
    return value


def to_json(run: Run) -> str:
    """Text that `from_json` turns back into an equal Run."""
    return json.dumps(run, default=vars, indent=2, allow_nan=False) + '\n'


def from_json(text: str) -> Run:
    """The Run that `to_json` wrote. Raises ValueError where the text is not JSON."""
    return frozen(json.loads(text))


def difference(cfg: ConfigDict | Run, base: ConfigDict | Run) -> list[str]:
    """Fields that differ, as 'path: old -> new' in order of path; 'absent' where one lacks it."""
    old, new = dict(flat(base)), dict(flat(cfg))
    missing = object()
    changed = [p for p in {**new, **old} if old.get(p, missing) != new.get(p, missing)]
    show = lambda values, path: repr(values[path]) if path in values else 'absent'  # noqa: E731
    return [f'{path}: {show(old, path)} -> {show(new, path)}' for path in sorted(changed)]


def flat(section: ConfigDict | Run | dict, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Pairs of a field's path and its value; stages of a Run are named by their name."""
    if isinstance(section, ConfigDict):
        section = plain_values(section)
    for key, value in (vars(section) if isinstance(section, Run) else section).items():
        if key == 'stages' and isinstance(value, tuple):
            value = {stage.name: stage for stage in value}
        if isinstance(value, dict | Run):
            yield from flat(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


# The command line ---------------------------------------------------------------------------


def main(
    run: Callable[[Run], int | None], *, default: str, argv: Sequence[str] = (),
    before: Callable[[ConfigDict], None] = lambda cfg: None,
) -> None:  # fmt: skip
    """Runs a command: reads `--config=FILE[:WORD]` and `--config.PATH=VALUE`, calls run(Run).

    Without --config the file is `default`. Other flags are absl flags of the calling module.
    `before` may complete the fields before they are checked.
    Leaves through sys.exit: with what `run` returns (None = 0), or with 2 after `error: ...` on
    stderr where the fault is the user's (see `is_user_error`); a fault of ours keeps its traceback.
    """
    argv = list(argv or sys.argv)
    command = sys.modules['__main__'].__doc__ or ''
    if any(re.fullmatch('--?h(elp)?', word) for word in argv):
        print(command, flags.FLAGS.main_module_help(), OVERRIDES.format(default), sep='\n')
        sys.exit(0)
    path, others = split_config(argv[1:])
    argv = [argv[0], f'--config={default if path is None else path}', *others]
    holder = []

    def parse(words: list[str]) -> list[str]:
        refuse_unknown_fields(words)
        holder.append(config_flags.DEFINE_config_file('config', lock_config=True, sys_argv=words))
        try:
            return flags.FLAGS(words)
        except flags.UnrecognizedFlagError as error:
            hint = nearest(error.flagname, [path for path, _ in flat(base_config())])
            raise ValueError(f'no flag --{error.flagname}; {hint} (as --config.PATH)') from None

    def call(words: list[str]) -> int | None:
        logging.set_verbosity(logging.WARNING)  # the libraries' notes on each file they write
        if len(words) > 1:
            raise ValueError(f'{words[1]!r}: not understood; set fields by --config.PATH=VALUE')
        before(holder[0].value)
        return run(resolve(holder[0].value))

    with user_errors():
        app.run(call, argv=argv, flags_parser=parse)


OVERRIDES = """\
--config=FILE[:WORD]       the configuration ({} unless given)
--config.PATH=VALUE        changes a field: --config.stages.long.mask_rate=0.5
                           configs/base.py lists the fields, their units and what is allowed
"""


class user_errors:
    """Within it, an error of the user's ends the program: `error: ...` on stderr and status 2."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, KeyboardInterrupt):
            print('interrupted', file=sys.stderr)
            sys.exit(130)
        if error is not None and is_user_error(error):
            print(f'error: {error}', file=sys.stderr)
            sys.exit(2)


def is_user_error(error: BaseException) -> bool:
    """True for flag errors, and for a ValueError that a `raise` of this project made.

    A ValueError from inside jax or numpy is a bug of ours and deserves its traceback.
    """
    if isinstance(error, flags.Error):
        return True
    if not isinstance(error, ValueError) or error.__traceback__ is None:
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    file = Path(last.filename).resolve()
    ours = file in USER_FILES or Path(__file__).resolve().parents[1] in file.parents
    raised = linecache.getline(last.filename, last.lineno).lstrip().startswith('raise')
    return ours and raised and 'site-packages' not in file.parts


def refuse_unknown_fields(argv: Sequence[str]) -> None:
    """Raises ValueError: no config file (argv[1]), or all misspelt fields and misread values."""
    path, _, word = argv[1].removeprefix('--config=').partition(':')
    known = dict(flat(load_file(path, word)))
    sections = {p.rsplit('.', i)[0] for p in known for i in range(1, p.count('.') + 1)}
    faults = []
    for match in (re.match(r'--?(no)?config\.([^=]*)(=)?(.*)', arg, re.S) for arg in argv[1:]):
        if match and match[2] in known:
            if match[3] and (wanted := misread(match[4], known[match[2]])):
                faults.append(f'--config.{match[2]}={match[4]}: must be {wanted}')
        elif match and match[2] in sections:
            inside = ', '.join(p for p in known if p.startswith(match[2] + '.'))
            faults.append(f'--config.{match[2]} is a section; set one of its fields: {inside}')
        elif match:
            faults.append(f'no field --config.{match[2]}; {nearest(match[2], list(known))}')
    if faults:
        raise ValueError('\n  '.join(faults))


def misread(word: str, value: Any) -> str:
    """What `word` must be to take the place of `value`; '' where it can."""
    try:
        parsers = {int: flags.IntegerParser, float: flags.FloatParser, bool: flags.BooleanParser}
        parsers.get(type(value), flags.ArgumentParser)().parse(word)
        return ''
    except (ValueError, TypeError):
        return {int: 'a whole number', float: 'a number', bool: 'True or False'}[type(value)]


def split_config(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """(what --config is set to or None, the other words): it may stand behind what changes it."""
    path, others, words = None, [], iter(words)
    for word in words:
        if re.fullmatch('--?config', word):
            path = next(words, '')
        elif match := re.match('--?config=(.*)', word):
            path = match[1]
        else:
            others.append(word)
    return path, others


def nearest(name: str, known: Sequence[str]) -> str:
    """'nearest: ...' by the whole path, or by its last word wherever that is a field."""
    leaf = name.rsplit('.', 1)[-1]
    leaves = difflib.get_close_matches(leaf, {p.rsplit('.', 1)[-1] for p in known}, 1, 0.7)
    found = difflib.get_close_matches(name, known, 1, 0.85) or [
        p for p in known if p.rsplit('.', 1)[-1] in leaves
    ]
    found = found or difflib.get_close_matches(name, known, 1, 0.6)
    return f'nearest: {", ".join(found[:3])}' if found else 'configs/base.py lists the fields'


USER_FILES: set[Path] = set()  # config files read by this process, wherever they lie


def load_file(path: str, word: str = '') -> ConfigDict:
    """What get_config(word) of a Python file returns.

    Raises ValueError where there is no such file or it has no get_config, and as get_config does.
    """
    file = Path(path)
    if not file.is_file():
        there = ', '.join(sorted(str(f) for f in Path('configs').glob('[!_]*.py')))
        raise ValueError(f'--config={path}: no such file; configs/ has {there or "none"}')
    USER_FILES.add(file.resolve())
    spec = importlib.util.spec_from_file_location('config_file', file)
    if spec is None:
        raise ValueError(f'--config={path}: not a Python file')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, 'get_config'):
        raise ValueError(f'--config={path}: the file has no function get_config')
    try:
        config = module.get_config(*([word] if word else []))
    except (KeyError, AttributeError, TypeError) as error:  # a misspelt field or a wrong type
        raise ValueError(f'--config={path}: {str(error.args[0]).splitlines()[-1]}') from error
    if not isinstance(config, ConfigDict):
        raise ValueError(f'--config={path}: get_config must return a ConfigDict')
    return config
