"""The folder of a run, beside its checkpoints: who may train in it, what the run is (run.json), and
what its epochs reported (metrics.csv)."""

import csv
import errno
import io
import json
import logging
import os
import platform
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch

from armature.checkpoint.files import (
    RECORD,
    begun,
    free_bytes,
    load_head,
    newest_run,
    newest_valid,
    replace,
)
from armature.compare import first_difference
from armature.config.keys import FOLDER_NAME, violation
from armature.config.read import show
from armature.errors import ConfigError, UserError
from armature.processes import dist
from armature.processes import launch as job
from armature.run.stop import Stopped

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

LOCK, TABLE = '.lock', 'metrics.csv'
LOCKED_BYTE = 2**30  # Windows locks bytes, and nobody can read those; this one is never written
PROJECT = Path(__file__).resolve().parents[2]
logger = logging.getLogger(__name__)


# Making one


def plain_name(key: str, value: Any) -> str:
    """`value` when it can name a folder, on every system, and stays inside its parent."""
    expected = violation(value, FOLDER_NAME)
    if expected is not None:
        raise ConfigError(f'{key} is {show(value)}: expected {expected}')
    return value


def run_folder(runs: Path, run_id: str | None, before: Path | None) -> Path:
    """Where a run trains: in `before`, the folder of the run that it goes on with, or a new one."""
    if before is None:
        return claim(runs, run_id)
    is_here = before.parent == runs.resolve() and (before / 'config.json').is_file()
    if is_here and os.access(before, os.W_OK):
        return before
    folder = claim(runs, run_id)
    why = 'cannot be written' if is_here else f'is no run in {runs}'
    logger.warning(f'{before} {why}: the run goes on in {folder}')
    return folder


def claim(runs: Path, run_id: str | None) -> Path:
    """Make a run's folder that nobody else has.

    mkdir decides, so simultaneous starts get different ones. Which run was begun last says
    run.json: moments in UTC that only rise, whatever the clock and the time zone do.
    """
    wanted, count = run_id or datetime.now().strftime('%Y%m%d_%H%M%S'), 0
    while True:
        folder = runs / (f'{wanted}_{count}' if count else wanted)
        try:
            runs.mkdir(parents=True, exist_ok=True)
            newest, now = newest_run(runs), datetime.now(UTC)
            if newest is not None:
                now = max(now, begun(newest) + timedelta(microseconds=1))
            folder.mkdir()
            try:
                write_json({'begun': now.isoformat(), 'state': 'prepared'}, folder / RECORD)
            except OSError:
                folder.rmdir()  # else it would be the newest run
                raise
            return folder
        except FileExistsError:
            if run_id is not None or not runs.is_dir():
                taken = folder if runs.is_dir() else runs
                raise ConfigError(
                    f'the run folder {folder} cannot be made: {taken} is there'
                ) from None
            count += 1
        except OSError as error:
            raise ConfigError(
                f'the run folder {folder} cannot be made: {error.strerror} (trainer.save_dir says '
                'where)'
            ) from None


# While it is trained in


class RunFolder:
    """A run's folder while this is the training in it. Only the main process touches it.

    Before the training begins, a folder that cannot be written is an error; from then on it is a
    warning: what a run logs never stops it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.record, self._columns = {}, []
        self._lock_file = None
        self._has_warned = False

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside, no other training may be in this folder; run.json then says how it ended."""
        dist.on_main(self._lock)
        state = 'failed'
        try:
            yield
            state = 'finished'
        except Stopped:
            state = 'stopped'
            raise
        finally:
            if self.record:
                self.note(state=state, ended=datetime.now(UTC).isoformat())
            if self._lock_file is not None:
                self._lock_file.close()

    def _lock(self) -> None:
        """Open and lock a file: the kernel lets go of it when the process dies."""
        try:
            handle = open(self.folder / LOCK, 'a')  # noqa: SIM115 (locked as long as it is open)
        except OSError as error:
            raise self._no_room(error) from error
        try:
            if fcntl is not None:  # lockf, not flock: loader workers must not inherit it
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                handle.seek(LOCKED_BYTE)
                msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                handle.close()
                raise UserError(
                    f'{self.folder} is being trained by another process ({error.strerror}). Wait '
                    'for it, stop it, or start a new run with -c config.json'
                ) from None
            logger.warning(
                f'{self.folder} cannot be locked ({error.strerror}), as on some network drives: '
                'see to it yourself that no other training writes there'
            )
        try:
            handle.truncate(0)
            handle.write('\n'.join(job.agents()))
            handle.flush()
        except OSError as error:
            handle.close()
            raise self._no_room(error) from error
        self._lock_file = handle

    def begin(self, config: dict, rows: list[dict], **facts: Any) -> None:
        """Write what the run is and what its finished epochs reported, before the first step."""
        record = {'begun': begun(self.folder).isoformat(), 'state': 'running', **facts}
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        try:
            write_json(config, self.folder / 'config.json')
            write_json(record, self.folder / RECORD)
            if rows or (self.folder / TABLE).exists():
                _exchange(self.folder / TABLE, _as_csv(rows, self._columns, header=True))
        except OSError as error:
            raise self._no_room(error) from error
        self.record = record

    def _no_room(self, error: OSError) -> UserError:
        return UserError(
            f'{self.folder} cannot be written: {error.strerror or error} '
            f'({free_bytes(self.folder)} bytes are free). Nothing was changed; make it writable, '
            'then give the same command again'
        )

    def note(self, **facts: Any) -> None:
        """Put `facts` into run.json, also of a training that does not call `begin`."""
        first = {'begun': begun(self.folder).isoformat(), 'state': 'running'}
        self.record = {**(self.record or first), **facts}
        with self._warning():
            write_json(self.record, self.folder / RECORD)

    def add_row(self, row: dict) -> None:
        """Append what an epoch reported to metrics.csv, which is written anew for new columns."""
        table = self.folder / TABLE
        with self._warning():
            if set(row) <= set(self._columns):
                with table.open('a', encoding='utf-8', newline='') as file:
                    file.write(_as_csv([row], self._columns))
                return
            rows = [*read_table(table), row]
            self._columns = [*self._columns, *(name for name in row if name not in self._columns)]
            _exchange(table, _as_csv(rows, self._columns, header=True))

    @contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._has_warned:
                logger.warning(
                    f'{self.folder} cannot be written: {error.strerror or error}. Its tables may '
                    'lack epochs; the training goes on'
                )
            self._has_warned = True


