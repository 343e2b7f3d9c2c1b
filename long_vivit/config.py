"""Configurations: from a file, checked, to plain read-only values.

Only this module reads ConfigDict, and command_line.py, which fills it. The rest of the program gets
plain Python values from a `Run`; what is allowed is written in rules.py, the fields themselves in
configs/base.py.
"""

import copy
import difflib
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from long_vivit import model_rules, rules, stories, weights


class Run:
    """A section of a resolved configuration: read-only attributes holding plain Python values.

    Values are bool, int, float, str, a tuple, or another Run. The outermost one has every field
    of configs/base.py, with these differences:

    * `stages` is the tuple of the stages to teach, in order, each with its `name`;
    * data.train and data.eval have been written into the stages, and images of the built-in stories
      are not mixed into data of one's own;
    * model.video has the width, depth and heads that its size stands for;
    * with model.from_init the fields of the architecture are those of `init`.

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
    plain = checked(cfg)
    stages = []
    for name in plain['run']:
        stage = plain['stages'][name]
        for kind in ('train', 'eval'):
            stage[kind] = plain['data'][kind] or stage[kind]
        if plain['data']['train'] and _built_in(stage['image_train'], but=stage['train']):
            stage.update(image_train='', image_ratio=0.0)
        stages.append({'name': name, **stage})
    video = plain['model']['video']
    if video['size'] != 'custom':
        video.update(rules.SIZES[video['size']]._asdict())
    return frozen({**plain, 'stages': stages})


def _built_in(spec: str, but: str) -> bool:
    """Whether a data spec names the built-in stories and `but` does not."""
    mine, other = (s.startswith(f'{stories.NAME}/') for s in (spec, but))
    return mine and not other


def check(cfg: ConfigDict) -> None:
    """Raises one ValueError with all faults, a line each: `path: what is given; what is allowed`"""
    checked(cfg)


def checked(cfg: ConfigDict) -> dict:
    """The plain values, those of model.from_init filled in. Raises as `check` does."""
    base = plain_values(base_config())
    plain, faults = filled(plain_values(cfg), base)
    faults += rules.faults(plain, base)
    if faults:
        count = 'one fault' if len(faults) == 1 else f'{len(faults)} faults'
        raise ValueError('\n  '.join([f'the configuration has {count}:', *faults]))
    return plain


def filled(plain: dict, base: dict) -> tuple[dict, list[str]]:
    """With model.from_init: the architecture that `init` tells of, in place of the defaults.

    Where the first stage would cut the text's position table, model.text.length keeps it whole.
    Returns the values, and a line for each field that is set to something else.
    """
    sound = not any(rules.structure_faults(plain, base))
    if not (sound and plain['model']['from_init']):
        return plain, []
    family = weights.split(plain['init'])
    if family and not os.path.exists(family[1]):  # rules.py says so
        return plain, []
    try:
        found = weights.describe(plain['init'])
    except ValueError as error:
        return plain, [f'model.from_init: {error}']
    plain, faults = copy.deepcopy(plain), []
    for path, value in found.fields.items():
        *sections, key = path.split('.')
        here, default = plain, base
        for section in sections:
            here, default = here[section], default[section]
        if here[key] not in (default[key], value):
            faults.append(
                f'{path}: {here[key]!r}, but {plain["init"]} has {value!r}; leave it at its '
                f'default {default[key]!r}, or set model.from_init to False.'
            )
        here[key] = value
    if rows := model_rules.text_rows(plain, found.text_length):
        plain['model']['text']['length'] = rows
    return plain, faults


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


def changed(cfg: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    """A copy of `cfg` with the fields at these paths set, as the command line would set them.

    Raises ValueError with a line for each that is no field, or is given a value of another type.
    """
    found, known, faults = copy.deepcopy(cfg), dict(flat(cfg)), []
    for path, value in changes.items():
        if path not in known:
            near = difflib.get_close_matches(path, known, 1)
            hint = f'nearest: {near[0]}' if near else 'configs/base.py lists the fields'
            faults.append(f'{path}: no such field; {hint}')
            continue
        try:
            found.update_from_flattened_dict({path: value})
        except TypeError:
            faults.append(f'{path}: {value!r}; it must be of type {type(known[path]).__name__}')
    if faults:
        raise ValueError('\n  '.join(faults))
    return found


def difference(cfg: ConfigDict | Run, base: ConfigDict | Run) -> list[str]:
    """Fields that differ, as 'path: old -> new' in order of path; 'absent' where one lacks it."""
    old, new = dict(flat(base)), dict(flat(cfg))
    missing = object()
    changed = [p for p in {**new, **old} if old.get(p, missing) != new.get(p, missing)]
    show = lambda values, path: repr(values[path]) if path in values else 'absent'  # noqa: E731
    return [f'{path}: {show(old, path)} -> {show(new, path)}' for path in sorted(changed)]


def came_later(now: Run, before: Run, below: str = '') -> set[str]:
    """Paths of fields that a stored `before` lacks and that stand at their defaults in `now`.

    The program gained them since: a default is what it did without. Whole sections that one lacks,
    such as a stage, are none of it. below: where in both a run lies, such as 'base.'.
    """
    old, new = dict(flat(before)), dict(flat(now))
    sections = {path.rpartition('.')[0] for path in old}
    default = dict(flat(frozen(plain_values(base_config()))))
    later = (path for path in new if path not in old and path.rpartition('.')[0] in sections)

    def is_default(path):
        name = re.sub(r'^stages\.[^.]+\.', 'stages.short.', path.removeprefix(below))
        return name in default and default[name] == new[path]

    return {path for path in later if is_default(path)}


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


USER_FILES: set[Path] = set()  # config files read by this process, wherever they lie


def load_file(path: str, word: str = '') -> ConfigDict:
    """What get_config(word) of a Python file returns, or the configuration that a run stored.

    Raises ValueError where there is no such file or it has no get_config, and as get_config does.
    """
    file = Path(path)
    if not file.is_file():
        there = ', '.join(sorted(str(f) for f in Path('configs').glob('[!_]*.py')))
        raise ValueError(f'--config={path}: no such file; configs/ has {there or "none"}')
    if file.suffix == '.json':
        return stored(file, word)
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


def stored(file: Path, word: str = '') -> ConfigDict:
    """The configuration in a run's config.json, to teach the same again or with changes.

    It has the stages of that run only. Raises ValueError: the file holds none, or there is a word.
    """
    if word:
        raise ValueError(f"--config={file}:{word}: a stored configuration takes no word after ':'")
    try:
        fields = tuples(json.loads(file.read_text(encoding='utf-8')))
        fields['stages'] = {one.pop('name'): one for one in fields['stages']}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'--config={file}: not the configuration of a run, as its config.json holds one '
            f'({type(error).__name__}: {error})'
        ) from None
    return ConfigDict(fields)


def tuples(value: Any) -> Any:
    """Lists as tuples, all the way down: JSON has no tuples, and the fields have no lists."""
    if isinstance(value, dict):
        return {key: tuples(one) for key, one in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value
