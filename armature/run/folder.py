"""The folder of a run: which run is trained, a new one or one that goes on, and where."""

import argparse
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

from armature.checkpoint.files import begun, is_behind, newest, newest_run
from armature.compare import ABSENT, differences
from armature.config.keys import FOLDER_NAME, NO_HYPERPARAMETER, expanded
from armature.config.read import show
from armature.config.values import violation
from armature.errors import ConfigError
from armature.processes import dist
from armature.run.record import PROJECT, write_json
from armature.run_files import CONFIG, LOCK, RECORD, VERSION

logger = logging.getLogger(__name__)


def plain_name(key: str, value: Any) -> str:
    """`value` when it can name a folder, on every system, and stays inside its parent."""
    expected = violation(value, FOLDER_NAME)
    if expected is not None:
        raise ConfigError(f'{key} is {show(value)}: expected {expected}')
    return value


class RunPlace:
    """Which run a config trains: one that it goes on with, or a new one; and the folders of that.

    begin_logging: called with the folder of the logs. Nothing is made before a folder is asked for.
    """

    def __init__(self, config: Any, begin_logging: Callable[[Path], None]):
        plain_name('name', config.name)
        if config.run_id is not None:
            plain_name('run_id', config.run_id)
        self.config, self.begin_logging = config, begin_logging
        self.before = None  # the folder of the run that it goes on with

    def choose(self, given: argparse.Namespace) -> None:
        """Go on in the folder of the checkpoint, unless the command names a config or another."""
        config = self.config
        if given.resume_or_start:
            if config.resume is not None:
                raise ConfigError('-r and --resume-or-start say both where to go on: give one')
            config.resume = self._unfinished()
        elif given.config is not None:
            return
        if config.resume is None:
            return
        run = config.resume.parent
        if config.run_id in (None, run.name):
            self.before = run
        elif given.resume_or_start:
            raise ConfigError(
                f'--run-id is {config.run_id}, and the unfinished run is {run}: '
                'leave --run-id out to go on with that one, or --resume-or-start for a new one'
            )

    def _unfinished(self) -> Path | None:
        """The newest checkpoint of the newest run; None without one, or when it is finished."""
        run = newest_run(self._runs)
        path, head = newest(run) if run is not None else (None, {})
        if path is None or head.get('finished'):
            return None
        for place, *values in differences(head.get('config'), self.config.config):
            is_null = all(each in (ABSENT, None) for each in values) and '.args.' not in place
            if is_null or NO_HYPERPARAMETER.match(place):
                continue  # it changes no result
            raise ConfigError(
                f'--resume-or-start: {place} is another than in the unfinished run {run}. Go '
                f'on with that run as it was: -r {quote(str(run))}. Or start a new one: leave '
                '--resume-or-start out, or change "name".'
            )
        return path

    def go_on_after_restart(self, agents: list[str]) -> None:
        """Go on with the run that the torchruns `agents` have trained in before, when they have."""
        run, checkpoint = dist.on_main(self._left_by, set(agents))
        self.before = run or self.before
        self.config.resume = checkpoint or self.config.resume

    def _left_by(self, agents: set[str]) -> tuple[Path | None, Path | None]:
        """(run folder, checkpoint) that these torchruns have left.

        The folder is the one that one of them was the last to train in; the checkpoint is its
        newest, when one of them has written that.
        """
        for lock in self._runs.glob(f'*/{LOCK}'):
            if agents.intersection(lock.read_text().splitlines()):
                path, head = newest(lock.parent)
                writers = (head.get('made_by') or {}).get('agents', [])
                return lock.parent, path if agents.intersection(writers) else None
        return None, None

    @cached_property
    def folders(self) -> tuple[Path, Path]:
        """Those of checkpoints and of logs.

        The main process makes them, and is the only one that writes there.
        """
        folders = dist.on_main(self._make)
        self.config.run_id = folders[0].name
        return folders

    def _make(self) -> tuple[Path, Path]:
        config, save_dir, reason = self.config, self.before, self._reason_to_leave()
        if save_dir is None or reason:
            save_dir = claim(self._runs, config.run_id)
            # A run that goes on gets its changed config when it has been let in: BaseTrainer.train.
            write_json(config.as_read, save_dir / CONFIG)
        if reason:
            logger.warning(f'{reason}: the run goes on in {save_dir}')
        log_dir = self._runs.parents[1] / 'log' / config.name / save_dir.name
        log_dir.mkdir(parents=True, exist_ok=True)
        self.begin_logging(log_dir)
        return save_dir, log_dir

    def _reason_to_leave(self) -> str:
        """Why the run cannot go on in the folder that it was in; '' when it can."""
        before, resume = self.before, self.config.resume
        if before is None:
            return ''
        if before.parent.resolve() != self._runs.resolve() or not (before / CONFIG).is_file():
            return f'{before} is no run in {self._runs}'
        if not os.access(before, os.W_OK):
            return f'{before} cannot be written'
        # A folder holds one line of checkpoints, so going back starts a new one.
        is_mine = resume is not None and resume.parent.resolve() == before.resolve()
        if is_mine and is_behind(resume):
            return f'{resume} is not the newest of its run'
        return ''

    @property
    def _runs(self) -> Path:
        """The folder of all runs of this name."""
        config = self.config
        return PROJECT / expanded(config.settings.save_dir) / 'models' / config.name


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
                record = {'version': VERSION, 'begun': now.isoformat(), 'state': 'prepared'}
                write_json(record, folder / RECORD)
            except OSError:
                folder.rmdir()  # else it would be the newest run
                raise
            return folder
        except OSError as error:
            is_taken = isinstance(error, FileExistsError)
            if not is_taken or run_id is not None or not runs.is_dir():
                problem = f'{error.filename} is there' if is_taken else error.strerror
                raise ConfigError(
                    f'the run folder {folder} cannot be made: {problem} (trainer.save_dir says '
                    'where)'
                ) from None
            count += 1
