"""A rehearsal in seconds: two batches through training, validation, saving, resuming and testing (python train.py --smoke).

Everything runs as it will in the long run, loggers and checkpoints too, and leaves nothing behind.
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
        if config['trainer'].get('type', 'Trainer') != 'Trainer':
            print('not tested: test.py is for what the plain Trainer trains')
        elif (PROJECT / 'test.py').is_file():
            load_script(PROJECT / 'test.py').main(
                short_config(config, folder, trainer.checkpoint_dir / checkpoint.LAST), N_BATCHES
            )
            print('tested')
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
