"""How the samples that are due become a batch: read and collated, or taken from memory.

Each sample draws its random numbers from a key of its own (armature/seed.py), wherever it is read:
here, or in a worker (armature/data/workers.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, default_collate

from armature.batch import CPU, Batch, leaves, length, map_leaves, map_tensors, to_device
from armature.errors import DataError, UserError
from armature.seed import key, own_randomness, seed_sample


@dataclass(eq=False)
class Reader(Dataset):
    """Makes the batches that are requested of a dataset, in a worker or without any.

    Each sample draws its random numbers from (seed, pass, index).
    """

    dataset: Dataset
    transforms: Sequence[Callable] = ()
    collate_fn: Callable = default_collate
    batch_transform: Callable | None = None
    class_map: torch.Tensor | None = None  # (own classes,) the number that training gives each

    def __getitem__(self, request: tuple) -> tuple | UserError:
        """(seed, pass, share, indices, content) for a request (seed, pass, indices, share).

        A UserError is returned: raised in a worker, it would bring the worker's traceback along.
        """
        seed, number, indices, share = request
        try:
            return seed, number, share, *self._read(seed, number, indices)
        except UserError as error:
            return error

    def batch(self, answer: tuple) -> Batch:
        """The Batch of what `__getitem__` returned, in the process that trains."""
        seed, number, share, indices, content = answer
        batch = Batch(content, len(indices), torch.tensor(indices), share)
        batch.lists_are_parts = self.collate_fn is default_collate
        if self.batch_transform is None:
            batch.collate = lambda rows: self._read(seed, number, indices[rows])[1]
        return batch

    def _read(self, seed: int, number: int, indices: list[int]) -> tuple[list[int], Any]:
        """(the indices that are in it, the content) of a batch."""
        with own_randomness(0):
            samples = self.samples(seed, number, indices)
            try:
                content = self.collate_fn(samples)
            except Exception as error:
                if self.collate_fn is not default_collate:
                    raise
                raise DataError(_why_no_batch(indices, samples)) from error
            content = self.finished(content)
        # A collate_fn of one's own may leave out samples that are None.
        return [index for index, each in zip(indices, samples) if each is not None], content

    def samples(self, seed: int | None, number: int, indices: list[int]) -> list:
        """The samples at `indices` in pass `number`, augmented.

        seed: None leaves the generators as they are.
        """
        samples = []
        for index in indices:
            try:
                if seed is not None:
                    seed_sample(key(seed, 'sample', number, index))
                sample = self.dataset[index]
                if self.transforms and sample is not None:
                    sample = on_input(self.augmented, sample, seed, number, index)
            except Exception as error:
                raise about_sample(index, self.dataset, error)  # noqa: B904 (it may be the same)
            samples.append(sample)
        return samples

    def augmented(self, data: Any, seed: int, number: int, index: int) -> Any:
        """The input of sample `index` in pass `number`, after one transform after the other.

        Each draws from generators that start where its key says. To be called where the global
        generators are ours (`own_randomness`).
        """
        its_key = key(seed, 'augment', number, index)
        # A tensor may be on a GPU. (An array of numpy has a device, too, which is a text.)
        for place, transform in enumerate(self.transforms):
            seed_sample(its_key + place, data.device if isinstance(data, torch.Tensor) else CPU)
            data = transform(data)
        return data

    def augmented_batch(
        self, data: torch.Tensor, seed: int, number: int, indices: list[int]
    ) -> torch.Tensor:
        """(batch, ...) inputs of the samples at `indices`: what `augmented` gives for each."""
        with own_randomness(0):
            return torch.stack(
                [self.augmented(one, seed, number, index) for one, index in zip(data, indices)]
            )

    def finished(self, content: Any) -> Any:
        """The content of a batch, transformed, and its classes numbered as training does."""
        if content is None:  # which armature/batch.py refuses
            return None
        if self.batch_transform is not None:
            content = on_input(self.batch_transform, content)
        if self.class_map is None:
            return content
        target = content[-1] if isinstance(content, (list, tuple)) else None
        if not isinstance(target, torch.Tensor) or target.is_floating_point():
            raise DataError(
                f'{type(self.dataset).__name__} has other classes than the training data, and its '
                'targets are no numbers of classes: give it all classes, in the same order'
            )
        self.class_map = self.class_map.to(target.device)  # once: a copy to a GPU waits for it
        return [*content[:-1], self.class_map[target]]


def about_sample(index: int, dataset: Dataset, error: Exception) -> Exception:
    """The error, which says now that it is about this sample."""
    if isinstance(error, UserError):
        return DataError(f'sample {index}: {error}')
    error.add_note(f'This happened while sample {index} of {type(dataset).__name__} was read.')
    return error


def on_input(transform: Callable, content: Any, *more: Any) -> Any:
    """`content` with its input transformed: the first part of a tuple or list."""
    if type(content) in (tuple, list):
        return [transform(content[0], *more), *content[1:]]
    return transform(content, *more)


def _why_no_batch(indices: list[int], samples: list) -> str:
    def shape(leaf: Any) -> Any:
        return tuple(leaf.shape) if hasattr(leaf, 'shape') else type(leaf).__name__

    shapes = [map_leaves(shape, each) for each in samples]
    odd = next((place for place, each in enumerate(shapes) if each != shapes[0]), 0)
    said = [f'sample {indices[place]} is {shapes[place]}' for place in sorted({0, odd})]
    return (
        f'{" and ".join(said)}: a batch is made of tensors, arrays, numbers and texts, all of one '
        'size. Let the dataset return these, or say in "collate_fn" how samples become a batch '
        '(PadCollate for sequences)'
    )


class InMemory(Dataset):
    """Samples as tensors with one row each, nested as a batch of them is.

    Such as [images, classes] or [[numbers, codes], target]. Given tensors are not copied.
    """

    def __init__(self, tensors: Any):
        self.tensors = tensors

    def __len__(self) -> int:
        return length(self.tensors)

    def __getitem__(self, index: int) -> Any:
        return map_tensors(lambda tensor: tensor[index], self.tensors)

    def take(self, indices: torch.Tensor) -> Any:
        """The rows at `indices`, in one copy."""
        tensors = self.tensors
        # As map_tensors does, without a call for each: it would show in each step.
        if type(tensors) is list and {*map(type, tensors)} == {torch.Tensor}:
            return [each.index_select(0, indices) for each in tensors]
        return map_tensors(lambda tensor: tensor.index_select(0, indices), tensors)

    def to(self, device: torch.device) -> 'InMemory':
        """The same on `device`."""
        return InMemory(to_device(self.tensors, device))

    @property
    def device(self) -> torch.device:
        return leaves(self.tensors)[0].device
