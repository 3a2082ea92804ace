"""What the rehearsals of a run share: its config cut short, in a folder that goes away."""

import argparse
import copy
import dataclasses
import itertools
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from armature.batch import Batch
from armature.errors import ConfigError
from armature.processes import dist
from parse_config import ConfigParser


def refuse_processes() -> None:
    if dist.is_started():
        raise ConfigError('a rehearsal runs in a single process: without torchrun, on one device')


def parser_of(description: str) -> argparse.ArgumentParser:
    """For a tool that rehearses an experiment on a device."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('-c', '--config', required=True, metavar='FILE', help='the experiment')
    parser.add_argument(
        '-d', '--device', metavar='DEVICE', help='a GPU such as 0, or cpu, mps, xpu:0'
    )
    return parser


@contextmanager
def rehearsal() -> Iterator[Path]:
    """A folder for the runs of a rehearsal; afterwards it is gone, with the log files in it."""
    refuse_processes()
    with tempfile.TemporaryDirectory(prefix='rehearsal') as folder:
        try:
            yield Path(folder)
        finally:
            for handler in [
                each
                for each in logging.root.handlers
                if str(getattr(each, 'baseFilename', '')).startswith(folder)
            ]:
                logging.root.removeHandler(handler)
                handler.close()


def short_config(
    config: dict, folder: Path, resume: Path | None = None, **trainer: Any
) -> ConfigParser:
    """A copy of the config that saves into `folder`, with other settings in its trainer section."""
    config = copy.deepcopy(config)
    whole = {'early_stop': 0, 'max_minutes': None, 'trackers': None}
    config['trainer'] |= {'save_dir': str(folder), **whole, **trainer}
    return ConfigParser(config, resume)


def with_data_args(config: dict, **args: Any) -> dict:
    """A copy of the config with other arguments for the training data."""
    config = copy.deepcopy(config)
    config['data_loader']['args'] = config['data_loader'].get('args', {}) | args
    return config


def quiet_trainer(build: Callable, config: dict, folder: Path, **trainer: Any) -> Any:
    """A trainer that only trains: no validation, TensorBoard, schedule or saving of bests."""
    parsed = short_config(
        {**config, 'lr_scheduler': None},
        folder,
        monitor='off',
        tensorboard=False,
        verbosity=0,
        **trainer,
    )
    made = build(parsed)
    made.do_validation = False
    return made


class Kept:
    """A loader of some batches kept in memory, as long as an epoch."""

    def __init__(self, loader: Any, n_batches: int):
        self.batch_size = getattr(loader, 'batch_size', 1)
        if hasattr(loader, 'seek'):
            loader.seek(0)
        self.batches = list(itertools.islice(loader, n_batches))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


MANY_STEPS = 10**6  # of an epoch that the clock ends


def timing_trainer(build: Callable, config: dict, folder: Path) -> Any:
    """A quiet trainer for `seconds_per_step`."""
    settings = {'epochs': 1, 'len_epoch': MANY_STEPS, 'max_steps': None, 'on_nan': 'stop'}
    return quiet_trainer(
        build, config, folder, save_every_steps=None, save_every_minutes=None, **settings
    )


class Enough(Exception):
    """Ends an epoch that has been timed for long enough."""


class Timed:
    """A loader that gives `batches`, and otherwise is `loader`; it notes when each is asked for.

    That is when the step before it is done, on the device too. Enough is raised when `seconds` are
    over after the first `n_untimed` batches, or the batches are.
    """

    def __init__(self, loader: Any, batches: Iterable[Batch], seconds: float, n_untimed: int):
        self.loader, self._given, self.asked = loader, iter(batches), []
        self.seconds, self.n_untimed = seconds, n_untimed

    def __iter__(self) -> Iterator[Any]:
        return map(attrgetter('content'), self.batches())

    def batches(self, *_: int) -> Iterator[Batch]:
        for batch in self._given:
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            self.asked.append(time.perf_counter())
            if len(self.timed) > 1 and self.timed[-1] - self.timed[0] > self.seconds:
                break
            yield dataclasses.replace(batch)  # a trainer changes what it is given
        raise Enough

    @property
    def timed(self) -> list[float]:
        return self.asked[self.n_untimed :]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def seconds_per_step(
    trainer: Any, batches: Iterable[Batch], seconds: float, n_untimed: int = 3
) -> float:
    """Of real steps of the project's own trainer with `batches`, after some that are not timed."""
    loader = trainer.data_loader
    trainer.data_loader = timed = Timed(loader, batches, seconds, n_untimed)
    trainer.position = 0
    with suppress(Enough):
        trainer._train_epoch(1)
    trainer.data_loader = loader
    return (timed.timed[-1] - timed.timed[0]) / (len(timed.timed) - 1)
