"""A GRU that reads the past and says the next hours."""

import torch
from torch import nn

from base import BaseModel


class Forecast(BaseModel):
    """(batch, n_before, 1) -> (batch, n_after)"""

    def __init__(self, n_after: int = 6, hidden: int = 32):
        super().__init__()
        self.gru = nn.GRU(1, hidden, batch_first=True)
        self.out = nn.Linear(hidden, n_after)

    def forward(self, readings: torch.Tensor) -> torch.Tensor:
        _, state = self.gru(readings)  # (1, batch, hidden)
        # What changes from the last reading on is easier to learn than the readings.
        return readings[:, -1] + self.out(state[0])
