"""What a run tells of itself: what it is (run.json), what its epochs reported (metrics.csv), what a
test found (test.json). armature/run_files.py reads them."""

import csv
import errno
import hashlib
import io
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from armature import run_files
from armature.checkpoint.files import BEST, begun, free_bytes, replace
from armature.errors import UserError
from armature.processes import dist
from armature.processes import launch as job
from armature.processes.devices import device_name
from armature.run.stop import Stopped
from armature.run_files import CHANGES, CONFIG, LOCK, RECORD, TABLE, read_object, values_of

PROJECT = Path(__file__).resolve().parents[2]
SOURCES = re.compile(
    r'\.(py|pyx|c|cc|cpp|cu|h|json|toml|yaml|yml|cfg|ini|txt|md|sh|sbatch)', re.IGNORECASE
)
MAX_BYTES = 2**20  # of a patch, and of a source in it
MAX_NAMES = 100  # of files that are left out
GIT_S = 5
logger = logging.getLogger(__name__)


class RunRecord:
    """What a run writes of itself in its folder, which is its alone while it trains.

    Only the main process touches the folder. Before the training begins, a folder that cannot be
    written is an error; from then on it is a warning: what a run logs never stops it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.facts = {}
        self.rows, self._columns = {}, []  # of metrics.csv: {epoch: row} of those that are done
        self._patch = b''  # what is not committed
        self._began = None  # a moment of time.monotonic, as if all starts had been one
        self._lock_file = None
        self._has_warned = False

    def made_by(self, device: torch.device) -> dict[str, Any]:
        """Code, versions, command and machine, as plain data: part of each checkpoint, too."""
        code, self._patch = dist.on_main(code_of, PROJECT, self.folder.absolute().parents[2])
        return {
            'command': list(sys.argv),
            'git': code,
            'versions': versions(PROJECT) | {'torch': str(torch.__version__)},
            'hardware': {
                'device': device_name(device),
                'machine': platform.machine(),
                'system': platform.platform(),
                'threads': torch.get_num_threads(),
                'processes': dist.n_processes(),
                'n_cpus': os.cpu_count(),
            },
            'agents': job.agents,
        }

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside, no other training may be in this folder; run.json then says how it ended."""
        dist.on_main(self._lock)
        state, reason = 'failed', None
        try:
            yield
            state = 'finished'
        except Stopped as stop:
            state, reason = 'stopped', str(stop)
            raise
        except UserError as error:
            reason = str(error)
            raise
        except BaseException as error:
            reason = f'{type(error).__name__}: {error}'
            raise
        finally:
            # A run that goes on and is refused is left as it was.
            if self.facts or (dist.is_main() and self._before().get('state') == 'prepared'):
                self.note(state=state, reason=reason, ended=datetime.now(UTC).isoformat())
            if self._lock_file:
                self._lock_file.close()
                run_files.locked_here.discard(self.folder.resolve())

    def _lock(self) -> None:
        with self._writing(stops=True):
            handle = self._lock_file = open(self.folder / LOCK, 'a')  # noqa: SIM115 (kept)
            try:
                run_files.lock(handle, alone=True)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                    handle.close()
                    raise UserError(
                        f'{self.folder} is being trained by another process ({error.strerror}). '
                        'Wait for it, stop it, or start a new run with -c config.json'
                    ) from None
                logger.warning(
                    f'{self.folder} cannot be locked ({error.strerror}), as on some network '
                    'drives: see to it yourself that no other training writes there'
                )
            handle.truncate(0)
            handle.write('\n'.join(job.agents))
            handle.flush()
        run_files.locked_here.add(self.folder.resolve())

    def begin(self, config: dict, **facts: Any) -> None:
        """Write what the run is and what its finished epochs reported, before the first step."""
        before = self._before()
        seconds, trackers = before.get('seconds'), before.get('trackers')
        is_known = isinstance(seconds, (int, float)) and 0 <= seconds < 1e12
        self._began = time.monotonic() - (seconds if is_known else 0)
        record = {
            'version': run_files.VERSION,
            'name': config.get('name'),
            'run': self.folder.name,
            'state': 'running',
            'begun': begun(self.folder).isoformat(),
            'trackers': trackers if isinstance(trackers, dict) else None,
            **facts,
        }
        with self._writing(stops=True):
            write_json(config, self.folder / CONFIG)
            write_json(record, self.folder / RECORD)
            (self.folder / CHANGES).unlink(missing_ok=True)
            if self._patch:
                (self.folder / CHANGES).write_bytes(self._patch)
            table = self.folder / TABLE
            if table.is_file() and not run_files.is_table(table):
                self._keep(table)
            if self.rows or table.exists():
                self._write_table()
        self.facts = record

    def _keep(self, table: Path) -> None:
        old = table
        while old.exists():
            old = old.with_name(f'{old.name}.old')
        table.rename(old)
        logger.warning(
            f'{table} has lines that are not understood (expected: UTF-8, commas, the head and '
            f'epochs as they were written). It is kept as {old.name}; a new table begins with the '
            'rows that are'
        )

    def _before(self) -> dict[str, Any]:
        return read_object(self.folder / RECORD)[0]

    @contextmanager
    def _writing(self, stops: bool = False) -> Iterator[None]:
        """Inside, an OSError is a UserError that stops the training, or one warning."""
        try:
            yield
        except OSError as error:
            text = f'{self.folder} cannot be written: {error.strerror or error}'
            if stops:
                raise UserError(
                    f'{text} ({free_bytes(self.folder)} bytes are free). Nothing was changed; make '
                    'it writable, then give the same command again'
                ) from error
            if not self._has_warned:
                logger.warning(f'{text}. Its tables may lack epochs; the training goes on')
            self._has_warned = True

    def note(self, **facts: Any) -> None:
        """Put `facts` into run.json, also of a training that does not call `begin`."""
        known = self.facts or {'version': run_files.VERSION} | self._before() | {'state': 'running'}
        self.facts = known | facts
        if self._began is not None:
            self.facts['seconds'] = time.monotonic() - self._began
        with self._writing():
            write_json(self.facts, self.folder / RECORD)

    def note_saved(self, epoch: int, step: int, best: list[int] | None) -> None:
        """Put into run.json where the run is, and its best epoch: (epoch, step) of model_best."""
        last = {'epoch': epoch, 'step': step, 'values': values_of(self.rows.get(epoch, {}))}
        if best is not None:
            values = values_of(self.rows.get(best[0], {}))
            best = {'epoch': best[0], 'file': BEST, 'values': values}
        self.note(last=last, best=best)

    def add_row(self, row: dict) -> None:
        """Append what an epoch reported to metrics.csv, which is written anew for new columns."""
        self.rows[row['epoch']] = row
        with self._writing():
            if row.keys() - self._columns:
                self._write_table()
                return
            with (self.folder / TABLE).open('a', encoding='utf-8', newline='') as file:
                csv.DictWriter(file, self._columns, lineterminator='\n').writerow(row)

    def _write_table(self) -> None:
        rows, text = self.rows.values(), io.StringIO()
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(text, self._columns, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.folder / TABLE, text.getvalue())


