"""What a run leaves in its folders beside checkpoints: what made it, its history as a table, and the lock of its trainer."""

import json
import os
import platform
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from armature.errors import UserError
from armature.processes import dist
from armature.processes import launch as job

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = '.lock'
PROJECT = Path(__file__).resolve().parents[2]


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
    with open(fname, 'w', encoding='utf-8') as handle:
        json.dump(content, handle, indent=4, sort_keys=False)
        handle.write('\n')


def write_history(history: list[dict], log_dir: Path) -> None:
    """The finished epochs as metrics.csv, one row each."""
    import pandas

    unfinished = log_dir / '.metrics.csv'
    pandas.DataFrame(history).to_csv(unfinished, index=False)
    unfinished.replace(log_dir / 'metrics.csv')


def trained_by(agents: list[str], runs: Path) -> Path | None:
    """The folder in `runs` that one of these torchruns was the last to train in."""
    locks = runs.glob(f'*/{LOCK}')
    return next(
        (lock.parent for lock in locks if set(agents) & set(lock.read_text().splitlines())), None
    )


class RunLock:
    """Inside, this is the only training in the run folder; the kernel lets go when the (main) process dies."""

    def __init__(self, folder: Path):
        self.path = folder / LOCK
        self._handle = None

    def __enter__(self) -> None:
        dist.on_main(self._take)

    def _take(self) -> None:
        if fcntl is None:
            return
        self._handle = open(self.path, 'a')  # noqa: SIM115 (the lock is held as long as it is open)
        try:
            fcntl.lockf(
                self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # lockf, not flock: loader workers must not inherit it
        except OSError:
            self._handle.close()
            raise UserError(
                f'{self.path.parent} is being trained by another process. Wait for it, stop it, or start a new '
                'run with -c config.json'
            ) from None
        self._handle.truncate(0)
        self._handle.write('\n'.join(job.agents()))
        self._handle.flush()

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle.close()


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
