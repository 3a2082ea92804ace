"""What a batch may be: a tensor, or tuples, lists, dicts, named tuples and dataclasses of batches, nested."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch


def map_tensors(function: Callable[[torch.Tensor], Any], batch: Any) -> Any:
    """The same structure with `function` applied to each tensor; anything that is neither is kept as it is."""
    if isinstance(batch, torch.Tensor):
        return function(batch)
    if isinstance(batch, (list, tuple)):
        parts = [map_tensors(function, value) for value in batch]
        return type(batch)(*parts) if hasattr(batch, '_fields') else type(batch)(parts)
    if isinstance(batch, Mapping):
        return type(batch)({name: map_tensors(function, value) for name, value in batch.items()})
    if dataclasses.is_dataclass(batch):
        return dataclasses.replace(
            batch,
            **{
                field.name: map_tensors(function, getattr(batch, field.name))
                for field in dataclasses.fields(batch)
            },
        )
    return batch


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch, which a loader made on the CPU, on `device`; copies from pinned memory do not wait."""
    if device.type == 'cpu':
        return batch
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), batch)


def length(batch: Any) -> int:
    """Number of samples: the first dimension of the first tensor found."""
    if isinstance(batch, torch.Tensor):
        return batch.shape[0] if batch.dim() else 1
    if dataclasses.is_dataclass(batch):
        batch = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    elif isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, (list, tuple)):
        return next((found for found in map(length, batch) if found), 0)
    return 0


def split(batch: Any, size: int) -> Iterator[Any]:
    """Parts of `size` samples, the last one smaller when the batch does not divide; strings and numbers are repeated in each."""
    n_samples = length(batch)
    for start in range(0, n_samples, size):
        yield map_tensors(
            lambda tensor, part=slice(start, start + size): (
                tensor[part] if tensor.dim() and len(tensor) == n_samples else tensor
            ),
            batch,
        )
