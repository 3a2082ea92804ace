"""Your metrics: functions (output, target) -> mean over the samples; `metrics` in a config names
them.

They run on every batch, so they return tensors and leave it to the trainer to read them.
"""

import torch


def mean_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean of the absolute errors; output, target: (batch,)."""
    return (output - target).abs().mean()
