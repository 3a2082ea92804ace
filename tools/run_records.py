"""What runs.py and sweep.py read of runs: their records, which of them are meant, and how runs that
differ only in their seed belong together. Needs the standard library only, to be quick.
"""

import argparse
import csv
import json
import math
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from armature.config.read import lookup, parse_value
from armature.config.spelling import composed, did_you_mean
from armature.errors import UserError, positive
from armature.run_files import CHANGES, CONFIG, RECORD, TABLE, read_table
from tools.run_files import find_runs, read_config, read_record, read_test

PROJECT = Path(__file__).resolve().parent.parent
UNITS = {'h': 'hours', 'd': 'days', 'w': 'weeks'}
NO_SETTINGS = ('name', 'trainer.save_dir', 'sweep')  # where a run lies, not what it is
SEED = 'seed'


@dataclass
class Run:
    """A run folder and what its files say; what they do not say is None or empty."""

    folder: Path

    @cached_property
    def record(self) -> dict:
        record = read_record(self.folder)
        # A folder that was copied or renamed is found under the names that it has now.
        record['run'], above = self.folder.name, self.folder.parent
        if above.parent.name == 'models':
            record['name'] = above.name
        return record

    @cached_property
    def config(self) -> dict:
        return read_config(self.folder)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config, flat: {'optimizer.args.lr': 0.01, ...}. Lists are values."""
        flat = flattened(self.config)
        if flat.get(SEED) is None and self.record['seed'] is not None:
            flat[SEED] = self.record['seed']
        return {key: value for key, value in flat.items() if not is_below(key, NO_SETTINGS)}

    @cached_property
    def test(self) -> dict[str, float]:
        return (read_test(self.folder) or {}).get('values') or {}

    @property
    def code(self) -> tuple[str | None, str]:
        """The commit it was trained with, and what was not committed then."""
        changes = self.folder / CHANGES
        patch = ''
        with suppress(OSError):  # there is none, or it is somebody else's
            patch = changes.read_text(errors='replace')
        return self.record['git'].get('commit'), patch

    @property
    def rows(self) -> list[dict]:
        """What each finished epoch reported."""
        try:
            return read_table(self.folder / TABLE)
        except (OSError, csv.Error) as error:
            reason = getattr(error, 'strerror', None) or error
            raise UserError(f'{self.folder / TABLE} cannot be read: {reason}') from error

    @property
    def name(self) -> str:
        return f'{self.record["name"]}/{self.record["run"]}'

    @property
    def begun(self) -> datetime:
        """UTC; the oldest moment where nobody knows."""
        try:
            moment = datetime.fromisoformat(self.record['begun'])
        except (TypeError, ValueError):
            return datetime.min.replace(tzinfo=UTC)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

    @property
    def last_epoch(self) -> int | None:
        """The last finished epoch; of runs of the old template the last that was saved."""
        if epoch := (self.record['last'] or {}).get('epoch'):
            return epoch
        names = [path.stem for path in self.folder.glob('checkpoint-epoch*.pth')]
        saved = [int(found[1]) for name in names if (found := re.search(r'epoch(\d+)$', name))]
        return max(saved, default=None)

    @property
    def mode(self) -> str:
        return self.record['monitor'].partition(' ')[0]

    @property
    def metric(self) -> str:
        """The name of the value that is monitored; '' where none is."""
        return self.record['monitor'].partition(' ')[2].strip()

    def value(self, metric: str | None = None) -> float | None:
        """The monitored value of the best epoch, or another value of that epoch, or test.NAME."""
        metric = metric or self.metric
        if metric.startswith('test.'):
            return number(self.test.get(metric.removeprefix('test.')))
        return number(((self.record['best'] or {}).get('values') or {}).get(metric))

    def rank(self) -> float:
        """Sorts the best run first, and those that have no value last."""
        value = self.value()
        return math.inf if value is None else -value if self.mode == 'max' else value


def number(value: Any) -> float | None:
    """`value` if it is a number that can be compared."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def flattened(config: dict, prefix: str = '') -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flattened(value, f'{prefix}{key}.')
        else:
            flat[f'{prefix}{key}'] = value
    return flat


def is_below(key: str, sections: Iterable[str]) -> bool:
    return any(key == section or key.startswith(f'{section}.') for section in sections)


