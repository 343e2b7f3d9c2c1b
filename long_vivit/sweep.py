"""Teach a grid of variants, a row of results for each: recall against memory, seed by seed.

    python -m long_vivit.sweep --config configs/sweep.py
    python -m long_vivit.sweep --config configs/sweep.py --config.only=masking --config.seeds=0,1
    python -m long_vivit.sweep --config configs/sweep.py --table      what is there so far
    python -m long_vivit.sweep --config configs/sweep.py --memory     compiled memory, no training

--memory compiles the contrastive step, at the masking rates of `memory` too, and a video-to-text
step on the same encoder, frozen; of the lines there were, those of other variants stay.

--config.base.PATH=VALUE changes the recipe that all cells share: its data, steps, sizes. What rows
are compared by stays as it is in a work directory: the base, its test sets, the first of the seeds
where stages are taught once for all.

Each cell is a normal run in its own folder of the work directory, and so is each stage that several
cells begin with, taught once. The same command goes on where it was stopped, by whatever. Exit
status: 0; 1 where a cell failed (its reason is in failed.jsonl, the others were taught); 2 where
the configuration is at fault.

rows.jsonl    a line for each cell that is done    memory.jsonl   of --memory
cells/        its runs                             shared/        those that several start from
logs/         what they printed                    facts/         what each variant takes
"""

import itertools
import json
import re
import time
from pathlib import Path

from absl import flags

from long_vivit import command_line, config, stories
from long_vivit.stop import Signalled, Signals, words
from long_vivit.sweeps import grid, jobs, report, rows
from long_vivit.workdir import Workdir, changed_fields, locked, writable
from long_vivit.writers import JsonlWriter, read_jsonl, write_json_atomic, write_text_atomic

JOBS = flags.DEFINE_integer('jobs', 1, 'cells at a time, each on its share', lower_bound=1)
TABLE = flags.DEFINE_bool('table', False, 'print the table of the rows there are, and end')
MEMORY = flags.DEFINE_bool(
    'memory', False, 'compile all variants, at all masking rates and in video-to-text, and end'
)

CPU = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
TAUGHT = ('cells/*/*/*', 'shared/*/*/*/*')  # what runs leave in their folders
# A run may go on with others of these; rows that are compared may not.
SCORED = re.compile(r'base\.(data\.eval|eval\.\w+|stages\.\w+\.(eval|eval_sampler))')
LINES_OWN = ('sizes', 'frames', 'remats', 'rates', 'limit_gb')  # of `memory`: may be others by line


def main(sweep):
    """`run` a checked Sweep, or print what is there -> exit status."""
    if TABLE.value:
        say(report.table(read_jsonl(sweep.workdir / 'rows.jsonl'), sweep.memory))
        return 0
    shares = jobs.shares(JOBS.value)
    try:
        with writable(sweep.workdir):
            sweep.workdir.mkdir(parents=True, exist_ok=True)
        with (
            locked(sweep.workdir, 'another sweep is at work', 'this one'),
            writable(sweep.workdir),
            Signals(),
        ):
            keep_base(sweep, of_rows=not MEMORY.value)
            stories.build_missing(sweep.base, say)  # here, or jobs would build them side by side
            with jobs.Pool(shares, sweep.workdir / 'logs') as pool:
                return (compile_all if MEMORY.value else teach)(sweep, pool)
    except Signalled as signalled:
        say(f'{words(signalled.number)}: the same command goes on from what is in {sweep.workdir}')
        return 128 + signalled.number


def teach(sweep, pool):
    """Teaches the cells that have no row yet -> exit status."""
    file = sweep.workdir / 'rows.jsonl'
    done = {row['cell'] for row in read_jsonl(file)}
    todo = [cell for cell in sweep.cells if cell.name not in done]
    tasks = list({task.name: task for cell in todo for task in tasks_of(cell, sweep)}.values())
    say(
        f'{sweep.workdir}: {len(sweep.cells)} cells, {len(sweep.cells) - len(todo)} done before; '
        f'{sum(not task.finished() for task in tasks)} runs to go'
    )
    commit, ended, failed = rows.commit_of(Path(__file__).parent), {}, 0
    with JsonlWriter(file) as writer, JsonlWriter(sweep.workdir / 'failed.jsonl') as ledger:
        for task, reason in pool.run(tasks):
            ended[task.name] = reason
            if reason:
                say(f'failed: {task.name}: {reason}')
            for cell in [cell for cell in todo if ready(cell, ended)]:
                todo.remove(cell)
                if wrong := [ended[n] for n in (costs_name(cell), cell.chain[-1].name) if ended[n]]:
                    ledger.append({'cell': cell.name, 'reason': wrong[0], 'time': time.time()})
                    failed += 1
                    continue
                row = row_of(cell, sweep, pool, commit)
                writer.append(row)
                say(f'[{len(sweep.cells) - len(todo)}/{len(sweep.cells)}] {report.line(row)}')
    say('')
    say(report.table(read_jsonl(file), sweep.memory))
    if failed:
        say(f'\n{failed} cell(s) failed: {sweep.workdir / "failed.jsonl"}; start again to retry')
    return 1 if failed else 0


def ready(cell, ended):
    """Whether all that the row of a cell needs has ended, well or not."""
    return costs_name(cell) in ended and cell.chain[-1].name in ended


def row_of(cell, sweep, pool, commit):
    """The row of a cell that is done."""
    link = cell.chain[-1]
    log = pool.logs / f'{link.name}.log'
    return rows.row_of(
        cell, Workdir(link.path).finished(link.stage.name),
        json.loads((sweep.workdir / f'{costs_name(cell)}.json').read_text()),
        jobs=JOBS.value, device=rows.device_of(log), commit=commit,
    )  # fmt: skip


