"""What happens where samples are read, in a loader's workers or without any.

Keyed randomness, augmentation, errors that name the sample, signals, and torch's own loader.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from armature.batch import Batch, map_leaves
from armature.errors import STOP_CODES, ConfigError, DataError, UserError
from armature.seed import key, own_randomness, seed_sample

NOT_PICKLABLE = (AttributeError, TypeError, pickle.PicklingError)  # it depends on the Python


@dataclass(eq=False)
class Reader(Dataset):
    """Makes the batches that are requested of a dataset, in a worker or without any.

    Each sample draws its random numbers from (seed, pass, index).
    """

    dataset: Dataset
    transforms: Sequence[Callable] = ()
    collate_fn: Callable = default_collate
    batch_transform: Callable | None = None
    class_map: torch.Tensor | None = None  # (own classes,) the number that training gives each

    def __getitem__(self, request: tuple) -> tuple | UserError:
        """(seed, pass, share, indices, content) for a request (seed, pass, indices, share).

        A UserError is returned: raised in a worker, it would bring the worker's traceback along.
        """
        seed, number, indices, share = request
        try:
            return seed, number, share, *self._read(seed, number, indices)
        except UserError as error:
            return error

    def batch(self, answer: tuple) -> Batch:
        """The Batch of what `__getitem__` returned, in the process that trains."""
        seed, number, share, indices, content = answer
        batch = Batch(content, len(indices), torch.tensor(indices), share)
        batch.lists_are_parts = self.collate_fn is default_collate
        if self.batch_transform is None:
            batch.collate = lambda rows: self._read(seed, number, indices[rows])[1]
        return batch

    def _read(self, seed: int, number: int, indices: list[int]) -> tuple[list[int], Any]:
        """(the indices that are in it, the content) of a batch."""
        with own_randomness(0):
            samples = self.samples(seed, number, indices)
            try:
                content = self.collate_fn(samples)
            except Exception as error:
                if self.collate_fn is not default_collate:
                    raise
                raise DataError(_why_no_batch(indices, samples)) from error
            content = self.finished(content)
        # A collate_fn of one's own may leave out samples that are None.
        return [index for index, each in zip(indices, samples) if each is not None], content

    def samples(self, seed: int | None, number: int, indices: list[int]) -> list:
        """The samples at `indices` in pass `number`, augmented.

        seed: None leaves the generators as they are.
        """
        samples = []
        for index in indices:
            try:
                if seed is not None:
                    seed_sample(key(seed, 'sample', number, index))
                sample = self.dataset[index]
                if self.transforms and sample is not None:
                    its_key = key(seed, 'augment', number, index)
                    sample = on_input(augmented, sample, self.transforms, its_key)
            except Exception as error:
                raise about_sample(index, self.dataset, error)  # noqa: B904 (it may be the same)
            samples.append(sample)
        return samples

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


def about_sample(index: int, dataset: Dataset, error: Exception) -> Exception:
    """The error, which says now that it is about this sample."""
    if isinstance(error, UserError):
        return DataError(f'sample {index}: {error}')
    error.add_note(f'This happened while sample {index} of {type(dataset).__name__} was read.')
    return error


def on_input(transform: Callable, content: Any, *more: Any) -> Any:
    """`content` with its input transformed: the first part of a tuple or list."""
    if type(content) in (tuple, list):
        return [transform(content[0], *more), *content[1:]]
    return transform(content, *more)


def augmented(data: Any, transforms: Sequence[Callable], its_key: int) -> Any:
    """The input of the sample with this key, after one transform after the other.

    Number i draws from generators that start at key + i. To be called where the global generators
    are ours (`own_randomness`).
    """
    for number, transform in enumerate(transforms):
        # A tensor may be on a GPU. (An array of numpy has a device, too, which is a text.)
        seed_sample(its_key + number, data.device if isinstance(data, torch.Tensor) else None)
        data = transform(data)
    return data


def augmented_batch(
    data: torch.Tensor, transforms: Sequence[Callable], keys: Sequence[int]
) -> torch.Tensor:
    """(batch, ...) inputs, each with its key; what `augmented` gives for each."""
    with own_randomness(0):
        return torch.stack(
            [augmented(one, transforms, its_key) for one, its_key in zip(data, keys)]
        )


def _why_no_batch(indices: list[int], samples: list) -> str:
    def shape(leaf: Any) -> Any:
        return tuple(leaf.shape) if hasattr(leaf, 'shape') else type(leaf).__name__

    shapes = [map_leaves(shape, each) for each in samples]
    odd = next((place for place, each in enumerate(shapes) if each != shapes[0]), 0)
    said = [f'sample {indices[place]} is {shapes[place]}' for place in sorted({0, odd})]
    return (
        f'{" and ".join(said)}: a batch is made of tensors, arrays, numbers and texts, all of one '
        'size. Let the dataset return these, or say in "collate_fn" how samples become a batch '
        '(PadCollate for sequences)'
    )


# Workers

_started = weakref.WeakSet()


class Workers(DataLoader):
    """torch's DataLoader as what runs a `reader` in workers, or in this process without any.

    reader: a Dataset that answers requests in `__getitem__`, or a stream of answers.
    seed: where `get_worker_info().seed` comes from; None: from torch's own first one.
    """

    def __init__(self, reader: Dataset, options: dict, seed: int | None = None):
        self._requests, generator = _Requests(), torch.Generator()
        if seed is not None:
            generator.manual_seed(seed)
        start = functools.partial(start_worker, options.get('worker_init_fn'))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the loader that asks has said it, such as too many
            super().__init__(
                reader,
                batch_size=None,
                sampler=None if isinstance(reader, IterableDataset) else self._requests,
                collate_fn=as_it_is,
                generator=generator,
                **options | {'worker_init_fn': start},
            )

    def answers(self, requests: Iterable[tuple] = ()) -> Iterator[Any]:
        """What the reader makes of each request, in their order; a UserError is raised."""
        self._requests.due = requests
        iterator = self._begun()
        try:
            for answer in iterator:
                if isinstance(answer, UserError):
                    raise answer
                yield answer
        except RuntimeError as error:
            if not str(error).startswith(('DataLoader worker (pid', 'DataLoader timed out')):
                raise
            raise DataError(
                f'{error}: a worker of the data loader died or fell silent. When memory is short, '
                'fewer num_workers or a smaller prefetch_factor help'
            ) from error
        finally:
            self._requests.due = ()
            if not self.persistent_workers:
                _end(iterator)

    def _begun(self) -> Iterator[Any]:
        """iter(loader), in which the workers start."""
        # The signals that stop a run wait until the workers can say what they do about them.
        has_masks = hasattr(signal, 'pthread_sigmask')
        held = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_CODES) if has_masks else None
        try:
            with warnings.catch_warnings():
                # torch's, where it cannot pickle what workers need: what is raised then is clearer
                warnings.simplefilter('ignore', UserWarning)
                iterator = iter(self)
        except NOT_PICKLABLE:
            self._refuse_what_cannot_be_sent()
            raise
        finally:
            if has_masks:
                signal.pthread_sigmask(signal.SIG_SETMASK, held)
        _started.add(iterator)
        return iterator

    def _refuse_what_cannot_be_sent(self) -> None:
        try:
            ForkingPickler.dumps((self.dataset, self.worker_init_fn))
        except NOT_PICKLABLE as error:
            raise ConfigError(
                'the workers of the loader are started anew here, not forked, so all that they '
                f'need is pickled, and this cannot be: {error}. Use functions and classes of a '
                'module instead of lambdas and local ones, or num_workers 0'
            ) from error


class _Requests:
    """What is requested, as torch's loader asks its sampler; others in each iteration."""

    due = ()

    def __iter__(self) -> Iterator[tuple]:
        return iter(self.due)


