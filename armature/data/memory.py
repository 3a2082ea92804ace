"""InMemory: a dataset read once into tensors, so that a batch is one indexed copy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from torch.utils.data.dataloader import default_collate

from armature.batch import WHOLE, length, map_tensors
from armature.data.workers import Collate, KeyedSamples, checked, make_fetcher, start
from armature.errors import ConfigError

CHUNK = 256  # samples read at a time


class InMemory(Dataset):
    """Samples as tensors with one row each, nested as a batch of them is.

    Such as [images, classes] or [[numbers, codes], target]. Given tensors are not copied.
    """

    def __init__(self, tensors: Any, unreadable: torch.Tensor | None = None):
        self.tensors = tensors
        self.unreadable = unreadable  # (n,) bool: rows that hold no sample; None when all do

    def __len__(self) -> int:
        return length(self.tensors)

    def __getitem__(self, index: int) -> Any:
        return map_tensors(lambda tensor: tensor[index], self.tensors)

    def take(self, indices: torch.Tensor) -> Any:
        """The rows at `indices`, in one copy."""
        return map_tensors(lambda tensor: tensor.index_select(0, indices), self.tensors)

    def to(self, device: torch.device) -> 'InMemory':
        """The same on `device`; refused when it does not fit there."""
        if device == self.device:
            return self
        refuse_what_does_not_fit(
            len(self), sum(map(_bytes, _leaves(self.tensors))) / max(1, len(self)), device
        )
        return InMemory(
            map_tensors(lambda tensor: tensor.to(device), self.tensors), self.unreadable
        )

    @property
    def device(self) -> torch.device:
        return _leaves(self.tensors)[0].device


def read_into_memory(samples: KeyedSamples, fetcher_options: dict) -> tuple[InMemory, list[str]]:
    """(all samples of a dataset, what could not be read of it).

    samples: has to watch draws. A ConfigError when one draws random numbers: memory would hold
    those of one pass.
    """
    n_samples = len(samples.dataset)
    chunks = [
        (0, list(range(first, min(first + CHUNK, n_samples))), WHOLE)
        for first in range(0, n_samples, CHUNK)
    ]
    tensors, unreadable, is_missing = None, [], torch.ones(n_samples, dtype=torch.bool)
    options = {**fetcher_options, 'persistent_workers': False}
    if not options['num_workers']:
        del options['persistent_workers']
    fetcher = make_fetcher(samples, chunks, Collate(_collate, None), options)
    for each in checked(start(fetcher), samples):
        if each.has_drawn:
            raise ConfigError(
                'in_memory would freeze the random transforms of '
                f'{type(samples.dataset).__name__}: give them as "augment", or leave in_memory out'
            )
        chunk, indices = each.batch, each.indices
        if tensors is None:
            refuse_other_than_tensors(chunk)
            sample_bytes = sum(map(_bytes, _leaves(chunk))) / len(indices)
            refuse_what_does_not_fit(n_samples, sample_bytes, torch.device('cpu'))
            tensors = map_tensors(
                lambda tensor: tensor.new_empty((n_samples, *tensor.shape[1:])), chunk
            )
        for rows, values in zip(_leaves(tensors), _leaves(chunk)):
            if rows.shape[1:] != values.shape[1:]:
                raise _other_shape(f'{tuple(rows.shape[1:])} and {tuple(values.shape[1:])}')
            rows[indices] = values
        is_missing[indices] = False
        unreadable += each.unreadable
    return InMemory(tensors, is_missing if unreadable else None), unreadable


def _collate(samples: list) -> Any:
    try:
        return default_collate(samples)
    except RuntimeError as error:
        raise _other_shape(str(error)) from error


def _other_shape(found: str) -> ConfigError:
    return ConfigError(
        f'in_memory needs samples of one shape, but there are {found}. Leave it out, or bring '
        'them to one size'
    )


def refuse_other_than_tensors(batch: Any) -> None:
    if isinstance(batch, (list, tuple)):
        for each in batch:
            refuse_other_than_tensors(each)
    elif isinstance(batch, Mapping):
        refuse_other_than_tensors(list(batch.values()))
    elif not isinstance(batch, torch.Tensor):
        raise ConfigError(
            f'in_memory needs samples of tensors and numbers: there is {type(batch).__name__} '
            f'{str(batch)[:40]!r}'
        )


def refuse_what_does_not_fit(n_samples: int, sample_bytes: float, device: torch.device) -> None:
    needed, free = n_samples * sample_bytes, free_bytes(device)
    if needed > free:
        raise ConfigError(
            f'in_memory: {n_samples:,} samples of {sample_bytes:,.0f} bytes are '
            f'{needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB of the memory of {device} are free. '
            'Leave in_memory out, or make the samples smaller'
        )


def free_bytes(device: torch.device) -> float:
    """Memory that can still be had; infinite where the system does not say."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    limits = [float('inf')]
    try:
        lines = Path('/proc/meminfo').read_text().splitlines()
        limits += [1024 * int(line.split()[1]) for line in lines if line.startswith('MemAvailable')]
        group = Path('/sys/fs/cgroup')  # what a container may use, when it may not use all
        limits.append(
            int((group / 'memory.max').read_text()) - int((group / 'memory.current').read_text())
        )
    except (OSError, ValueError):
        pass
    return min(limits)


def _leaves(batch: Any) -> list[torch.Tensor]:
    found = []
    map_tensors(found.append, batch)
    return found


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
