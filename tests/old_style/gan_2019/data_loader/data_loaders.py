import math
import torch
from torch.utils.data import TensorDataset
from base import BaseDataLoader


class RingLoader(BaseDataLoader):
    def __init__(self, batch_size, shuffle, validation_split, num_workers):
        angle = torch.arange(100) * (2 * math.pi / 100)
        self.dataset = TensorDataset(torch.stack([angle.cos(), angle.sin()], dim=1))
        super().__init__(self.dataset, batch_size, shuffle, validation_split, num_workers)
