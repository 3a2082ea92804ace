"""StreamDataLoader: batches of a stream (torch's IterableDataset), whatever the workers.

Every worker goes through the whole stream and keeps the samples of its own batches, so a stream has
nothing to split or to know.
"""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torch.utils.data.dataloader import default_collate

from armature.batch import WHOLE, Batch, Share
from armature.data.identity import class_names_of
from armature.data.workers import WorkerStart, loader_options_for, refuse_small_batches, start
from armature.errors import ConfigError
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
        **loader_options: Any,
    ):
        if not isinstance(dataset, IterableDataset):
            raise ConfigError(
                'StreamDataLoader is for streams (IterableDataset), and dataset is a '
                f'{type(dataset).__name__}'
            )
        refuse_small_batches(batch_size)
        options = loader_options_for(loader_options, num_workers, type(self))
        self.seed = torch.initial_seed() if seed is None else seed
        self._share = _Share(
            dataset, self.seed, batch_size, dist.rank(), dist.n_processes(), options['drop_last']
        )
        self._number, self._first = 0, 0
        self.class_names = class_names_of(dataset)
        # Only whether the newest batch is borrowed; how many samples others have, they tell.
        self.share = WHOLE
        super().__init__(
            dataset, batch_size, num_workers=num_workers, collate_fn=collate_fn, **options
        )
        # Not persistent: workers get the pass and the position when they start.
        options = {
            'generator': torch.Generator(),
            **options,
            'persistent_workers': False,
            'drop_last': False,
            'worker_init_fn': WorkerStart(options.get('worker_init_fn')),
        }
        self._fetcher = DataLoader(
            self._share,
            len(self._share.part),
            num_workers=num_workers,
            collate_fn=_Collate(collate_fn),
            **options,
        )

    def __bool__(self) -> bool:
        return True  # also without a length

    def split_validation(self) -> None:
        """A stream has no part for validation: "valid_data_loader" says where that data is."""

    def seek(self, number: int, batch: int = 0) -> None:
        """Let the next iteration be pass `number` (from 0), from its batch `batch` (from 0) on."""
        self._number, self._first = number, batch

    def __iter__(self) -> Iterator[Any]:
        return (batch.content for batch in self.batches())

    def batches(self) -> Iterator[Batch]:
        """The batches of the pass that is due; see armature/batch.py."""
        number, first = self._number, self._first
        self.seek(number + 1)
        while True:
            n_batches = 0
            for batch in self._pass(number, first):
                n_batches += 1
                self.share = batch.share
                yield batch
            if n_batches or not first:
                return
            # The stream is shorter than the epoch, and we are to go on in a further pass.
            n_in_pass = sum(1 for _ in self._pass(number, 0))
            number, first = number + 1, first - n_in_pass
            if n_in_pass == 0:
                return

    def _pass(self, number: int, first: int) -> Iterator[Batch]:
        self._share.number, self._share.first = number, first
        with own_randomness(0):
            batches = start(self._fetcher)
        while True:
            with own_randomness(0):
                try:
                    content, n_samples, is_borrowed = next(batches)
                except StopIteration:
                    return
            share = Share(is_borrowed=is_borrowed)
            lists_are_parts = self.collate_fn is default_collate
            yield Batch(content, n_samples, share=share, lists_are_parts=lists_are_parts)


class _Collate:
    """(batch, its number of samples, whether it is borrowed) of such samples."""

    def __init__(self, collate_fn: Callable):
        self.collate_fn = collate_fn

    def __call__(self, samples: list[tuple[Any, bool]]) -> tuple[Any, int, bool]:
        content = self.collate_fn([sample for sample, _ in samples])
        return content, len(samples), samples[0][1]


class _Share(IterableDataset):
    """Of pass `number`, from batch `first` on, the samples of the batches that this worker makes.

    That is every n-th batch of n workers. Gives (sample, False), and (sample, True) for one of
    another process in a batch too small for this one to have a share of.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        seed: int,
        batch_size: int,
        rank: int,
        n_ranks: int,
        drop_last: bool,
    ):
        self.dataset, self.seed, self.batch_size, self.drop_last = (
            dataset,
            seed,
            batch_size,
            drop_last,
        )
        self.part = range(rank, batch_size, n_ranks)  # of each batch
        self.number, self.first = 0, 0

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        worker_id, n_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        seed_sample(key(self.seed, 'stream', self.number))
        samples, held = iter(self.dataset), []
        for index in count():
            seed_sample(key(self.seed, 'stream', self.number, index))
            batch, place = divmod(index, self.batch_size)
            is_ours = batch >= self.first and (batch - self.first) % n_workers == worker_id
            try:
                sample = next(samples)
            except StopIteration:
                if is_ours and 0 < place <= self.part[0] and not self.drop_last:
                    yield sample, True
                return
            except Exception as error:
                error.add_note(
                    f'This happened while sample {index} of {type(self.dataset).__name__} was read.'
                )
                raise
            if is_ours and place in self.part:
                held.append((sample, False))
            # With drop_last they wait until the batch is full.
            if not self.drop_last or place == self.batch_size - 1:
                yield from held
                held.clear()
