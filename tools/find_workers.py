"""Find the number of loader workers: python -m tools.find_workers -c config.json

For 0, 1, 2, 4, ... workers up to the number of cores it times reading alone, and real training
steps that are fed by them; and once the steps alone, with batches that are there already. The
results of a run do not depend on the number of workers, and that is looked at here: the first
batches have to be the same, bit for bit, whoever reads them.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

import train
from armature.batch import Batch, to_device
from armature.data.identity import digest
from armature.data.order import epoch_batches, epoch_length
from armature.errors import DataError, UserError, exit_on_user_error, positive
from armature.seed import seed_everything
from parse_config import ConfigParser
from tools.arguments import positive_number
from tools.rehearse import (
    MANY_STEPS,
    parser_of,
    rehearsal,
    seconds_per_step,
    short_config,
    timing_trainer,
    with_data_args,
)

N_KEPT = 4  # batches that the steps alone go round
ENOUGH = 1.05  # times as fast: less does not count as faster
KEY = 'data_loader.args.num_workers'


class Row(NamedTuple):
    """What was measured with a number of workers, in seconds."""

    n_workers: int
    start: float  # until the first batch is there
    reading: float  # a batch, when nothing else is done
    training: float  # a step, when batches are read meanwhile
    epoch: float

    def __str__(self) -> str:
        return (
            f'{self.n_workers:7d} {self.start:11.2f} s {1 / self.reading:10,.1f} '
            f'{1 / self.training:11,.1f} {self.epoch:10.1f} s'
        )


HEAD = f'{"workers":7s} {"first batch":>13s} {"read a s":>10s} {"steps a s":>11s} {"epoch":>12s}'


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument(
        '--seconds', type=positive_number, default=3.0, help='of each measurement (3)'
    )
    parser.add_argument(
        '--max', type=positive, metavar='N', help='most workers to try; the cores when not given'
    )
    with exit_on_user_error():
        config = ConfigParser.from_args(parser, builds=train.BUILDS)
        given = config.arguments
        find_workers(
            train.build, train.module_data, config.config, given.seconds, given.max or n_cores()
        )


def n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def numbers_up_to(most: int) -> list[int]:
    """0, 1, 2, 4, ... and `most` itself."""
    powers = itertools.takewhile(lambda n: n < most, (2**power for power in itertools.count()))
    return [0, *powers, most]


def find_workers(
    build: Callable, module_data: ModuleType, config: dict, seconds: float, most: int
) -> int:
    """Print the table and the line for the config; returns the number of workers it names."""
    with rehearsal() as folder:
        trainer = timing_trainer(build, with_data_args(config, num_workers=0), folder)
        loader = trainer.data_loader
        if getattr(loader, '_memory', None) is not None:
            print(
                'The samples are in memory: workers read them once, when a run starts (and only '
                'where in_memory asks for it). No batch waits for them: num_workers can stay as it '
                'is.'
            )
            return 0
        kept, digests = beginning(loader, trainer.device, max(8, 2 * most), seconds)
        step_s = seconds_per_step(trainer, itertools.cycle(kept), seconds)
        print(f'The model alone takes {1e3 * step_s:.4g} ms a step ({trainer.device}).\n\n{HEAD}')
        n_batches, rows = epoch_length(config, loader), []
        starts_anew = not config['data_loader'].get('args', {}).get('persistent_workers')
        for n_workers in numbers_up_to(most):
            loader = loader_of(module_data, config, folder, n_workers)
            start_s, *each_s = measured(trainer, loader, n_workers, digests, seconds)
            epoch_s = start_s * starts_anew + n_batches * each_s[1]
            rows.append(Row(n_workers, start_s, *each_s, epoch_s))
            print(rows[-1], flush=True)
            if n_workers > 1 and rows[-1].training <= ENOUGH * step_s:
                break
    best, enough = choice(rows), [row for row in rows if row.training <= ENOUGH * step_s]
    print(f'\nThe first {len(digests)} batches were the same, bit for bit, with each number.')
    if enough:
        print(
            f'More than {enough[0].n_workers} are of no use: the model takes {1e3 * step_s:.4g} ms '
            'a step, and hardly waits.'
        )
    else:
        waits_s = next(row.training for row in rows if row.n_workers == best) - step_s
        print(
            f'With {best} a step still waits {1e3 * waits_s:.3g} ms for its data, or for cores '
            'that the workers use too.\nWhat helps then: data_loader.args.in_memory, or samples '
            'that are cheaper to read.'
        )
    print(f'\n    "num_workers": {best}        (in data_loader.args; or --set {KEY}={best})')
    return best


def loader_of(module_data: ModuleType, config: dict, folder: Path, n_workers: int) -> Any:
    """The training data with so many workers; a UserError when its class takes no notice."""
    args = {'num_workers': n_workers}
    if 'persistent_workers' in config['data_loader'].get('args', {}):
        args['persistent_workers'] = False  # they are to leave when they are measured
    parsed = short_config(with_data_args(config, **args), folder)
    seed_everything(parsed.get('seed'))
    loader = parsed.init_obj('data_loader', module_data)
    if getattr(loader, 'num_workers', n_workers) != n_workers:
        raise UserError(
            f'{type(loader).__name__} is given num_workers {n_workers}, and has '
            f'{loader.num_workers}: pass num_workers on to its base class'
        )
    return loader


def first_batches(loader: Any) -> Iterator[Batch]:
    """From the beginning of the first pass on, as a run reads them."""
    return epoch_batches(0, 1, MANY_STEPS, loader, getattr(loader, 'seed', 0))


def beginning(
    loader: Any, device: torch.device, n_batches: int, seconds: float
) -> tuple[list[Batch], list[str]]:
    """Some batches on the device, and the digests of more, as many as can be read in `seconds`."""
    begun, kept, digests = time.perf_counter(), [], []
    for batch in itertools.islice(first_batches(loader), n_batches):
        digests.append(digest(batch.content))
        if len(kept) < N_KEPT:
            batch.content = to_device(batch.content, device)
            kept.append(batch)
        if time.perf_counter() - begun > seconds:
            break
    return kept, digests


def measured(
    trainer: Any, loader: Any, n_workers: int, digests: list, seconds: float
) -> tuple[float, float, float]:
    """Seconds until the first batch, of reading a batch, and of a step while batches are read."""
    begun, start_s = time.perf_counter(), None
    batches = first_batches(loader)
    for number, expected in enumerate(digests):
        batch = next(batches)
        start_s = start_s or time.perf_counter() - begun
        if digest(batch.content) != expected:
            raise DataError(
                f'with {n_workers} workers, batch {number} of the first pass is another than '
                'without any, so results would depend on their number: let a sample draw from '
                'torch, random or numpy, whose generators are set for each sample, not from a '
                'generator that the dataset keeps, and let it remember nothing of those before'
            )
    # What was read ahead while nobody timed
    n_ahead = (getattr(loader, 'prefetch_factor', None) or 2) * n_workers + 1
    reading_s = pace(batches, seconds, n_ahead)
    training_s = seconds_per_step(trainer, batches, seconds, n_ahead)
    return start_s, reading_s, training_s


def pace(batches: Iterator[Batch], seconds: float, n_untimed: int) -> float:
    """Seconds that reading a batch takes, after some that are not timed."""
    for _ in range(n_untimed):
        next(batches)
    begun, n_read = time.perf_counter(), 0
    while not n_read or time.perf_counter() - begun < seconds:
        next(batches)
        n_read += 1
    return (time.perf_counter() - begun) / n_read


def choice(rows: list[Row]) -> int:
    """The smallest number that is as good as the best, or nearly."""
    best = min(row.epoch for row in rows)
    return next(row.n_workers for row in rows if row.epoch <= ENOUGH * best)


if __name__ == '__main__':
    main()
