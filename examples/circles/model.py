"""A small network for points in the plane."""

import torch
from torch import nn

from base import BaseModel


class PointModel(BaseModel):
    """(batch, 2) points -> (batch, 1) logits"""

    def __init__(self, hidden: int = 16):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)
