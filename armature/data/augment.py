"""Augment: random transforms of inputs, keyed by sample: the same for a sample alone, in a worker, and in a batch on the device."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from armature.seed import own_randomness, seed_sample


class Augment:
    """Applies `transforms` one after the other; number i of a sample with key k draws from generators started at k + i."""

    def __init__(self, transforms: Sequence[Callable]):
        self.transforms = transforms

    def one(self, data: Any, key: int) -> Any:
        """A single input; to be called where the global generators are ours (`own_randomness`)."""
        for number, transform in enumerate(self.transforms):
            seed_sample(key + number)
            data = transform(data)
        return data

    def batch(self, data: torch.Tensor, keys: list[int]) -> torch.Tensor:
        """(batch, ...) inputs, each with its key; what `one` gives for each, bit for bit."""
        with own_randomness(0):
            for number, transform in enumerate(self.transforms):
                at_once = AT_ONCE.get(
                    f'{type(transform).__module__}.{type(transform).__name__}', _one_by_one
                )
                data = at_once(transform, data, [key + number for key in keys])
        return data


def _one_by_one(transform: Callable, data: torch.Tensor, keys: list[int]) -> torch.Tensor:
    transformed = []
    for each, key in zip(data, keys):
        seed_sample(key)
        transformed.append(transform(each))
    return torch.stack(transformed)


def _flip(dimension: int) -> Callable:
    def flip(transform, data: torch.Tensor, keys: list[int]) -> torch.Tensor:
        flips = torch.empty(len(keys), dtype=torch.bool)
        for place, key in enumerate(keys):
            torch.default_generator.manual_seed(key)
            flips[place] = torch.rand(1) < transform.p
        flips = flips.to(data.device).view(-1, *[1] * (data.dim() - 1))
        return torch.where(flips, data.flip(dimension), data)

    return flip


def _crop(transform, data: torch.Tensor, keys: list[int]) -> torch.Tensor:
    if isinstance(transform.fill, dict):
        return _one_by_one(transform, data, keys)
    from torchvision.transforms.v2 import functional

    windows = []
    for key in keys:
        torch.default_generator.manual_seed(key)
        windows.append(transform.make_params([data[0]]))
    if windows[0]['needs_pad']:  # which depends on the size alone, so it is the same for all
        data = functional.pad(data, windows[0]['padding'], transform.fill, transform.padding_mode)
    return torch.stack(
        [
            each[
                ...,
                window['top'] : window['top'] + window['height'],
                window['left'] : window['left'] + window['width'],
            ]
            for each, window in zip(data, windows)
        ]
    )


# Transforms of which a whole batch costs little more than a sample. By name, so that torchvision is not imported for them.
AT_ONCE = {
    'torchvision.transforms.v2._geometry.RandomHorizontalFlip': _flip(-1),
    'torchvision.transforms.v2._geometry.RandomVerticalFlip': _flip(-2),
    'torchvision.transforms.v2._geometry.RandomCrop': _crop,
}
