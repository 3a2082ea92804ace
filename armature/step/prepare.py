"""What is done to a model before it trains, for speed and memory only: its layout, compilation, recomputing, matrix products."""

import functools
import logging

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from armature.checkpoint.weights import bare
from armature.errors import ConfigError
from armature.processes import dist


def prepared(model: nn.Module, settings: dict, logger: logging.Logger) -> nn.Module:
    """The model as the trainer section wants it."""
    if settings.get('microbatch_size') and dist.has_batch_norm(model):
        logger.warning(
            'trainer.microbatch_size: the BatchNorm of this model normalises each micro-batch by itself, so its size '
            'does change the result'
        )
    if settings.get('matmul_precision'):
        torch.set_float32_matmul_precision(settings['matmul_precision'])
    if settings.get('channels_last'):
        model = model.to(memory_format=torch.channels_last)
    if settings.get('activation_checkpointing'):
        for block in dist.blocks_of(bare(model)):
            if dist.has_batch_norm(block):
                raise ConfigError(
                    f'trainer.activation_checkpointing: the block {type(block).__name__} has BatchNorm, which would count '
                    'each batch twice. Leave it out of what shard_blocks() of the model returns, or leave the option out'
                )
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    mode = settings.get('compile')
    return torch.compile(model, mode=None if mode is True else mode) if mode else model
