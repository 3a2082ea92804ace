"""Trackers beside TensorBoard (trainer.trackers): the only place that speaks to such services.

A tracker is a class with three methods, which are called in a thread of their own:

    begin(run)         once: what run.json says, 'config', and 'id', which a resume keeps
    log(values, step)  {'loss/train': 0.5, 'roc/valid': uint8 array (height, width, 3)} of one step
    end(run)           once: what run.json says in the end, the best epoch too

What they raise is one warning. None of it stops the training, or lets it wait.
"""

import importlib
import itertools
import logging
import os
import queue
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from armature.config import build
from armature.config.read import Document
from armature.processes import dist
from armature.run.record import write_text

MAX_WAITING = 10_000  # values that slow trackers may be behind; more of them are left out
MAX_END_S = 30.0  # for which the end of a training waits for what is still to be sent
logger = logging.getLogger('trainer')


class Trackio:
    """Trackio, which keeps runs on this machine. args: those of trackio.init."""

    service = 'trackio'

    def __init__(self, **args: Any):
        self.args = args

    def begin(self, run: dict, **more: Any) -> None:
        self.module = importlib.import_module(self.service)
        record = dict(run)
        config = {**record.pop('config'), 'run': record}
        known = {'project': run['name'], 'name': run['run'], 'resume': 'allow', 'config': config}
        self.run = self.module.init(**known | more | self.args)

    def log(self, values: dict, step: int) -> None:
        sent = {
            name: self.module.Image(value) if isinstance(value, np.ndarray) else value
            for name, value in values.items()
        }
        self.run.log(sent, step=step)

    def end(self, run: dict) -> None:
        self.run.finish()


class Wandb(Trackio):
    """Weights & Biases. args: those of wandb.init, such as {"project": ..., "mode": "offline"}."""

    service = 'wandb'

    def begin(self, run: dict) -> None:
        # It would ask for a key on the terminal, where the training prints.
        asks = 'mode' not in self.args and 'WANDB_MODE' not in os.environ
        if asks and not importlib.import_module('wandb').login(prompt=False):
            raise RuntimeError('type `wandb login` once, or give it "args": {"mode": "offline"}')
        super().begin(run, id=run['id'], settings={'console': 'off', 'quiet': True})


TRACKERS = {'wandb': Wandb, 'trackio': Trackio}


class Trackers:
    """Hands each of `entries` (trainer.trackers) what a run logs; without any it is false.

    record: the RunRecord, whose run.json keeps the run's id. log_dir: there a file says which step
    was sent last, so that a resumed run sends none twice.
    """

    def __init__(self, entries: list | None, record: Any, log_dir: str | Path):
        self._entries = entries if entries and dist.is_main() else []
        self._record, self._sent = record, Path(log_dir) / 'trackers.sent'
        self._sent_before = -1
        with suppress(OSError, ValueError):  # there is no such file, or an empty one
            self._sent_before = int(self._sent.read_text())
        self._queue = queue.Queue(MAX_WAITING)
        self._thread = None
        self._warned = set()

    def __bool__(self) -> bool:
        return bool(self._entries)

    def begin(self, config: dict) -> None:
        """Start them; config: as it was read."""
        makers = []
        for entry in self._entries:
            reader = build.EntryReader(Document({}))
            make = reader.prepared(entry, build.KINDS['trackers'], ('trackers',))
            makers.append((build.type_of(entry), make))
        of_run = self._record.facts.get('trackers') or {'id': uuid4().hex[:12]}
        self._record.note(trackers=of_run)
        run = {**self._record.facts, 'config': config, **of_run}
        self._thread = threading.Thread(target=self._serve, args=(makers, run), daemon=True)
        self._thread.start()

    def put(self, name: str, value: float | np.ndarray, step: int) -> None:
        """Send a value of a step, together with the others of that step."""
        if step > self._sent_before:
            try:
                self._queue.put_nowait((step, name, value))
            except queue.Full:
                self._warn('they', f'are too slow: values are left out, first of step {step}')

    def close(self) -> None:
        """Let them send the rest and say how the run ended, which may take `MAX_END_S`."""
        if self._thread is None:
            return
        until = time.monotonic() + MAX_END_S
        with suppress(queue.Full):
            self._queue.put(None, timeout=MAX_END_S)
        self._thread.join(max(0, until - time.monotonic()))
        if self._thread.is_alive():
            self._warn('they', f'have not taken all within {MAX_END_S:g} s; the rest is lost')

    def _serve(self, makers, run):
        begun = []
        for name, make in makers:
            with self._warning(name, 'is off'):
                tracker = make()
                tracker.begin(run)
                begun.append((name, tracker))
        items = iter(self._queue.get, None)
        for step, of_step in itertools.groupby(items, key=lambda item: item[0]):
            values = {name: value for _, name, value in of_step}
            for name, tracker in begun:
                with self._warning(name, 'failed, going on'):
                    tracker.log(values, step)
            with self._warning('they', 'may be sent steps twice after a resume'):
                write_text(self._sent, str(step))
        for name, tracker in begun:
            with self._warning(name, 'failed'):
                tracker.end({**run, **self._record.facts})

    @contextmanager
    def _warning(self, name, what):
        try:
            yield
        except BaseException as error:  # some libraries raise SystemExit
            hint = ' (see requirements-trackers.txt)' if isinstance(error, ImportError) else ''
            self._warn(name, f'{what}: {type(error).__name__}: {error}{hint}')

    def _warn(self, name, what):
        if name not in self._warned:
            self._warned.add(name)
            logger.warning(f'trainer.trackers: {name} {what}')
