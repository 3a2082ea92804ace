"""A dataset of one's own: all that it needs is a length and samples."""

import math

import torch
from torch.utils.data import Dataset

from tools.use_inputs import ArrayInput


class Waves(Dataset):
    """n_waves noisy sine or square waves: ((length,) values, 0 for sine or 1 for square)."""

    classes = ['sine', 'square']

    def __init__(self, n_waves: int, length: int = 32, first: int = 0):
        self.n_waves, self.length, self.first = n_waves, length, first

    def __len__(self) -> int:
        return self.n_waves

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        generator = torch.Generator().manual_seed(self.first + index)
        phase, is_square = 2 * math.pi * torch.rand(1, generator=generator), index % 2
        wave = torch.sin(torch.linspace(0, 4 * math.pi, self.length) + phase)
        wave = wave.sign() if is_square else 1.4 * wave
        return wave + 0.3 * torch.randn(self.length, generator=generator), is_square

    @classmethod
    def input_format(cls, args: dict, state: dict) -> ArrayInput:
        """What predict.py and tools.serve take: (length,) numbers, as .npy files or JSON."""
        return ArrayInput([args['length']])
