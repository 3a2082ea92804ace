import logging
import numpy as np
import torch.nn as nn


class BaseModel(nn.Module):
    def __init__(self):
        super(BaseModel, self).__init__()
        self.logger = logging.getLogger(self.__class__.__name__)

    def forward(self, *input):
        raise NotImplementedError

    def summary(self):
        params = sum(np.prod(p.size()) for p in filter(lambda p: p.requires_grad, self.parameters()))
        self.logger.info('{} parameters'.format(params))
        self.logger.info(self)
