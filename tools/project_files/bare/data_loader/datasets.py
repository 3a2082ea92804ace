"""Your datasets: what data loaders read from."""

import torch
from torch.utils.data import TensorDataset


def noisy_line(training: bool) -> TensorDataset:
    """Made-up numbers to be replaced by your data; inputs (n, 4), targets (n,)."""
    generator = torch.Generator().manual_seed(0 if training else 1)
    inputs = torch.randn(1000, 4, generator=generator)
    targets = inputs @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 0.1 * torch.randn(
        1000, generator=generator
    )
    return TensorDataset(inputs, targets)
