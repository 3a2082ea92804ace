"""A network for tables."""

import torch
from torch import nn

from armature.errors import ConfigError
from base import BaseModel


class TabularModel(BaseModel):
    """Network for tables, on batches of CsvDataLoader: (numbers (batch, n_numeric), codes (batch,
    columns)) -> (batch, n_outputs).

    n_categories: for each categorical column, how many codes it has, 0 (unknown) included; column i
    becomes (n_i + 1) // 2 numbers.
    hidden: sizes of the hidden layers. The outputs are scores: for CrossEntropyLoss,
    BCEWithLogitsLoss (one output) or MSELoss.
    """

    def __init__(
        self,
        n_outputs: int,
        n_numeric: int = 0,
        n_categories: list[int] = (),
        hidden: list[int] = (64, 32),
        dropout: float = 0.1,
    ):
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(n, (n + 1) // 2) for n in n_categories)
        self.n_numeric = n_numeric
        sizes = [n_numeric + sum((n + 1) // 2 for n in n_categories), *hidden]
        layers = []
        for n_inputs, n_hidden in zip(sizes, sizes[1:]):
            layers += [
                nn.Linear(n_inputs, n_hidden),
                nn.ReLU(),
                nn.BatchNorm1d(n_hidden),
                nn.Dropout(dropout),
            ]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], n_outputs))

    def forward(self, x: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        numbers, codes = x
        if (numbers.shape[1], codes.shape[1]) != (self.n_numeric, len(self.embeddings)):
            raise ConfigError(
                f'the table has {numbers.shape[1]} numeric and {codes.shape[1]} categorical '
                'columns, and arch.args says '
                f'n_numeric {self.n_numeric} and {len(self.embeddings)} n_categories'
            )
        embedded = [embedding(codes[:, column]) for column, embedding in enumerate(self.embeddings)]
        return self.layers(torch.cat([numbers, *embedded], dim=1))
