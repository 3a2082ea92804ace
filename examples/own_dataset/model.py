"""A small network for waves."""

import torch
from torch import nn

from base import BaseModel


class WaveModel(BaseModel):
    """(batch, length) -> (batch, 2) scores"""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 8, 5),
            nn.ReLU(),
            nn.Conv1d(8, 8, 5),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(8, 2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x.unsqueeze(1))
