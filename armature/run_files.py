"""The files in a run's folder: what they are called, how they are read, who trains there.

Needs the standard library only, so that looking at runs is quick. Who writes them:
armature/run/record.py.
"""

import csv
import json
import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

VERSION = 1
RECORD, CONFIG, TABLE, TEST = 'run.json', 'config.json', 'metrics.csv', 'test.json'
CHANGES, LOCK = 'changes.patch', '.lock'
ABOUT_THE_EPOCH = re.compile(r'epoch|step|seconds|lr(/.*)?')  # columns that no metric reports
LOCKED_BYTE = 2**30  # Windows locks bytes, and nobody can read those; this one is never written
locked_here = set()  # the folders of runs that this process trains in


# Reading


def read_object(path: Path) -> tuple[dict, str]:
    """(the object in a JSON file, what is wrong with it)."""
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        return {}, f'{path.name} cannot be read: {error.strerror or error}'
    except (ValueError, RecursionError):
        found = None
    return (found, '') if isinstance(found, dict) else ({}, f'{path.name} is damaged')


def read_table(path: str | Path, last_epoch: float = math.inf) -> list[dict[str, Any]]:
    """The rows of a metrics.csv up to an epoch, as numbers; none where there is no table.

    A last line without its end is being written, or was cut off: half a number is a wrong one. It
    counts where run.json says the same.
    """
    path = Path(path)
    if not path.is_file():
        return []
    with path.open(encoding='utf-8-sig', errors='replace', newline='') as file:
        lines = file.readlines()
    ended = [line for line in lines if line.endswith('\n')]
    rows = _rows(ended)
    match read_object(path.with_name(RECORD))[0].get('last') if ended != lines else None:
        case {'epoch': epoch, 'values': dict(values)}:
            said = {'epoch': epoch, **values}
            rows += [row for row in _rows([*ended[:1], lines[-1]]) if row.items() >= said.items()]
    return [row for row in rows if row['epoch'] <= last_epoch]


def is_table(path: Path) -> bool:
    """Whether a metrics.csv holds nothing that `read_table` does not understand."""
    try:
        with path.open(encoding='utf-8-sig', errors='replace', newline='') as file:
            rows = [row for row in csv.reader(file) if row]
        return not rows or 'epoch' in rows[0] and len(read_table(path)) == len(rows) - 1
    except (OSError, csv.Error):
        return False


def _rows(lines: list[str]) -> list[dict[str, Any]]:
    rows = []
    for row in csv.DictReader(lines):
        if None not in row and None not in row.values():  # cells too many, or too few
            values = {name: _number(text) for name, text in row.items() if name and text}
            if isinstance(values.get('epoch'), int):
                rows.append(values)
    return rows


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def values_of(row: dict[str, Any]) -> dict[str, Any]:
    """What an epoch reported, without what its row says of the epoch itself."""
    return {name: value for name, value in row.items() if not ABOUT_THE_EPOCH.fullmatch(name)}


# Who trains there


def lock(file: TextIO, alone: bool) -> None:
    """Lock an open file, or raise OSError. The kernel lets go of it when the process dies."""
    if fcntl is not None:  # lockf, not flock: loader workers must not inherit it
        fcntl.lockf(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    else:
        file.seek(LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)


def is_trained(folder: Path) -> bool:
    """Whether a process trains in a run's folder now; True where nobody can tell."""
    if folder.resolve() in locked_here:
        return True  # closing the file here would let go of the lock
    try:
        with open(folder / LOCK, encoding='utf-8') as file:
            lock(file, alone=False)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
