"""Your models; `arch.type` in a config names one."""

import torch
from torch import nn

from base import BaseModel


class LinearModel(BaseModel):
    """(batch, n_features) -> (batch,)"""

    def __init__(self, n_features: int):
        super().__init__()
        self.linear = nn.Linear(n_features, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).squeeze(1)
