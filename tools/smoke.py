"""A rehearsal in seconds (python train.py --smoke): two batches through all that a run does.

Training, validation, saving, resuming, testing, loggers too; it leaves nothing behind.
"""

import importlib.util
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from armature.checkpoint import files as checkpoint
from armature.errors import UserError
from tools.rehearse import rehearsal, short_config

PROJECT = Path(__file__).resolve().parent.parent
N_BATCHES = 2


def smoke(build: Callable, config: dict) -> None:
    """Print what was rehearsed. What fails here raises as it would in the long run."""
    started = time.perf_counter()
    with rehearsal() as folder:
        trainer = train(build, short_config(config, folder, epochs=1, **LENGTHS))
        print(f'trained, validated and saved: {show(trainer.history[-1])}')
        last = trainer.checkpoint_dir / checkpoint.LAST
        trainer = train(build, short_config(config, folder, last, epochs=2, **LENGTHS))
        if trainer.epochs_done != 2:
            raise UserError(
                f'resuming {last} trained {trainer.epochs_done} epochs in all instead of 2'
            )
        print(f'resumed: {show(trainer.history[-1])}')
        if (PROJECT / 'test.py').is_file():
            is_own = config['trainer'].get('type', 'Trainer') != 'Trainer'
            newest = trainer.checkpoint_dir / checkpoint.LAST
            print(tested(short_config(config, folder, newest), is_own))
    print(
        f'The rehearsal went well, in {time.perf_counter() - started:.1f} s. Nothing of it is left.'
    )


LENGTHS = {'len_epoch': N_BATCHES, 'save_period': 1, 'max_steps': None, 'log_step': 1}


def train(build: Callable, config: Any) -> Any:
    trainer = build(config)
    if getattr(trainer, 'valid_data_loader', None) is not None:
        trainer.valid_data_loader = First(trainer.valid_data_loader, N_BATCHES)
    trainer.train()
    return trainer


def tested(config: Any, is_own: bool) -> str:
    """Let test.py measure the checkpoint; that it cannot is no fault of a Trainer of one's own."""
    try:
        load_script(PROJECT / 'test.py').main(config, N_BATCHES)
    except Exception as error:
        if not is_own:
            raise
        return (
            f'NOT tested: test.py raised {type(error).__name__}: {error}\nIt evaluates as the '
            'plain Trainer does: change it where your Trainer does otherwise'
        )
    return 'tested'


class First:
    """The first batches of a loader, which otherwise stays itself."""

    def __init__(self, loader: Any, n_batches: int):
        self.loader, self.n_batches = loader, n_batches

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.loader), self.n_batches)

    def __len__(self) -> int:
        return min(self.n_batches, len(self.loader))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def show(log: dict) -> str:
    values: Iterable = ((name, value) for name, value in log.items() if name != 'epoch')
    return ', '.join(f'{name} {value:.4g}' for name, value in values)


def load_script(path: Path) -> Any:
    """The module in a file, whose name (test) another module of Python's own may have."""
    spec = importlib.util.spec_from_file_location(f'script_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
