"""An LSTM that reads a sentence and says what it says."""

import torch
from torch import nn

from base import BaseModel
from data_loader.collate import Padded


class Reader(BaseModel):
    """Scores (batch, n_outputs) of sentences, from the state after the last word of each."""

    def __init__(self, n_words: int, n_outputs: int = 2, size: int = 16, hidden: int = 32):
        super().__init__()
        self.embedding = nn.Embedding(n_words, size, padding_idx=0)
        self.lstm = nn.LSTM(size, hidden, batch_first=True)
        self.out = nn.Linear(hidden, n_outputs)

    def forward(self, sentences: Padded) -> torch.Tensor:
        words = self.embedding(sentences.values)  # (batch, longest, size)
        states, _ = self.lstm(words)  # (batch, longest, hidden)
        # Of what follows the last word, an LSTM that reads forward has seen nothing by then.
        last = (sentences.lengths - 1).view(-1, 1, 1).expand(-1, 1, states.shape[2])
        return self.out(states.gather(1, last).squeeze(1))
