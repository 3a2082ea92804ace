"""The files in a run's folder: what they are called, how they are read, who trains there; and what
run.json says of the code. Needs the standard library only, so that looking at runs is quick.
"""

import csv
import json
import math
import os
import platform
import re
import shutil
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
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
SOURCES = re.compile(
    r'\.(py|pyx|c|cc|cpp|cu|h|json|toml|yaml|yml|cfg|ini|txt|md|sh|sbatch)', re.IGNORECASE
)
MAX_BYTES = 2**20  # of a patch, and of a source in it
MAX_NAMES = 100  # of files that are left out
GIT_S = 5

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

    A last line without its end is being written, or was cut off: half a number is a wrong one.
    """
    rows, path = [], Path(path)
    if path.is_file():
        with path.open(encoding='utf-8', errors='replace', newline='') as file:
            for row in csv.DictReader(line for line in file if line.endswith('\n')):
                values = {name: _number(text) for name, text in row.items() if name and text}
                if isinstance(values.get('epoch'), int) and values['epoch'] <= last_epoch:
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


# What the code is


def versions(project: Path) -> dict[str, str]:
    """Of Python and of each installed package that a requirements*.txt of the project names."""
    found = {'python': platform.python_version()}
    for file in sorted(project.glob('requirements*.txt')):
        text = file.read_text(encoding='utf-8', errors='replace')
        for name in re.findall(r'^[A-Za-z0-9][\w.-]*', text, re.MULTILINE):
            with suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(name)
    return found


def code_of(project: Path, saved: Path) -> tuple[dict[str, Any], bytes]:
    """The commit that runs and what is not committed: (run.json's "git", a patch).

    `git apply` makes the code of the run from the commit. The patch holds sources only, new ones
    too, and has at most a megabyte; "left_out" names other files that are changed. saved: where
    runs are, which are no part of the code. Empty without git or outside a repository.
    """
    said = os.fsdecode(_git(project, 'rev-parse', 'HEAD', '--git-path', 'index')).splitlines()
    if len(said) != 2:
        return {}, b''
    diff = ['diff', 'HEAD', '--relative', '--no-renames', '--no-ext-diff', '--no-textconv']
    # Listed first: `git add` would take a second for each 200,000 files of data.
    new = _names(project, 'ls-files', '--others', '--exclude-standard', '-z')
    changed = _names(project, *diff, '--name-only', '-z')
    # Runs and data may be kept in the project's own folder.
    apart = saved / 'models', saved / 'log', project / 'data'
    names = [
        name
        for name in sorted(new | changed)
        if not any(map((project / name).is_relative_to, apart))
    ]
    taken, patch = [name for name in names if _is_source(project / name)], b''
    if taken:
        # What is new is only seen by `git diff` once the index knows of it: a copy of the index.
        with TemporaryDirectory() as scratch, suppress(OSError):
            index = shutil.copy(project / said[1], scratch)
            added = [name for name in taken if name in new]
            _git(project, 'add', '--intent-to-add', '--', *added, GIT_INDEX_FILE=index)
            style = ['--no-color', '--src-prefix=a/', '--dst-prefix=b/']
            patch = _git(project, *diff, *style, '--', *taken, GIT_INDEX_FILE=index)
    if len(patch) > MAX_BYTES:
        patch = b''
    left_out = [name for name in names if not patch or name not in taken]
    if len(left_out) > MAX_NAMES:
        left_out[MAX_NAMES:] = [f'{len(left_out) - MAX_NAMES} more']
    changes = CHANGES if patch else None
    return {'commit': said[0], 'changes': changes, 'left_out': left_out}, patch


def _is_source(path: Path) -> bool:
    is_big = path.is_file() and path.stat().st_size > MAX_BYTES
    return bool(SOURCES.fullmatch(path.suffix)) and not is_big


def _names(project: Path, *arguments: str) -> set[str]:
    return {os.fsdecode(name) for name in _git(project, *arguments).split(b'\0') if name}


def _git(project: Path, *arguments: str, **settings: str) -> bytes:
    """What git says; empty where it fails or takes too long. settings: for its environment."""
    # git sets GIT_DIR and more for what it starts (a hook, an alias): that is another repository's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}
    environment |= {'GIT_OPTIONAL_LOCKS': '0', **settings}
    command = ['git', '--literal-pathspecs', '-C', str(project), *arguments]
    try:
        return subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_S,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return b''
