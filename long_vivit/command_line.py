"""Commands: from words on the command line to a call with a resolved configuration.

    if __name__ == '__main__':
        command_line.main(train, default='configs/long.py')   # train(run: Run) -> None

A fault of the user's ends a command with one message and status 2; a fault of ours keeps its
traceback.
"""

import difflib
import linecache
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from long_vivit.config import USER_FILES, Run, base_config, flat, load_file, resolve


def main(
    run: Callable[[Run], int | None], *, default: str, argv: Sequence[str] = (),
    before: Callable[[ConfigDict], None] = lambda cfg: None,
    read: Callable[[ConfigDict], Any] = resolve,
) -> None:  # fmt: skip
    """Runs a command: reads `--config=FILE[:WORD]` and `--config.PATH=VALUE`, calls run(Run).

    Without --config the file is `default`. Other flags are absl flags of the calling module.
    `before` may complete the fields before they are checked, `read` makes of them what `run` takes.
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
        faults, words = sifted(words)
        holder.append(define(words))
        try:
            others = flags.FLAGS(words)
        except flags.UnrecognizedFlagError as error:
            hint = nearest(error.flagname, [path for path, _ in flat(base_config())])
            faults.append(f'no flag --{error.flagname}; {hint} (as --config.PATH)')
        else:
            if not faults:
                return others
            faults += refusals(holder[0].value, before, read)
        raise ValueError('\n  '.join(faults))

    def call(words: list[str]) -> int | None:
        logging.set_verbosity(logging.WARNING)  # the libraries' notes on each file they write
        if len(words) > 1:
            raise ValueError(f'{words[1]!r}: not understood; set fields by --config.PATH=VALUE')
        before(holder[0].value)
        return run(read(holder[0].value))

    with user_errors():
        app.run(call, argv=argv, flags_parser=parse)


def define(words: list[str]) -> flags.FlagHolder:
    """The flags --config and --config.PATH; `words[1]` names the file, and is taken out if JSON."""
    path = words[1].removeprefix('--config=')
    if not path.partition(':')[0].endswith('.json'):
        return config_flags.DEFINE_config_file('config', lock_config=True, sys_argv=words)
    stored = load_file(*path.partition(':')[::2])
    del words[1]
    return config_flags.DEFINE_config_dict('config', stored, lock_config=True, sys_argv=words)


OVERRIDES = """\
--config=FILE[:WORD]       the configuration ({} unless given), or the config.json of a run
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


def sifted(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """A line for each misspelt field and misread value, and the words that are neither.

    Raises ValueError: argv[1] names no config file.
    """
    path, _, word = argv[1].removeprefix('--config=').partition(':')
    known = dict(flat(load_file(path, word)))
    sections = {p.rsplit('.', i)[0] for p in known for i in range(1, p.count('.') + 1)}
    faults, sound = [], []
    for arg in argv:
        match = re.match(r'--?(no)?config\.([^=]*)(=)?(.*)', arg, re.S)
        if match and match[2] in sections:
            inside = ', '.join(p for p in known if p.startswith(match[2] + '.'))
            faults.append(f'--config.{match[2]} is a section; set one of its fields: {inside}')
        elif match and match[2] not in known:
            faults.append(f'no field --config.{match[2]}; {nearest(match[2], list(known))}')
        elif match and match[3] and (wanted := misread(match[4], known[match[2]])):
            faults.append(f'--config.{match[2]}={match[4]}: must be {wanted}')
        else:
            sound.append(arg)
    return faults, sound


def refusals(cfg: ConfigDict, before: Callable, read: Callable) -> list[str]:
    """What else stands against the fields that were understood: [the message], or []."""
    try:
        before(cfg)
        read(cfg)
    except ValueError as error:
        if not is_user_error(error):
            raise
        return [str(error)]
    return []


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
