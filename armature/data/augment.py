"""Augment: random transforms of inputs, keyed by sample: the same for a sample in any batch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from armature.seed import own_randomness, seed_sample


class Augment:
    """Applies `transforms` one after the other.

    Number i draws, for a sample with key k, from generators started at k + i.
    """

    def __init__(self, transforms: Sequence[Callable]):
        self.transforms = transforms

    def one(self, data: Any, key: int) -> Any:
        """A single input; to be called where the global generators are ours (`own_randomness`)."""
        for number, transform in enumerate(self.transforms):
            # A tensor may be on a GPU. (An array of numpy has a device, too, which is a text.)
            seed_sample(key + number, data.device if isinstance(data, torch.Tensor) else None)
            data = transform(data)
        return data

    def batch(self, data: torch.Tensor, keys: list[int]) -> torch.Tensor:
        """(batch, ...) inputs, each with its key; what `one` gives for each."""
        with own_randomness(0):
            return torch.stack([self.one(each, key) for each, key in zip(data, keys)])
