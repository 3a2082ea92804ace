import torch.nn as nn
import numpy as np
from abc import abstractmethod


class BaseModel(nn.Module):
    @abstractmethod
    def forward(self, *inputs):
        raise NotImplementedError

    def __str__(self):
        params = sum(np.prod(p.size()) for p in filter(lambda p: p.requires_grad, self.parameters()))
        return super().__str__() + '\n{} parameters'.format(params)
