"""What comes when: the orders of an epoch, its batches from any loader, and where a run stands.

Orders are samplers that a config can name. Unlike torch's they are made without the data (`bind`
tells them), and draw from torch's generator, which the loader keys by pass. Epochs follow each
other through the passes over a loader, and any batch can be gone to.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler
from torch.utils.data.dataloader import default_collate

from armature.batch import WHOLE, Batch, length
from armature.errors import ConfigError, DataError
from armature.seed import key, seed_torch


class Order(Sampler):
    """Base: `order()` is an epoch's indices, drawn anew each time."""

    def bind(self, indices: torch.Tensor, classes: Callable[[], np.ndarray]) -> 'Order':
        """Go through `indices`; classes() are the classes of those samples."""
        self.indices = indices
        self.is_whole = torch.equal(indices, torch.arange(len(indices)))
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
    """The samples in a random order, each once.

    replacement: draw `num_samples` (None: as many as there are) independently of each other.
    """

    def __init__(self, replacement: bool = False, num_samples: int | None = None):
        self.replacement, self.num_samples = replacement, num_samples

    def __len__(self) -> int:
        return self.num_samples or len(self.indices)

    def order(self) -> torch.Tensor:
        n_samples = len(self.indices)
        if self.replacement:
            return self.indices[torch.randint(n_samples, (len(self),))]
        n_rounds = -(-len(self) // n_samples)
        places = torch.cat([torch.randperm(n_samples) for _ in range(n_rounds)])
        # Where all samples are gone through, a place is an index.
        return places[: len(self)] if self.is_whole else self.indices[places[: len(self)]]


class WeightedRandomSampler(Order):
    """Samples drawn with the probabilities `weights`: a number for each class, or 'balanced'.

    'balanced': each class equally often.
    """

    def __init__(
        self,
        weights: Literal['balanced'] | list,
        num_samples: int | None = None,
        replacement: bool = True,
    ):
        self.weights, self.num_samples, self.replacement = weights, num_samples, replacement

    def bind(self, indices, classes):
        found, which, counts = numbered(classes())
        if self.weights == 'balanced':
            weights = 1 / counts
        elif found.dtype.kind in 'iu' and found[0] >= 0 and found[-1] < len(self.weights):
            weights = np.asarray(self.weights, dtype=float)[found]
        else:
            raise ConfigError(
                f'sampler: weights has {len(self.weights)} numbers, and there are classes up to '
                f'{found[-1]}'
            )
        super().bind(indices, classes)
        n_possible = int(counts[weights > 0].sum())
        if n_possible < (1 if self.replacement else len(self)):
            raise ConfigError(
                f'sampler: {len(self)} samples are to be drawn, and {n_possible} have a weight '
                'above 0: set num_samples, or replacement to true'
            )
        self._weights, self._counts = torch.from_numpy(weights), torch.from_numpy(counts)
        self._which = torch.from_numpy(which)
        self._by_class = torch.from_numpy(by_class(which))
        return self

    def __len__(self) -> int:
        return self.num_samples or len(self.indices)

    def order(self) -> torch.Tensor:
        if self.replacement:
            # First a class, then one of its samples: torch.multinomial over all samples takes no
            # more than 2**24 of them, and far longer.
            drawn = torch.multinomial(self._weights * self._counts, len(self), True)
            counts = self._counts[drawn]
            place_in_class = (torch.rand(len(self), dtype=torch.double) * counts).long()
            first = self._counts.cumsum(0) - self._counts
            return self.indices[self._by_class[first[drawn] + place_in_class]]
        # Waiting times with the weights as rates: who comes first. Efraimidis and Spirakis, 2006.
        waits = torch.empty(len(self.indices), dtype=torch.double).exponential_()
        waits /= self._weights[self._which]
        return self.indices[waits.topk(len(self), largest=False).indices]


def numbered(classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the classes there are, sorted; (n,) which of them each sample has; how many have it)."""
    if classes.dtype.kind in 'iu' and classes.min() >= 0 and classes.max() <= len(classes):
        counts = np.bincount(classes)  # without sorting, as np.unique does
        found = counts.nonzero()[0]
        place = np.zeros(len(counts), dtype=np.int64)
        place[found] = np.arange(len(found))
        return found, place[classes], counts[found]
    return np.unique(classes, return_inverse=True, return_counts=True)


def by_class(which: np.ndarray) -> np.ndarray:
    """(n,) the samples in the order of their classes: what `numbered` says of them."""
    is_small = which.max() < 2**16  # sorted in linear time
    return np.argsort(which.astype(np.uint16) if is_small else which, kind='stable')


# Batches from any loader


def batches_of(loader: Iterable) -> Iterator[Batch]:
    """A pass over any loader: its batches, with what is known of them (see armature/batch.py)."""
    if _knows_batches(type(loader)):
        return loader.batches()
    return _sized(iter(loader), loader)


def _sized(contents: Iterator[Any], loader: Any) -> Iterator[Batch]:
    lists_are_parts = getattr(loader, 'collate_fn', None) is default_collate
    n_left = _n_samples(loader)
    for content in contents:
        n_samples = length(content) if n_left is None else min(loader.batch_size, n_left)
        n_left = None if n_left is None else n_left - n_samples
        share = getattr(loader, 'share', WHOLE)
        yield Batch(content, n_samples, share=share, lists_are_parts=lists_are_parts)


def _knows_batches(loader_class: type) -> bool:
    """Whether its `batches()` belongs to its `__iter__`, which a subclass may have written anew."""
    for each in loader_class.__mro__:
        if '__iter__' in vars(each):
            return 'batches' in vars(each)
    return False


def _n_samples(loader: Any) -> int | None:
    """The samples of a pass over one of torch's own loaders; its batches are of known size."""
    is_torchs = isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__
    if is_torchs and loader.batch_size and not isinstance(loader.dataset, IterableDataset):
        return len(loader.sampler)
    return None


# Where a run stands


def batches_from(
    position: int,
    epoch: int,
    len_epoch: int,
    loader: Iterable,
    seed: int,
    after_reading_up: Callable[[], None] = lambda: None,
) -> Iterator[Batch]:
    """The batches of `epoch` (from 1; `len_epoch` of them) from batch `position` (from 0) on.

    A loader that cannot `seek` (torch's own) draws its order anew, keyed, and is read up to there;
    `after_reading_up` is called then.
    """
    n_left = len_epoch - position
    number, first = pass_and_batch(position, epoch, len_epoch, loader)
    while n_left > 0:
        n_before = n_left
        if hasattr(loader, 'seek'):
            loader.seek(number, first)
            batches = batches_of(loader)
        else:
            batches = _read_up(loader, number, first, seed, after_reading_up)
        for batch in itertools.islice(batches, n_left):
            n_left -= 1
            yield batch
        if n_left == n_before and first == 0:
            raise DataError(f'{type(loader).__name__} gives no batches')
        number, first = number + 1, 0


def _read_up(
    loader: Iterable, number: int, first: int, seed: int, after_reading_up: Callable[[], None]
) -> Iterator[Batch]:
    pass_key = key(seed, 'pass', number)
    if hasattr(getattr(loader, 'sampler', None), 'set_epoch'):  # torch's DistributedSampler
        loader.sampler.set_epoch(number)
    seed_torch(pass_key)
    batches = batches_of(loader)
    for index in itertools.count():
        # What a sample draws must not depend on what the model drew before.
        seed_torch(pass_key + index)
        try:
            batch = next(batches)
        except StopIteration:
            return
        if index >= first:
            yield batch
        elif index == first - 1:
            after_reading_up()


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


def length_of_pass(loader: Iterable) -> int:
    """Batches in a pass; a ConfigError for a stream that does not tell."""
    n_batches = batches_per_pass(loader)
    if n_batches is None:
        raise ConfigError(
            'the training data is a stream that has no length: say how many batches an epoch has, '
            'in trainer.len_epoch'
        )
    return n_batches


def epoch_length(config: Any, loader: Iterable) -> int:
    """Batches in an epoch: trainer.len_epoch, else one pass over the data."""
    return config['trainer'].get('len_epoch') or length_of_pass(loader)


def samples_of(position: int, epoch: int, len_epoch: int, loader: Any) -> list[int]:
    """The indices of the samples in a batch; empty when the loader cannot tell."""
    if not hasattr(loader, 'indices') or position < 0:
        return []
    number, batch = pass_and_batch(position, epoch, len_epoch, loader)
    first = batch * loader.batch_size
    return loader.indices(number)[first : first + loader.batch_size].tolist()