def as_it_is(answer: Any) -> Any:
    """For torch's loader, which would make tensors of arrays and numbers."""
    return answer


def _end(iterator: Iterator) -> None:
    """Let the workers leave now.

    When an error's traceback keeps their iterator, garbage collection is too late to tell them.
    """
    getattr(iterator, '_shutdown_workers', lambda: None)()


@atexit.register
def _end_workers() -> None:
    """At exit: Python would send the workers that are left one SIGTERM, and wait for ever.

    They live through it (see `start_worker`).
    """
    for iterator in list(_started):
        _end(iterator)


def start_worker(worker_init_fn: Callable[[int], None] | None, worker_id: int) -> None:
    """Let a worker live through a signal sent to the whole process group.

    The trainer needs it for the step it finishes. SIGINT and SIGUSR1 are left to the trainer, and
    so is the first SIGTERM; a second one ends the worker.
    """
    for each in STOP_CODES:
        signal.signal(each, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, lambda *_: os._exit(0)))
    if hasattr(signal, 'pthread_sigmask'):  # not on Windows
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_CODES)
    trainer = multiprocessing.parent_process()
    if trainer is not None and trainer.pid != os.getppid():
        # Of a fork server: torch looks whether that lives, and it lives as long as a worker.
        threading.Thread(target=_leave_after, args=(trainer,), daemon=True).start()
    if worker_init_fn is not None:
        worker_init_fn(worker_id)


def _leave_after(trainer: Any) -> None:
    trainer.join()
    os._exit(1)
