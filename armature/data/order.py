"""What comes when: the orders of a pass, the plan of batches, and where a run stands.

Orders are samplers that a config can name. Unlike torch's they are made without the data (`bind`
tells them), and draw from torch's generator, which the plan keys by pass. Epochs follow each
other through the passes over a loader, and any batch can be gone to.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler
from torch.utils.data.dataloader import default_collate

from armature.batch import CPU, WHOLE, Batch, Share, contents_of, length, sent, to_device
from armature.errors import ConfigError, DataError
from armature.processes import dist
from armature.seed import key, own_randomness, seed_torch


class Order(Sampler):
    """Base: `order()` is an epoch's indices, drawn anew each time."""

    num_samples = None  # of an epoch; None: as many as there are

    def bind(self, indices: torch.Tensor, classes: Callable[[], np.ndarray]) -> 'Order':
        """Go through `indices`; classes() are the classes of those samples."""
        self.indices = indices
        self.is_whole = torch.equal(indices, torch.arange(len(indices)))
        return self

    def order(self) -> torch.Tensor:
        return self.indices

    def __len__(self) -> int:
        return self.num_samples or len(self.indices)

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

    def order(self) -> torch.Tensor:
        n_samples = len(self.indices)
        if self.replacement:
            return self.indices[torch.randint(n_samples, (len(self),))]
        n_rounds = -(-len(self) // n_samples)
        places = torch.cat([torch.randperm(n_samples) for _ in range(n_rounds)])
        # Where all samples are gone through, a place is an index.
        return places[: len(self)] if self.is_whole else self.indices[places[: len(self)]]


class WeightedRandomSampler(Order):
    """Samples drawn, each time anew, with a probability that their class decides.

    weights: a number for each class, or 'balanced': each class equally often. num_samples: of an
    epoch; None: as many as there are.
    """

    def __init__(self, weights: Literal['balanced'] | list, num_samples: int | None = None):
        self.weights, self.num_samples = weights, num_samples

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
        if not weights.sum() > 0:
            raise ConfigError('sampler: no class has a weight above 0: give one to some')
        self._counts = torch.from_numpy(counts)
        self._weights = torch.from_numpy(weights * counts)  # of a whole class
        self._by_class = torch.from_numpy(by_class(which))
        return super().bind(indices, classes)

    def order(self) -> torch.Tensor:
        # First a class, then one of its samples: torch.multinomial over all samples takes no more
        # than 2**24 of them, and far longer.
        drawn = torch.multinomial(self._weights, len(self), replacement=True)
        counts = self._counts[drawn]
        place_in_class = (torch.rand(len(self), dtype=torch.double) * counts).long()
        first = self._counts.cumsum(0) - self._counts
        return self.indices[self._by_class[first[drawn] + place_in_class]]


def numbered(classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the classes there are, sorted; (n,) which of them each sample has; how many have it)."""
    import pandas as pd

    # In linear time, unlike np.unique; nan is a class, as it is there.
    which, found = pd.factorize(classes.ravel(), sort=True, use_na_sentinel=False)
    return found, which, np.bincount(which)


def by_class(which: np.ndarray) -> np.ndarray:
    """(n,) the samples in the order of their classes: what `numbered` says of them."""
    is_small = which.max() < 2**16  # sorted in linear time
    return np.argsort(which.astype(np.uint16) if is_small else which, kind='stable')


# What is due


class Plan:
    """Which samples each batch holds: a function of the seed and the number of the pass."""

    def __init__(self, sampler: Iterable[int], batch_size: int, drop_last: bool, seed: int):
        self.sampler, self.batch_size = sampler, batch_size
        self.drop_last, self.seed = drop_last, seed

    def indices(self, number: int) -> torch.Tensor:
        """(n_samples,) the samples of pass `number` in their order."""
        its_key = key(self.seed, 'order', number)
        if not isinstance(self.sampler, Order):
            with own_randomness(its_key):
                return torch.as_tensor(list(self.sampler), dtype=torch.long)
        with torch.random.fork_rng(devices=[]):  # the others' states take ten times as long to keep
            seed_torch(its_key)
            return self.sampler.order()

    def batches(
        self, number: int, first: int, n_batches: int, device: torch.device = CPU
    ) -> Iterator[tuple[int, torch.Tensor, Share]]:
        """(pass, indices, share) of what this process has of each of `n_batches`.

        They begin with batch `first` of pass `number`, and go on through the passes after it.
        device: where the indices are to be; they go there once a pass.
        """
        size, is_alone = self.batch_size, dist.n_processes() == 1
        while n_batches > 0:
            order = self.indices(number)
            n_in_pass = len(order) - len(order) % size if self.drop_last else len(order)
            if not n_in_pass:
                name = type(self.sampler).__name__
                raise DataError(f'{name} gives {len(order)} samples, too few for a batch')
            order = order[first * size : min(n_in_pass, (first + n_batches) * size)]
            order = sent(order, device)
            # In two steps, so that the first batch of many does not wait until all are cut.
            for many in order.split(1000 * size):
                for indices in many.split(size):
                    yield (number, indices, WHOLE) if is_alone else (number, *dist.share(indices))
            n_batches -= -(-len(order) // size)
            number, first = number + 1, 0


def batches_of(loader: Iterable) -> Iterator[Batch]:
    """A pass over any loader: its batches, with what is known of them (see armature/batch.py)."""
    return loader.batches() if _knows_batches(type(loader)) else _sized(loader)


def one_pass(
    loader: Iterable, parts: Callable[[Batch], Batch], device: torch.device, *holders: Any
) -> Iterator[Any]:
    """The contents of a pass without steps (a validation, a test), on the device.

    parts: see armature/batch.py. `batch` of each holder is the Batch that is due.
    """
    if hasattr(loader, 'seek'):
        loader.seek(0)
    batches = dist.in_step(map(parts, batches_of(loader)), loader)
    for content in contents_of(batches, *holders):
        yield to_device(content, device)


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
    number, first = pass_and_batch(position, epoch, len_epoch, loader)
    if _knows_batches(type(loader)):
        return loader.batches(number, first, len_epoch - position)
    return _read_up(loader, number, first, len_epoch - position, seed, after_reading_up)


def _read_up(
    loader: Iterable, number: int, first: int, n_left: int, seed: int, after_reading_up: Callable
) -> Iterator[Batch]:
    """`n_left` batches of another's loader, from batch `first` of pass `number` on."""
    while n_left > 0:
        pass_key, index = key(seed, 'pass', number), 0
        seed_torch(pass_key)
        if hasattr(loader, 'seek'):  # one of ours with an __iter__ of its own
            loader.seek(number, first)
            index = first
        elif hasattr(getattr(loader, 'sampler', None), 'set_epoch'):  # torch's DistributedSampler
            loader.sampler.set_epoch(number)
        batches, n_before, is_ahead = _sized(loader), n_left, index < first
        while n_left > 0:
            if is_ahead and index == first:
                after_reading_up()
            # What a sample draws must not depend on what the model drew before.
            seed_torch(pass_key + index)
            batch = next(batches, None)
            if batch is None:
                break
            index += 1
            if index > first:
                n_left -= 1
                yield batch
        if n_left == n_before and first == 0:
            raise DataError(f'{type(loader).__name__} gives no batches')
        number, first = number + 1, 0


def _knows_batches(loader_class: type) -> bool:
    """Whether its `batches()` belongs to its `__iter__`, which a subclass may have written anew."""
    owner = next((each for each in loader_class.__mro__ if '__iter__' in vars(each)), object)
    return 'batches' in vars(owner)


def _sized(loader: Iterable) -> Iterator[Batch]:
    """The batches of a loader that does not say how many samples they hold."""
    lists_are_parts = getattr(loader, 'collate_fn', None) is default_collate
    # Those of torch's own loaders are of known size; elsewhere the content tells.
    is_torchs = isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__
    is_known = is_torchs and loader.batch_size and not isinstance(loader.dataset, IterableDataset)
    n_left = len(loader.sampler) if is_known else 0
    for content in loader:
        n_samples = min(loader.batch_size, n_left) if is_known else length(content)
        n_left -= n_samples
        share = getattr(loader, 'share', WHOLE)
        yield Batch(content, n_samples, share=share, lists_are_parts=lists_are_parts)


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
