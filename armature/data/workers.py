"""What happens where samples are read, in a loader's workers or without any.

Keyed randomness, errors that name the sample, signals, and which options torch's loader gets.
"""

import atexit
import difflib
import inspect
import multiprocessing
import os
import pickle
import random
import re
import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.dataloader import default_collate

from armature.batch import WHOLE, Share
from armature.data.augment import Augment
from armature.errors import STOP_SIGNALS, ConfigError, DataError, UserError
from armature.processes import dist
from armature.processes.launch import worker_options
from armature.seed import key, own_randomness, seed_sample


class Fetched(NamedTuple):
    """A batch (its samples, before they are collated), their indices, and what is missing of it."""

    batch: Any
    indices: list[int]
    unreadable: list[str]
    failure: str = ''
    share: Share = WHOLE
    has_drawn: bool = False  # a generator has moved; only looked at for data to be kept in memory


class KeyedSamples(Dataset):
    """The samples of `dataset`, each drawing its random numbers from (seed, pass, index).

    skip_unreadable: leave out samples whose reading raises a UserError. none_is_unreadable: and
    those that are None. watches_draws: say whether reading draws random numbers at all.
    """

    def __init__(
        self,
        dataset: Dataset,
        seed: int,
        augment: Augment | None = None,
        skip_unreadable: bool = False,
        none_is_unreadable: bool = True,
        watches_draws: bool = False,
        num_workers: int = 0,
    ):
        self.dataset, self.seed, self.augment = dataset, seed, augment
        self.skip_unreadable, self.none_is_unreadable = skip_unreadable, none_is_unreadable
        self.watches_draws = watches_draws
        self.now_reading = (
            torch.zeros(num_workers, 2, dtype=torch.long).share_memory_() if num_workers else None
        )  # (process, index)

    def __getitems__(self, due: tuple[int, list[int], Share]) -> Fetched:
        number, indices, share = due
        return self.read(number, indices)._replace(share=share)

    def read(self, number: int, indices: list[int]) -> Fetched:
        """The samples at `indices` in pass `number`."""
        worker = get_worker_info()
        now_reading = (
            torch.zeros(2, dtype=torch.long) if worker is None else self.now_reading[worker.id]
        )
        now_reading[0] = os.getpid()
        with own_randomness(0):
            at_once = self._read_at_once(number, indices)
            samples, read, unreadable = [], [], []
            before = _draws_so_far() if self.watches_draws else None
            for place, index in enumerate(indices):
                now_reading[1] = index
                try:
                    sample = at_once[place] if at_once else self._sample(number, index)
                    if sample is None and self.none_is_unreadable:
                        raise DataError(
                            f'{type(self.dataset).__name__} gives None for it. Leave it out of the '
                            'dataset, or say "on_error": "skip"'
                        )
                    samples.append(self._augmented(sample, number, index))
                    read.append(index)
                except UserError as error:  # its message is enough
                    said = f'sample {index}: {error}'
                    if not self.skip_unreadable:
                        # raised in a worker it would bring the worker's traceback along
                        return Fetched(None, [], [], said)
                    unreadable.append(said)
                except Exception as error:
                    error.add_note(
                        f'This happened while sample {index} of {type(self.dataset).__name__} '
                        'was read.'
                    )
                    raise
            has_drawn = before is not None and before != _draws_so_far()
            return Fetched(samples or None, read, unreadable, has_drawn=has_drawn)

    def _read_at_once(self, number: int, indices: list[int]) -> list | None:
        """What `dataset.__getitems__` gives; None when samples are to be read one by one."""
        if self.skip_unreadable or not hasattr(self.dataset, '__getitems__'):
            return None
        if not self.watches_draws:
            seed_sample(key(self.seed, 'batch', number, indices[0]))
        return self.dataset.__getitems__(indices)

    def _sample(self, number: int, index: int) -> Any:
        if not self.watches_draws:
            seed_sample(key(self.seed, 'sample', number, index))
        return self.dataset[index]

    def _augmented(self, sample: Any, number: int, index: int) -> Any:
        if self.augment is None or sample is None:
            return sample
        its_key = key(self.seed, 'augment', number, index)
        if type(sample) in (tuple, list):
            return [self.augment.one(sample[0], its_key), *sample[1:]]
        return self.augment.one(sample, its_key)

    def dead_worker(self, message: str) -> str:
        """Which sample the process was reading that torch says has died."""
        dead = {int(number) for number in re.findall(r'\d+', message.partition('pid')[2][:80])}
        found = [index for process, index in self.now_reading.tolist() if process in dead]
        if not found:
            return 'before it read a sample'
        return f'while it read sample {found[0]} of {type(self.dataset).__name__}'


