"""BaseDataLoader: a torch DataLoader whose order is a function of (seed, epoch), with a validation split and a position.

The order and every sample's randomness come from keys (utils/seed.py), so they are the same for any number of workers, and a loader
can be put at any batch of any epoch.
"""
import os
import signal
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset
from torch.utils.data.dataloader import default_collate

from base.stop import STOP_SIGNALS
from utils.errors import ConfigError
from utils.seed import key, own_randomness, seed_sample

SPLIT_KEY = key('validation split')  # the same split for every seed: a run resumed with another seed must not train on it


class BaseDataLoader(DataLoader):
    """Base of the project's data loaders.

    validation_split: share (0 <= x < 1) or number of samples kept for `split_validation()`, the same ones for every seed.
    stratify: the same share of each class in both parts; needs `dataset.targets` (or `labels`), or a TensorDataset whose last
    tensor holds the classes.
    valid_dataset: what the validation part is read from, when it has transforms of its own; same indices as `dataset`.
    sampler: the indices of an epoch, as a torch sampler or a sequence; replaces shuffle and split.
    seed: of the order and of the samples' randomness; None takes torch's (torch.manual_seed, as train.py sets it).
    loader_options: whatever else torch's DataLoader takes (drop_last, pin_memory, ...).

    A dataset with `__getitems__` (several samples at once) draws its randomness per batch instead of per sample.
    """

    def __init__(self, dataset: Dataset, batch_size: int, shuffle: bool, validation_split: float, num_workers: int,
                 collate_fn: Callable = default_collate, *, stratify: bool = False, valid_dataset: Dataset | None = None,
                 sampler: Sequence[int] | None = None, seed: int | None = None, **loader_options: Any):
        self.validation_split = validation_split
        self.shuffle = shuffle
        self.seed = torch.initial_seed() if seed is None else seed
        self.stratify, self.valid_dataset = stratify, valid_dataset
        self.n_samples = len(dataset)
        self.init_kwargs = {'dataset': dataset, 'batch_size': batch_size, 'shuffle': shuffle, 'collate_fn': collate_fn,
                            'num_workers': num_workers}
        self.loader_options = loader_options
        self.valid_sampler = None
        if sampler is None:
            sampler, self.valid_sampler = self._split_sampler(validation_split)
        if sampler is None:
            sampler = Shuffled(range(self.n_samples)) if shuffle else range(self.n_samples)
        if isinstance(sampler, Sized):
            self.n_samples = len(sampler)
        self._pass, self._first_sample = 0, 0
        super().__init__(dataset, batch_size, sampler=sampler, num_workers=num_workers, collate_fn=collate_fn, **loader_options)
        fetcher_options = {name: value for name, value in loader_options.items() if name != 'drop_last'}
        self._fetcher = DataLoader(_KeyedSamples(dataset, self.seed), batch_sampler=_Plan(self), num_workers=num_workers,
                                   collate_fn=collate_fn, **{'generator': torch.Generator(), **fetcher_options,
                                   'worker_init_fn': _WorkerStart(loader_options.get('worker_init_fn'))})

    def seek(self, number: int, batch: int = 0) -> None:
        """Let the next iteration be pass `number` (from 0) over the data, from its batch `batch` (from 0) on."""
        self._pass, self._first_sample = number, batch * self.batch_size

    def __iter__(self) -> Iterator[Any]:
        """The batches of the pass that is due, once; the next iteration is the pass after it."""
        if type(self.dataset) is TensorDataset and self.collate_fn is default_collate:
            return self._in_memory_batches()
        with _signals_held_back():
            return iter(self._fetcher)

    def indices(self, number: int) -> torch.Tensor:
        """(n_samples,) the samples of pass `number` in their order."""
        with own_randomness(key(self.seed, 'order', number)):
            order = self.sampler.order() if isinstance(self.sampler, Shuffled) else list(self.sampler)
            return torch.as_tensor(order, dtype=torch.long)

    def due_batches(self) -> Iterator[tuple[int, torch.Tensor]]:
        """(pass, indices) of each batch of the pass that is due; from then on the next one is due."""
        number, first_sample = self._pass, self._first_sample
        self.seek(number + 1)
        for indices in self.indices(number)[first_sample:].split(self.batch_size):
            if len(indices) == self.batch_size or not self.drop_last:
                yield number, indices

    def _in_memory_batches(self) -> Iterator[list[torch.Tensor]]:
        """One indexed copy a batch: what collating the single samples gives, without handling them one by one."""
        for _, indices in self.due_batches():
            yield [tensor[indices] for tensor in self.dataset.tensors]

    def split_validation(self) -> 'BaseDataLoader | None':
        """A loader of the validation part, in a fixed order; None without a validation split."""
        if self.valid_sampler is None:
            return None
        kwargs = {**self.init_kwargs, 'dataset': self.valid_dataset or self.dataset, 'shuffle': False, 'validation_split': 0.0}
        options = {**self.loader_options, 'drop_last': False}
        return BaseDataLoader(**kwargs, sampler=self.valid_sampler, seed=self.seed, **options)

    def _split_sampler(self, split: float) -> tuple[Any, Any]:
        """(training sampler, validation indices); (None, None) when `split` is 0."""
        if split == 0:
            return None, None
        n_samples = self.n_samples
        n_valid = split if isinstance(split, int) else int(n_samples * split)
        if not 0 < n_valid < n_samples:
            raise ConfigError(f'validation_split is {split}, which puts {n_valid} of {n_samples} samples into the validation '
                              'part: expected a share between 0 and 1, or a number of samples, that leaves both parts some')
        if self.stratify:
            from sklearn.model_selection import train_test_split
            train, valid = train_test_split(range(n_samples), test_size=n_valid, stratify=self._classes(),
                                            random_state=SPLIT_KEY % 2 ** 32)
        else:
            order = torch.randperm(n_samples, generator=torch.Generator().manual_seed(SPLIT_KEY)).tolist()
            train, valid = order[n_valid:], order[:n_valid]
        train, valid = sorted(train), sorted(valid)
        return (Shuffled(train) if self.shuffle else train), valid

    def _classes(self) -> list[int]:
        """The class of each sample, for a stratified split."""
        dataset = self.init_kwargs['dataset']
        classes = getattr(dataset, 'targets', getattr(dataset, 'labels', None))
        if classes is None and isinstance(dataset, TensorDataset):
            classes = dataset.tensors[-1]
        if classes is None:
            raise ConfigError(f'stratify: {type(dataset).__name__} has neither .targets nor .labels; give it one, or leave '
                              'stratify out')
        return torch.as_tensor(classes).tolist()