def _as_csv(rows: list[dict], columns: list[str], header: bool = False) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator='\n')
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_table(path: Path, last_epoch: float = float('inf')) -> list[dict]:
    """The rows of a metrics.csv up to an epoch, as numbers; none where there is no table."""
    rows = []
    if path.is_file():
        with path.open(encoding='utf-8', newline='') as file:
            for row in csv.DictReader(file):
                values = {name: _number(text) for name, text in row.items() if text}
                if isinstance(values.get('epoch'), int) and values['epoch'] <= last_epoch:
                    rows.append(values)
    return rows


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def left_by(agents: list[str], runs: Path) -> tuple[Path | None, Path | None]:
    """(run folder, checkpoint) that these torchruns have left in `runs`.

    The folder is the one that one of them was the last to train in; the checkpoint is its newest,
    when one of them has written that.
    """
    for lock in runs.glob(f'*/{LOCK}'):
        if set(agents) & set(lock.read_text().splitlines()):
            newest = newest_valid(lock.parent)
            head = load_head(newest) if newest is not None else {}
            writers = (head.get('made_by') or {}).get('agents', [])
            return lock.parent, newest if set(writers) & set(agents) else None
    return None, None


def unfinished(runs: Path, config: dict) -> Path | None:
    """The newest checkpoint of the newest of `runs`; None without one, or when it is finished."""
    run = newest_run(runs)
    newest = newest_valid(run) if run is not None else None
    head = load_head(newest) if newest is not None else {'finished': True}
    if head.get('finished'):
        return None
    if different := first_difference(head['config'], config):
        raise ConfigError(
            f'--resume-or-start: {different} is another than in the unfinished run {run}. Go on '
            f'with that run as it was: -r {run}. Or start a new one: leave --resume-or-start out, '
            'or change "name".'
        )
    return newest


# What made it


def made_by(seed: int, device: torch.device) -> dict:
    """Versions, code, command and machine, as plain data."""
    return {
        'torch': str(torch.__version__),
        'python': platform.python_version(),
        'git': _git('rev-parse', 'HEAD'),
        'uncommitted_changes': bool(_git('status', '--porcelain')),
        'command': list(sys.argv),
        'seed': seed,
        'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type,
        'machine': platform.machine(),
        'threads': torch.get_num_threads(),
        'processes': dist.n_processes(),
        'agents': job.agents(),
    }


def _git(*arguments: str) -> str:
    """What git says about the project; empty without git or outside a repository."""
    # git sets GIT_DIR and more for what it starts (a hook, an alias): that is another repository's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}
    command = ['git', '-C', str(PROJECT), *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=10)
        return done.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ''


def differences(before: dict, now: dict) -> str:
    """The parts of `made_by` that can change a result and did, in words; empty when none."""
    kinds = (
        'torch',
        'python',
        'git',
        'uncommitted_changes',
        'device',
        'machine',
        'threads',
        'processes',
    )
    return ', '.join(
        f'{kind} {before[kind]} -> {now[kind]}'
        for kind in kinds
        if kind in before and before[kind] != now[kind]
    )


def read_json(fname: str | Path) -> OrderedDict:
    """The content of a JSON file, keys in the file's order."""
    with open(fname, encoding='utf-8') as handle:
        return json.load(handle, object_hook=OrderedDict)


def write_json(content: Any, fname: str | Path) -> None:
    _exchange(Path(fname), json.dumps(content, indent=4) + '\n')


def _exchange(path: Path, text: str) -> None:
    """Make `text` the content of a file: readers, and a full disk, find the old one or the new."""
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        unfinished.write_text(text, encoding='utf-8', newline='')
        replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
