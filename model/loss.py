"""Your losses: functions (output, target) -> scalar tensor, the mean over the samples.

`loss` in a config names one.
"""

import torch
import torch.nn.functional as F


def nll_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of log-probabilities; output: (batch, classes); target.

    (batch,) class indices.
    """
    return F.nll_loss(output, target)
