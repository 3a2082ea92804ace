"""Your metrics: functions (output, target) -> mean over the samples; `metrics` names them.

They run on every batch, so they return tensors and leave it to the trainer to read them. One that
takes an `ignore_index` is a mean over the other targets, as many as it counts for in the mean of an
epoch; where the default is -100, it is given the `ignore_index` of the loss's `args`.
"""

import torch

from armature.errors import ConfigError


def accuracy(
    output: torch.Tensor, target: torch.Tensor, ignore_index: int | None = -100
) -> torch.Tensor:
    """Share of samples whose highest score is the target's.

    output: (batch, classes, ...) scores; target: (batch, ...) class indices. Returns 0 to 1, a
    0-dim tensor.
    """
    _refuse_other('accuracy', output, target, output.shape[:1] + output.shape[2:])
    return _share(output.argmax(dim=1) == target, target, ignore_index)


def top_k_acc(
    output: torch.Tensor, target: torch.Tensor, k: int = 3, ignore_index: int | None = -100
) -> torch.Tensor:
    """Share of samples whose target is among the k highest scores.

    output: (batch, classes, ...) scores; target: (batch, ...) class indices. Returns 0 to 1, a
    0-dim tensor.
    """
    _refuse_other('top_k_acc', output, target, output.shape[:1] + output.shape[2:])
    if not 1 <= k <= output.shape[1]:
        raise ConfigError(
            f'metrics: top_k_acc with k = {k}, and the model gives {output.shape[1]} scores a '
            'sample: give it a k from 1 to that ("args": {"k": ...}), or leave it out'
        )
    is_among = (output.topk(k, dim=1).indices == target.unsqueeze(1)).any(dim=1)
    return _share(is_among, target, ignore_index)


def binary_accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Share of samples on the right side of 0.

    output: (batch, 1) logits; target: (batch, 1) of 0. and 1., or of -1. and 1.
    """
    _refuse_other('binary_accuracy', output, target, output.shape)
    return ((output > 0) == (target > 0)).float().mean()


def _refuse_other(name, output, target, wanted):
    if target.shape != wanted:  # a comparison would broadcast, to a number that means nothing
        raise ConfigError(
            f'metrics: {name} wants targets of the shape {tuple(wanted)} beside outputs of '
            f'{tuple(output.shape)}, not of {tuple(target.shape)}: give it such, or leave it out'
        )


def _share(is_right, target, ignore_index):
    """nan where no target counts."""
    if ignore_index is None:
        return is_right.mean(dtype=torch.float)
    is_counted = target.long() != ignore_index  # uint8 knows no -100
    return (is_right & is_counted).sum() / is_counted.sum()
