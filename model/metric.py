"""Your metrics: functions (output, target) -> mean over the samples; `metrics` names them.

They run on every batch, so they return tensors and leave it to the trainer to read them.
"""

import torch

from armature.errors import ConfigError


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Share of samples whose highest score is the target's.

    output: (batch, classes) scores; target: (batch,) class indices. Returns 0 to 1, a 0-dim tensor.
    """
    return (output.argmax(dim=1) == target).mean(dtype=torch.float)


def top_k_acc(output: torch.Tensor, target: torch.Tensor, k: int = 3) -> torch.Tensor:
    """Share of samples whose target is among the k highest scores.

    output: (batch, classes) scores; target: (batch,) class indices. Returns 0 to 1, a 0-dim tensor.
    """
    if not 1 <= k <= output.shape[1]:
        raise ConfigError(
            f'metrics: top_k_acc with k = {k}, and the model gives {output.shape[1]} scores a '
            'sample: give it a k from 1 to that ("args": {"k": ...}), or leave it out'
        )
    return (output.topk(k, dim=1).indices == target.unsqueeze(1)).any(dim=1).mean(dtype=torch.float)


def binary_accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Share of samples on the right side of 0.

    output: (batch, 1) logits; target: (batch, 1) of 0. and 1.
    """
    return ((output > 0) == target.bool()).float().mean()
