"""BaseDataLoader: a torch DataLoader with a split, keyed randomness and a position.

The order and every sample's randomness come from keys (armature/seed.py), so they are the same for
any number of workers, and a loader can be put at any batch of any epoch.
"""

import functools
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, TensorDataset
from torch.utils.data.dataloader import default_collate

from armature.batch import WHOLE, Batch, Share, map_tensors
from armature.data import identity
from armature.data.augment import Augment
from armature.data.memory import InMemory, read_into_memory
from armature.data.order import Order, RandomSampler, SequentialSampler
from armature.data.split import split_indices
from armature.data.workers import (
    Collate,
    KeyedSamples,
    checked,
    finish,
    loader_options_for,
    make_fetcher,
    refuse_small_batches,
    start,
)
from armature.errors import ConfigError, DataError
from armature.processes import dist
from armature.processes.devices import prepared_device
from armature.seed import key, own_randomness


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
    on_error: 'skip' leaves samples out that cannot be read (the dataset raises DataError, or gives
    None) and reports them.
    evaluation: no shuffling, split, sampler or augmentation: for test data.
    seed: of the order and of the samples' randomness; None takes torch's (torch.manual_seed, as
    train.py sets it).
    pin_memory: None takes true when there is a GPU.
    loader_options: whatever else torch's DataLoader takes (worker_init_fn, timeout, ...).

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
                f'batch_size is {batch_size} and num_workers {num_workers}: expected at least 1, '
                'and at least 0'
            )
        if not len(dataset):
            raise DataError(f'{type(dataset).__name__} holds no sample: is this the right path?')
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
        self.valid_sampler = self.split = None
        if isinstance(sampler, DistributedSampler):
            raise ConfigError(
                'sampler is a DistributedSampler, and this loader gives each process its share by '
                'itself: leave it out'
            )
        if sampler is None or isinstance(sampler, Order):
            train_sampler, self.valid_sampler = self._split_sampler(validation_split)
            sampler = self._bound(sampler, train_sampler)
        if isinstance(sampler, Sized):
            self.n_samples = len(sampler)
        if drop_last and self.n_samples < batch_size:
            raise ConfigError(
                f'batch_size is {batch_size}, there are {self.n_samples} samples, and drop_last '
                'leaves out a batch that is not full: nothing is left. Make batch_size smaller, '
                'or leave drop_last out'
            )
        self._pass, self._first_sample = 0, 0
        self.share = WHOLE  # what this process has of the newest batch
        self.class_names = getattr(self, 'class_names', None) or identity.class_names_of(dataset)
        self._class_map = None
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
            dataset,
            self.seed,
            self._augment,
            skip_unreadable=on_error == 'skip',
            none_is_unreadable=collate_fn is default_collate,
            num_workers=num_workers,
        )
        collate = Collate(collate_fn, batch_transform)
        self._fetcher = make_fetcher(self._samples, _Plan(self), collate, self._fetcher_options)
        self._memory = self._in_memory(in_memory)

    def seek(self, number: int, batch: int = 0) -> None:
        """Let the next iteration be pass `number` (from 0), from its batch `batch` (from 0) on."""
        self._pass, self._first_sample = number, batch * self.batch_size

    def __iter__(self) -> Iterator[Any]:
        return (batch.content for batch in self.batches())

    def batches(self) -> Iterator[Batch]:
        """The batches of the pass that is due, once; the next iteration is the pass after it.

        The contract is in armature/batch.py.
        """
        made = self._fetched() if self._memory is None else self._from_memory(self._memory)
        for batch in made:
            if batch.share is not self.share:
                self.share = batch.share
            if self._class_map is not None:
                batch.content = self._renumbered(batch.content)
            yield batch

    def _fetched(self) -> Iterator[Batch]:
        """Batches of samples that are read one by one, by workers or here."""
        number, lists_are_parts = self._pass, self.collate_fn is default_collate
        for each in checked(start(self._fetcher), self._samples):
            self._unreadable += each.unreadable
            batch = Batch(each.batch, len(each.indices), torch.tensor(each.indices), each.share)
            batch.lists_are_parts = lists_are_parts
            if self._batch_transform is None:
                batch.collate = functools.partial(self._collate_anew, number, each.indices)
            yield batch
        self._report_unreadable()

    def _collate_anew(self, number: int, indices: list[int], rows: slice) -> Any:
        """The content of the samples `rows` of a batch, read and collated by themselves."""
        content = self.collate_fn(self._samples.read(number, indices[rows]).batch)
        return content if self._class_map is None else self._renumbered(content)

    def _from_memory(self, memory: InMemory) -> Iterator[Batch]:
        """One indexed copy a batch: what collating the single samples gives, but much faster."""
        device = memory.device
        is_on_cpu = device.type == 'cpu'
        pins = self.pin_memory and is_on_cpu and torch.cuda.is_available()
        for number, indices, share in self.due_batches():
            if memory.unreadable is not None:
                readable = indices[~memory.unreadable[indices]]
                if not len(readable) and dist.n_processes() > 1:  # others may have read theirs
                    readable = (~memory.unreadable).nonzero()[:1, 0]
                    share = Share(is_borrowed=True)
                indices = readable
            on_device = indices if is_on_cpu else indices.to(device, non_blocking=True)
            content = memory.take(on_device)
            if self._augment is not None:
                keys = [key(self.seed, 'augment', number, index) for index in indices.tolist()]
                augmented = functools.partial(self._augment.batch, keys=keys)
                content = finish(content, augmented)
            if self._batch_transform is not None:
                content = finish(content, self._batch_transform)
            if pins:
                content = map_tensors(torch.Tensor.pin_memory, content)
            yield Batch(content, len(indices), indices, share, None, True)

    def indices(self, number: int) -> torch.Tensor:
        """(n_samples,) the samples of pass `number` in their order."""
        with own_randomness(key(self.seed, 'order', number)):
            if isinstance(self.sampler, Order):
                return self.sampler.order()
            return torch.as_tensor(list(self.sampler), dtype=torch.long)

    def known_targets(self) -> torch.Tensor | None:
        """The target of each sample of the dataset, where they are in memory as they are given."""
        is_own = type(self).__iter__ is not BaseDataLoader.__iter__ or self._samples.skip_unreadable
        is_changed = is_own or self._batch_transform is not None or self._class_map is not None
        tensors = None if is_changed or self._memory is None else self._memory.tensors
        is_pair = isinstance(tensors, (list, tuple)) and len(tensors) == 2
        return tensors[1] if is_pair and isinstance(tensors[1], torch.Tensor) else None

    @property
    def knows_shares(self) -> bool:
        """Whether a process knows how many samples of each batch the others have."""
        is_own = type(self).__iter__ is not BaseDataLoader.__iter__
        may_leave_out = self.collate_fn is not default_collate or self._samples.skip_unreadable
        return not is_own and not may_leave_out

    def due_batches(self) -> Iterator[tuple[int, torch.Tensor, Share]]:
        """(pass, indices, share) of what this process has of each batch of the pass that is due.

        From then on the next pass is due.
        """
        number, first_sample = self._pass, self._first_sample
        self.seek(number + 1)
        order = self.indices(number)
        if self._memory is not None and self._memory.device.type == 'cuda':
            order = order.pin_memory()  # so that no step waits for its indices
        last = len(order) - (len(order) % self.batch_size if self.drop_last else 0)
        is_alone = dist.n_processes() == 1
        # In two steps, so that the first batch of many does not wait until all are cut.
        for batches in order[first_sample:last].split(1000 * self.batch_size):
            for indices in batches.split(self.batch_size):
                if is_alone:
                    yield number, indices, WHOLE
                else:
                    yield number, *dist.share(indices)

    def split_validation(self) -> 'BaseDataLoader | None':
        """A loader of the validation part, in a fixed order; None without a validation split."""
        if self.valid_sampler is None:
            return None
        dataset = self._valid_dataset or self._memory or self.dataset
        kwargs = {**self.init_kwargs, 'dataset': dataset, 'shuffle': False, 'validation_split': 0.0}
        options = {**self.loader_options, 'drop_last': False}
        valid = BaseDataLoader(**kwargs, sampler=self.valid_sampler, seed=self.seed, **options)
        if self._valid_dataset is None:
            valid._class_map = self._class_map
        valid.use_class_names(self.class_names)
        return valid

    # Which data this is

    def fingerprint(self) -> dict | None:
        """What is another when the data is (armature/data/identity.py), as plain data."""
        return identity.fingerprint(self.init_kwargs['dataset'])

    def use_class_names(self, names: list[str] | None) -> None:
        """Number the classes as `names` does (the training data's), whatever the dataset says."""
        if names is not None:
            renumbered = identity.class_map(self.class_names, names)
            self._class_map = self._class_map if renumbered is None else renumbered
            self.class_names = names

    def _renumbered(self, content: Any) -> Any:
        """(data, target) with the classes in the target numbered as training does."""
        target = content[-1] if isinstance(content, (list, tuple)) else None
        if not isinstance(target, torch.Tensor) or target.is_floating_point():
            raise DataError(
                f'{type(self.dataset).__name__} has other classes than the training data, and its '
                'targets are no numbers of classes: give it all classes, in the same order'
            )
        return [*content[:-1], self._class_map.to(target.device)[target]]

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

    # Split and order

    def _split_sampler(self, split: float) -> tuple[Any, Any]:
        """(order of the training part, validation indices); (None, None) without the latter."""
        dataset = self.init_kwargs['dataset']
        train, valid, self.split = split_indices(
            self.n_samples,
            split,
            classes=self._classes('stratify') if self._stratify else None,
            names=identity.names_of(dataset) if split or self._split_options['n_folds'] else None,
            before=identity.resumed().get('split'),
            **self._split_options,
        )
        if not len(valid):
            return None, None
        order = RandomSampler() if self.shuffle else SequentialSampler()
        return order.bind(train, lambda: None), valid.tolist()

    def _bound(self, sampler: Order | None, train_sampler: Any) -> Any:
        """What goes through the training part: `sampler`, or what `shuffle` says."""
        if sampler is None and train_sampler is not None:
            return train_sampler
        if sampler is None:
            sampler = RandomSampler() if self.shuffle else SequentialSampler()
        indices = getattr(train_sampler, 'indices', train_sampler)
        if indices is None:
            indices = torch.arange(self.n_samples)
        indices = torch.as_tensor(indices, dtype=torch.long)
        return sampler.bind(indices, lambda: self._classes('sampler')[indices.numpy()])

    def _in_memory(self, where: bool | str) -> InMemory | None:
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
            samples = KeyedSamples(
                memory,
                self.seed,
                skip_unreadable=self._samples.skip_unreadable,
                watches_draws=True,
                num_workers=self.num_workers,
            )
            memory, self._unreadable = read_into_memory(samples, self._fetcher_options)
            self._report_unreadable()
        if isinstance(memory, InMemory) and where == 'device':
            memory = memory.to(prepared_device())
        return memory if isinstance(memory, InMemory) else None

    def _report_unreadable(self) -> None:
        """One warning for what a pass has left out."""
        if self._unreadable:
            some = '; '.join(self._unreadable[:3]) + (' ...' if len(self._unreadable) > 3 else '')
            logging.getLogger('data').warning(
                f'{len(self._unreadable)} of {self.n_samples} samples cannot be read and are left '
                f'out: {some}'
            )
        self._unreadable = []


class _Plan:
    """What the workers are asked for, as a torch batch sampler."""

    def __init__(self, loader: BaseDataLoader):
        # In a cycle, workers that wait for the next pass could not be told to leave.
        self.loader = weakref.proxy(loader)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[int, list[int], Share]]:
        for number, indices, share in self.loader.due_batches():
            yield number, indices.tolist(), share
