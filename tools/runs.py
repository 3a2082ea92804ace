"""See runs, compare them, repeat them: python -m tools.runs

    [list] [--sort KEY] [--csv]    a table of runs, newest first, with the settings that differ
    show RUN                       all that is known of a run
    diff RUN RUN                   what differs: config, code, versions, data, results
    plot [RUN...] [--metric NAME] [-o FILE]    curves, as a picture
    table --by KEY [--metric NAME]             mean and interval over seeds, for each value
    compare RUN RUN [--metric NAME]            two configs over the same seeds
    clean [--keep N] [--whole] [--yes]         remove checkpoints of all but the best runs
    reproduce RUN                  train it again from its code and config; compare bit for bit

A RUN is a run folder, NAME/RUN, or RUN alone. Which runs are meant:
"""

import argparse
import csv
import json
import shutil
import sys
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from armature.errors import UserError, exit_on_user_error, positive
from armature.run_files import is_trained
from tools.run_records import (
    SEED,
    Run,
    add_selection,
    as_text,
    differing,
    duration,
    find_run,
    full_name,
    number,
    print_table,
    readable,
    runs_folder,
    selected,
    shared_settings,
    short_names,
)

SILENCE_S = 24 * 3600  # of a run that is said to train, until it counts as killed for `clean`
FACTS = ('name', 'run', 'state', 'epoch', 'best', 'test', 'time')  # the columns of every list


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    # A list is what one mostly wants: it needs no word.
    if not arguments or arguments[0].startswith('-') and arguments[0] not in ('-h', '--help'):
        arguments = ['list', *arguments]
    with exit_on_user_error():
        given = parser.parse_args(arguments)
        given.command(given)