def differing(runs: list[Run]) -> list[str]:
    """The settings that are not the same in all `runs`."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [key for key in keys if len({as_text(run.settings.get(key)) for run in runs}) > 1]


def show_value(run: Run, key: str) -> str:
    """A setting as text that compares; also one that is null in other runs and a section here."""
    value = run.settings.get(key)
    return as_text(lookup(run.config, key.split('.')) if value is None else value)


def as_text(value: Any) -> str:
    """A text that compares: 1 and 1.0 are the same; 1, true and "1" are not."""
    return json.dumps(_without_point(value), sort_keys=True, ensure_ascii=False)


def _without_point(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_point(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def shared_settings(run: Run, *without: str) -> str:
    """All settings of a run but those of `without`, as one text: the same for runs that agree."""
    return json.dumps(
        {
            key: as_text(value)
            for key, value in sorted(run.settings.items())
            # null stands for the default, but in the arguments of a class
            if key not in without and (value is not None or '.args.' in key)
        }
    )


def counting_last(runs: Iterable[Run]) -> list[Run]:
    """Of runs that repeat each other the last one counts: the newest that is finished, if any is.

    A run that was repeated under its seed and settings is no new evidence.
    """
    return sorted(runs, key=lambda run: (run.record['state'] == 'finished', run.begun))


def by_seed(runs: list[Run]) -> dict[str, Run]:
    """{seed: the run that counts}."""
    return {show_value(run, SEED): run for run in counting_last(runs)}


def short_names(keys: list[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """For each of `keys` its shortest end that no other has: lr for optimizer.args.lr.

    taken: names that stand for something else already.
    """
    ends = {}
    for key in keys:
        parts = key.split('.')
        candidates = ['.'.join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
        free = [end for end in candidates if end not in taken]
        ends[key] = next(
            (end for end in free if end == key or sum(is_end_of(end, each) for each in keys) == 1),
            f'config.{key}',
        )
    return ends


def is_end_of(end: str, key: str) -> bool:
    return f'.{key}'.endswith(f'.{end}')


def full_name(end: str, runs: list[Run], others: Iterable[str] = ()) -> str:
    """The setting that `end` means, such as optimizer.args.lr for lr; else a UserError.

    others: names that could have been meant as well.
    """
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    found = [end] if end in keys else [key for key in keys if is_end_of(end, key)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f'{end!r} may mean {", ".join(found)}: write one of these')
    near = did_you_mean(end, [*others, *keys, *(key.rpartition('.')[2] for key in keys)])
    raise UserError(f'no run has a setting {end!r}{near}: tools.runs show RUN says which it has')


# Which runs


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The flags that say which runs are meant."""
    parser.add_argument(
        '--save-dir', default='saved', metavar='FOLDER', help='trainer.save_dir of the runs'
    )
    parser.add_argument('--name', metavar='NAME', help="the experiment's name; * stands for any")
    parser.add_argument(
        '--where',
        action='append',
        default=[],
        metavar='KEY=VALUE',
        help='runs with this setting, such as optimizer.args.lr=0.01 or lr=0.01',
    )
    parser.add_argument(
        '--since', type=moment, metavar='TIME', help='begun since 12h, 7d, 2w or 2026-01-31'
    )
    parser.add_argument('--last', type=positive, metavar='N', help='the newest N of these')
    parser.add_argument('--best', type=positive, metavar='N', help='the best N of these')


def moment(text: str) -> datetime:
    """The moment that '7d' (ago) or an ISO date means, as an argparse type."""
    if found := re.fullmatch(r'(\d{1,5})([hdw])', text):
        return datetime.now(UTC) - timedelta(**{UNITS[found[2]]: int(found[1])})
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{text!r} is no time: expected such as 12h, 7d, 2w or 2026-01-31'
        ) from None


def runs_folder(given: argparse.Namespace) -> Path:
    return PROJECT / Path(given.save_dir).expanduser()


