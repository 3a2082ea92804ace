"""A batch in parts, micro-batches that fit into memory; and what the loss over each counts for."""

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from armature.batch import Batch, CannotCut, cut, leaves, length, to_device
from armature.checkpoint.weights import sizeless
from armature.compare import first_difference
from armature.config.values import parameters
from armature.errors import ConfigError, UserError
from armature.processes import dist
from armature.seed import rng_state, set_rng_state
from armature.step.buffers import KeptBuffers
from armature.step.losses import WeightedLosses, total_and_terms

logger = logging.getLogger('trainer')
IGNORED = -100  # the target that torch leaves out where no ignore_index is given
# Their means divide by the weights of the classes in the target.
OF_CLASSES = (nn.CrossEntropyLoss.forward, nn.NLLLoss.forward, F.cross_entropy, F.nll_loss)
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
        device: torch.device,
        model: nn.Module | None,
        criterion: Callable | None,
        loss_of: Callable[..., Any],
    ):
        self.is_auto = size == 'auto' and criterion is not None
        self.size = None if size == 'auto' else size
        self._device, self._reduction = device, Reduction(criterion)
        if size or dist.n_processes() > 1:
            self._reduction.refuse_parts()
        self._model, self._criterion, self._loss_of = model, criterion, loss_of
        self.weight = 1.0  # of the part that is due, a number or a 0-dim tensor
        self._has_equal_passes = dist.needs_equal_passes(model)
        if self.is_auto and self._has_equal_passes:
            raise ConfigError(
                'trainer.microbatch_size is "auto", and a process that runs out of memory would '
                'let the others wait in FSDP or SyncBatchNorm: say a number, or '
                '"distributed": {"strategy": "ddp", "sync_bn": false}'
            )
        self._n_tried = 0.0  # numbers in each sample of the batch that was tried last
        self._has_warned = False  # of batches that are collated anew
        self._looks_at_draws = True  # in the first part whose size all layers know
        self._are_samples = None  # the rows of square tensors; None: nobody had to know

    def of(self, content: Any, batch: Batch) -> Iterator[Any]:
        """The parts; `weight` is the share of each in the mean over all processes."""
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
        self.weight = weight
        if n_passes == 1:
            yield content
            return
        # Without a weight the parts have none either, and there may be nothing to count.
        n_counted = self._reduction.count_in(content, n_samples) if weight else 1
        for number in range(n_passes):
            dist.sync_gradients(self._model, wanted=number + 1 == n_passes)
            if number < n_parts:
                rows = slice(number * size, min(n_samples, (number + 1) * size))
                part, batch.n_now = self._part(content, batch, rows), rows.stop - rows.start
                n_part = self._reduction.count_in(part, batch.n_now) if weight else 1
                # A lazy layer draws its weights in its first pass.
                looks = self._looks_at_draws and not sizeless(self._model)
                before = rng_state(self._device) if looks else None
                self.weight = weight * (n_part / n_counted)
                yield part
                if before and first_difference(before, rng_state(self._device)):
                    logger.warning(
                        'trainer.microbatch_size: this model draws random numbers (dropout) for '
                        'each micro-batch by itself, so its size does change the result'
                    )
                self._looks_at_draws &= not looks
            else:  # another process has one more
                weighted(self._loss_of(*part), 0).backward()
        batch.n_now = 0

    def _part(self, content, batch, rows):
        """The samples `rows` of a batch: cut, or else collated anew."""
        try:
            part = cut(content, batch.n_samples, rows, batch.lists_are_parts)
            if self._samples_come_first(part, batch, rows):
                return part
            raise CannotCut('tensors whose first dimension is not that of its samples')
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

    def _samples_come_first(self, part, batch, rows):
        """Whether a part that is cut holds samples, and not so many steps of (time, samples).

        Where there are as many of both, collating the part anew tells: once, as it reads again.
        """
        may_tell = batch.collate is not None and not batch.lists_are_parts
        is_whole = rows.stop - rows.start == batch.n_samples
        if is_whole or not may_tell:
            return True
        if not any(shape[1:2] == (batch.n_samples,) for shape in _shapes(part)):
            return True
        if self._are_samples is None:
            anew = _shapes(batch.collate(rows))
            self._are_samples = [one[:1] for one in _shapes(part)] == [one[:1] for one in anew]
        return self._are_samples

    def _fit(self, content, batch):
        """Halve the size until a pass forward and backward is possible; leaves no other trace."""
        sizes = [each.numel() for each in leaves(content) if torch.is_tensor(each)]
        n_each, most = sum(sizes) / batch.n_samples, batch.n_samples
        if n_each <= self._n_tried:
            return
        self._n_tried, self.size = n_each, self.size or most
        size = min(self.size, most)
        kept = KeptBuffers(self._model, self._criterion)
        before = rng_state(self._device)
        dist.sync_gradients(self._model, wanted=False)  # each process finds a size of its own
        while failure := self._failure(content, batch, size):
            if self._device.type != 'cpu':  # torch.accelerator.empty_cache knows no MPS
                torch.get_device_module(self._device).empty_cache()
            if size == 1:
                raise UserError(
                    f'not even one sample fits into the memory of the device ({failure}): take a '
                    'smaller model or smaller samples'
                )
            self.size = size = (size + 1) // 2
            logger.warning(
                f'Out of memory: going on with micro-batches of {size} samples; the result stays '
                'the same'
            )
        set_rng_state(before, self._device)
        dist.sync_gradients(self._model, wanted=True)
        for part in (self._model, self._criterion):
            if isinstance(part, nn.Module):
                part.zero_grad()
        kept.put_back()

    def _failure(self, content, batch, size):
        """What torch says when memory was not enough for so many samples; empty when it was."""
        part = self._part(content, batch, slice(0, size))
        try:
            weighted(self._loss_of(*part), 1.0).backward()
        except OUT_OF_MEMORY.get(self._device.type, torch.OutOfMemoryError) as error:
            return repr(error)
        return ''


