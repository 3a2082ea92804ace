"""Points on a line: y = 0.7 x + 0.3, with a little noise."""

import torch
from torch.utils.data import TensorDataset

from base import BaseDataLoader
from tools.use_inputs import ArrayInput


class LineDataLoader(BaseDataLoader):
    """n_points of ((1,) x, (1,) y)."""

    def __init__(
        self,
        batch_size: int,
        n_points: int = 200,
        shuffle: bool = True,
        validation_split: float = 0.0,
        training: bool = True,
    ):
        generator = torch.Generator().manual_seed(0 if training else 1)
        x = torch.rand(n_points, 1, generator=generator)
        y = 0.7 * x + 0.3 + 0.01 * torch.randn(n_points, 1, generator=generator)
        super().__init__(
            TensorDataset(x, y),
            batch_size,
            shuffle,
            validation_split,
            num_workers=0,
            evaluation=not training,
        )

    @classmethod
    def input_format(cls, args: dict, state: dict) -> ArrayInput:
        return ArrayInput([1])
