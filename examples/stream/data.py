"""A stream: samples that come one after the other, without an end or a number."""

import itertools
from collections.abc import Iterator

import torch
from torch.utils.data import IterableDataset


class Readings(IterableDataset):
    """Pairs of sensor readings and whether they agree in sign: ((2,) values, 0 or 1). n_readings.

    None for a stream without an end.
    """

    def __init__(self, n_readings: int | None = None):
        self.n_readings = n_readings

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        for _ in itertools.count() if self.n_readings is None else range(self.n_readings):
            values = torch.randn(2)
            yield values, int(values.prod() > 0)
