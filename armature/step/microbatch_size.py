"""How many samples fit into the device's memory at a time: "microbatch_size": "auto"."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from armature.errors import UserError
from armature.processes import dist
from armature.step.loss_share import total_and_parts

logger = logging.getLogger('trainer')
OUT_OF_MEMORY = {'mps': RuntimeError}  # other devices have an error of its own for it


def fitting_size(
    n_samples: int,
    first: Callable[[int], Any],
    model: nn.Module,
    loss_of: Callable[..., torch.Tensor],
) -> int:
    """The size of a batch, halved until a pass forward and backward is possible.

    first(n): the first n samples of the batch. Leaves model and randomness as they were.
    """
    size, buffers = n_samples, [buffer.clone() for buffer in model.buffers()]
    dist.share_gradients(model, wanted=False)  # another process may have memory for more
    errors = OUT_OF_MEMORY.get(next(model.parameters()).device.type, torch.OutOfMemoryError)
    with torch.random.fork_rng():
        while any(dist.gather(failure := _failure(first(size), loss_of, errors))):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if size == 1:
                raise UserError(
                    f'not even one sample fits into the memory of the device ({failure}): take a '
                    'smaller model or smaller samples'
                )
            size = (size + 1) // 2
            logger.warning(
                f'Out of memory: going on with micro-batches of {size} samples; the result stays '
                'the same'
            )
    dist.share_gradients(model, wanted=True)
    model.zero_grad(set_to_none=True)
    for buffer, before in zip(model.buffers(), buffers):
        buffer.copy_(before)
    return size


def _failure(micro_batch, loss_of, errors):
    """What torch says when memory was not enough; empty when it was."""
    try:
        loss, _ = total_and_parts(loss_of(*micro_batch))
        loss.backward()
    except errors as error:
        return str(error) or type(error).__name__
    return ''
