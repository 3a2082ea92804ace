"""A small U-Net with two heads (Ronneberger et al., 2015, arXiv:1505.04597)."""

import torch
import torch.nn.functional as F
from torch import nn

from base import BaseModel


class MaskAndLabel(BaseModel):
    """(batch, 1, 32, 32) -> {'mask': (batch, 2, 32, 32) scores, 'label': (batch, 2) scores}"""

    def __init__(self, width: int = 8):
        super().__init__()
        self.down = block(1, width)
        self.deep = block(width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, kernel_size=2, stride=2)
        self.mask = nn.Sequential(block(2 * width, width), nn.Conv2d(width, 2, kernel_size=1))
        self.label = nn.Linear(2 * width, 2)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        fine = self.down(image)  # (batch, width, 32, 32)
        coarse = self.deep(F.max_pool2d(fine, 2))  # (batch, 2 width, 16, 16)
        both = torch.cat([fine, self.up(coarse)], dim=1)  # (batch, 2 width, 32, 32)
        return {'mask': self.mask(both), 'label': self.label(coarse.amax(dim=(2, 3)))}


def block(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, kernel_size=5, padding=2), nn.BatchNorm2d(n_out), nn.ReLU()
    )
