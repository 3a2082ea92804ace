"""What a loss may be: a weighted sum of several; and what its mean divides by, in parts."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from armature.batch import length
from armature.errors import ConfigError

IGNORED = -100  # the target that torch leaves out unless told otherwise


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


def total_and_parts(loss: Any) -> tuple[Any, dict[str, Any]]:
    """What a loss function may return: a number, (number, parts by name), or the parts of a sum."""
    if isinstance(loss, torch.Tensor):
        return loss, {}
    if isinstance(loss, Mapping):
        return sum(loss.values()), loss
    if isinstance(loss, tuple):
        total, parts = loss
        return total, parts
    return loss, {}


def is_sum(criterion: Any, in_parts: bool = False) -> bool:
    """Whether a loss adds its samples up instead of taking their mean.

    in_parts: a batch goes through it in parts; a ConfigError when that gives something else.
    """
    parts = _parts(criterion)
    kinds = {_reduction(each) for each in parts}
    if 'none' in kinds or len(kinds) > 1:
        raise ConfigError(
            'loss: expected one number for a batch, from losses of one reduction, "mean" or "sum"'
        )
    if not in_parts or kinds == {'sum'}:
        return kinds == {'sum'}
    count = count_of(criterion)
    if count is length and any(
        _class_weights(each) is not None or _ignored(each) not in (IGNORED, None) for each in parts
    ):
        raise ConfigError(
            'loss: a mean that weights classes or leaves some out depends on which samples are '
            'together, so micro-batches (trainer.microbatch_size) or several processes would '
            'change the result. Take CrossEntropyLoss or NLLLoss of torch alone, give the loss '
            '"reduction": "sum", or leave the weights or the parts out'
        )
    if count is not length and count.weights is not None and not count.weights.all():
        raise ConfigError(
            "loss: a class has the weight 0, and torch's gradient of the mean over samples of it "
            'alone is nan, as may happen in micro-batches (trainer.microbatch_size) or several '
            'processes: say "ignore_index" instead'
        )
    return False


def count_of(criterion: Any, loader: Any = None) -> Callable[[Any], Any]:
    """What the mean that a loss takes over a batch divides by, as a function of the target.

    Losses over parts of a batch add up by it. It is `length`, the number of samples; but a
    ClassCount for cross_entropy and nll_loss of torch, as functions or modules, unless `loader`
    knows that no target is left out.
    """
    if not _is_torchs(criterion) or _reduction(criterion) != 'mean':
        return length
    count = ClassCount(_class_weights(criterion), _ignored(criterion))
    targets = loader.known_targets() if hasattr(loader, 'known_targets') else None
    if targets is None or targets.dim() != 1 or count.weights is not None:
        return count
    return count if (targets == count.ignored).any() else length


class ClassCount:
    """The sum of the weights of the classes in a target, 0-dim; `ignored` counts for nothing.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    """

    def __init__(self, weights: torch.Tensor | None, ignored: int):
        self.weights, self.ignored = weights, ignored
        self._weights_on = functools.cache(
            lambda device: weights.to(device)
        )  # targets are counted on either side

    def __call__(self, target: Any) -> Any:
        if (
            not isinstance(target, torch.Tensor) or target.is_floating_point()
        ):  # the probabilities of each class
            return length(target)
        return self._weights_of(target).sum()

    def _weights_of(self, target):
        is_counted = target != self.ignored
        if self.weights is None:
            return is_counted
        return self._weights_on(target.device)[target.where(is_counted, 0).long()].mul(is_counted)


def count_in(batch: Any, count: Callable[[Any], Any]) -> Any:
    """The `count` of the target in a batch (data, target)."""
    if isinstance(batch, (list, tuple)) and len(batch) == 2:
        return count(batch[1])
    if count is length or count.weights is None and count.ignored == IGNORED:
        return length(batch)
    raise ConfigError(
        'loss: it weights classes or leaves some out, and in a batch that is not (data, target) '
        'nobody can tell which. Give it "reduction": "sum", or leave out what takes a batch in '
        'parts (trainer.microbatch_size, processes)'
    )


def _parts(criterion):
    return criterion.functions if isinstance(criterion, WeightedLosses) else [criterion]


def _setting(loss, name, otherwise=None):
    """An argument of a loss: a module of torch, or a function with its arguments."""
    return getattr(loss, name, getattr(loss, 'keywords', {}).get(name, otherwise))


def _reduction(loss):
    return _setting(loss, 'reduction', 'mean')


def _class_weights(loss):
    is_of_classes = isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)) or hasattr(loss, 'keywords')
    return _setting(loss, 'weight') if is_of_classes else None


def _ignored(loss):
    return _setting(loss, 'ignore_index', IGNORED)


def _is_torchs(loss):
    return getattr(type(loss), 'forward', None) in (
        nn.CrossEntropyLoss.forward,
        nn.NLLLoss.forward,
    ) or getattr(loss, 'func', loss) in (F.cross_entropy, F.nll_loss)
