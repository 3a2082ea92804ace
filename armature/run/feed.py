"""Feed: looks at what comes from the loader: how long the training waits for it, and once whether the labels suit the model."""

import logging
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from armature.errors import DataError
from armature.processes import dist

WAITING_SHARE = 0.2  # of an epoch's time, above which the waiting is worth a warning
IGNORED = -100  # torch's label for what does not count


class Feed:
    """Passes batches through. Warns once; checks the labels of the first batch, and all that the loader knows, once."""

    def __init__(self, logger: logging.Logger):
        self.logger = logger
        self.share = 0.0  # of the last epoch's time that was spent waiting
        self._has_warned = self._has_checked = False

    def watch(self, batches: Iterable[Any], loader: Any, model: nn.Module) -> Iterator[Any]:
        batches, waited_s, started = iter(batches), 0.0, time.perf_counter()
        while True:
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                break
            waited_s += time.perf_counter() - asked
            if not self._has_checked:
                self._has_checked = True
                check_labels_at_first_output(model, batch.content, loader)
            yield batch
        self.share = waited_s / (time.perf_counter() - started)
        if (
            self.share > WAITING_SHARE
            and not self._has_warned
            and not is_in_memory(loader)
            and dist.is_main()
        ):
            self._has_warned = True
            n_cores = (
                len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
            )
            self.logger.warning(
                f"{self.share:.0%} of the epoch's time was spent waiting for data. Most likely to help: "
                f'data_loader.args.num_workers (now {getattr(loader, "num_workers", 0)}; this machine has {n_cores} '
                'cores), or data_loader.args.in_memory: true'
            )


def is_in_memory(loader: Any) -> bool:
    return getattr(loader, '_memory', None) is not None


def check_labels_at_first_output(model: nn.Module, batch: Any, loader: Any) -> None:
    """Let the model's next output be compared with the class labels: a DataError names one that the model has no score for."""
    if not isinstance(model, nn.Module) or type(batch) not in (tuple, list) or len(batch) < 2:
        return
    target = batch[1]
    if (
        not isinstance(target, torch.Tensor)
        or target.is_floating_point()
        or target.dtype == torch.bool
        or not target.numel()
    ):
        return

    def compare(module: nn.Module, inputs: Any, output: Any) -> None:
        handle.remove()
        if (
            not isinstance(output, torch.Tensor)
            or output.dim() != target.dim() + 1
            or output.shape[1] < 2
        ):
            return  # not scores of classes
        labels = {int(label) for label in target.unique()} - {IGNORED}
        known = (
            loader.sample_classes()
            if target.dim() == 1 and hasattr(loader, 'sample_classes')
            else None
        )
        labels |= {label for label in known or [] if isinstance(label, int)} - {IGNORED}
        outside = sorted(label for label in labels if not 0 <= label < output.shape[1])
        if outside:
            raise DataError(
                f'the data has the label {outside[-1] if outside[-1] >= 0 else outside[0]}, and the model gives '
                f'{output.shape[1]} scores, for the labels 0 to {output.shape[1] - 1}: change the size of its output '
                '(arch.args), or the labels'
            )

    handle = model.register_forward_hook(compare)