def make_parser() -> argparse.ArgumentParser:
    selection = argparse.ArgumentParser(add_help=False, usage=argparse.SUPPRESS)
    add_selection(selection)
    parser = argparse.ArgumentParser(
        description=__doc__ + selection.format_help().partition('\n')[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(
        required=True, metavar='COMMAND', help='-h after one says more'
    )

    def command(function, text: str) -> argparse.ArgumentParser:
        name = function.__name__.partition('_')[0]
        made = commands.add_parser(name, help=text, parents=[selection])
        made.set_defaults(command=function)
        return made

    made = command(list_runs, 'a table of runs')
    made.add_argument(
        '--sort', metavar='KEY', help=f'{", ".join(FACTS)}, or a setting; newest first without'
    )
    made.add_argument('--csv', action='store_true', help='all of it, as CSV')
    made = command(show_run, 'all that is known of a run')
    made.add_argument('run', metavar='RUN')
    made = command(diff, 'what differs between two runs')
    made.add_argument('run', nargs=2, metavar='RUN')
    made = command(plot, 'curves, as a picture')
    made.add_argument('run', nargs='*', metavar='RUN')
    made.add_argument('--metric', metavar='NAME', help='what is drawn; the monitored value without')
    made.add_argument('-o', '--output', type=Path, default=Path('curves.png'), metavar='FILE')
    made = command(table, 'mean and interval over seeds')
    made.add_argument('--by', required=True, metavar='KEY', help='a setting: one row each value')
    made.add_argument('--metric', metavar='NAME', help='such as val_accuracy, or test.accuracy')
    made = command(compare, 'two configs over the same seeds')
    made.add_argument('run', nargs=2, metavar='RUN')
    made.add_argument('--metric', metavar='NAME', help='such as val_accuracy, or test.accuracy')
    made = command(clean, 'remove checkpoints')
    made.add_argument(
        '--keep', type=positive, default=3, metavar='N', help='the best N of each name stay whole'
    )
    made.add_argument(
        '--whole', action='store_true', help='remove whole runs, their records and logs too'
    )
    made.add_argument('--yes', action='store_true', help='do it; without, only show')
    made = command(reproduce, 'train a run again')
    made.add_argument('run', metavar='RUN')
    return parser


# What each word does


def list_runs(given: argparse.Namespace) -> None:
    runs = selected(given)
    keys = differing(runs)
    names = short_names(keys, FACTS)
    rows = {
        id(run): facts_of(run) | {names[key]: run.settings.get(key) for key in keys} for run in runs
    }
    if given.sort:
        column = given.sort if given.sort in FACTS else full_name(given.sort, runs, FACTS)
        runs.sort(key=lambda run: sortable(run, column))
    if given.csv:
        writer = csv.writer(sys.stdout, lineterminator='\n')
        writer.writerow([*FACTS, *(names[key] if key in FACTS else key for key in keys)])
        writer.writerows(map(as_cell, rows[id(run)].values()) for run in runs)
        return
    names = {name: name for name in [*FACTS, *names.values()]}
    metrics = {run.metric for run in runs if run.value() is not None}
    names['best'] = f'best {metrics.pop()}' if len(metrics) == 1 else 'best'
    cells = [{names[key]: readable(value) for key, value in rows[id(run)].items()} for run in runs]
    for run, row in zip(runs, cells):
        row['time'] = duration(run.record['seconds'])
        if metrics:
            row['best'] += f' {run.metric}' * (run.value() is not None)
    print_table(cells, len(FACTS))
    if unclear := [run for run in runs if run.record['note']]:
        print(f'Without a whole record: {len(unclear)}; tools.runs show RUN says why')


def as_cell(value: object) -> object:
    return as_text(value) if isinstance(value, (list, dict)) else value


def facts_of(run: Run) -> dict:
    record = run.record
    return {
        'name': record['name'],
        'run': record['run'],
        'state': record['state'],
        'epoch': run.last_epoch,
        'best': run.value(),
        'test': number(run.test.get(run.metric.removeprefix('val_'))),
        'time': number(record['seconds']),
    }


def sortable(run: Run, column: str) -> tuple:
    """Sorts numbers, then texts, then what is missing; the best first."""
    value = run.rank() if column == 'best' else {**run.settings, **facts_of(run)}.get(column)
    is_number = number(value) is not None
    return value is None, not is_number, value if is_number else str(value)


def show_run(given: argparse.Namespace) -> None:
    run = find_run(given.run, runs_folder(given))
    record = {key: value for key, value in run.record.items() if value not in (None, {}, [], '')}
    print(run.folder)
    for key, value in record.items():
        if isinstance(value, dict):
            print(f'{key}:')
            for inner, text in value.items():
                print(f'    {inner}: {brief(text)}')
        else:
            print(f'{key}: {brief(value)}')
    if run.test:
        print('test:')
        for name, value in run.test.items():
            print(f'    {name}: {plain(value)}')
    print(f'config: {json.dumps(run.config, indent=4, ensure_ascii=False)}')


def plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def diff(given: argparse.Namespace) -> None:
    runs = [find_run(text, runs_folder(given)) for text in given.run]
    sections = [{'config': run.settings} | parts_of(run) for run in runs]
    print(f'{runs[0].name} -> {runs[1].name}')
    is_equal = True
    for title in sections[0]:
        one, other = (section[title] for section in sections)
        keys = {**one, **other}
        keys = [key for key in keys if as_text(one.get(key)) != as_text(other.get(key))]
        if keys:
            is_equal = False
            print(f'{title}:')
        for key in keys:
            print(f'    {key}: {brief(one.get(key))} -> {brief(other.get(key))}')
            if key == 'commit' and one.get(key) and other.get(key):
                print(f'    (git diff {one[key]} {other[key]})')
    if is_equal:
        print('nothing differs')


def parts_of(run: Run) -> dict[str, dict]:
    """What beside its config makes a run what it is, and what came out, in the order of a diff."""
    record = run.record
    commit, changes = run.code
    code = {
        'commit': commit,
        **changed_files(changes),
        'left out': record['git'].get('left_out') or None,
    }
    best = record['best'] or {}
    results = {'state': record['state'], 'last epoch': run.last_epoch}
    results |= {'best epoch': best.get('epoch'), **(best.get('values') or {})}
    results |= {f'test {name}': value for name, value in run.test.items()}
    return {
        'code': code,
        'versions': {**record['versions'], **record['hardware']},
        'data': {**record['data'], 'classes': record['classes']},
        'results': results,
    }


def changed_files(patch: str) -> dict[str, str]:
    """What a patch changes, file by file."""
    parts = patch.split('diff --git ')[1:]
    return {f'uncommitted {part.splitlines()[0].rpartition(" b/")[2]}': part for part in parts}


def brief(value: object) -> str:
    """A value on one line; of a patch its size."""
    if isinstance(value, str) and '\n' in value:
        return f'{value.count(chr(10))} lines'
    text = '-' if value is None else plain(value)
    return text if len(text) <= 100 else f'{text[:97]}...'


def plot(given: argparse.Namespace) -> None:
    from tools.run_curves import draw

    folder = runs_folder(given)
    runs = [find_run(text, folder) for text in given.run] if given.run else selected(given)
    draw(runs, given.metric, given.output, are_named=bool(given.run))
    print(f'{given.output} is drawn')


def table(given: argparse.Namespace) -> None:
    from tools.run_statistics import print_by

    runs = selected(given)
    print_by(full_name(given.by, runs), runs, given.metric)


def compare(given: argparse.Namespace) -> None:
    from tools.run_statistics import print_pair

    runs = selected(given)
    sides, named = [], [find_run(text, runs_folder(given)) for text in given.run]
    if len({shared_settings(run, SEED) for run in named}) == 1:
        raise UserError(
            f'{named[0].name} and {named[1].name} have the same settings, but for the seed: there '
            f'are no two configs to compare. tools.runs diff {" ".join(given.run)} says what else '
            'differs, such as the code'
        )
    for run in named:
        config = shared_settings(run, SEED)
        same = [each for each in runs if shared_settings(each, SEED) == config]
        sides.append((run.name, same or [run]))
    print_pair(sides, given.metric)


def clean(given: argparse.Namespace) -> None:
    going = list(what_goes(selected(given), given.keep, given.whole))
    if not going:
        print(f'Nothing to remove: the best {given.keep} of each name stay, and whoever trains')
        return
    verb, total = 'removed' if given.yes else 'would go', 0
    for run, paths in going:
        if given.yes and may_train(run):
            continue  # it was resumed meanwhile
        size = sum(map(bytes_of, paths))
        total += size
        for path in paths if given.yes else ():
            remove(path)
        state = run.record['state']
        is_open = f' ({state})' if state != 'finished' else ''
        names = ', '.join(path.name for path in paths)
        print(f'{run.name}{is_open}: {megabytes(size)} {verb}: {names}')
    print(f'{megabytes(total)} {verb}' + '' * given.yes + '; --yes does it' * (not given.yes))


def remove(path: Path) -> None:
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f'{path} cannot be removed: {error.strerror or error}. What was removed before it is '
            'gone: mend this and give the same command again'
        ) from error


def what_goes(runs: list[Run], n_kept: int, whole: bool) -> Iterator[tuple[Run, list[Path]]]:
    """The runs that are not among the best of their name, each with what goes of it.

    Nothing goes of a run that trains, nor of one that has trained and has no value to be judged by.
    """
    for _, same in groupby(sorted(runs, key=comparable), key=comparable):
        judged = []
        for run in sorted(same, key=Run.rank):
            if may_train(run):
                continue
            if run.value() is not None:
                judged.append(run)
            elif run.record['state'] in ('failed', 'killed') and not has_learned(run):
                judged += [None] * n_kept + [run]
        for run in filter(None, judged[n_kept:]):
            log = run.folder.parents[2] / 'log' / run.folder.parent.name / run.folder.name
            paths = [run.folder, log] if whole else checkpoints_in(run.folder)
            if paths := [path for path in paths if path.exists()]:
                yield run, paths


def may_train(run: Run) -> bool:
    """Whether somebody trains there, perhaps on a machine whose locks are not seen here."""
    written = max(path.lstat().st_mtime for path in run.folder.iterdir())
    is_fresh = run.record['state'] == 'killed' and time.time() - written < SILENCE_S
    return is_fresh or is_trained(run.folder)


def has_learned(run: Run) -> bool:
    """Whether an epoch was finished, or the middle of the first one was saved."""
    return run.record['last'] is not None or bool(checkpoints_in(run.folder))


def comparable(run: Run) -> tuple[str, str]:
    """The same for runs of which one can be better: of one name that monitor the same."""
    return run.record['name'], run.record['monitor']


def checkpoints_in(folder: Path) -> list[Path]:
    """The files and folders of a run that hold weights; its records are not among them."""
    return sorted([*folder.glob('*.pth'), *folder.glob('*.pth.sha256'), *folder.glob('shards-*')])


def bytes_of(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob('*')
    return sum(file.lstat().st_size for file in files if file.is_file())


def megabytes(n_bytes: int) -> str:
    return f'{n_bytes / 1e6:.1f} MB'


def reproduce(given: argparse.Namespace) -> None:
    from tools.run_reproduce import reproduce as train_again

    if not train_again(find_run(given.run, runs_folder(given))):
        sys.exit(1)


if __name__ == '__main__':
    main()