def selected(given: argparse.Namespace) -> list[Run]:
    """The runs that the flags mean, newest first; UserError when there are none."""
    folder = runs_folder(given)
    # A link to another of these is the same run: it would be counted, and cleaned, a second time.
    paths = {}
    for path in sorted(find_runs(folder), key=Path.is_symlink):
        paths.setdefault(path.resolve(), path)
    runs = [Run(path) for path in paths.values()]
    if not runs:
        raise UserError(
            f'no runs in {folder / "models"}: train one (python train.py -c config.json), or say '
            'with --save-dir where they are'
        )
    names = sorted({run.record['name'] for run in runs}) if given.name else []
    runs = [run for run in runs if not given.name or is_named(run.record['name'], given.name)]
    if not runs:
        raise UserError(
            f'no run is named {given.name!r}{did_you_mean(given.name, names)}: there are '
            f'{", ".join(names)}'
        )
    for condition in given.where:
        key, equals, text = condition.partition('=')
        if not equals:
            raise UserError(f'--where {condition}: expected KEY=VALUE')
        key, value = full_name(key, runs), as_text(parse_value(text, f'--where {key}'))
        known = sorted({show_value(run, key) for run in runs})
        runs = [run for run in runs if show_value(run, key) == value]
        if not runs:
            raise UserError(f'--where {condition}: no run has it, {key} is {", ".join(known)}')
    runs = sorted(runs, key=lambda run: run.begun, reverse=True)
    runs = [run for run in runs if given.since is None or run.begun >= given.since]
    if not runs:
        raise UserError(f'no run was begun since {given.since:%Y-%m-%d %H:%M} UTC')
    runs = runs[: given.last]
    rules = sorted({run.record['monitor'] for run in runs if run.value() is not None})
    if given.best and len(rules) > 1:
        raise UserError(
            f'--best {given.best}: these runs monitor {", ".join(rules)}, which do not compare: '
            'choose some of them with --name or --where'
        )
    if given.best and not rules:
        raise UserError(
            f'--best {given.best}: none of these runs has a value of what trainer.monitor names: '
            'leave --best out'
        )
    judged = [run for run in runs if run.value() is not None]
    return sorted(judged, key=Run.rank)[: given.best] if given.best else runs


def is_named(name: str, wanted: str) -> bool:
    """Whether a name is the wanted one, or fits into it as a pattern."""
    return composed(name) == composed(wanted) or fnmatchcase(composed(name), composed(wanted))


def find_run(text: str, folder: Path) -> Run:
    """The run that is meant by its folder's path, by NAME/RUN, or by RUN where it is the only one.

    folder: trainer.save_dir.
    """
    for path in (Path(text), folder / 'models' / text) if text else ():
        if any(os.path.isfile(path / name) for name in (RECORD, CONFIG)):
            return Run(path.resolve())
    runs = find_runs(folder)
    wanted = composed(text)
    found = [path for path in runs if composed('/'.join(path.parts[-2:])) == wanted]
    found = found or [path for path in runs if composed(path.name) == wanted]
    if len(found) == 1:
        return Run(found[0])
    if found:
        names = ', '.join(f'{path.parent.name}/{path.name}' for path in found)
        raise UserError(f'{text} may be {names}: write one of these')
    near = did_you_mean(text, [f'{path.parent.name}/{path.name}' for path in runs])
    near = near or did_you_mean(text, [path.name for path in runs])
    raise UserError(
        f'{text}: no such run in {folder / "models"}{near}; tools.runs lists them, and --save-dir '
        'says where they are'
    )


# Showing


def readable(value: Any) -> str:
    """A cell of a table: numbers with four significant digits."""
    if value is None:
        return ''
    if isinstance(value, float):
        return f'{value:.4g}'
    if isinstance(value, str) and value.isprintable():
        return value
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f'{text[:57]}...'


def duration(seconds: Any) -> str:
    seconds = number(seconds)
    is_known = seconds is not None and 0 <= seconds < 1e9
    return str(timedelta(seconds=round(seconds))) if is_known else ''


def width(text: str) -> int:
    """The columns that a text takes on a terminal, where Korean letters take two."""
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in 'WF')
        for char in composed(text)
    )


def print_table(rows: list[dict[str, str]], n_needed: int) -> None:
    """Rows of cells under the names of their columns.

    On a terminal, columns behind the first `n_needed` that do not fit are left out, and named.
    """
    columns = list(rows[0])
    widths = {name: max(width(name), *(width(row[name]) for row in rows)) for name in columns}
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else math.inf
    while len(columns) > n_needed and sum(widths[name] + 2 for name in columns) - 2 > room:
        columns.pop()
    for row in ({name: name for name in columns}, *rows):
        cells = (row[name] + ' ' * (widths[name] - width(row[name])) for name in columns)
        print('  '.join(cells).rstrip())
    if len(columns) < len(rows[0]):
        print(f'Not shown for want of room: {", ".join(list(rows[0])[len(columns) :])}')
