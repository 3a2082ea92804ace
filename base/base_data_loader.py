"""BaseDataLoader: a torch DataLoader whose order is a function of (seed, epoch), with a validation split and a position.

The order and every sample's randomness come from keys (armature/seed.py), so they are the same for any number of workers, and a loader
can be put at any batch of any epoch.
"""

import logging
import multiprocessing
import weakref
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, TensorDataset
from torch.utils.data.dataloader import default_collate

from armature.config.keys import parameters
from armature.config.read import did_you_mean
from armature.data.augment import Augment
from armature.data.memory import InMemory, read_into_memory
from armature.data.samplers import Order, RandomSampler, SequentialSampler
from armature.data.splits import split_indices
from armature.data.workers import (
    Collate,
    Fetched,
    KeyedSamples,
    checked,
    finish,
    make_fetcher,
    start,
)
from armature.errors import ConfigError
from armature.processes import dist
from armature.processes.devices import prepare_device
from armature.seed import key, own_randomness


class BaseDataLoader(DataLoader):
    """Base of the project's data loaders.

    validation_split: share (0 <= x < 1) or number of samples kept for `split_validation()`, the same ones for every seed.
    n_folds, fold: keep fold number `fold` (from 0) of `n_folds` instead.
    stratify: the same share of each class in both parts; needs `dataset.targets` (or `labels`), or a dataset of tensors whose last
    one holds the classes. groups: a value a sample; samples with the same one stay in the same part.
    valid_dataset: what the validation part is read from, when it has transforms of its own; same indices as `dataset`.
    sampler: the order of the training part (armature/data/samplers.py) instead of shuffle; or the indices of an epoch, as a torch sampler or a
    sequence, instead of shuffle and split.
    in_memory: read all samples once into tensors, as they are, so that a batch is one indexed copy; 'device' puts them there.
    augment: random transforms of the inputs (torchvision v2), in training only, keyed by sample.
    batch_transform: applied to the inputs of every batch, after `augment`: what is cheaper for a batch, or would take memory before.
    on_error: 'skip' leaves samples out that cannot be read (the dataset raises DataError) and reports them.
    evaluation: no shuffling, split, sampler or augmentation: for test data.
    seed: of the order and of the samples' randomness; None takes torch's (torch.manual_seed, as train.py sets it).
    pin_memory: None takes true when there is a GPU. persistent_workers: None takes true where starting workers is slow.
    loader_options: whatever else torch's DataLoader takes (worker_init_fn, timeout, ...).

    Where several processes train, each gets its share of every batch; `batch_size` counts the samples of all shares.
    A dataset with `__getitems__` (several samples at once) draws its randomness per batch instead of per sample.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        shuffle: bool,
        validation_split: float,
        num_workers: int,
        collate_fn: Callable = default_collate,
        *,
        stratify: bool = False,
        n_folds: int | None = None,
        fold: int = 0,
        groups: Sequence | None = None,
        valid_dataset: Dataset | None = None,
        sampler: Sampler | Sequence[int] | None = None,
        in_memory: bool | Literal['device'] = False,
        augment: list | None = None,
        batch_transform: Callable | None = None,
        on_error: Literal['stop', 'skip'] = 'stop',
        evaluation: bool = False,
        seed: int | None = None,
        drop_last: bool = False,
        pin_memory: bool | None = None,
        persistent_workers: bool | None = None,
        prefetch_factor: int | None = None,
        **loader_options: Any,
    ):
        if evaluation:
            shuffle, validation_split, n_folds, sampler, augment = False, 0, None, None, None
        if not hasattr(dataset, '__len__'):
            raise ConfigError(
                f'{type(dataset).__name__} has no length: give a stream to StreamDataLoader'
            )
        if batch_size < 1 or num_workers < 0:
            raise ConfigError(
                f'batch_size is {batch_size} and num_workers {num_workers}: expected at least 1, and at least 0'
            )
        refuse_small_batches(batch_size)
        options = loader_options_for(
            {
                'drop_last': drop_last,
                'pin_memory': pin_memory,
                'persistent_workers': persistent_workers,
                'prefetch_factor': prefetch_factor,
                **loader_options,
            },
            num_workers,
            type(self),
        )
        self.validation_split = validation_split
        self.shuffle = shuffle
        self.seed = torch.initial_seed() if seed is None else seed
        self.n_samples = len(dataset)
        self.init_kwargs = {
            'dataset': dataset,
            'batch_size': batch_size,
            'shuffle': shuffle,
            'collate_fn': collate_fn,
            'num_workers': num_workers,
        }
        self.loader_options = {
            **options,
            'in_memory': in_memory,
            'batch_transform': batch_transform,
            'on_error': on_error,
        }
        self._valid_dataset, self._stratify = valid_dataset, stratify
        self._split_options = {'n_folds': n_folds, 'fold': fold, 'groups': groups}
        self._augment = Augment(augment) if augment else None
        self._batch_transform, self._unreadable = batch_transform, []
        self.valid_sampler = None
        if isinstance(sampler, DistributedSampler):
            raise ConfigError(
                'sampler is a DistributedSampler, and this loader gives each process its share by itself: leave it out'
            )
        if sampler is None or isinstance(sampler, Order):
            train_sampler, self.valid_sampler = self._split_sampler(validation_split)
            sampler = self._bound(sampler, train_sampler)
        if isinstance(sampler, Sized):
            self.n_samples = len(sampler)
        self._pass, self._first_sample = 0, 0
        self.share = dist.WHOLE  # what this process has of the newest batch
        self._counts = None  # (n_samples,) what each sample counts for the loss; None: as one
        super().__init__(
            dataset,
            batch_size,
            sampler=sampler,
            num_workers=num_workers,
            collate_fn=collate_fn,
            **options,
        )
        self._fetcher_options = {**options, 'num_workers': num_workers}
        self._samples = KeyedSamples(
            dataset, self.seed, self._augment, on_error == 'skip', num_workers
        )
        self._fetcher = make_fetcher(
            self._samples, _Plan(self), Collate(collate_fn, batch_transform), self._fetcher_options
        )
        self._memory = self._in_memory(in_memory)

    def seek(self, number: int, batch: int = 0) -> None:
        """Let the next iteration be pass `number` (from 0) over the data, from its batch `batch` (from 0) on."""
        self._pass, self._first_sample = number, batch * self.batch_size

    def __iter__(self) -> Iterator[Any]:
        """The batches of the pass that is due, once; the next iteration is the pass after it."""
        if self._memory is not None:
            return self._in_memory_batches(self._memory)
        return self._fetched_batches(start(self._fetcher))

    def _fetched_batches(self, fetched: Iterator[Fetched]) -> Iterator[Any]:
        for each in checked(fetched, self._samples):
            self._note_unreadable(each.unreadable)
            self.share = each.share
            yield each.batch
        self._report_unreadable()

    def _in_memory_batches(self, memory: InMemory) -> Iterator[Any]:
        """One indexed copy a batch: what collating the single samples gives, without handling them one by one."""
        device = memory.device
        for number, indices, share in self.due_batches():
            self.share = share
            if memory.unreadable is not None:
                readable = indices[~memory.unreadable[indices]]
                if not len(readable) and dist.n_processes() > 1:  # others may have read theirs
                    readable, self.share = (
                        (~memory.unreadable).nonzero()[:1, 0],
                        dist.Share(is_borrowed=True),
                    )
                indices = readable
            batch = memory.take(indices.to(device))
            if self._augment is not None:
                keys = [key(self.seed, 'augment', number, index) for index in indices.tolist()]
                batch = finish(batch, lambda inputs, keys=keys: self._augment.batch(inputs, keys))
            yield batch if self._batch_transform is None else finish(batch, self._batch_transform)

    def indices(self, number: int) -> torch.Tensor:
        """(n_samples,) the samples of pass `number` in their order."""
        with own_randomness(key(self.seed, 'order', number)):
            order = self.sampler.order() if isinstance(self.sampler, Order) else list(self.sampler)
            return torch.as_tensor(order, dtype=torch.long)

    @property
    def knows_shares(self) -> bool:
        """Whether the batches of all processes have as many samples as planned, so that each process knows its share by itself."""
        if type(self).__iter__ is not BaseDataLoader.__iter__ or self._samples.skip_unreadable:
            return False
        return (
            self._memory is not None
            or self.collate_fn is default_collate
            and not hasattr(self.dataset, '__getitems__')
        )

    def weigh(self, count: Any) -> bool:
        """Let a process's share be what its samples count for the loss, a ClassCount; False when their targets are not in memory."""
        tensors = self._memory.tensors if self._memory is not None and self.knows_shares else None
        is_known = (
            isinstance(tensors, (list, tuple))
            and len(tensors) == 2
            and isinstance(tensors[1], torch.Tensor)
        )
        self._counts = (
            count.of_each(tensors[1]) if is_known and self._counts is None else self._counts
        )
        return is_known

    def due_batches(self) -> Iterator[tuple[int, torch.Tensor, dist.Share]]:
        """(pass, indices, share) of what this process has of each batch of the pass that is due.

        From then on the next pass is due.
        """
        number, first_sample = self._pass, self._first_sample
        self.seek(number + 1)
        for indices in self.indices(number)[first_sample:].split(self.batch_size):
            if len(indices) == self.batch_size or not self.drop_last:
                yield number, *dist.share(indices, self._counts)

    def split_validation(self) -> 'BaseDataLoader | None':
        """A loader of the validation part, in a fixed order; None without a validation split."""
        if self.valid_sampler is None:
            return None
        dataset = self._valid_dataset or self._memory or self.dataset
        kwargs = {**self.init_kwargs, 'dataset': dataset, 'shuffle': False, 'validation_split': 0.0}
        options = {**self.loader_options, 'drop_last': False}
        return BaseDataLoader(**kwargs, sampler=self.valid_sampler, seed=self.seed, **options)

    def sample_classes(self) -> list | None:
        """The class of each sample of the dataset; None when it does not tell."""
        dataset = self.init_kwargs['dataset']
        classes = getattr(dataset, 'targets', getattr(dataset, 'labels', None))
        if classes is None and type(dataset) in (TensorDataset, InMemory):
            classes = dataset.tensors[-1]
        return (
            classes
            if classes is None or isinstance(classes, list)
            else torch.as_tensor(classes).tolist()
        )

    # Split and order

    def _split_sampler(self, split: float) -> tuple[Any, Any]:
        """(order of the training part, validation indices); (None, None) when there is no validation part."""
        classes = self._needed_classes('stratify') if self._stratify else None
        train, valid = split_indices(self.n_samples, split, classes=classes, **self._split_options)
        if not valid:
            return None, None
        return (RandomSampler() if self.shuffle else SequentialSampler()).bind(train), valid

    def _bound(self, sampler: Order | None, train_sampler: Any) -> Any:
        """What goes through the training part: `sampler`, or what `shuffle` says."""
        if sampler is None and train_sampler is not None:
            return train_sampler
        indices = (
            range(self.n_samples)
            if train_sampler is None
            else getattr(train_sampler, 'indices', train_sampler)
        )
        if sampler is None:
            sampler = RandomSampler() if self.shuffle else SequentialSampler()
        return sampler.bind(
            indices, lambda: [self._needed_classes('sampler')[index] for index in indices]
        )

    def _needed_classes(self, option: str) -> list:
        classes = self.sample_classes()
        if classes is None:
            raise ConfigError(
                f'{option}: {type(self.init_kwargs["dataset"]).__name__} has neither .targets nor .labels; give it one, '
                f'or leave {option} out'
            )
        return classes

    def _in_memory(self, where: bool | str) -> InMemory | None:
        """The samples as tensors, when they are in memory or shall be."""
        memory = self.dataset
        if type(memory) is TensorDataset and self.collate_fn is default_collate:
            memory = InMemory(list(memory.tensors))
        elif where and not isinstance(memory, InMemory):
            if self.collate_fn is not default_collate:
                raise ConfigError(
                    'in_memory needs samples of one shape, and collate_fn is there for others: leave one of them out'
                )
            samples = KeyedSamples(
                memory, self.seed, None, self._samples.skip_unreadable, self.num_workers
            )
            memory, unreadable = read_into_memory(samples, self._fetcher_options)
            self._note_unreadable(unreadable)
            self._report_unreadable()
        if isinstance(memory, InMemory) and where == 'device':
            memory = memory.to(prepare_device(1)[0])
        return memory if isinstance(memory, InMemory) else None

    def _note_unreadable(self, samples: list[str]) -> None:
        self._unreadable += samples

    def _report_unreadable(self) -> None:
        """One warning for what a pass has left out."""
        if self._unreadable:
            logging.getLogger('data').warning(
                f'{len(self._unreadable)} of {self.n_samples} samples cannot be read and are left out: '
                f'{"; ".join(self._unreadable[:3])}{" ..." if len(self._unreadable) > 3 else ""}'
            )
        self._unreadable = []


