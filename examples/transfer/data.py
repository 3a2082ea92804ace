"""Some of the ten digits, for a model that learns the others from what it has seen."""

from typing import Any

import torch
from torch.utils.data import TensorDataset

from base import BaseDataLoader
from data_loader.datasets import digits


class SomeDigitsDataLoader(BaseDataLoader):
    """The digits from `first` to `first` + 4; their classes are 0 to 4. n_samples.

    Use only so many of them.
    """

    def __init__(
        self,
        batch_size: int,
        first: int,
        n_samples: int | None = None,
        shuffle: bool = True,
        validation_split: float = 0.0,
        training: bool = True,
        **options: Any,
    ):
        images, classes = digits(training).tensors
        chosen = torch.nonzero((classes >= first) & (classes < first + 5)).squeeze(1)
        chosen = chosen[:n_samples] if training else chosen
        dataset = TensorDataset(images[chosen], classes[chosen] - first)
        super().__init__(
            dataset,
            batch_size,
            shuffle,
            validation_split,
            num_workers=0,
            evaluation=not training,
            **options,
        )
