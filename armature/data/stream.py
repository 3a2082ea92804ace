"""StreamDataLoader: batches of a stream (torch's IterableDataset), whatever the workers.

Every worker goes through the whole stream and keeps the samples of its own batches, so a stream has
nothing to split or to know.
"""

import itertools
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torch.utils.data.dataloader import default_collate

from armature.batch import WHOLE, Batch, Share
from armature.data.identity import class_names_of
from armature.data.workers import (
    WorkerStart,
    as_it_is,
    options_of_torch,
    reading,
    refuse_numbers,
)
from armature.errors import ConfigError, DataError, UserError
from armature.processes import dist
from armature.seed import key, own_randomness, seed_sample


class StreamDataLoader(DataLoader):
    """A pass is the stream from its beginning.

    What it draws from torch, random and numpy is keyed by (seed, pass, sample). A stream without an
    end needs trainer.len_epoch: so many batches are an epoch, and the next epoch is the next pass.
    Where several processes train, each gets its share of every batch; `batch_size` counts the
    samples of all shares.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        batch_size: int,
        num_workers: int = 0,
        collate_fn: Callable = default_collate,
        *,
        seed: int | None = None,
        drop_last: bool = False,
        pin_memory: bool | None = None,
        prefetch_factor: int | None = None,
        timeout: float | None = None,
        worker_init_fn: Callable | None = None,
        multiprocessing_context: Any = None,
    ):
        if not isinstance(dataset, IterableDataset):
            raise ConfigError(
                'StreamDataLoader is for streams (IterableDataset), and dataset is a '
                f'{type(dataset).__name__}'
            )
        refuse_numbers(batch_size, num_workers)
        self.seed = torch.initial_seed() if seed is None else seed
        self._due = 0, 0  # pass and batch
        self.class_names = class_names_of(dataset)
        self.share = WHOLE  # whether the newest batch is padding; the processes exchange the rest
        super().__init__(
            dataset, batch_size, num_workers=num_workers, collate_fn=collate_fn, drop_last=drop_last
        )
        options = options_of_torch(
            num_workers,
            pin_memory=pin_memory,
            prefetch_factor=prefetch_factor,
            timeout=timeout,
            multiprocessing_context=multiprocessing_context,
        )
        self._batches = _Batches(dataset, self.seed, batch_size, collate_fn, drop_last)
        self._fetcher = DataLoader(
            self._batches,
            batch_size=None,
            collate_fn=as_it_is,
            generator=torch.Generator(),
            worker_init_fn=WorkerStart(worker_init_fn),
            **options,
        )

    def __bool__(self) -> bool:
        return True  # also without a length

    def split_validation(self) -> None:
        """A stream has no part for validation: "valid_data_loader" says where that data is."""

    def seek(self, number: int, batch: int = 0) -> None:
        """Let the next iteration be pass `number` (from 0), from its batch `batch` (from 0) on."""
        self._due = number, batch

    def __iter__(self) -> Iterator[Any]:
        return map(attrgetter('content'), self.batches())

    def batches(
        self, number: int | None = None, first: int = 0, n_batches: int | None = None
    ) -> Iterator[Batch]:
        """`n_batches` from batch `first` of pass `number` on, in as many passes as that takes.

        By default the rest of the pass that is due. See armature/batch.py.
        """
        if number is None:
            number, first = self._due
        self.seek(number + 1)
        self._batches.number, self._batches.first = number, first
        self._batches.last = None if n_batches is None else first + n_batches
        lists_are_parts, batch = self.collate_fn is default_collate, None
        with reading(self._fetcher) as fetched:
            while True:
                with own_randomness(0):
                    each = next(fetched, None)
                if each is None:
                    break
                if isinstance(each, UserError):
                    raise each
                content, n_samples, self.share = each
                batch = Batch(content, n_samples, share=self.share, lists_are_parts=lists_are_parts)
                yield batch
        if batch is None and n_batches:
            raise DataError(f'{type(self.dataset).__name__} gives no batches')


class _Batches(IterableDataset):
    """(content, number of samples, share) of each batch that this worker makes: each n-th of n.

    Batches are counted from the beginning of pass `number`, and go from `first` to the end of the
    pass or, through further passes, up to `last`. Where a batch is too small for this process to
    have a share of, it takes a sample of another process (padding).
    """

    def __init__(
        self,
        dataset: IterableDataset,
        seed: int,
        batch_size: int,
        collate_fn: Callable,
        drop_last: bool,
    ):
        self.dataset, self.seed, self.collate_fn = dataset, seed, collate_fn
        self.batch_size, self.drop_last = batch_size, drop_last
        self.mine = slice(dist.rank(), None, dist.n_processes())  # of each batch
        self.number, self.first, self.last = 0, 0, None

    def __iter__(self) -> Iterator[tuple | UserError]:
        worker = get_worker_info()
        worker_id, n_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        batch, nothing = 0, object()
        for number in itertools.count(self.number):
            seed_sample(key(self.seed, 'stream', number))
            stream, samples, n_before = iter(self.dataset), [], batch
            for index in itertools.count():
                seed_sample(key(self.seed, 'stream', number, index))
                try:
                    sample = next(stream, nothing)
                except UserError as error:
                    yield error  # raised in a worker, it would bring the worker's traceback along
                    return
                except Exception as error:
                    name = type(self.dataset).__name__
                    error.add_note(f'This happened while sample {index} of {name} was read.')
                    raise
                is_over = sample is nothing
                samples += [] if is_over else [sample]
                if len(samples) == self.batch_size or is_over and samples and not self.drop_last:
                    if batch >= self.first and (batch - self.first) % n_workers == worker_id:
                        mine = samples[self.mine] or samples[:1]
                        share = Share(is_padding=not samples[self.mine])
                        yield self.collate_fn(mine), len(mine), share
                    samples, batch = [], batch + 1
                    if batch == self.last:
                        return
                if is_over:
                    break
            if self.last is None or batch == n_before:
                return
