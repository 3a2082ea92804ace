"""What a loss may be beside one function: a weighted sum of several, and what its reduction means for micro-batches."""
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from utils.errors import ConfigError


class WeightedLosses(nn.Module):
    """The sum of several losses, each times its weight; `terms` holds the value of each at the last call, by name."""

    def __init__(self, losses: list[tuple[str, Callable[..., torch.Tensor], float]]):
        super().__init__()
        self.names, functions, self.weights = (list(column) for column in zip(*losses))
        if len(set(self.names)) < len(self.names) or 'loss' in self.names:
            raise ConfigError(f'loss: the terms are called {", ".join(self.names)}: give each a "name" of its own')
        self.functions = functions
        self.modules_with_state = nn.ModuleList(each for each in functions if isinstance(each, nn.Module))
        self.terms = {}

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        values = [function(output, target) for function in self.functions]
        self.terms = {name: value.detach() for name, value in zip(self.names, values)}
        return sum(weight * value for weight, value in zip(self.weights, values))


def is_sum(criterion: Any, in_parts: bool = False) -> bool:
    """Whether a loss adds its samples up instead of taking their mean.

    in_parts: a batch goes through it in parts; a ConfigError when that gives something else.
    """
    kinds = {_reduction(each) for each in _parts(criterion)}
    if 'none' in kinds or len(kinds) > 1:
        raise ConfigError('loss: expected one number for a batch, from losses of one reduction, "mean" or "sum"')
    if in_parts and kinds == {'mean'} and any(_class_weights(each) is not None for each in _parts(criterion)):
        raise ConfigError('loss: a mean that is weighted by class depends on which samples are together, so micro-batches '
                          '(trainer.microbatch_size) or several processes would change the result. Give the loss "reduction": "sum", or '
                          'leave the weights or the parts out')
    return kinds == {'sum'}


def _parts(criterion: Any) -> list:
    return criterion.functions if isinstance(criterion, WeightedLosses) else [criterion]


def _reduction(loss: Any) -> str:
    return getattr(loss, 'reduction', None) or getattr(loss, 'keywords', {}).get('reduction', 'mean')


def _class_weights(loss: Any) -> Any:
    return getattr(loss, 'weight', None) if isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)) \
        else getattr(loss, 'keywords', {}).get('weight')
