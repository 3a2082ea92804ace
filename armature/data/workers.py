"""What happens where samples are read, in a loader's workers or without any: keyed randomness, errors that name the sample, signals."""

import atexit
import os
import re
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from armature.data.augment import Augment
from armature.errors import DataError, UserError
from armature.processes import dist
from armature.run.stop import STOP_SIGNALS
from armature.seed import key, own_randomness, seed_sample


class Fetched(NamedTuple):
    """A batch (its samples, before they are collated), their indices, and what could not be read of it."""

    batch: Any
    indices: list[int]
    unreadable: list[str]
    failure: str = ''
    share: dist.Share = dist.WHOLE


class KeyedSamples(Dataset):
    """The samples of `dataset`, each drawing its random numbers from (seed, pass, index), in whichever process."""

    def __init__(
        self,
        dataset: Dataset,
        seed: int,
        augment: Augment | None = None,
        skip_unreadable: bool = False,
        num_workers: int = 0,
    ):
        self.dataset, self.seed, self.augment, self.skip_unreadable = (
            dataset,
            seed,
            augment,
            skip_unreadable,
        )
        self.now_reading = (
            torch.zeros(num_workers, 2, dtype=torch.long).share_memory_() if num_workers else None
        )  # (process, index)

    def __getitems__(self, due: tuple[int, list[int], dist.Share]) -> Fetched:
        number, indices, share = due
        return self._read(number, indices)._replace(share=share)

    def _read(self, number: int, indices: list[int]) -> Fetched:
        worker = get_worker_info()
        now_reading = (
            torch.zeros(2, dtype=torch.long) if worker is None else self.now_reading[worker.id]
        )
        now_reading[0] = os.getpid()
        with own_randomness(0):
            if hasattr(self.dataset, '__getitems__'):
                seed_sample(key(self.seed, 'batch', number, indices[0]))
                return Fetched(self.dataset.__getitems__(indices), indices, [])
            samples, read, unreadable = [], [], []
            for index in indices:
                now_reading[1] = index
                try:
                    samples.append(self._sample(number, index))
                    read.append(index)
                except (
                    UserError
                ) as error:  # its message is enough; a worker would add its traceback
                    if not self.skip_unreadable:
                        return Fetched(None, [], [], f'sample {index}: {error}')
                    unreadable.append(f'sample {index}: {error}')
                except Exception as error:
                    error.add_note(
                        f'This happened while sample {index} of {type(self.dataset).__name__} was read.'
                    )
                    raise
            return Fetched(samples or None, read, unreadable)

    def _sample(self, number: int, index: int) -> Any:
        seed_sample(key(self.seed, 'sample', number, index))
        sample = self.dataset[index]
        if self.augment is None:
            return sample
        if type(sample) in (tuple, list):
            return [
                self.augment.one(sample[0], key(self.seed, 'augment', number, index)),
                *sample[1:],
            ]
        return self.augment.one(sample, key(self.seed, 'augment', number, index))

    def dead_worker(self, message: str) -> str:
        """Which sample the process was reading that torch says has died."""
        dead = {int(number) for number in re.findall(r'\d+', message.partition('pid')[2][:80])}
        found = [index for process, index in self.now_reading.tolist() if process in dead]
        return (
            f'while it read sample {found[0]} of {type(self.dataset).__name__}'
            if found
            else 'before it read a sample'
        )


class Collate:
    """Makes a batch of fetched samples, and finishes it with `batch_transform`."""

    def __init__(self, collate_fn: Callable, batch_transform: Callable | None):
        self.collate_fn, self.batch_transform = collate_fn, batch_transform

    def __call__(self, fetched: Fetched) -> Fetched:
        if fetched.batch is None:
            return fetched
        batch = self.collate_fn(fetched.batch)
        return fetched._replace(
            batch=batch if self.batch_transform is None else finish(batch, self.batch_transform)
        )


def finish(batch: Any, transform: Callable) -> Any:
    """The batch with `transform` applied to its inputs: the first part of a tuple or list; anything else is given whole."""
    if type(batch) in (tuple, list):
        return [transform(batch[0]), *batch[1:]]
    return transform(batch)


def make_fetcher(
    samples: KeyedSamples, plan: Iterable, collate: Collate, options: dict
) -> DataLoader:
    """torch's loader of the planned (pass, indices, share); options: its arguments."""
    options = {
        'generator': torch.Generator(),
        **options,
        'worker_init_fn': WorkerStart(options.get('worker_init_fn')),
    }
    options.pop('drop_last', None)  # the plan knows
    return DataLoader(samples, batch_sampler=plan, collate_fn=collate, **options)


def start(fetcher: DataLoader) -> Iterator[Fetched]:
    """iter(fetcher). The signals that stop a run wait until its workers can say what they do about them."""
    held = (
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        if hasattr(signal, 'pthread_sigmask')
        else None
    )
    try:
        iterator = iter(fetcher)
    finally:
        if held is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
    _started.add(iterator)
    atexit.unregister(_end_workers)  # so that it is there once
    atexit.register(_end_workers)
    return iterator


_started = weakref.WeakSet()


def _end_workers() -> None:
    """At exit: Python would send the workers that are left one SIGTERM, which they live through, and wait for ever."""
    for iterator in list(_started):
        end(iterator)


def end(iterator: Iterator[Fetched]) -> None:
    """Let the workers leave now: when an error's traceback keeps their iterator, garbage collection is too late to tell them."""
    getattr(iterator, '_shutdown_workers', lambda: None)()


def checked(fetched: Iterator[Fetched], samples: KeyedSamples) -> Iterator[Fetched]:
    """The same; a DataError when a batch could not be read."""
    last = None
    try:
        for each in fetched:
            if each.failure:
                raise DataError(each.failure)
            if each.batch is None and (last is None or dist.n_processes() == 1):
                raise DataError(f'no sample of a whole batch can be read: {each.unreadable[0]}')
            if each.batch is None:  # others may have read theirs
                each = each._replace(batch=last, share=dist.Share(is_borrowed=True))
            last = each.batch
            yield each
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error) or 'Caught' in str(
            error
        ):  # torch's words for one that has died
            raise
        raise DataError(
            f'{error} A data loader worker died {samples.dead_worker(str(error))}. When memory is short, '
            'fewer num_workers or a smaller prefetch_factor help.'
        ) from error
    finally:
        if not getattr(fetched, '_persistent_workers', False):
            end(fetched)


class WorkerStart:
    """Lets a worker live through a signal sent to the whole process group: the trainer needs it for the step it finishes.

    SIGINT and SIGUSR1 are left to the trainer, and so is the first SIGTERM; a second one ends the worker.
    """

    def __init__(self, worker_init_fn: Callable[[int], None] | None):
        self.worker_init_fn = worker_init_fn

    def __call__(self, worker_id: int) -> None:
        if hasattr(signal, 'pthread_sigmask'):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.signal(
                signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
            )
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker_id)
