"""WeightedLosses: a loss that is the sum of several."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from armature.errors import ConfigError


class WeightedLosses(nn.Module):
    """The sum of several losses, each times its weight.

    `terms` holds the value of each at the last call, by name.
    """

    def __init__(self, losses: list[tuple[str, Callable[..., torch.Tensor], float]]):
        super().__init__()
        self.names, functions, self.weights = (list(column) for column in zip(*losses))
        if len(set(self.names)) < len(self.names) or 'loss' in self.names:
            raise ConfigError(
                f'loss: the terms are called {", ".join(self.names)}: give each a "name" of its own'
            )
        self.functions = functions
        self.modules_with_state = nn.ModuleList(
            each for each in functions if isinstance(each, nn.Module)
        )
        self.terms = {}

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        values = [function(output, target) for function in self.functions]
        self.terms = {name: value.detach() for name, value in zip(self.names, values)}
        return sum(weight * value for weight, value in zip(self.weights, values))