class Shuffled(Sampler):
    """The given indices in a random order, each once; torch's samplers do the same one by one."""

    def __init__(self, indices: Sequence[int]):
        self.indices = torch.as_tensor(indices, dtype=torch.long)

    def order(self) -> torch.Tensor:
        return self.indices[torch.randperm(len(self.indices))]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())


class _KeyedSamples(Dataset):
    """The samples of `dataset`, each drawing its random numbers from (seed, pass, index), in whichever process."""

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset, self.seed = dataset, seed

    def __getitems__(self, due: tuple[int, list[int]]) -> list[Any]:
        number, indices = due
        with own_randomness(0):
            if hasattr(self.dataset, '__getitems__'):
                seed_sample(key(self.seed, 'batch', number, indices[0]))
                return self.dataset.__getitems__(indices)
            return [self._sample(number, index) for index in indices]

    def _sample(self, number: int, index: int) -> Any:
        seed_sample(key(self.seed, 'sample', number, index))
        return self.dataset[index]


class _Plan:
    """What the workers are asked for, as a torch batch sampler."""

    def __init__(self, loader: BaseDataLoader):
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        for number, indices in self.loader.due_batches():
            yield number, indices.tolist()


@contextmanager
def _signals_held_back():
    """Inside, the signals that stop a run wait, so that a worker started there can first say what it does about them."""
    if not hasattr(signal, 'pthread_sigmask'):
        yield
        return
    held = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


class _WorkerStart:
    """Lets a worker live through a signal sent to the whole process group: the trainer needs it for the step it finishes.

    SIGINT and SIGUSR1 are left to the trainer, and so is the first SIGTERM; a second one ends the worker.
    """

    def __init__(self, worker_init_fn: Callable[[int], None] | None):
        self.worker_init_fn = worker_init_fn

    def __call__(self, worker_id: int) -> None:
        if hasattr(signal, 'pthread_sigmask'):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, lambda *_: os._exit(0)))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker_id)
