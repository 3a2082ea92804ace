"""What comes when: the orders of a pass, loaders that can begin anywhere, where a run stands.

Orders are samplers that a config can name. Unlike torch's they are made without the data (`bind`
tells them), and draw from torch's generator, which the loader keys by pass. Epochs follow each
other through the passes over a loader, and any batch can be gone to.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate

from armature.batch import NO_BATCH, WHOLE, Batch, length, takes_pinned, to_device
from armature.data.identity import class_names_of
from armature.errors import ConfigError, DataError
from armature.processes import dist
from armature.processes.devices import prepared_device
from armature.processes.launch import worker_options
from armature.seed import key, seed_torch


class Order(Sampler):
    """Base: `order()` is an epoch's indices, drawn anew each time."""

    def bind(self, indices: torch.Tensor, classes: Callable[[], np.ndarray]) -> 'Order':
        """Go through `indices`; classes() are the classes of those samples."""
        self.indices = indices
        return self

    def order(self) -> torch.Tensor:
        return self.indices

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())


class SequentialSampler(Order):
    """The samples as they come."""


class RandomSampler(Order):
    """The samples in a random order, each once."""

    def order(self) -> torch.Tensor:
        return self.indices[torch.randperm(len(self.indices))]


class WeightedRandomSampler(Order):
    """Samples drawn, each time anew, with a probability that their class decides.

    weights: a number for each class, or 'balanced': each class equally often. num_samples: of an
    epoch; None: as many as there are.
    """

    def __init__(self, weights: Literal['balanced'] | list, num_samples: int | None = None):
        self.weights, self.num_samples = weights, num_samples

    def bind(self, indices, classes):
        found, which, counts = np.unique(
            np.ravel(classes()), return_inverse=True, return_counts=True
        )
        if self.weights == 'balanced':
            weights = 1 / counts
        elif found.dtype.kind in 'iu' and found[0] >= 0 and found[-1] < len(self.weights):
            weights = np.asarray(self.weights, dtype=float)[found]
        else:  # too few numbers, or classes that are none
            weights = np.zeros(1)
        if not weights.sum() > 0:
            raise ConfigError(
                f'sampler: weights are {self.weights}, and there are classes up to {found[-1]}: '
                'give each class a number, and some one above 0'
            )
        self._counts = torch.from_numpy(counts)
        self._weights = torch.from_numpy(weights * counts)  # of a whole class
        which = which.astype(np.min_scalar_type(len(found)))  # few bits are sorted in linear time
        self._by_class = torch.from_numpy(np.argsort(which, kind='stable'))
        return super().bind(indices, classes)

    def __len__(self) -> int:
        return self.num_samples or len(self.indices)

    def order(self) -> torch.Tensor:
        # First a class, then one of its samples: torch.multinomial over all samples takes no more
        # than 2**24 of them, and far longer.
        drawn = torch.multinomial(self._weights, len(self), replacement=True)
        counts = self._counts[drawn]
        place_in_class = (torch.rand(len(self), dtype=torch.double) * counts).long()
        first = self._counts.cumsum(0) - self._counts
        return self.indices[self._by_class[first[drawn] + place_in_class]]


# Loaders