class _Plan:
    """What the workers are asked for, as a torch batch sampler."""

    def __init__(self, loader: BaseDataLoader):
        self.loader = weakref.proxy(
            loader
        )  # in a cycle, workers that wait for the next pass could not be told to leave

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[int, list[int], dist.Share]]:
        for number, indices, share in self.loader.due_batches():
            yield number, indices.tolist(), share


def refuse_small_batches(batch_size: int) -> None:
    if batch_size < dist.n_processes():
        raise ConfigError(
            f'batch_size is {batch_size}, and {dist.n_processes()} processes share each batch: expected at least one sample '
            'for each'
        )


def loader_options_for(given: dict, num_workers: int, owner: type) -> dict:
    """What torch's DataLoader gets beside what we give it, with defaults that suit the machine."""
    unknown = sorted(given.keys() - parameters(DataLoader)[0].keys())
    if 'training' in unknown:
        raise ConfigError(
            f'{owner.__name__} does not know training from test data: say where the test data is in "test_data_loader"'
        )
    if unknown:
        known = parameters(owner)[0].keys() | parameters(DataLoader)[0].keys()
        raise ConfigError(
            f'{owner.__name__} has no argument {unknown[0]!r}{did_you_mean(unknown[0], known)}'
        )
    # Workers that are forked start in a moment; others import torch first, so they are kept.
    starts_slowly = (
        multiprocessing.get_start_method(allow_none=True)
        or multiprocessing.get_all_start_methods()[0]
    ) != 'fork'
    given = {name: value for name, value in given.items() if value is not None}
    options = {
        'drop_last': False,
        'pin_memory': torch.cuda.is_available(),
        'persistent_workers': starts_slowly,
        **given,
    }
    if (
        num_workers == 0
    ):  # torch refuses what is for workers when there are none, as with --set data_loader.args.num_workers=0
        options = {
            name: value
            for name, value in options.items()
            if name not in ('persistent_workers', 'prefetch_factor', 'timeout')
        }
    return options