def _draws_so_far() -> tuple:
    """Where the generators stand that a dataset may draw from."""
    return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())


class Collate:
    """Makes a batch of fetched samples, and finishes it with `batch_transform`."""

    def __init__(self, collate_fn: Callable, batch_transform: Callable | None):
        self.collate_fn, self.batch_transform = collate_fn, batch_transform

    def __call__(self, fetched: Fetched) -> Fetched:
        if fetched.batch is None:
            return fetched
        try:
            batch = self.collate_fn(fetched.batch)
        except Exception:
            if self.collate_fn is not default_collate:
                raise
            return fetched._replace(batch=None, failure=_why_no_batch(fetched))
        # A collate_fn of one's own may leave out samples that are None.
        kept = [index for index, each in zip(fetched.indices, fetched.batch) if each is not None]
        if self.batch_transform is not None:
            batch = finish(batch, self.batch_transform)
        return fetched._replace(batch=batch, indices=kept)


def _why_no_batch(fetched: Fetched) -> str:
    first, *others = ((index, _shape(each)) for index, each in zip(fetched.indices, fetched.batch))
    other = next((each for each in others if each[1] != first[1]), None)
    if other is None:
        return (
            f'sample {first[0]} is {first[1]}, and a batch is made of tensors, arrays, numbers and '
            'texts: return these, or say in "collate_fn" how samples become a batch'
        )
    return (
        f'samples {first[0]} and {other[0]} are {first[1]} and {other[1]}, which fit into no batch:'
        ' bring them to one size, or say in "collate_fn" how samples become a batch (PadCollate '
        'for sequences)'
    )


def _shape(sample: Any) -> str:
    """What a sample looks like, in a few words."""
    if isinstance(sample, (list, tuple)):
        return f'({", ".join(map(_shape, sample))})'
    if isinstance(sample, Mapping):
        return f'{{{", ".join(f"{name!r}: {_shape(each)}" for name, each in sample.items())}}}'
    if hasattr(sample, 'shape') and hasattr(sample, 'dtype'):
        return f'{sample.dtype} {tuple(sample.shape)}'
    return type(sample).__name__


def finish(batch: Any, transform: Callable) -> Any:
    """The batch with `transform` applied to its inputs: the first part of a tuple or list."""
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


def refuse_small_batches(batch_size: int) -> None:
    if batch_size < dist.n_processes():
        raise ConfigError(
            f'batch_size is {batch_size}, and {dist.n_processes()} processes share each batch: '
            'expected at least one sample for each'
        )


def loader_options_for(given: dict, num_workers: int, owner: type) -> dict:
    """What torch's DataLoader gets beside what we give it, with defaults that suit the machine."""
    known = {*inspect.signature(DataLoader).parameters, *inspect.signature(owner).parameters}
    unknown = sorted(given.keys() - inspect.signature(DataLoader).parameters.keys())
    if 'training' in unknown:
        raise ConfigError(
            f'{owner.__name__} does not know training from test data: say where the test data is '
            'in "test_data_loader"'
        )
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f'; did you mean {near[0]!r}?' if near else ''
        raise ConfigError(f'{owner.__name__} has no argument {unknown[0]!r}{hint}')
    given = {name: value for name, value in given.items() if value is not None}
    options = {
        'drop_last': False,
        'pin_memory': torch.cuda.is_available(),
        # Workers that live on would not see what changes in the dataset between two passes.
        'persistent_workers': False,
        **worker_options(),
        **given,
    }
    if num_workers == 0:
        # torch refuses what is for workers when there are none, as with --set ...num_workers=0
        for name in ('persistent_workers', 'prefetch_factor', 'timeout', 'multiprocessing_context'):
            options.pop(name, None)
    return options