def rates_of(optimizer: Any) -> dict[str, float]:
    """The learning rate, lr; with several groups that of each: lr/NAME, or its number."""
    groups, rates = getattr(optimizer, 'param_groups', []), {}
    for index, group in enumerate(groups):
        if group.get('lr') is not None:  # Adafactor chooses its own
            name = 'lr' if len(groups) == 1 else f'lr/{group.get("name", index)}'
            rates[name] = float(group['lr'])
    return rates


def as_read(config: Any) -> dict:
    """The config without what the script has filled in since, which may be any object."""
    if hasattr(config, 'as_read'):
        return config.as_read
    # A ConfigParser of the project's own writes it when it reads it.
    written = config.save_dir / CONFIG
    return read_json(written) if written.is_file() else config.config


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


# Other files


def write_test(checkpoint: Path, epoch: int | None, **found: Any) -> Path:
    """Write test.json beside the checkpoint that was measured; returns the file."""
    with checkpoint.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    said = {
        'version': run_files.VERSION,
        'checkpoint': {'file': checkpoint.name, 'sha256': digest, 'epoch': epoch},
        **found,
        'when': datetime.now(UTC).isoformat(),
        'command': list(sys.argv),
    }
    path = checkpoint.with_name(run_files.TEST)
    try:
        write_json(said, path)
    except OSError as error:
        raise UserError(
            f'{path} cannot be written: {error.strerror or error}; make its folder writable'
        ) from error
    return path


def read_json(fname: str | Path) -> OrderedDict:
    """The content of a JSON file, keys in the file's order."""
    return json.loads(Path(fname).read_text(encoding='utf-8'), object_hook=OrderedDict)


def ensure_dir(dirname: str | Path) -> None:
    Path(dirname).mkdir(parents=True, exist_ok=True)


def write_json(content: Any, fname: str | Path) -> None:
    write_text(Path(fname), json.dumps(content, indent=4) + '\n')


def write_text(path: Path, text: str) -> None:
    """Make `text` the content of a file: readers, and a full disk, find the old one or the new.

    A link keeps leading to the file; a device or a pipe is written to, for nothing may replace it.
    """
    if path.exists() and not path.is_file():
        path.write_text(text, encoding='utf-8')
        return
    path = path.resolve()
    unfinished = path.with_name(f'.{path.name[:40]}.{os.getpid()}.tmp')
    try:
        unfinished.write_text(text, encoding='utf-8', newline='')
        replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
