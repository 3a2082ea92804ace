"""A small network for a row of numbers."""

import torch
from torch import nn

from base import BaseModel


class TumourModel(BaseModel):
    """(batch, 30) -> (batch, 2) scores"""

    def __init__(self, hidden: int = 32):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(30, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, 2)
        )

    def forward(self, measures: torch.Tensor) -> torch.Tensor:
        return self.layers(measures)