# Workers


def start(fetcher: DataLoader) -> Iterator[Fetched]:
    """iter(fetcher).

    The signals that stop a run wait until its workers can say what they do about them.
    """
    held = (
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        if hasattr(signal, 'pthread_sigmask')
        else None
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)  # torch's, where we raise what is clearer
            iterator = iter(fetcher)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        if what := _not_picklable(fetcher):
            raise ConfigError(
                f'the workers of the loader are started anew here, not forked, so all that they '
                f'need is pickled, and {what} cannot be ({error}): use functions and classes of a '
                'module instead of lambdas and local ones, or num_workers 0'
            ) from error
        raise
    finally:
        if held is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
    _started.add(iterator)
    atexit.unregister(_end_workers)  # so that it is there once
    atexit.register(_end_workers)
    return iterator


_started = weakref.WeakSet()


def _not_picklable(fetcher: DataLoader) -> str:
    """The name of what a worker needs and cannot be sent; empty when all can."""
    dataset = getattr(fetcher.dataset, 'dataset', fetcher.dataset)
    collate = getattr(fetcher.collate_fn, 'collate_fn', fetcher.collate_fn)
    for what, each in (
        (type(dataset).__name__, dataset),
        ('collate_fn', collate),
        ('what is done to a batch', fetcher.collate_fn),
        ('augment', fetcher.dataset),
        ('worker_init_fn', fetcher.worker_init_fn),
    ):
        try:
            ForkingPickler.dumps(each)
        except (AttributeError, TypeError, pickle.PicklingError):
            return what
    return ''


def _end_workers() -> None:
    """At exit: Python would send the workers that are left one SIGTERM, and wait for ever.

    They live through it (see WorkerStart).
    """
    for iterator in list(_started):
        end(iterator)


def end(iterator: Iterator[Fetched]) -> None:
    """Let the workers leave now.

    When an error's traceback keeps their iterator, garbage collection is too late to tell them.
    """
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
                borrowed = Share(is_borrowed=True)
                each = last._replace(unreadable=each.unreadable, share=borrowed)
            last = each
            yield each
    except RuntimeError as error:
        if 'DataLoader timed out' in str(error):
            reading = ', '.join(str(index) for _, index in samples.now_reading.tolist())
            raise DataError(
                f'{error}: a data loader worker is silent (distributed.timeout_s). Last they read '
                f'samples {reading} of {type(samples.dataset).__name__}'
            ) from error
        # torch's words for one that has died
        if 'DataLoader worker' not in str(error) or 'Caught' in str(error):
            raise
        raise DataError(
            f'{error} A data loader worker died {samples.dead_worker(str(error))}. When memory is '
            'short, fewer num_workers or a smaller prefetch_factor help.'
        ) from error
    finally:
        if not getattr(fetched, '_persistent_workers', False):
            end(fetched)


def _leave_after(trainer: Any) -> None:
    trainer.join()
    os._exit(1)


class WorkerStart:
    """Lets a worker live through a signal sent to the whole process group.

    The trainer needs it for the step it finishes. SIGINT and SIGUSR1 are left to the trainer, and
    so is the first SIGTERM; a second one ends the worker.
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
        trainer = multiprocessing.parent_process()
        if trainer is not None and trainer.pid != os.getppid():
            # Of a fork server: torch looks whether that lives, and it lives as long as a worker.
            threading.Thread(target=_leave_after, args=(trainer,), daemon=True).start()
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker_id)
