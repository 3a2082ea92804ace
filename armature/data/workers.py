"""What happens where samples are read, in a loader's workers or without any.

Keyed randomness, errors that name the sample, signals, and which options torch's loader gets.
"""

import atexit
import functools
import multiprocessing
import os
import pickle
import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import default_collate

from armature.batch import Batch, map_leaves, takes_pinned
from armature.data.augment import Augment
from armature.errors import STOP_CODES, ConfigError, DataError, UserError
from armature.processes import dist
from armature.processes.devices import prepared_device
from armature.processes.launch import worker_options
from armature.seed import key, own_randomness, seed_sample

NOT_PICKLABLE = (AttributeError, TypeError, pickle.PicklingError)  # it depends on the Python


class Reader(Dataset):
    """Makes the planned batches of a dataset, in a worker or without any.

    Each sample draws its random numbers from (seed, pass, index); of a dataset with `__getitems__`,
    which reads several samples at once, the whole batch does.
    """

    def __init__(
        self,
        dataset: Dataset,
        seed: int,
        augment: Augment | None = None,
        collate_fn: Callable = default_collate,
        batch_transform: Callable | None = None,
    ):
        self.dataset, self.seed, self.augment = dataset, seed, augment
        self.collate_fn, self.batch_transform = collate_fn, batch_transform
        self.class_map = None  # (own classes,) the number that training gives each

    def __getitems__(self, planned: tuple) -> tuple | UserError:
        """(pass, indices, share, content) of a planned batch.

        A UserError is returned: raised in a worker, it would bring the worker's traceback along.
        """
        number, indices, share = planned
        try:
            samples = self.read(number, indices)
            content = self.finished(self.collated(indices, samples))
        except UserError as error:
            return error
        # A collate_fn of one's own may leave out samples that are None.
        kept = [index for index, sample in zip(indices, samples) if sample is not None]
        return number, kept, share, content

    def read(self, number: int, indices: list[int]) -> list:
        """The samples at `indices` in pass `number`."""
        with own_randomness(0):
            return self._read(number, indices)

    def _read(self, number: int, indices: list[int]) -> list:
        read_at_once, samples = getattr(self.dataset, '__getitems__', None), []
        if read_at_once is not None:
            self.begin('batch', number, indices[0])
            samples = read_at_once(indices)
        for place, index in enumerate(indices):
            try:
                if read_at_once is None:
                    self.begin('sample', number, index)
                    samples.append(self.dataset[index])
                if self.augment is not None and samples[place] is not None:
                    its_key = key(self.seed, 'augment', number, index)
                    augmented = functools.partial(self.augment.one, key=its_key)
                    samples[place] = on_input(augmented, samples[place])
            except UserError as error:
                raise DataError(f'sample {index}: {error}') from error
            except Exception as error:
                name = type(self.dataset).__name__
                error.add_note(f'This happened while sample {index} of {name} was read.')
                raise
        return samples

    def begin(self, *parts: int | str) -> None:
        """Start the generators where they start for what the parts say."""
        seed_sample(key(self.seed, *parts))

    def collated(self, indices: list[int], samples: list) -> Any:
        try:
            return self.collate_fn(samples)
        except Exception as error:
            if self.collate_fn is not default_collate:
                raise
            raise DataError(_why_no_batch(indices, samples)) from error

    def finished(self, content: Any) -> Any:
        """The content of a batch, transformed, and its classes numbered as training does."""
        if self.batch_transform is not None:
            content = on_input(self.batch_transform, content)
        if self.class_map is None:
            return content
        target = content[-1] if isinstance(content, (list, tuple)) else None
        if not isinstance(target, torch.Tensor) or target.is_floating_point():
            raise DataError(
                f'{type(self.dataset).__name__} has other classes than the training data, and its '
                'targets are no numbers of classes: give it all classes, in the same order'
            )
        self.class_map = self.class_map.to(target.device)  # once: a copy to a GPU waits for it
        return [*content[:-1], self.class_map[target]]


def on_input(transform: Callable, content: Any) -> Any:
    """`content` with its input transformed: the first part of a tuple or list."""
    if type(content) in (tuple, list):
        return [transform(content[0]), *content[1:]]
    return transform(content)


def _why_no_batch(indices: list[int], samples: list) -> str:
    def shape(leaf: Any) -> Any:
        return tuple(leaf.shape) if hasattr(leaf, 'shape') else type(leaf).__name__

    first, *others = [(index, map_leaves(shape, each)) for index, each in zip(indices, samples)]
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


