import torch.nn as nn
import torch.nn.functional as F

from base import BaseModel


class SmallNet(BaseModel):
    def __init__(self, width=8, num_classes=3):
        super().__init__()
        self.fc1 = nn.Linear(64, width)
        self.fc2 = nn.Linear(width, num_classes)

    def forward(self, x):
        return F.log_softmax(self.fc2(F.relu(self.fc1(x.flatten(1)))), dim=1)
