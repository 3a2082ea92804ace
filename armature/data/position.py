"""Where in the data a run stands: epochs follow each other through the passes over a loader, and any batch can be gone to."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from armature.errors import ConfigError, DataError
from armature.seed import key, seed_torch


def batches_from(
    position: int,
    epoch: int,
    len_epoch: int,
    loader: Iterable,
    seed: int,
    after_reading_up: Callable[[], None] = lambda: None,
) -> Iterator[Any]:
    """The batches of `epoch` (from 1; `len_epoch` of them) from batch `position` (from 0) on.

    A loader that cannot `seek` (torch's own) draws its order anew, keyed, and is read up to there; `after_reading_up` is called then.
    """
    n_left = len_epoch - position
    number, first = pass_and_batch(position, epoch, len_epoch, loader)
    while n_left > 0:
        n_before = n_left
        batches = (
            _seek(loader, number, first)
            if hasattr(loader, 'seek')
            else _read_up(loader, number, first, seed, after_reading_up)
        )
        for batch in itertools.islice(batches, n_left):
            n_left -= 1
            yield batch
        if n_left == n_before and first == 0:
            raise DataError(f'{type(loader).__name__} gives no batches')
        number, first = number + 1, 0


def pass_and_batch(position: int, epoch: int, len_epoch: int, loader: Iterable) -> tuple[int, int]:
    """(pass over the data, batch in it), both from 0, of a position in an epoch. A stream without a length begins anew each epoch."""
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
            'the training data is a stream that has no length: say how many batches an epoch has, in trainer.len_epoch'
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
    return loader.indices(number).split(loader.batch_size)[batch].tolist()


def _seek(loader: Any, number: int, first: int) -> Iterator[Any]:
    loader.seek(number, first)
    return iter(loader)


def _read_up(
    loader: Iterable, number: int, first: int, seed: int, after_reading_up: Callable[[], None]
) -> Iterator[Any]:
    pass_key = key(seed, 'pass', number)
    if hasattr(getattr(loader, 'sampler', None), 'set_epoch'):  # torch's DistributedSampler
        loader.sampler.set_epoch(number)
    seed_torch(pass_key)
    iterator = iter(loader)
    for index in itertools.count():
        seed_torch(
            pass_key + index
        )  # what a sample draws must not depend on what the model drew before
        try:
            batch = next(iterator)
        except StopIteration:
            return
        if index >= first:
            yield batch
        elif index == first - 1:
            after_reading_up()
