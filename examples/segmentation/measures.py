"""Two losses and two metrics, one for each of the two answers.

output and target are dicts with 'mask' and 'label'.
"""

import torch
import torch.nn.functional as F


def mask_loss(output: dict, target: dict) -> torch.Tensor:
    return F.cross_entropy(output['mask'], target['mask'])


def label_loss(output: dict, target: dict) -> torch.Tensor:
    return F.cross_entropy(output['label'], target['label'])


def mask_overlap(output: dict, target: dict) -> torch.Tensor:
    """Intersection over union of the shape's pixels, averaged over the pictures."""
    found, there = output['mask'].argmax(dim=1) == 1, target['mask'] == 1  # (batch, 32, 32)
    both = (found & there).sum(dim=(1, 2))
    either = (found | there).sum(dim=(1, 2))
    return (both / either).mean()


def label_accuracy(output: dict, target: dict) -> torch.Tensor:
    return (output['label'].argmax(dim=1) == target['label']).float().mean()
