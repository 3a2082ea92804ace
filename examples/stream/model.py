"""A small network for pairs of numbers."""

import torch
from torch import nn

from base import BaseModel


class PairModel(BaseModel):
    """(batch, 2) -> (batch, 2) scores"""

    def __init__(self, hidden: int = 32):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)
