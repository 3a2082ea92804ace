"""What a loss may be: a weighted sum of several; and how the losses over parts add up."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from armature.batch import length
from armature.errors import ConfigError

IGNORED = -100  # the target that torch leaves out where no ignore_index is given
# Their means divide by the weights of the classes in the target.
OF_CLASSES = (nn.CrossEntropyLoss.forward, nn.NLLLoss.forward, F.cross_entropy, F.nll_loss)


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


def total_and_terms(loss: Any) -> tuple[Any, Mapping[str, Any]]:
    """What a loss function may return: a number, (number, parts by name), or the parts of a sum."""
    if isinstance(loss, tuple):
        return loss
    if isinstance(loss, Mapping):
        return sum(loss.values()), loss
    return loss, {}


def weighted(loss: Any, weight: Any) -> torch.Tensor:
    """A loss function's one number times `weight`; 0 where that is 0, also for a mean that is nan
    because it is over nothing.
    """
    loss, _ = total_and_terms(loss)
    if loss.numel() > 1:
        raise ConfigError(
            f'the loss has the shape {tuple(loss.shape)}: expected one number for a batch, as its '
            'mean is (in a loss of torch: "reduction": "mean")'
        )
    loss = loss.reshape(()) if loss.dim() else loss
    if type(weight) is float and weight == 1:  # a tensor is not looked at: it may be on a GPU
        return loss
    weight = loss.new_ones(()) * weight
    return (loss * weight).where(weight != 0, 0)


class Reduction:
    """How a loss makes one number of a batch, and so how the losses over its parts add up.

    is_sum: it adds its samples up. Else it is a mean. by_samples: over the number of samples; else,
    for cross_entropy and nll_loss of torch, over the sum of the `weights` of the classes in the
    target, in which `ignored` counts for nothing.
    loader: may know that no target is ignored.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    """

    def __init__(self, criterion: Any = None, loader: Any = None):
        losses = criterion.functions if isinstance(criterion, WeightedLosses) else [criterion]
        kinds = {_argument(each, 'reduction', 'mean') for each in losses}
        if 'none' in kinds or len(kinds) > 1:
            raise ConfigError(
                'loss: expected one number for a batch, from losses of one reduction, "mean" or '
                '"sum"'
            )
        self.is_sum = kinds == {'sum'}
        self.weights = _class_weights(criterion)
        self.ignored = _argument(criterion, 'ignore_index', IGNORED)
        if self.is_sum or not _is_torchs(criterion):
            self.by_samples = True
            self._adds_up = self.is_sum or not any(map(_weighs_classes, losses))
        else:
            known = loader.known_targets() if hasattr(loader, 'known_targets') else None
            is_whole = known is not None and known.dim() == 1 and not (known == self.ignored).any()
            self.by_samples = is_whole and self.weights is None
            self._adds_up = self.weights is None or bool(self.weights.all())
        # Targets are counted before they are on the device, and there.
        self._weights_on = functools.cache(lambda device: self.weights.to(device))

    def refuse_parts(self) -> None:
        """A ConfigError when the loss over a batch does not follow from those over its parts."""
        if not self._adds_up:
            raise ConfigError(
                'loss: a mean that weights classes or leaves some out depends on which samples are '
                'together, so micro-batches (trainer.microbatch_size) or several processes would '
                'change the result. Take CrossEntropyLoss or NLLLoss of torch alone, with '
                '"ignore_index" for a class of weight 0, give the loss "reduction": "sum", or '
                'leave the weights or the parts out'
            )

    def count(self, target: Any, n_samples: int) -> Any:
        """What the mean over the target of so many samples divides by; a 0-dim tensor where that
        depends on classes.
        """
        if self.by_samples:
            return n_samples
        if not isinstance(target, torch.Tensor) or target.is_floating_point():
            return length(target) or n_samples  # rows: a sample may have several (words, nodes)
        is_counted = target != self.ignored
        if self.weights is None:
            return is_counted.sum()
        classes = target.where(is_counted, 0).long()
        return self._weights_on(target.device)[classes].mul(is_counted).sum()

    def count_in(self, content: Any, n_samples: int) -> Any:
        """What the mean over a batch (data, target) of so many samples divides by."""
        if isinstance(content, (list, tuple)) and len(content) == 2:
            return self.count(content[1], n_samples)
        if self.by_samples:
            return n_samples
        if self.weights is None and self.ignored == IGNORED:
            return length(content) or n_samples
        raise ConfigError(
            'loss: it weights classes or leaves some out, and in a batch that is not (data, '
            'target) nobody can tell which. Give it "reduction": "sum", or leave out what takes a '
            'batch in parts (trainer.microbatch_size, processes)'
        )


def _argument(loss, name, otherwise=None):
    """Of a loss: an attribute, as modules of torch have it, or one that a partial fixes."""
    return getattr(loss, name, getattr(loss, 'keywords', {}).get(name, otherwise))


def _class_weights(loss):
    # Modules of one's own may call anything `weight`.
    is_of_classes = isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)) or hasattr(loss, 'keywords')
    return _argument(loss, 'weight') if is_of_classes else None


def _weighs_classes(loss):
    is_ignoring = _argument(loss, 'ignore_index') not in (IGNORED, None)
    return is_ignoring or _class_weights(loss) is not None


def _is_torchs(loss):
    """Whether it is one of OF_CLASSES: a module, a function, or a partial of one."""
    return getattr(type(loss), 'forward', getattr(loss, 'func', loss)) in OF_CLASSES