def _shapes(content):
    return [tuple(each.shape) for each in leaves(content) if hasattr(each, '__array__')]


# What a loss makes of a batch


def weighted(loss: Any, weight: Any) -> torch.Tensor:
    """A loss function's one number times `weight`; 0 where that is 0, also for a mean that is nan
    because it is over nothing.
    """
    loss, _ = total_and_terms(loss)
    if loss.numel() > 1:
        raise ConfigError(
            f'the loss has the shape {tuple(loss.shape)}: expected one number for a batch, as its '
            'mean is (in a loss of torch: "reduction": "mean")'
        )
    loss = loss.reshape(()) if loss.dim() else loss
    if type(weight) is float and weight == 1:  # a tensor is not looked at: it may be on a GPU
        return loss
    weight = loss.new_ones(()) * weight
    return (loss * weight).where(weight != 0, 0)


class Reduction:
    """How a loss makes one number of a batch, and so how the losses over its parts add up.

    is_sum: it adds its samples up. Else it is a mean. by_samples: over the number of samples; else,
    for cross_entropy and nll_loss of torch, over the sum of the `weights` of the classes in the
    target, in which `ignored` counts for nothing.
    loader: may know that no target is ignored.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    """

    def __init__(self, criterion: Any = None, loader: Any = None):
        losses = criterion.functions if isinstance(criterion, WeightedLosses) else [criterion]
        kinds = set(map(_is_sum, losses))
        self.is_sum = kinds == {True}
        self.weights = _class_weights(criterion)
        self.ignored = _argument(criterion, 'ignore_index', IGNORED)
        known = loader.known_targets() if hasattr(loader, 'known_targets') else None
        # Whether no target is ignored, as far as anybody knows
        self.is_whole = known is not None and known.dim() == 1
        if self.is_whole and isinstance(self.ignored, int):  # a loss of one's own may have None
            self.is_whole = not (known.long() == self.ignored).any()
        if self.is_sum or _function_of(criterion) not in OF_CLASSES:
            self.by_samples = True
            self._adds_up = self.is_sum or not (len(kinds) > 1 or any(map(_weighs_classes, losses)))
        else:
            self.by_samples = self.is_whole and self.weights is None
            self._adds_up = self.weights is None or bool(self.weights.all())
        # Targets are counted before they are on the device, and there.
        self._weights_on = functools.cache(lambda device: self.weights.to(device))

    def refuse_parts(self) -> None:
        """A ConfigError when the loss over a batch does not follow from those over its parts."""
        if not self._adds_up:
            raise ConfigError(
                'loss: a mean that weights classes or leaves some out, or has a sum beside it, '
                'depends on which samples are together, so micro-batches (trainer.microbatch_size) '
                'or several processes would change the result. Take CrossEntropyLoss or NLLLoss of '
                'torch alone, with "ignore_index" for a class of weight 0, give the loss '
                '"reduction": "sum", or leave the weights or the parts out'
            )

    def count(self, target: Any, n_samples: int) -> Any:
        """What the mean over the target of so many samples divides by; a 0-dim tensor where that
        depends on classes.
        """
        if self.by_samples:
            return n_samples
        if not isinstance(target, torch.Tensor) or target.is_floating_point():
            return length(target) or n_samples  # rows: a sample may have several (words, nodes)
        is_counted = target.long() != self.ignored  # uint8 knows no -100
        if self.weights is None:
            return is_counted.sum()
        classes = target.where(is_counted, 0).long()
        return self._weights_on(target.device)[classes].mul(is_counted).sum()

    def count_in(self, content: Any, n_samples: int) -> Any:
        """What the loss over a batch (data, target) of so many samples divides by."""
        if self.is_sum:
            return 1
        if isinstance(content, (list, tuple)) and len(content) == 2:
            return self.count(content[1], n_samples)
        if self.by_samples:
            return n_samples
        if self.weights is None and self.ignored == IGNORED:
            return length(content) or n_samples
        raise ConfigError(
            'loss: it weights classes or leaves some out, and in a batch that is not (data, '
            'target) nobody can tell which. Give it "reduction": "sum", or leave out what takes a '
            'batch in parts (trainer.microbatch_size, processes)'
        )


def _argument(loss, name, otherwise=None):
    """Of a loss: an attribute, as modules of torch have it; or what a partial, a default gives."""
    found = getattr(loss, name, getattr(loss, 'keywords', {}).get(name, ...))
    if found is ... and not isinstance(loss, nn.Module):
        found = getattr(parameters(loss)[0].get(name), 'default', ...)
    return otherwise if found in (..., inspect.Parameter.empty) else found


def _function_of(loss):
    """What computes it: the forward of a module, or the function, also that of a partial."""
    return getattr(type(loss), 'forward', getattr(loss, 'func', loss))


def _is_sum(loss):
    """Also by a former argument of torch's functions."""
    former = getattr(loss, 'keywords', {}).get('size_average', True)
    return _argument(loss, 'reduction') == 'sum' or former is False


def _class_weights(loss):
    # Modules of one's own may call anything `weight`.
    is_of_classes = isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss))
    is_of_classes |= 'weight' in getattr(loss, 'keywords', {})
    return _argument(loss, 'weight') if is_of_classes else None


def _weighs_classes(loss):
    is_ignoring = _argument(loss, 'ignore_index') not in (IGNORED, None)
    return is_ignoring or _class_weights(loss) is not None
