"""One network written in three ways: a class, nn.Sequential, plain functions."""

import torch
import torch.nn.functional as F
from torch import nn

from base import BaseModel


class Network(BaseModel):
    """The usual way: layers are made in __init__, used in forward."""

    def __init__(self, n_inputs=4, hidden=8, n_outputs=3):
        super().__init__()
        self.first = nn.Linear(n_inputs, hidden)
        self.second = nn.Linear(hidden, n_outputs)

    def forward(self, x):
        return self.second(F.relu(self.first(x)))  # (batch, 4) -> (batch, 8) -> (batch, 3)


as_module = Network()
as_sequence = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def as_function(x, weights):
    """What both of them compute."""
    hidden = F.relu(x @ weights['first.weight'].T + weights['first.bias'])
    return hidden @ weights['second.weight'].T + weights['second.bias']


# With the same weights, the same numbers. Only the names of the weights differ.
weights = as_module.state_dict()
as_sequence.load_state_dict(dict(zip(as_sequence.state_dict(), weights.values())))
x = torch.randn(5, 4)
print(
    torch.allclose(as_module(x), as_sequence(x)),
    torch.allclose(as_module(x), as_function(x, weights)),
)
print(list(weights), list(as_sequence.state_dict()))
print(as_module)  # a BaseModel also says how many parameters it trains
