"""What the rehearsals of a run share: its config cut short, in a folder that goes away."""

import copy
import itertools
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from armature.errors import ConfigError
from armature.processes import dist
from parse_config import ConfigParser


def refuse_processes() -> None:
    if dist.is_started():
        raise ConfigError('a rehearsal runs in a single process: without torchrun, on one device')


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
    config['trainer'] |= {'save_dir': str(folder), 'early_stop': 0, 'trackers': None, **trainer}
    return ConfigParser(config, resume)


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
