"""What is done to a model before it trains, for speed only: memory layout, compilation, precision of matrix products."""
import logging

import torch
from torch import nn


def prepared(model: nn.Module, settings: dict, logger: logging.Logger) -> nn.Module:
    """The model as the trainer section wants it: `channels_last`, `compile` (true or a mode), `matmul_precision`."""
    if settings.get('microbatch_size') and any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in model.modules()):
        logger.warning('trainer.microbatch_size: the BatchNorm of this model normalises each micro-batch by itself, so its size '
                       'does change the result')
    if settings.get('matmul_precision'):
        torch.set_float32_matmul_precision(settings['matmul_precision'])
    if settings.get('channels_last'):
        model = model.to(memory_format=torch.channels_last)
    mode = settings.get('compile')
    return torch.compile(model, mode=None if mode is True else mode) if mode else model