class SeekableLoader(DataLoader):
    """Base of our loaders, which write _make_batches(number, first, n_batches).

    Iterating gives the contents of the next pass, or of the one that `seek` has named. `share` is
    what this process has of the newest batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        num_workers: int = 0,
        collate_fn: Callable = default_collate,
        *,
        sampler: Iterable[int] | None = None,
        seed: int | None = None,
        drop_last: bool = False,
        pin_memory: bool | None = None,
        persistent_workers: bool | None = None,
        prefetch_factor: int | None = None,
        timeout: float | None = None,
        worker_init_fn: Callable | None = None,
        multiprocessing_context: Any = None,
    ):
        if batch_size < dist.n_processes() or num_workers < 0:
            raise ConfigError(
                f'batch_size is {batch_size} and num_workers {num_workers}: expected at least '
                f'{dist.n_processes()}, a sample for each process, and at least 0'
            )
        self.seed = torch.initial_seed() if seed is None else seed
        self.class_names = getattr(self, 'class_names', None) or class_names_of(dataset)
        self.share, self._due = WHOLE, (0, 0)  # pass and batch
        pins = takes_pinned(prepared_device()) if pin_memory is None else pin_memory
        options = {'num_workers': num_workers, 'pin_memory': pins}
        if num_workers:  # torch refuses these without any, as with --set ...num_workers=0
            given = {
                'persistent_workers': persistent_workers,
                'prefetch_factor': prefetch_factor,
                'timeout': timeout,
                'worker_init_fn': worker_init_fn,
                'multiprocessing_context': multiprocessing_context,
            }
            given = {name: value for name, value in given.items() if value is not None}
            options |= worker_options | given
        self.torch_options = options
        super().__init__(
            dataset,
            batch_size,
            sampler=sampler,
            collate_fn=collate_fn,
            drop_last=drop_last,
            **options,
        )

    def seek(self, number: int, batch: int = 0) -> None:
        """Let the next iteration be pass `number` (from 0), from its batch `batch` (from 0) on."""
        self._due = number, batch

    def batches(
        self, number: int | None = None, first: int = 0, n_batches: int | None = None
    ) -> Iterator[Batch]:
        """`n_batches` (None: the rest of the pass) from batch `first` of pass `number` on.

        Through the passes after it; the contract is in armature/batch.py. number: None is what
        iterating would give next.
        """
        if number is None:
            number, first = self._due
            self.seek(number + 1)
        return self._make_batches(number, first, n_batches)

    def __iter__(self) -> Iterator[Any]:
        return map(self._content, self.batches())

    def _content(self, batch: Batch) -> Any:
        if batch.share is not self.share:
            self.share = batch.share
        return batch.content


def knows_batches(loader: Any) -> bool:
    """Whether its `batches()` belongs to its iteration, which a subclass may have written anew."""
    owner = next((each for each in type(loader).__mro__ if '__iter__' in vars(each)), object)
    return 'batches' in vars(owner)


def first_pass(loader: Iterable) -> Iterator[Batch]:
    """The first pass over any loader: its batches, with what is known of them."""
    return loader.batches(0) if knows_batches(loader) else _sized(loader, 0)


def one_pass(
    loader: Iterable, parts: Callable[[Batch], Batch], device: torch.device, *holders: Any
) -> Iterator[Any]:
    """The contents of a pass without steps (a validation, a test), on the device.

    parts: see armature/batch.py. `batch` of each holder is the Batch that is due.
    """
    try:
        for batch in dist.in_step(map(parts, first_pass(loader)), loader):
            for each in holders:
                each.batch = batch
            yield to_device(batch.content, device)
    finally:
        for each in holders:
            each.batch = NO_BATCH


def epoch_batches(
    position: int,
    epoch: int,
    len_epoch: int,
    loader: Iterable,
    seed: int,
    after_reading_up: Callable[[], None] = lambda: None,
) -> Iterator[Batch]:
    """The batches of `epoch` (from 1; `len_epoch` of them) from batch `position` (from 0) on.

    A loader that cannot begin there (torch's own) draws its order anew, keyed, and is read up to
    it; `after_reading_up` is called then.
    """
    number, first = pass_and_batch(position, epoch, len_epoch, loader)
    if knows_batches(loader):
        return loader.batches(number, first, len_epoch - position)
    batches = _read_up(loader, number, first, seed, after_reading_up)
    return itertools.islice(batches, len_epoch - position)


def _read_up(
    loader: Iterable, start: int, first: int, seed: int, after_reading_up: Callable
) -> Iterator[Batch]:
    """Batches of another's loader without an end, from batch `first` of pass `start` on."""
    for number in itertools.count(start):
        pass_key, batches = key(seed, 'pass', number), _sized(loader, number)
        for index in itertools.count():
            if index == first > 0:
                after_reading_up()
            # What a sample draws must not depend on what the model drew before.
            seed_torch(pass_key + index)
            batch = next(batches, None)
            if batch is None:
                break
            if index >= first:
                yield batch
        first = 0


def _sized(loader: Iterable, number: int) -> Iterator[Batch]:
    """Pass `number` of a loader that does not say how many samples a batch holds; at least one."""
    if hasattr(loader, 'seek'):  # one of ours with an __iter__ of its own
        loader.seek(number)
    elif hasattr(dist.sampler_of(loader), 'set_epoch'):  # torch's DistributedSampler
        dist.sampler_of(loader).set_epoch(number)
    lists_are_parts = getattr(loader, 'collate_fn', None) is default_collate
    # Those of torch's own loaders are of known size; elsewhere the content tells.
    is_torchs = isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__
    is_known = is_torchs and loader.batch_size and not isinstance(loader.dataset, IterableDataset)
    n_left, is_empty = len(loader.sampler) if is_known else 0, True
    for content in loader:
        is_empty = False
        n_samples = min(loader.batch_size, n_left) if is_known else length(content)
        n_left -= n_samples
        share = getattr(loader, 'share', WHOLE)
        yield Batch(content, n_samples, share=share, lists_are_parts=lists_are_parts)
    if is_empty:
        raise DataError(f'{type(loader).__name__} gives no batches')


# Where a run stands


def pass_and_batch(position: int, epoch: int, len_epoch: int, loader: Iterable) -> tuple[int, int]:
    """(pass over the data, batch in it), both from 0, of a position in an epoch.

    A stream without a length begins anew each epoch.
    """
    return divmod((epoch - 1) * len_epoch + position, batches_per_pass(loader) or len_epoch)


def batches_per_pass(loader: Iterable) -> int | None:
    """None for a stream that does not tell."""
    try:
        return len(loader)
    except TypeError:
        return None


def epoch_length(config: Any, loader: Iterable) -> int:
    """Batches in an epoch: trainer.len_epoch, else one pass over the data."""
    n_batches = config['trainer'].get('len_epoch') or batches_per_pass(loader)
    if n_batches is None:
        raise ConfigError(
            'the training data is a stream that has no length: say how many batches an epoch has, '
            'in trainer.len_epoch'
        )
    return n_batches


def samples_of(position: int, epoch: int, len_epoch: int, loader: Any) -> list[int]:
    """The indices of the samples in a batch; empty when the loader cannot tell."""
    if not hasattr(loader, 'indices') or position < 0:
        return []
    number, batch = pass_and_batch(position, epoch, len_epoch, loader)
    first = batch * loader.batch_size
    return loader.indices(number)[first : first + loader.batch_size].tolist()