class Fetcher:
    """torch's DataLoader of planned batches: whatever makes them, they come as planned."""

    def __init__(self, reader: Reader, options: dict):
        self.reader, self._planned = reader, _Planned()
        options = {**options, 'worker_init_fn': WorkerStart(options.get('worker_init_fn'))}
        self._loader = DataLoader(
            reader,
            batch_sampler=self._planned,
            collate_fn=as_it_is,
            generator=torch.Generator(),
            **options,
        )

    def batches(self, planned: Iterable[tuple]) -> Iterator[Batch]:
        """planned: (pass, indices, share) of each."""
        self._planned.batches = planned
        lists_are_parts = self.reader.collate_fn is default_collate
        with reading(self._loader) as fetched:
            for each in fetched:
                if isinstance(each, UserError):
                    raise each
                number, indices, share, content = each
                batch = Batch(content, len(indices), torch.tensor(indices), share)
                batch.lists_are_parts = lists_are_parts
                if self.reader.batch_transform is None:
                    batch.collate = functools.partial(self._collate_anew, number, indices)
                yield batch

    def _collate_anew(self, number: int, indices: list[int], rows: slice) -> Any:
        """The content of the samples `rows` of a batch, read and collated by themselves."""
        samples = self.reader.read(number, indices[rows])
        return self.reader.finished(self.reader.collated(indices[rows], samples))


def as_it_is(batch: Any) -> Any:
    """For torch's loader, whose own collating would come after ours."""
    return batch


class _Planned:
    """What the workers are asked for, as a batch sampler; another object for each iteration."""

    batches = ()

    def __iter__(self) -> Iterator[tuple]:
        return map(_with_list, self.batches)


def _with_list(planned: tuple) -> tuple:
    number, indices, share = planned
    return number, indices.tolist(), share  # a tensor would go to the workers by a file


def options_of_torch(num_workers: int, **given: Any) -> dict:
    """What torch's DataLoader gets for its workers, with defaults that suit the machine."""
    options = {
        'num_workers': num_workers,
        'pin_memory': takes_pinned(prepared_device()),
        **worker_options,
        **{name: value for name, value in given.items() if value is not None},
    }
    if num_workers == 0:
        # torch refuses what is for workers when there are none, as with --set ...num_workers=0
        for name in ('persistent_workers', 'prefetch_factor', 'timeout', 'multiprocessing_context'):
            options.pop(name, None)
    return options


def refuse_numbers(batch_size: int, num_workers: int) -> None:
    if batch_size < 1 or num_workers < 0:
        raise ConfigError(
            f'batch_size is {batch_size} and num_workers {num_workers}: expected at least 1, and '
            'at least 0'
        )
    if batch_size < dist.n_processes():
        raise ConfigError(
            f'batch_size is {batch_size}, and {dist.n_processes()} processes share each batch: '
            'expected at least one sample for each'
        )


# Workers

_started = weakref.WeakSet()


@contextmanager
def reading(loader: DataLoader) -> Iterator[Iterator]:
    """iter(loader); what happens to its workers is one line, and they leave at the end."""
    # The signals that stop a run wait until the workers can say what they do about them.
    has_masks = hasattr(signal, 'pthread_sigmask')
    held = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_CODES) if has_masks else None
    try:
        with warnings.catch_warnings():
            # torch's, where it cannot pickle what workers need: what is raised then is clearer
            warnings.simplefilter('ignore', UserWarning)
            iterator = iter(loader)
    except NOT_PICKLABLE:
        _refuse_what_cannot_be_sent(loader)
        raise
    finally:
        if has_masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
    _started.add(iterator)
    try:
        yield iterator
    except RuntimeError as error:
        if not str(error).startswith(('DataLoader worker (pid', 'DataLoader timed out')):
            raise
        raise DataError(
            f'{error}: a worker of the data loader died or fell silent. When memory is short, '
            'fewer num_workers or a smaller prefetch_factor help'
        ) from error
    finally:
        if not loader.persistent_workers:
            _end(iterator)


def _refuse_what_cannot_be_sent(loader: DataLoader) -> None:
    """A ConfigError when workers that are started anew, not forked, cannot be sent the data."""
    try:
        ForkingPickler.dumps((loader.dataset, loader.worker_init_fn))
    except NOT_PICKLABLE as error:
        raise ConfigError(
            'the workers of the loader are started anew here, not forked, so all that they need is '
            f'pickled, and this cannot be: {error}. Use functions and classes of a module instead '
            'of lambdas and local ones, or num_workers 0'
        ) from error


def _end(iterator: Iterator) -> None:
    """Let the workers leave now.

    When an error's traceback keeps their iterator, garbage collection is too late to tell them.
    """
    getattr(iterator, '_shutdown_workers', lambda: None)()


@atexit.register
def _end_workers() -> None:
    """At exit: Python would send the workers that are left one SIGTERM, and wait for ever.

    They live through it (see WorkerStart).
    """
    for iterator in list(_started):
        _end(iterator)


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
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, 'pthread_sigmask'):  # not on Windows
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.signal(
                signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
            )
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_CODES)
        trainer = multiprocessing.parent_process()
        if trainer is not None and trainer.pid != os.getppid():
            # Of a fork server: torch looks whether that lives, and it lives as long as a worker.
            threading.Thread(target=_leave_after, args=(trainer,), daemon=True).start()
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker_id)
