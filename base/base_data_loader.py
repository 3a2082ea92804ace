"""BaseDataLoader: a torch DataLoader with a split, keyed randomness and a position.

The order and every sample's randomness come from keys (armature/seed.py), so they are the same for
any number of workers, and a loader can be put at any batch of any epoch.
"""

from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler, Sampler, TensorDataset, default_collate

from armature.batch import CPU, WHOLE, Batch, Share, map_tensors, sent, takes_pinned
from armature.data import identity
from armature.data.memory import read_into_memory
from armature.data.order import (
    Order,
    RandomSampler,
    SeekableLoader,
    SequentialSampler,
    knows_batches,
)
from armature.data.reading import InMemory, Reader, on_input
from armature.data.split import split_indices
from armature.data.workers import Workers
from armature.errors import ConfigError, DataError
from armature.processes import dist
from armature.processes.devices import prepared_device
from armature.seed import key, own_randomness


class BaseDataLoader(SeekableLoader):
    """Base of the project's data loaders.

    validation_split: share (0 <= x < 1) or number of samples kept for `split_validation()`, the
    same ones for every seed. n_folds, fold: keep fold number `fold` (from 0) of `n_folds` instead.
    stratify: the same share of each class in both parts; needs `dataset.targets` (or `labels`), or
    a dataset of tensors whose last one holds the classes. groups: a value a sample; samples with
    the same one stay in the same part.
    valid_dataset: what the validation part is read from, when it has transforms of its own; same
    indices as `dataset`.
    sampler: the order of the training part (armature/data/order.py) instead of shuffle; or the
    indices of an epoch, as a torch sampler or a sequence, instead of shuffle and split.
    in_memory: read all samples once into tensors, as they are, so that a batch is one indexed copy;
    'device' puts them there.
    augment: random transforms of the inputs (torchvision v2), in training only, keyed by sample.
    batch_transform: applied to the inputs of every batch, after `augment`: what is cheaper for a
    batch, or would take memory before.
    evaluation: no shuffling, split, sampler, augmentation or left-out batch: for test data.
    options: seed, of the order and of the samples' randomness (None takes torch's, as train.py sets
    it by torch.manual_seed); drop_last, pin_memory (None: when there is a GPU) and those for
    workers, as in torch.

    Where several processes train, each gets its share of every batch; `batch_size` counts the
    samples of all shares.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        shuffle: bool = True,
        validation_split: float = 0.0,
        num_workers: int = 0,
        collate_fn: Callable = default_collate,
        *,
        stratify: bool = False,
        n_folds: int | None = None,
        fold: int = 0,
        groups: Sequence | None = None,
        valid_dataset: Dataset | None = None,
        sampler: Sampler | Sequence[int] | None = None,
        in_memory: bool | Literal['device'] = False,
        augment: list[Callable] | None = None,
        batch_transform: Callable | None = None,
        evaluation: bool = False,
        drop_last: bool = False,
        **options: Any,
    ):
        if evaluation:
            shuffle, validation_split, n_folds, fold = False, 0, None, 0
            sampler, augment, drop_last = None, None, False
        if not hasattr(dataset, '__len__'):
            raise ConfigError(
                f'{type(dataset).__name__} has no length: give a stream to StreamDataLoader'
            )
        if not len(dataset):
            raise DataError(f'{type(dataset).__name__} holds no sample: is this the right path?')
        self.shuffle, self.validation_split = shuffle, validation_split
        self.n_samples = len(dataset)
        self.init_kwargs = {
            'dataset': dataset,
            'batch_size': batch_size,
            'shuffle': shuffle,
            'collate_fn': collate_fn,
            'num_workers': num_workers,
        }
        self._valid_dataset = valid_dataset
        self._split_options = {
            'n_folds': n_folds,
            'fold': fold,
            'classes': self.sample_classes('stratify') if stratify else None,
            'groups': groups,
        }

        self.valid_sampler = self.split = None
        if sampler is None or isinstance(sampler, Order):
            train, self.valid_sampler = self._split_sampler(validation_split)
            sampler = self._ordered(sampler, train)
        elif isinstance(sampler, DistributedSampler):
            raise ConfigError(
                'sampler is a DistributedSampler, and this loader gives each process its share by '
                'itself: leave it out'
            )
        elif validation_split or n_folds:
            raise ConfigError(
                f'sampler is a {type(sampler).__name__}, which says itself which samples there '
                'are, so nobody would be validated on: leave out sampler, or validation_split and '
                'n_folds, and say in "valid_data_loader" where that data is'
            )
        if isinstance(sampler, Sized):
            self.n_samples = len(sampler)
        super().__init__(
            dataset,
            batch_size,
            num_workers,
            collate_fn,
            sampler=sampler,
            drop_last=drop_last,
            **options,
        )
        if self.drop_last and self.n_samples < batch_size:
            raise ConfigError(
                f'batch_size is {batch_size}, there are {self.n_samples} samples, and drop_last '
                'leaves out a batch that is not full: nothing is left. Make batch_size smaller, '
                'or leave drop_last out'
            )
        self._reader = Reader(dataset, augment or (), collate_fn, batch_transform)
        self._workers = Workers(self._reader, self.torch_options)
        self._in_memory = in_memory
        self._memory = self._tensors()

    # Batches

    def _make_batches(self, number: int, first: int, n_batches: int | None) -> Iterator[Batch]:
        n_batches = len(self) - first if n_batches is None else n_batches
        if self._memory is not None:  # any TensorDataset, so the bundled images too
            return self._from_memory(number, first, n_batches)
        requests = (
            (self.seed, number, indices.tolist(), share)  # a tensor would go to them by a file
            for number, indices, share in self._planned(number, first, n_batches)
        )
        return map(self._reader.batch, self._workers.answers(requests))

    def _from_memory(self, number: int, first: int, n_batches: int) -> Iterator[Batch]:
        """One indexed copy a batch: what collating the single samples gives, but much faster."""
        memory, reader = self._memory, self._reader
        device = memory.device
        pins = device == CPU and self.pin_memory and takes_pinned(prepared_device())
        # The keys of augmentations are made of indices on the CPU.
        planned = self._planned(number, first, n_batches, CPU if reader.transforms else device)
        for number, indices, share in planned:
            content = memory.take(sent(indices, device) if reader.transforms else indices)
            if reader.transforms:
                content = on_input(
                    reader.augmented_batch, content, self.seed, number, indices.tolist()
                )
            content = reader.finished(content)
            if pins:
                content = map_tensors(torch.Tensor.pin_memory, content)
            yield Batch(content, indices.numel(), indices, share, None, True)

    def _planned(
        self, number: int, first: int, n_batches: int, device: torch.device = CPU
    ) -> Iterator[tuple[int, torch.Tensor, Share]]:
        """(pass, indices, share) of what this process has of each batch; see `batches`.

        device: where the indices are to be; they go there once a pass.
        """
        size, is_alone = self.batch_size, dist.n_processes() == 1
        while n_batches > 0:
            order = self.indices(number)
            whole = order[: len(order) // size * size] if self.drop_last else order
            if not len(whole):
                raise DataError(
                    f'{type(self.sampler).__name__} gives {len(order)} samples, too few for a batch'
                )
            due = sent(whole[first * size : (first + n_batches) * size], device)
            # In two steps, so that the first batch of many does not wait until all are cut.
            for many in due.split(1000 * size):
                for indices in many.split(size):
                    yield (number, indices, WHOLE) if is_alone else (number, *dist.share(indices))
            n_batches -= -(-len(due) // size)
            number, first = number + 1, 0

    def indices(self, number: int) -> torch.Tensor:
        """(n_samples,) the samples of pass `number` in their order."""
        with own_randomness(key(self.seed, 'order', number)):
            if isinstance(self.sampler, Order):
                return self.sampler.order()
            return torch.as_tensor(list(self.sampler), dtype=torch.long)

    def known_targets(self) -> torch.Tensor | None:
        """The target of each sample of the dataset, where they are in memory as they are given."""
        if self._memory is None or not knows_batches(self):
            return None
        match self._memory.tensors:
            case [_, torch.Tensor() as targets]:
                return targets
        return None

    @property
    def knows_shares(self) -> bool:
        """Whether a process knows how many samples of each batch the others have."""
        # default_collate leaves out no sample
        return knows_batches(self) and self.collate_fn is default_collate

    def _tensors(self) -> InMemory | None:
        """The samples as tensors, when they are in memory or shall be."""
        memory = self.dataset
        # Tensors are taken from always, also without in_memory.
        if type(memory) is TensorDataset and self.collate_fn is default_collate:
            memory = InMemory(list(memory.tensors))
        elif self._in_memory and not isinstance(memory, InMemory):
            if self.collate_fn is not default_collate:
                raise ConfigError(
                    'in_memory needs samples of one shape, and collate_fn is there for others: '
                    'leave one of them out'
                )
            memory = read_into_memory(memory, self.torch_options)
        if not isinstance(memory, InMemory):
            return None
        return memory.to(prepared_device()) if self._in_memory == 'device' else memory

    # Split and order

    def split_validation(self) -> 'BaseDataLoader | None':
        """A loader of the validation part, in a fixed order; None without a validation split."""
        if self.valid_sampler is None:
            return None
        dataset = self._valid_dataset or self._memory or self.dataset
        valid = self.for_validation(dataset, self.valid_sampler)
        if self._valid_dataset is None:
            valid._reader.class_map = self._reader.class_map
        return valid

    def for_validation(
        self, dataset: Dataset, indices: Sequence[int] | None = None
    ) -> 'BaseDataLoader':
        """A loader of `dataset`, or of some of it, in a fixed order and else as this one."""
        alike = self.init_kwargs | self.torch_options | {'dataset': dataset, 'shuffle': False}
        valid = BaseDataLoader(
            **alike,
            sampler=indices,
            batch_transform=self._reader.batch_transform,
            in_memory=self._in_memory,
            seed=self.seed,
        )
        valid.use_class_names(self.class_names)
        return valid

    def _split_sampler(self, split: float) -> tuple[Any, Any]:
        """(indices of the training part, those of the validation part or None)."""
        dataset, has_folds = self.init_kwargs['dataset'], self._split_options['n_folds']
        train, valid, self.split = split_indices(
            self.n_samples,
            split,
            names=identity.names_of(dataset) if split or has_folds else None,
            before=identity.resumed().get('split'),
            **self._split_options,
        )
        return train, valid.tolist() or None

    def _ordered(self, order: Order | None, train: Any) -> Sampler:
        """The training part in `order`, or as `shuffle` says."""
        if isinstance(train, Sampler):  # from a _split_sampler of one's own
            if order is None:
                return train
            train = train.indices
        if order is None:
            order = RandomSampler() if self.shuffle else SequentialSampler()
        indices = torch.arange(self.n_samples) if train is None else torch.as_tensor(train)
        return order.bind(indices, lambda: self.sample_classes('sampler')[indices.numpy()])

    # Which data this is

    def use_class_names(self, names: list[str] | None) -> None:
        """Number the classes as `names` does (the training data's), whatever the dataset says."""
        if names is None or names == self.class_names:
            return
        self._reader.class_map = identity.class_map(self.class_names, names)
        self.class_names = names

    def sample_classes(self, needed_for: str = '') -> np.ndarray | None:
        """The class of each sample of the dataset; None when it does not tell.

        needed_for: an option; when the dataset does not tell, a ConfigError says so.
        """
        dataset = self.init_kwargs['dataset']
        classes = getattr(dataset, 'targets', getattr(dataset, 'labels', None))
        if classes is None and type(dataset) in (TensorDataset, InMemory):
            classes = dataset.tensors[-1]
        if classes is None:
            if not needed_for:
                return None
            raise ConfigError(
                f'{needed_for}: {type(dataset).__name__} has neither .targets nor .labels; give it '
                f'one, or leave {needed_for} out'
            )
        classes = np.asarray(classes)
        # A missing one (None, nan) among texts is a class of its own.
        return classes.astype(str) if classes.dtype == object else classes
