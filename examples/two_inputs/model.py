"""A model with two inputs: `batch.data` of the config names them."""

import torch
from torch import nn

from base import BaseModel


class Comparison(BaseModel):
    """image (batch, 1, 28, 28), number (batch, 1) -> (batch, 1) logits"""

    def __init__(self, hidden: int = 64):
        super().__init__()
        self.look = nn.Sequential(
            nn.Conv2d(1, 8, kernel_size=5, stride=2),  # (batch, 8, 12, 12)
            nn.ReLU(),
            nn.Conv2d(8, 16, kernel_size=5, stride=2),  # (batch, 16, 4, 4)
            nn.ReLU(),
            nn.Flatten(),
        )
        self.compare = nn.Sequential(nn.Linear(256 + 1, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, image: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        return self.compare(torch.cat([self.look(image), number], dim=1))
