"""Micro-batches: a batch in parts that fit into memory, and what the loss over each counts for."""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from armature.batch import Batch, CannotCut, cut, length, map_tensors, to_device
from armature.errors import ConfigError, UserError
from armature.processes import dist
from armature.seed import draws_so_far, rng_state, set_rng_state
from armature.step.loss_share import count_in, total_and_parts

logger = logging.getLogger('trainer')
OUT_OF_MEMORY = {'mps': RuntimeError}  # other devices have an error of its own for it


class MicroBatches:
    """Takes batches apart.

    size: samples that go through the model at once; None: the whole batch; 'auto': as many as fit,
    tried at the first batch and, in a single process, at each one whose samples are larger. What
    trying it leaves in the gradients of `optimizer` is taken away.
    count: what the mean that the loss takes divides by; see armature/step/loss_share.py.
    loss_of(*part): the loss, for 'auto' and to keep step with other processes. criterion: what it
    calls, of which trying leaves the buffers as they were.
    """

    def __init__(
        self,
        size: int | str | None,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        count: Callable[[Any], Any] = length,
        loss_is_sum: bool = False,
        model: nn.Module | None = None,
        loss_of: Callable[..., torch.Tensor] | None = None,
        criterion: Callable | None = None,
    ):
        self.is_auto = size == 'auto' and loss_of is not None
        self.size = None if size == 'auto' else size
        self.device, self._model, self._loss_of = device, model, loss_of
        self._criterion = criterion
        self._optimizer, self._count, self._loss_is_sum = optimizer, count, loss_is_sum
        self._keeps_step = dist.needs_equal_passes(model)
        if self.is_auto and self._keeps_step:
            raise ConfigError(
                'trainer.microbatch_size is "auto", and a process that runs out of memory would '
                'let the others wait in SyncBatchNorm: say a number, or distributed.sync_bn false'
            )
        self._n_tried = 0  # numbers in the largest part that went through the model
        self._has_warned = False  # of batches that are collated anew
        self._looks_at_draws = True  # in the first part

    def of(self, content: Any, batch: Batch) -> Iterable[tuple[Any, Any]]:
        """(part, weight) of each; the weight is the part's share of the mean over all processes."""
        if self.is_auto and batch.n_samples:
            self._fit(content, batch)
        n_samples, share = batch.n_samples, batch.share
        size = self.size or n_samples or 1
        # What the loss over this process's samples counts for in the mean over processes
        weight = share.weight
        if self._loss_is_sum:
            weight = float(dist.n_processes() * (not share.is_padding))
        n_parts = n_passes = max(1, -(-n_samples // size))
        if self.size and self._keeps_step:
            n_passes = max(n_parts, -(-share.largest // size))
        if n_passes == 1:
            return [(content, weight)]
        return self._parts(content, batch, weight, n_parts, n_passes)

    def _parts(self, content, batch, weight, n_parts, n_passes) -> Iterator[tuple[Any, Any]]:
        n_samples, size = batch.n_samples, self.size
        # The loss over a part counts as its target does, or as its number of samples.
        by_samples = self._count is length or self._loss_is_sum
        n_counted = n_samples if by_samples or not weight else count_in(content, self._count)
        for number in range(n_parts):
            rows = slice(number * size, min(n_samples, (number + 1) * size))
            part, batch.n_now = self._part(content, batch, rows), rows.stop - rows.start
            fraction = 1
            if weight and not self._loss_is_sum:
                fraction = batch.n_now if by_samples else count_in(part, self._count)
                fraction = fraction / n_counted
            dist.share_gradients(self._model, wanted=number + 1 == n_passes)
            before = draws_so_far(self.device) if self._looks_at_draws else None
            yield part, weight * fraction
            if before is not None:
                self._looks_at_draws = False
                _warn_of_draws(before, draws_so_far(self.device))
        batch.n_now = 0
        for number in range(n_parts, n_passes):  # another process has one more
            dist.share_gradients(self._model, wanted=number + 1 == n_passes)
            loss, _ = total_and_parts(self._loss_of(*part))
            (loss * 0).backward()

    def _part(self, content, batch, rows):
        """The samples `rows` of a batch: cut, or else collated anew."""
        try:
            return cut(content, batch.n_samples, rows, batch.lists_are_parts)
        except CannotCut as error:
            if batch.collate is None:
                raise ConfigError(
                    f'trainer.microbatch_size: the batch holds {error}, which cannot be cut into '
                    f'parts of its {batch.n_samples} samples. Give each entry of a batch a row for '
                    'each sample, or leave microbatch_size out'
                ) from error
            if not self._has_warned:
                self._has_warned = True
                logging.getLogger('data').warning(
                    f'A batch holds {error}, which cannot be cut: each micro-batch is read and '
                    'collated anew. Padding, and what collate_fn draws, may differ from that of '
                    'the whole batch'
                )
        return to_device(batch.collate(rows), self.device)

    def _fit(self, content, batch):
        # Of the process that has most samples: all of them are to find the same size.
        most = max(batch.n_samples, batch.share.largest)
        size = min(self.size or most, most)
        n_numbers = _n_numbers(content) * size / batch.n_samples
        # Processes try together, and each has batches of its own.
        if self._n_tried and (n_numbers <= self._n_tried or dist.n_processes() > 1):
            return
        fits = fitting_size(
            size,
            lambda n: self._part(content, batch, slice(0, n)),
            self._model,
            self._loss_of,
            self._criterion,
        )
        self._optimizer.zero_grad()  # of the loss's own parameters
        self._n_tried = n_numbers * fits / size
        if self.size is None or fits < size:
            self.size = fits


def _n_numbers(content):
    found = []
    map_tensors(lambda tensor: found.append(tensor.numel()), content)
    return sum(found)


def _warn_of_draws(before, after):
    if before != after:
        logger.warning(
            'trainer.microbatch_size: this model draws random numbers (dropout) for each '
            'micro-batch by itself, so its size does change the result'
        )


def fitting_size(
    n_samples: int,
    first: Callable[[int], Any],
    model: nn.Module,
    loss_of: Callable[..., torch.Tensor],
    criterion: Callable | None = None,
) -> int:
    """The size of a batch, halved until a pass forward and backward is possible.

    first(n): the first n samples of the batch. Leaves model, loss and randomness as they were.
    """
    modules = [each for each in (model, criterion) if isinstance(each, nn.Module)]
    buffers = [buffer for module in modules for buffer in module.buffers()]
    size, kept = n_samples, [buffer.clone() for buffer in buffers]
    dist.share_gradients(model, wanted=False)  # another process may have memory for more
    device = next(model.parameters()).device
    errors = OUT_OF_MEMORY.get(device.type, torch.OutOfMemoryError)
    before = rng_state(device)
    while any(dist.gather(failure := _failure(first(size), loss_of, errors))):
        if device.type != 'cpu':  # torch.accelerator.empty_cache knows no MPS
            torch.get_device_module(device).empty_cache()
        if size == 1:
            raise UserError(
                f'not even one sample fits into the memory of the device ({failure}): take a '
                'smaller model or smaller samples'
            )
        size = (size + 1) // 2
        logger.warning(
            f'Out of memory: going on with micro-batches of {size} samples; the result stays the '
            'same'
        )
    set_rng_state(before, device)
    dist.share_gradients(model, wanted=True)
    model.zero_grad()
    for buffer, value in zip(buffers, kept):
        buffer.copy_(value)
    return size


def _failure(micro_batch, loss_of, errors):
    """What torch says when memory was not enough; empty when it was."""
    try:
        loss, _ = total_and_parts(loss_of(*micro_batch))
        loss.backward()
    except errors as error:
        return str(error) or type(error).__name__
    return ''
