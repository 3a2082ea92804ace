"""A GRU that says the next character."""

import torch
from torch import nn

from base import BaseModel


class CharModel(BaseModel):
    """(batch, length) characters -> (batch, n_characters, length) scores of the next ones.

    The classes are in dimension 1, as CrossEntropyLoss and accuracy want them.
    """

    def __init__(self, n_characters: int = 96, width: int = 32, hidden: int = 192):
        super().__init__()
        self.embedding = nn.Embedding(n_characters, width)
        self.gru = nn.GRU(width, hidden, batch_first=True)
        self.drop = nn.Dropout(0.1)
        self.out = nn.Linear(hidden, n_characters)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        states, _ = self.gru(self.embedding(characters))  # (batch, length, hidden)
        return self.out(self.drop(states)).movedim(2, 1)
