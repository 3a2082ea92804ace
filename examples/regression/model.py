"""A straight line."""

import torch
from torch import nn

from base import BaseModel


class Line(BaseModel):
    """(batch, 1) x -> (batch, 1) weight * x + bias"""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(x)
