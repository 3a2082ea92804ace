"""Train a run again, from the code and the config that it had, and compare what it reported."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from armature.config.read import all_paths, lookup
from armature.errors import UserError
from armature.run_files import CHANGES
from tools.run_files import find_runs, read_config
from tools.run_records import PROJECT, Run

NOT_COMPARED = {'seconds'}
DEVICE_FLAGS = ('-d', '--device')
POLL_S = 0.2


def reproduce(run: Run) -> bool:
    """Train `run` again; print what was compared; returns whether all of it is equal.

    Raises UserError where it cannot be tried: no commit, no config, no finished epoch.
    """
    git, rows = run.record['git'], run.rows
    config = read_config(run.folder)
    if not git.get('commit'):
        raise UserError(
            f'{run.name}: its record names no commit, so its code is not known: it was trained '
            'outside of a git repository, or by an older version'
        )
    is_whole = isinstance(config.get('trainer'), dict)
    if not is_whole or not rows:
        raise UserError(
            f'{run.name}: {"no finished epoch" if is_whole else "no whole config.json"}'
        )
    for name in git.get('left_out') or []:
        print(f'note: {name} was changed and not recorded: the code may differ there')
    if run.record['resumed_from']:
        print(f'note: it went on from {run.record["resumed_from"]}; here it begins anew')
    with code_of(run, git) as (project, folder):
        link_data(project, config)
        config['trainer']['save_dir'] = str(folder / 'saved')
        (folder / 'config.json').write_text(json.dumps(config), encoding='utf-8')
        print(f'Training {run.name} again, to epoch {rows[-1]["epoch"]} ...', flush=True)
        again = train(run, project, folder, rows[-1]['epoch'])
        different = first_difference(rows, again.rows)
        print_surroundings(run, again)
    if different:
        print(f'Not equal: {different}')
    else:
        n_values = len(rows[0].keys() - NOT_COMPARED)
        print(f'Equal bit for bit: {len(rows)} epochs, {n_values} columns')
    return not different


@contextmanager
def code_of(run: Run, git: dict) -> Iterator[tuple[Path, Path]]:
    """The project as it was when the run was made, and a folder beside it; both go away."""
    with tempfile.TemporaryDirectory(prefix='reproduce') as folder:
        tree = Path(folder) / 'code'
        ask_git('worktree', 'add', '--detach', str(tree), git['commit'])
        try:
            project = tree / ask_git('rev-parse', '--show-prefix').strip()
            if git.get('changes'):
                patch = str((run.folder / CHANGES).resolve())
                ask_git('apply', '--whitespace=nowarn', patch, folder=project)
            yield project, Path(folder)
        finally:
            ask_git('worktree', 'remove', '--force', str(tree))


def ask_git(*arguments: str, folder: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}
    command = ['git', *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder or PROJECT, env=environment, capture_output=True, text=True
        )
    except OSError as error:
        raise UserError(f'git is needed for this: {error.strerror}') from None
    if done.returncode:
        said = ' '.join(done.stderr.split())
        raise UserError(f'git {" ".join(arguments[:2])} failed: {said[-300:]}')
    return done.stdout


def link_data(project: Path, config: dict) -> None:
    """Let the old code find the data that git does not hold: data/, and what its config names."""
    values = [lookup(config, path) for path in all_paths(config)]
    for text in {'data', *(value for value in values if isinstance(value, str))}:
        path = Path(text)
        if (
            not text
            or path.is_absolute()
            or '..' in path.parts
            or not os.path.exists(PROJECT / path)
        ):
            continue
        for place in [*reversed(path.parents), path][1:]:  # the outermost folder that is missing
            if not (project / place).exists():
                (project / place).symlink_to(PROJECT / place)


def train(run: Run, project: Path, folder: Path, last_epoch: int) -> Run:
    """The new run, stopped after `last_epoch` when it would go on."""
    hardware, command = run.record['hardware'], run.record['command'] or []
    arguments = [sys.executable, 'train.py', '-c', str(folder / 'config.json')]
    devices = [after for flag, after in zip(command, command[1:]) if flag in DEVICE_FLAGS]
    if devices or hardware.get('device') == 'cpu':
        arguments += ['-d', devices[-1] if devices else 'cpu']
    environment = dict(os.environ)
    if hardware.get('threads'):  # sums of floats depend on how many add them
        environment['OMP_NUM_THREADS'] = str(hardware['threads'])
    with (folder / 'output.txt').open('w+', encoding='utf-8') as output:
        process = subprocess.Popen(
            arguments, cwd=project, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            stop_after(process, folder / 'saved', last_epoch)
        finally:
            process.terminate()
            process.wait()
        output.seek(0)
        said = output.read()
    found = find_runs(folder / 'saved')
    if not found or not Run(found[0]).rows:
        raise UserError(f'train.py trained no epoch. It said:\n{said[-2000:]}')
    return Run(found[0])


def stop_after(process: subprocess.Popen, save_dir: Path, last_epoch: int) -> None:
    """Wait until the process has ended or its run has finished an epoch that is behind the last."""
    while process.poll() is None:
        rows = [row for path in find_runs(save_dir) for row in Run(path).rows]
        if rows and rows[-1]['epoch'] > last_epoch:
            return
        time.sleep(POLL_S)


def first_difference(rows: list[dict], again: list[dict]) -> str:
    """The first value in which two tables differ, in words; '' when none does."""
    by_epoch = {row['epoch']: row for row in again}
    for row in rows:
        other = by_epoch.get(row['epoch'])
        if other is None:
            return f'epoch {row["epoch"]} was not reached'
        for name in [*row, *(name for name in other if name not in row)]:
            then, now = row.get(name), other.get(name)
            if name not in NOT_COMPARED and repr(then) != repr(now):  # nan equals nan
                return f'{name} of epoch {row["epoch"]}: {then} then, {now} now'
    return ''


def print_surroundings(run: Run, again: Run) -> None:
    """What beside code and config is not as it was."""
    for title in ('hardware', 'data'):
        then, now = run.record[title], again.record[title]
        for name in then.keys() & now.keys():
            if then[name] != now[name]:
                print(f'{title}: {name} was {then[name]}, is {now[name]}')
    then, now = run.record['versions'], again.record['versions']
    changed = [name for name in then if then[name] != now.get(name)]
    for name in changed:
        print(f'versions: {name} was {then[name]}, is {now.get(name, "not installed")}')
    if packages := [f'{name}=={then[name]}' for name in changed if name != 'python']:
        print(f'To install the old ones: pip install {" ".join(packages)}')
