"""Tries an old project in two copies, as it was and as it would be adopted, and compares."""

import ast
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

from tools.project import write_files
from tools.project_git import environment
from tools.project_old import called, parse
from tools.project_take_over import is_environment, python_files, read

TRIAL = Path(__file__).parent / 'project_files/try_project.py'
FIRST_STEPS = 'the first steps'
LONGEST_S = 60
CODE = ('.py', '.json', '.yaml', '.yml', '.toml', '.cfg', '.ini')
SMALL_BYTES, FEW_FILES = 1_000_000, 2000
SKIPPED = ('.git', 'saved', 'venv', '.venv', 'env', '__pycache__')


class Command(NamedTuple):
    """How the project is trained: `python script -c config`."""

    script: str
    config: str

    def __str__(self) -> str:
        return shlex.join(['python', self.script, '-c', self.config])


@dataclass
class Proof:
    """What was tried before and after; {what: '' or what went wrong}."""

    before: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)

    @property
    def broken(self) -> dict[str, str]:
        """What worked before and fails after."""
        return {
            what: problem
            for what, problem in self.after.items()
            if problem and self.before.get(what) == ''
        }

    @property
    def failing(self) -> dict[str, str]:
        """What failed before and still does."""
        return {
            what: problem
            for what, problem in self.after.items()
            if problem and what not in self.broken
        }

    @property
    def is_good(self) -> bool:
        return not self.broken


def find_command(folder: Path) -> Command | None:
    """A script that trains and a config for it, both of which exist; None when none can be told."""
    scripts = []
    for path in python_files(folder):
        text = read(folder / path)
        if '__main__' in text and 'ConfigParser' in text + 'ConfigParser' * ('Trainer(' in text):
            name = Path(path).stem
            scripts.append(
                (name != 'train', 'train' not in name, 'test' in name, path.count('/'), path)
            )
    configs = []
    for path in folder.rglob('*.json'):
        inside = path.relative_to(folder)
        if any(part in SKIPPED or part.startswith('.') for part in inside.parts):
            continue
        try:
            if path.stat().st_size > SMALL_BYTES:  # annotations
                continue
            content = json.loads(path.read_text(encoding='utf-8'))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, dict) and isinstance(content.get('trainer'), dict):
            n_found = sum(key in content for key in ('arch', 'data_loader', 'optimizer', 'name'))
            is_first = inside.as_posix() != 'config.json'
            configs.append((is_first, -n_found, len(inside.parts), inside.as_posix()))
    if not scripts or not configs or 'test' in min(scripts)[-1]:
        return None
    return Command(min(scripts)[-1], min(configs)[-1])


def prove(folder: Path, changes: dict[str, bytes | None], command: Command | None) -> Proof:
    """Import every module and take the first steps, in a copy of the project with and without
    changes.
    """
    modules = [name for path in python_files(folder) if (name := importable(folder, path))]
    with tempfile.TemporaryDirectory(prefix='adopt-') as temporary:
        trials = []
        for name in ('before', 'after'):
            copy = Path(temporary) / name / folder.name
            copy_project(folder, copy, is_trial=True)
            if name == 'after':
                write_files(copy, changes)
            trials.append(start_trial(copy, copy.parent / 'results', modules, command))
        try:
            return Proof(*(finish_trial(*trial) for trial in trials))
        finally:
            for started, _ in trials:
                if started.returncode is None:
                    end(started)


def importable(folder: Path, path: str) -> str:
    """The name to import a file by.

    '' for a script that would begin to work when it is imported.
    """
    name = path.removesuffix('.py').removesuffix('/__init__').replace('/', '.')
    if not all(part.isidentifier() for part in name.split('.')):
        return ''
    try:
        tree = parse(read(folder / path))
    except (SyntaxError, ValueError):
        return name
    for node in tree.body:
        works = isinstance(node, (ast.For, ast.While, ast.With))
        is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        works = works or is_call and isinstance(node.value.func, ast.Name)
        works = works or isinstance(node, ast.Assign) and called(node.value).endswith('.parse_args')
        if works:
            return ''
    return name


def start_trial(
    copy: Path, results: Path, modules: list[str], command: Command | None
) -> tuple[subprocess.Popen, Path]:
    quiet = {'MPLBACKEND': 'Agg', 'WANDB_MODE': 'disabled', 'OMP_NUM_THREADS': '1'}
    with (results.parent / 'stderr').open('w') as stderr:
        started = subprocess.Popen(
            [sys.executable, str(TRIAL), str(results), *(command or ('', '')), *modules],
            cwd=copy,
            env=environment() | quiet,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,  # so that its loaders' workers can be ended with it
        )
    return started, results


def finish_trial(started: subprocess.Popen, results: Path) -> dict[str, str]:
    """What was tried until it ended or took too long; what was not reached is left out."""
    try:
        started.wait(LONGEST_S)
    except subprocess.TimeoutExpired:
        pass
    end(started)
    lines = results.read_text(encoding='utf-8').splitlines() if results.is_file() else []
    found = dict(json.loads(line) for line in lines)
    if found.get(FIRST_STEPS, '').startswith('it left with'):  # what it said goes with it
        said = (results.parent / 'stderr').read_text(errors='replace').strip().splitlines()
        found[FIRST_STEPS] = said[-1][:300] if said else found[FIRST_STEPS]
    return found


def end(started: subprocess.Popen) -> None:
    """End a trial with the workers of its loaders."""
    if os.name == 'posix':
        try:
            os.killpg(started.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    started.kill()
    started.wait()


def copy_project(folder: Path, target: Path, is_trial: bool = False) -> None:
    """A copy of a project's code; data is linked, in a trial file by file.

    What it adds stays out.
    """
    target.mkdir(parents=True)
    copy = partial(copy_or_link, count())
    for path in sorted(folder.iterdir()):
        if path.is_file():
            copy(path, target / path.name)
        elif path.name == '.git' or path.name in SKIPPED and is_trial:
            continue  # a repository of the copy would be the original's
        elif holds_code(path):
            shutil.copytree(path, target / path.name, symlinks=True, copy_function=copy)
        elif is_trial and path.is_dir() and has_few_files(path):
            shutil.copytree(
                path, target / path.name, copy_function=copy, ignore_dangling_symlinks=True
            )
        else:  # also what is neither file nor folder
            (target / path.name).symlink_to(path)


def has_few_files(folder: Path) -> bool:
    return sum(1 for _ in zip(folder.rglob('*'), range(FEW_FILES))) < FEW_FILES


def holds_code(folder: Path) -> bool:
    return (
        folder.name not in SKIPPED
        and not is_environment(folder)
        and any(path.suffix in CODE for path in folder.rglob('*'))
    )


def copy_or_link(n_copied: Iterator[int], source: str | Path, target: str | Path) -> None:
    """Code and a few small files are copied; pipes and the like are linked too."""
    is_small = os.path.isfile(source) and os.path.getsize(source) < SMALL_BYTES
    if is_small and (Path(source).suffix in CODE or next(n_copied) < FEW_FILES):
        shutil.copy2(source, target)
    else:
        os.symlink(os.path.abspath(source), target)
