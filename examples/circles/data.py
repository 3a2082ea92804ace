"""Two noisy circles, one inside the other."""

import torch
from sklearn.datasets import make_circles
from torch.utils.data import TensorDataset

from base import BaseDataLoader


class CirclesDataLoader(BaseDataLoader):
    """n_points of ((2,) point, (1,) 1. for the inner circle and 0. for the outer)."""

    def __init__(
        self,
        batch_size: int,
        n_points: int = 1000,
        shuffle: bool = True,
        validation_split: float = 0.0,
        training: bool = True,
    ):
        points, is_inner = make_circles(
            n_points, noise=0.05, factor=0.5, random_state=0 if training else 1
        )
        dataset = TensorDataset(
            torch.from_numpy(points).float(), torch.from_numpy(is_inner).float().unsqueeze(1)
        )
        super().__init__(
            dataset, batch_size, shuffle, validation_split, num_workers=0, evaluation=not training
        )
