"""StreamDataLoader: batches of a stream (torch's IterableDataset), whatever the workers.

Every worker goes through the whole stream and keeps the samples of its own batches, so a stream has
nothing to split or to know.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import IterableDataset, default_collate

from armature.batch import Batch, Share
from armature.data.order import SeekableLoader
from armature.data.reading import about_sample
from armature.data.workers import Workers
from armature.errors import ConfigError, DataError, UserError
from armature.processes import dist
from armature.seed import key, own_randomness, seed_sample


class StreamDataLoader(SeekableLoader):
    """A pass is the stream from its beginning.

    What it draws from torch, random and numpy is keyed by (seed, pass, sample). A stream without an
    end needs trainer.len_epoch: so many batches are an epoch, and the next epoch is the next pass.
    Where several processes train, each gets its share of every batch; `batch_size` counts the
    samples of all shares.
    options: seed, drop_last and those for workers, as in torch.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        batch_size: int,
        num_workers: int = 0,
        collate_fn: Callable = default_collate,
        **options: Any,
    ):
        if not isinstance(dataset, IterableDataset):
            raise ConfigError(
                'StreamDataLoader is for streams (IterableDataset), and dataset is a '
                f'{type(dataset).__name__}'
            )
        super().__init__(dataset, batch_size, num_workers, collate_fn, **options)

    def __bool__(self) -> bool:
        return True  # also without a length

    def split_validation(self) -> None:
        """A stream has no part for validation: "valid_data_loader" says where that data is."""

    def _make_batches(self, number: int, first: int, n_batches: int | None) -> Iterator[Batch]:
        reader = _StreamReader(
            self.dataset,
            self.batch_size,
            self.collate_fn,
            self.drop_last,
            mine=slice(dist.rank(), None, dist.n_processes()),
            seed=self.seed,
            number=number,
            first=first,
            last=None if n_batches is None else first + n_batches,
        )
        # Workers learn where to begin when they start.
        options = self.torch_options | {'persistent_workers': False}
        workers = Workers(reader, options, key(self.seed, 'workers', number))
        lists_are_parts, is_empty = self.collate_fn is default_collate, True
        for content, n_samples, share in workers.answers():
            is_empty = False
            yield Batch(content, n_samples, share=share, lists_are_parts=lists_are_parts)
        if is_empty and (n_batches or (first, n_batches) == (0, None)):
            raise DataError(f'{type(self.dataset).__name__} gives no batches')


@dataclass(eq=False)
class _StreamReader(IterableDataset):
    """(content, number of samples, share) of each batch that this worker makes: each n-th of n.

    Batches are counted from the beginning of pass `number`, and go from `first` to the end of the
    pass or, through further passes, up to `last`. Where a batch is too small for this process to
    have a share of, it takes a sample of another process (padding).
    """

    dataset: IterableDataset
    batch_size: int
    collate_fn: Callable
    drop_last: bool
    mine: slice  # of each batch
    seed: int
    number: int
    first: int
    last: int | None
    worker: tuple[int, int] = (0, 1)  # its number and how many there are; see start_worker

    def __iter__(self) -> Iterator[tuple | UserError]:
        worker_id, n_workers = self.worker
        place = 0  # of the batch that is next
        for number in itertools.count(self.number):
            begun_at, samples = place, self._samples(number)
            while place != self.last:
                is_due = place >= self.first and (place - self.first) % n_workers == worker_id
                try:
                    with own_randomness(0):
                        batch = list(itertools.islice(samples, self.batch_size))
                        if not batch or self.drop_last and len(batch) < self.batch_size:
                            break
                        mine = batch[self.mine]
                        content = self.collate_fn(mine or batch[:1]) if is_due else None
                except UserError as error:
                    yield error  # raised in a worker, it would bring the worker's traceback along
                    return
                if is_due:
                    yield content, len(mine) or 1, Share(is_padding=not mine)
                place += 1
            if place == self.last or self.last is None or place == begun_at:
                return

    def _samples(self, number: int) -> Iterator[Any]:
        """The samples of a pass. Each draws from generators that start where its key says."""
        seed_sample(key(self.seed, 'stream', number))
        stream = iter(self.dataset)
        for index in itertools.count():
            seed_sample(key(self.seed, 'stream', number, index))
            try:
                sample = next(stream)
            except StopIteration:
                return
            except Exception as error:
                raise about_sample(index, self.dataset, error)  # noqa: B904 (it may be the same)
            yield sample