def tasks_of(cell, sweep):
    """What leads to the row of a cell: its runs one after the other, and what its variant takes."""
    before = ()
    for link in cell.chain:
        file = link.path.with_suffix('.json')
        write_text_atomic(file, config.to_json(link.run))
        yield jobs.Task(
            link.name, ('-m', 'long_vivit.train', f'--config={file}'),
            lambda link=link: Workdir(link.path).finished(link.stage.name) is not None, before,
        )  # fmt: skip
        before = (link.name,)
    yield costs_task(cell, sweep, costs_name(cell))


def costs_name(cell):
    return f'facts/{cell.folder}'


def costs_task(cell, sweep, name, rates=(), video_to_text=False):
    """The task that finds out what a variant takes, at its own masking rate and at `rates`."""
    out, file = sweep.workdir / f'{name}.json', sweep.workdir / f'{name}.request.json'
    request = {
        'run': json.loads(config.to_json(cell.whole)),
        'base': json.loads(config.to_json(sweep.base)),
        'memory': sweep.memory,
        'rates': list(rates),
        'video_to_text': video_to_text,
        'cache': str(sweep.workdir / 'facts' / 'compiled'),
        'out': str(out),
    }
    write_json_atomic(file, request)
    written = grid.digest(json.loads(file.read_text()))

    def finished():
        return out.exists() and json.loads(out.read_text())['request'] == written

    arguments = ('-m', 'long_vivit.sweeps.costs', str(file))
    return jobs.Task(name, arguments, finished, environment=CPU)


def compile_all(sweep, pool):
    """The table of memory: all variants at their own masking rate and at others -> exit status.

    In memory.jsonl the lines of a variant are replaced as it comes. Those of others stay, but where
    they were compiled with other settings, or of another base.
    """
    file, of, failed = sweep.workdir / 'memory.jsonl', settings_of(sweep), 0
    tasks = {f'{costs_name(cell)}.rates': cell for cell in sweep.variants}
    found = {}
    for one in read_jsonl(file):
        if one.get('of', of) == of:  # those of before have none
            found.setdefault(one['variant'], []).append(one)
    for cell in sweep.variants:
        found.setdefault(cell.variant, [])
    for task, reason in pool.run(
        [
            costs_task(cell, sweep, name, sweep.memory['rates'], video_to_text=True)
            for name, cell in tasks.items()
        ]
    ):
        if reason:
            say(f'failed: {task.name}: {reason}')
            failed += 1
            continue
        cell = tasks[task.name]
        facts = json.loads((sweep.workdir / f'{task.name}.json').read_text())
        shared = {'variant': cell.variant, 'of': of}
        found[cell.variant] = [shared | one for one in facts['memory']]
        say(f'{cell.variant}: {len(found[cell.variant])} compiled')
        lines = itertools.chain.from_iterable(found.values())
        write_text_atomic(file, ''.join(json.dumps(one) + '\n' for one in lines))
    say('')
    say(report.memory_table(read_jsonl(file), sweep.memory))
    return 1 if failed else 0


def settings_of(sweep):
    """Tells apart lines of memory.jsonl that do not go together: the base, and most of `memory`."""
    memory = {key: value for key, value in sweep.memory.items() if key not in LINES_OWN}
    return grid.digest([json.loads(config.to_json(sweep.base)), config.to_json(memory)])


def keep_base(sweep, *, of_rows):
    """Stores what the cells share, or checks that it is what the cells there were taught with.

    of_rows: what the rows are compared by too: test sets, the shapes of `memory`, and the seed of
    stages that are taught once; those of --memory may be others.
    Raises ValueError with all fields that differ.
    """
    file = sweep.workdir / 'sweep.json'
    first = {'first_seed': sweep.seeds[0]} if sweep.seeds_from else {}
    now = config.Run(
        base=sweep.base, memory=config.frozen(sweep.memory), seeds_from=sweep.seeds_from, **first
    )
    if file.exists() and any(path for one in TAUGHT for path in sweep.workdir.glob(one)):
        if changed := list(changes_of(now, config.from_json(file.read_text()), of_rows)):
            raise ValueError(
                '\n  '.join([
                    f'{sweep.workdir} holds a sweep of another base; change these back, or give '
                    'this one a workdir of its own (nothing was changed):', *changed,
                ])
            )  # fmt: skip
        if not of_rows:
            return
    write_text_atomic(file, config.to_json(now))


def changes_of(now, before, of_rows):
    """A line for each field of sweep.json that differs and may not; of_rows: see `keep_base`."""
    firm = set(changed_fields(now, before, below='base.'))
    for line in config.difference(now, before):
        path = line.partition(':')[0]
        if path == 'first_seed':
            old, new = (vars(one).get(path) for one in (before, now))
            if of_rows and None not in (old, new):  # in sweeps of before it was not stored
                yield (
                    f'seeds: {old} -> {new}, the first of them, with which the stages before '
                    f'`{now.seeds_from}` were taught; name it first: seeds={old},{new}'
                )
        elif path.startswith('memory.'):
            if of_rows and not path.startswith('memory.language.'):  # no row's
                yield line
        elif line in firm or (of_rows and SCORED.fullmatch(path)):
            yield line


def say(text):
    """A line on the screen, there at once."""
    print(text, flush=True)


if __name__ == '__main__':
    command_line.main(main, default='configs/sweep.py', read=grid.read)
