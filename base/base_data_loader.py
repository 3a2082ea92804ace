"""BaseDataLoader: a torch DataLoader with a split, keyed randomness and a position.

The order and every sample's randomness come from keys (armature/seed.py), so they are the same for
any number of workers, and a loader can be put at any batch of any epoch.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, TensorDataset
from torch.utils.data.dataloader import default_collate

from armature.batch import CPU, WHOLE, Batch, map_tensors, sent, takes_pinned
from armature.data import identity
from armature.data.augment import Augment
from armature.data.memory import InMemory, read_into_memory
from armature.data.order import Order, Plan, RandomSampler, SequentialSampler
from armature.data.split import split_indices
from armature.data.workers import Fetcher, Reader, on_input, options_of_torch, refuse_numbers
from armature.errors import ConfigError, DataError
from armature.processes.devices import prepared_device
from armature.seed import key


class BaseDataLoader(DataLoader):
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
    evaluation: no shuffling, split, sampler or augmentation: for test data.
    seed: of the order and of the samples' randomness; None takes torch's (torch.manual_seed, as
    train.py sets it).
    drop_last and all after it: as in torch. pin_memory: None takes true when there is a GPU.

    Where several processes train, each gets its share of every batch; `batch_size` counts the
    samples of all shares. A dataset with `__getitems__` (several samples at once) draws its
    randomness per batch instead of per sample.
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
        augment: list | None = None,
        batch_transform: Callable | None = None,
        evaluation: bool = False,
        seed: int | None = None,
        drop_last: bool = False,
        pin_memory: bool | None = None,
        persistent_workers: bool | None = None,
        prefetch_factor: int | None = None,
        timeout: float | None = None,
        worker_init_fn: Callable | None = None,
        multiprocessing_context: Any = None,
    ):
        if evaluation:
            shuffle, validation_split, n_folds, sampler, augment = False, 0, None, None, None
        refuse_numbers(batch_size, num_workers)
        if not hasattr(dataset, '__len__'):
            raise ConfigError(
                f'{type(dataset).__name__} has no length: give a stream to StreamDataLoader'
            )
        if not len(dataset):
            raise DataError(f'{type(dataset).__name__} holds no sample: is this the right path?')
        self.shuffle, self.validation_split = shuffle, validation_split
        self.seed = torch.initial_seed() if seed is None else seed
        self.n_samples = len(dataset)
        self.init_kwargs = {
            'dataset': dataset,
            'batch_size': batch_size,
            'shuffle': shuffle,
            'collate_fn': collate_fn,
            'num_workers': num_workers,
        }
        for_workers = {
            'pin_memory': pin_memory,
            'persistent_workers': persistent_workers,
            'prefetch_factor': prefetch_factor,
            'timeout': timeout,
            'worker_init_fn': worker_init_fn,
            'multiprocessing_context': multiprocessing_context,
        }
        self.loader_options = {
            'in_memory': in_memory,
            'batch_transform': batch_transform,
            **for_workers,
        }
        self._valid_dataset, self._stratify = valid_dataset, stratify
        self._split_options = {'n_folds': n_folds, 'fold': fold, 'groups': groups}

        self.valid_sampler = self.split = None
        if sampler is None or isinstance(sampler, Order):
            train, self.valid_sampler = self._split_sampler(validation_split)
            sampler = self._ordered(sampler, train)
        elif isinstance(sampler, DistributedSampler):
            raise ConfigError(
                'sampler is a DistributedSampler, and this loader gives each process its share by '
                'itself: leave it out'
            )
        if isinstance(sampler, Sized):
            self.n_samples = len(sampler)
        if drop_last and self.n_samples < batch_size:
            raise ConfigError(
                f'batch_size is {batch_size}, there are {self.n_samples} samples, and drop_last '
                'leaves out a batch that is not full: nothing is left. Make batch_size smaller, '
                'or leave drop_last out'
            )
        self._plan = Plan(sampler, batch_size, drop_last, self.seed)
        self._due = 0, 0  # pass and batch
        self.share = WHOLE  # what this process has of the newest batch
        self.class_names = getattr(self, 'class_names', None) or identity.class_names_of(dataset)

        options = options_of_torch(num_workers, **for_workers)
        super().__init__(
            dataset,
            batch_size,
            sampler=sampler,
            collate_fn=collate_fn,
            drop_last=drop_last,
            **options,
        )
        self._reader = Reader(
            dataset, self.seed, Augment(augment) if augment else None, collate_fn, batch_transform
        )
        self._fetcher = Fetcher(self._reader, options)
        self._memory = self._in_memory(in_memory, options)

    def reseed(self, seed: int) -> None:
        """Let the order and the samples' randomness follow from `seed` from here on."""
        self.seed = self._plan.seed = self._reader.seed = seed

    # Batches

    def seek(self, number: int, batch: int = 0) -> None:
        """Let the next iteration be pass `number` (from 0), from its batch `batch` (from 0) on."""
        self._due = number, batch

    def __iter__(self) -> Iterator[Any]:
        return map(self._content, self.batches())

    def _content(self, batch: Batch) -> Any:
        if batch.share is not self.share:
            self.share = batch.share
        return batch.content

    def batches(
        self, number: int | None = None, first: int = 0, n_batches: int | None = None
    ) -> Iterator[Batch]:
        """`n_batches` from batch `first` of pass `number` on, through the passes after it.

        By default the rest of the pass that is due; the next iteration is the pass after it. The
        contract is in armature/batch.py.
        """
        if number is None:
            number, first = self._due
        self.seek(number + 1)
        n_batches = len(self) - first if n_batches is None else n_batches
        if self._memory is not None:
            # The keys of augmentations are made of indices on the CPU.
            device = CPU if self._reader.augment else self._memory.device
            return self._from_memory(self._plan.batches(number, first, n_batches, device))
        return self._fetcher.batches(self._plan.batches(number, first, n_batches))

    def _from_memory(self, planned: Iterable[tuple]) -> Iterator[Batch]:
        """One indexed copy a batch: what collating the single samples gives, but much faster."""
        memory, reader = self._memory, self._reader
        is_finished = reader.batch_transform is None and reader.class_map is None
        device = memory.device
        pins = device == CPU and self.pin_memory and takes_pinned(prepared_device())
        sends = reader.augment is not None and device != CPU
        for number, indices, share in planned:
            content = memory.take(sent(indices, device) if sends else indices)
            if reader.augment is not None:
                keys = [key(self.seed, 'augment', number, index) for index in indices.tolist()]
                content = on_input(functools.partial(reader.augment.batch, keys=keys), content)
            if not is_finished:
                content = reader.finished(content)
            if pins:
                content = map_tensors(torch.Tensor.pin_memory, content)
            yield Batch(content, indices.numel(), indices, share, None, True)

    def indices(self, number: int) -> torch.Tensor:
        """(n_samples,) the samples of pass `number` in their order."""
        return self._plan.indices(number)

    def known_targets(self) -> torch.Tensor | None:
        """The target of each sample of the dataset, where they are in memory as they are given."""
        is_own = type(self).__iter__ is not BaseDataLoader.__iter__
        is_changed = self._reader.batch_transform or self._reader.class_map is not None
        tensors = None if is_own or is_changed or self._memory is None else self._memory.tensors
        is_pair = isinstance(tensors, (list, tuple)) and len(tensors) == 2
        return tensors[1] if is_pair and isinstance(tensors[1], torch.Tensor) else None

    @property
    def knows_shares(self) -> bool:
        """Whether a process knows how many samples of each batch the others have."""
        is_own = type(self).__iter__ is not BaseDataLoader.__iter__
        return not is_own and self.collate_fn is default_collate  # which leaves out no sample

    def _in_memory(self, where: bool | str, options: dict) -> InMemory | None:
        """The samples as tensors, when they are in memory or shall be."""
        memory = self.dataset
        if type(memory) is TensorDataset and self.collate_fn is default_collate:
            memory = InMemory(list(memory.tensors))
        elif where and not isinstance(memory, InMemory):
            if self.collate_fn is not default_collate:
                raise ConfigError(
                    'in_memory needs samples of one shape, and collate_fn is there for others: '
                    'leave one of them out'
                )
            memory = read_into_memory(memory, options)
        if not isinstance(memory, InMemory):
            return None
        return memory.to(prepared_device()) if where == 'device' else memory

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
        alike = {**self.init_kwargs, 'dataset': dataset, 'shuffle': False, **self.loader_options}
        valid = BaseDataLoader(**alike, sampler=indices, seed=self.seed)
        valid.use_class_names(self.class_names)
        return valid

    def _split_sampler(self, split: float) -> tuple[Any, Any]:
        """(indices of the training part, those of the validation part or None)."""
        dataset, has_folds = self.init_kwargs['dataset'], self._split_options['n_folds']
        train, valid, self.split = split_indices(
            self.n_samples,
            split,
            classes=self._classes('stratify') if self._stratify else None,
            names=identity.names_of(dataset) if split or has_folds else None,
            before=identity.resumed().get('split'),
            **self._split_options,
        )
        return train, valid.tolist() or None

    def _ordered(self, order: Order | None, train: Any) -> Sampler:
        """The training part in `order`, or as `shuffle` says."""
        if order is None and isinstance(train, Sampler):  # from a _split_sampler of one's own
            return train
        if order is None:
            order = RandomSampler() if self.shuffle else SequentialSampler()
        indices = train.indices if isinstance(train, Sampler) else train
        indices = torch.arange(self.n_samples) if indices is None else torch.as_tensor(indices)
        return order.bind(indices, lambda: self._classes('sampler')[indices.numpy()])

    # Which data this is

    def fingerprint(self) -> dict | None:
        """What is another when the data is (armature/data/identity.py), as plain data."""
        return identity.fingerprint(self.init_kwargs['dataset'])

    def use_class_names(self, names: list[str] | None) -> None:
        """Number the classes as `names` does (the training data's), whatever the dataset says."""
        if names is not None:
            renumbered = identity.class_map(self.class_names, names)
            if renumbered is not None:
                self._reader.class_map = renumbered
            self.class_names = names

    def sample_classes(self) -> list | None:
        """The class of each sample of the dataset; None when it does not tell."""
        classes = self._classes()
        return None if classes is None else classes.tolist()

    def _classes(self, needed_for: str = '') -> np.ndarray | None:
        dataset = self.init_kwargs['dataset']
        classes = getattr(dataset, 'targets', getattr(dataset, 'labels', None))
        if classes is None and type(dataset) in (TensorDataset, InMemory):
            classes = dataset.tensors[-1]
        if classes is None and needed_for:
            raise ConfigError(
                f'{needed_for}: {type(dataset).__name__} has neither .targets nor .labels; give it '
                f'one, or leave {needed_for} out'
            )
        return None if classes is None else np.asarray(classes)
