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
    with torch.random.fork_rng():
        while not all(dist.gather(_fits(first(size), loss_of))):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if size == 1:
                raise UserError(
                    'not even one sample fits into the memory of the device: take a smaller model '
                    'or smaller samples'
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


def _fits(micro_batch, loss_of):
    try:
        loss, _ = total_and_parts(loss_of(*micro_batch))
        loss.backward()
    except torch.OutOfMemoryError:
        return False
    return True
