"""Samplers that a config can name: the orders in which a loader may go through its training part.

Unlike torch's they are made without the data (`bind` tells them), and draw from torch's generator, which the loader keys by pass.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch.utils.data import Sampler

from armature.errors import ConfigError


class Order(Sampler):
    """Base: `order()` is an epoch's indices, drawn anew each time."""

    def bind(self, indices: Sequence[int], classes: Callable[[], list] | None = None) -> 'Order':
        """Go through `indices`; classes() are the classes of those samples."""
        self.indices = torch.as_tensor(indices, dtype=torch.long)
        return self

    def order(self) -> torch.Tensor:
        return self.indices

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())


class SequentialSampler(Order):
    """The samples as they come."""


class RandomSampler(Order):
    """The samples in a random order, each once; with `replacement`, `num_samples` drawn independently (None: as many as there are)."""

    def __init__(self, replacement: bool = False, num_samples: int | None = None):
        self.replacement, self.num_samples = replacement, num_samples

    def __len__(self) -> int:
        return self.num_samples or len(self.indices)

    def order(self) -> torch.Tensor:
        n_samples = len(self.indices)
        if self.replacement:
            return self.indices[torch.randint(n_samples, (len(self),))]
        return self.indices[
            torch.cat([torch.randperm(n_samples) for _ in range(-(-len(self) // n_samples))])[
                : len(self)
            ]
        ]


class SubsetRandomSampler(Order):
    """Only the samples `indices` (numbers in the whole dataset), in a random order."""

    def __init__(self, indices: list[int]):
        self.subset = indices

    def bind(self, indices, classes=None):
        elsewhere = sorted(set(self.subset) - set(map(int, indices)))
        if elsewhere or not self.subset:
            raise ConfigError(
                f'sampler: the indices {elsewhere[:5]} are not in the training part'
                if elsewhere
                else 'sampler: indices is empty'
            )
        return super().bind(self.subset, classes)

    def order(self) -> torch.Tensor:
        return self.indices[torch.randperm(len(self.indices))]


class WeightedRandomSampler(Order):
    """Samples drawn with the probabilities `weights`: 'balanced' (each class equally often), or a number for each class."""

    def __init__(
        self,
        weights: Literal['balanced'] | list,
        num_samples: int | None = None,
        replacement: bool = True,
    ):
        self.weights, self.num_samples, self.replacement = weights, num_samples, replacement

    def bind(self, indices, classes=None):
        found = classes()
        counts = Counter(found)
        if self.weights == 'balanced':
            weight_of = {each: 1 / count for each, count in counts.items()}
        elif len(self.weights) > max(counts):
            weight_of = dict(enumerate(self.weights))
        else:
            raise ConfigError(
                f'sampler: weights has {len(self.weights)} numbers, and there are classes up to {max(counts)}'
            )
        self.probabilities = torch.tensor([weight_of[each] for each in found], dtype=torch.double)
        return super().bind(indices, classes)

    def __len__(self) -> int:
        return self.num_samples or len(self.indices)

    def order(self) -> torch.Tensor:
        return self.indices[torch.multinomial(self.probabilities, len(self), self.replacement)]
