"""What a loss may give: one number, with its parts; and a loss that is the sum of several."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from armature.batch import described
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
        values = [total_and_terms(function(output, target))[0] for function in self.functions]
        self.terms = {name: value.detach() for name, value in zip(self.names, values)}
        return sum(weight * value for weight, value in zip(self.weights, values))


def total_and_terms(loss: Any) -> tuple[torch.Tensor, Mapping[str, Any]]:
    """What a loss function may return: a number, (number, parts by name), or the parts of a sum."""
    if isinstance(loss, torch.Tensor):
        return loss, {}
    total = terms = None
    if isinstance(loss, tuple) and len(loss) == 2:
        total, terms = loss
    elif isinstance(loss, Mapping):
        total, terms = sum(loss.values()), loss
    if not isinstance(total, torch.Tensor) or not isinstance(terms, Mapping):
        raise ConfigError(
            f'the loss gives {described(loss)}: expected a tensor of one number, the same and its '
            'parts as (number, {"name": part}), or {"name": part} of a sum'
        )
    return total, terms
