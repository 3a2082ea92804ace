"""A small DCGAN for the digits (Radford et al., 2016, arXiv:1511.06434)."""

import torch
from torch import nn

from base import BaseModel
from data_loader.datasets import MEAN, STD


class Generator(BaseModel):
    """(batch, n_latent) noise -> (batch, 1, 28, 28) images, standardised as the data are."""

    def __init__(self, n_latent: int = 32):
        super().__init__()
        self.n_latent = n_latent
        self.layers = nn.Sequential(
            nn.Linear(n_latent, 32 * 7 * 7),
            nn.Unflatten(1, (32, 7, 7)),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),  # (batch, 16, 14, 14)
            nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),
            nn.Sigmoid(),
        )  # (batch, 1, 28, 28)

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return (self.layers(noise) - MEAN) / STD


class Discriminator(BaseModel):
    """(batch, 1, 28, 28) images -> (batch,) scores, high for those it takes for real."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),  # (batch, 16, 14, 14)
            nn.Conv2d(16, 32, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.3),  # (batch, 32, 7, 7)
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 1),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images).squeeze(1)
