"""Micro-batches: a batch in parts that fit into memory, and what the loss over each counts for."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from armature.batch import Batch, CannotCut, cut, leaves, to_device
from armature.compare import first_difference
from armature.errors import ConfigError, UserError
from armature.processes import dist
from armature.seed import rng_state, set_rng_state
from armature.step.loss_share import Reduction

logger = logging.getLogger('trainer')
OUT_OF_MEMORY = {'mps': RuntimeError}  # other devices have an error of its own for it


class MicroBatches:
    """Takes batches apart.

    size: samples that go through the model at once; None: the whole batch; 'auto': as many as fit,
    tried at the first batch and at each one whose samples are larger.
    loss_of(*part): the loss by `model` and `criterion`, for 'auto' and to keep step with other
    processes.
    """

    def __init__(
        self,
        size: int | str | None,
        reduction: Reduction,
        device: torch.device,
        model: nn.Module | None,
        criterion: Callable | None,
        loss_of: Callable[..., torch.Tensor],
    ):
        self.is_auto = size == 'auto' and criterion is not None
        self.size = None if size == 'auto' else size
        self._reduction, self._device = reduction, device
        self._model, self._criterion, self._loss_of = model, criterion, loss_of
        self._has_equal_passes = dist.needs_equal_passes(model)
        if self.is_auto and self._has_equal_passes:
            raise ConfigError(
                'trainer.microbatch_size is "auto", and a process that runs out of memory would '
                'let the others wait in FSDP or SyncBatchNorm: say a number, or '
                '"distributed": {"strategy": "ddp", "sync_bn": false}'
            )
        self._n_tried = 0.0  # numbers in each sample of the batch that was tried last
        self._has_warned = False  # of batches that are collated anew
        self._looks_at_draws = True  # in the first part

    def of(self, content: Any, batch: Batch) -> Iterator[tuple[Any, Any]]:
        """(part, weight) of each; the weight is the part's share of the mean over all processes."""
        n_samples = batch.n_samples
        if self.is_auto and n_samples:
            self._fit(content, batch)
        # What the loss over this process's samples counts for in the mean over processes
        weight = batch.share.weight
        if self._reduction.is_sum:
            weight = float(dist.n_processes() * (not batch.share.is_padding))
        most = max(n_samples, batch.share.largest, 1)
        size = self.size or most
        n_parts = max(1, -(-n_samples // size))
        n_passes = -(-most // size) if self._has_equal_passes else n_parts
        if n_passes == 1:
            yield content, weight
            return
        is_whole = self._reduction.is_sum or not weight  # whatever the part counts for
        n_counted = 1 if is_whole else self._reduction.count_in(content, n_samples)
        for number in range(n_passes):
            dist.share_gradients(self._model, wanted=number + 1 == n_passes)
            if number < n_parts:
                rows = slice(number * size, min(n_samples, (number + 1) * size))
                part, batch.n_now = self._part(content, batch, rows), rows.stop - rows.start
                n_part = 1 if is_whole else self._reduction.count_in(part, batch.n_now)
                before = rng_state(self._device) if self._looks_at_draws else None
                yield part, weight * (n_part / n_counted)
                if before and first_difference(before, rng_state(self._device)):
                    logger.warning(
                        'trainer.microbatch_size: this model draws random numbers (dropout) for '
                        'each micro-batch by itself, so its size does change the result'
                    )
                self._looks_at_draws = False
            else:  # another process has one more
                (self._loss_of(*part) * 0).backward()
        batch.n_now = 0

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
        return to_device(batch.collate(rows), self._device)

    def _fit(self, content, batch):
        """Halve the size until a pass forward and backward is possible; leaves no other trace."""
        sizes = [each.numel() for each in leaves(content) if torch.is_tensor(each)]
        n_each, most = sum(sizes) / batch.n_samples, batch.n_samples
        if n_each <= self._n_tried:
            return
        self._n_tried, size = n_each, min(self.size or most, most)
        modules = [each for each in (self._model, self._criterion) if isinstance(each, nn.Module)]
        kept = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
        before = rng_state(self._device)
        dist.share_gradients(self._model, wanted=False)  # each process finds a size of its own
        while failure := self._failure(content, batch, size):
            if self._device.type != 'cpu':  # torch.accelerator.empty_cache knows no MPS
                torch.get_device_module(self._device).empty_cache()
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
        set_rng_state(before, self._device)
        dist.share_gradients(self._model, wanted=True)
        for module in modules:
            module.zero_grad()
        for buffer, value in kept:
            buffer.copy_(value)
        if self.size is None or size < min(self.size, most):
            self.size = size

    def _failure(self, content, batch, size):
        """What torch says when memory was not enough for so many samples; empty when it was."""
        part = self._part(content, batch, slice(0, size))
        try:
            self._loss_of(*part).backward()
        except OUT_OF_MEMORY.get(self._device.type, torch.OutOfMemoryError) as error:
            return repr(error)
        return ''
