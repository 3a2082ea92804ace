"""What is done to a model before its optimizer is made: LoRA, freezing, sharing, compiling."""

import functools
import logging
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from armature.checkpoint.weights import bare, shortened
from armature.config.keys import DISTRIBUTED, LORA, settings_of
from armature.errors import ConfigError
from armature.processes import dist
from armature.step.lora import put_on
from armature.step.parameters import Frozen

ONLY_HERE = (
    'freeze',
    'lora',
    'channels_last',
    'activation_checkpointing',
    'compile',
    'matmul_precision',
)
WITH_GRAPHS = ('reduce-overhead', 'max-autotune')
logger = logging.getLogger('trainer')


def refuse_without_wrap(config: Any, settings: SimpleNamespace) -> None:
    """A ConfigError when the config asks for what only `prepared` does, and nobody called it."""
    asked = next((key for key in ONLY_HERE if getattr(settings, key)), None)
    if asked and not getattr(config, 'wrapped', False):
        raise ConfigError(
            f'trainer.{asked} is done by config.wrap, which this script never calls: say '
            'model = config.wrap(model, device) before the optimizer is made, or leave it out'
        )


def prepared(model: nn.Module, config: Any, device: torch.device) -> nn.Module:
    """The model as it trains on `device`, as the sections `trainer` and `distributed` say."""
    settings = settings_of(config['trainer'])
    sharing = settings_of(config.get('distributed'), DISTRIBUTED)
    if settings.microbatch_size and settings.compile in WITH_GRAPHS:
        raise ConfigError(
            f'trainer.compile is "{settings.compile}", whose CUDA graphs write the gradients of a '
            'micro-batch over those of the one before: say true or "max-autotune-no-cudagraphs", '
            'or leave trainer.microbatch_size out'
        )
    if settings.matmul_precision:
        torch.set_float32_matmul_precision(settings.matmul_precision)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if settings.lora:
        put_on(bare(model), settings_of(settings.lora, LORA))
    # What is frozen for good is frozen before the processes share the model, so that nobody waits
    # for its gradients. What is released later has to take part from the beginning.
    if settings.unfreeze_at:
        sharing.find_unused_parameters = True
    elif settings.freeze:
        Frozen(model, settings.freeze).apply(epoch=0)
    if settings.microbatch_size and dist.has_batch_norm(model):
        logger.warning(
            'trainer.microbatch_size: the BatchNorm of this model works on each micro-batch by '
            'itself, so its size does change the result'
        )
    # What each block keeps for the backward pass lies around what is compiled, FSDP around both.
    if settings.compile == 'blocks':
        compile_blocks(model)
    if settings.activation_checkpointing:
        compute_blocks_again(model)

    asks_too_much = settings.precision == 'fp16' or settings.unfreeze_at
    if dist.is_joined() and sharing.strategy == 'fsdp' and asks_too_much:
        raise ConfigError(
            'distributed.strategy "fsdp" can do neither trainer.precision "fp16" nor '
            'trainer.unfreeze_at yet: say "ddp", or leave them out'
        )
    model = dist.wrap(model, device, sharing)

    mode = settings.compile
    if mode in (False, 'blocks'):
        return model
    return torch.compile(model, mode=None if mode is True else mode)


def compile_blocks(model: nn.Module) -> None:
    """Compile the blocks that are alike, once for all of their kind, where they stand."""
    blocks = dist.blocks_of(bare(model))
    kinds = [str(block) for block in blocks]
    alike = [block for block, kind in zip(blocks, kinds) if kinds.count(kind) > 1]
    if not alike:
        raise ConfigError(
            f'trainer.compile is "blocks", and no two blocks of {type(bare(model)).__name__} are '
            f'alike ({shortened(type(block).__name__ for block in blocks)}): say true, or let its '
            'shard_blocks() return the layers that repeat'
        )
    for block in alike:
        block.forward = torch.compile(block.forward)


def compute_blocks_again(model: nn.Module) -> None:
    """Keep only what goes into each block; the backward pass computes the rest again."""
    for block in dist.blocks_of(bare(model)):
        if dist.has_batch_norm(block):
            raise ConfigError(
                f'trainer.activation_checkpointing: the block {type(block).__name__} has BatchNorm,'
                ' which would count each batch twice. Leave it out of what shard_blocks() of the '
                'model returns, or leave the option out'
            )
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
