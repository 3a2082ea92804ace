import torch.nn as nn
from base.base_model import BaseModel


class Generator(BaseModel):
    def __init__(self, latent):
        super().__init__()
        self.latent = latent
        self.net = nn.Sequential(nn.Linear(latent, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, z):
        return self.net(z)


class Discriminator(BaseModel):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x):
        return self.net(x)
