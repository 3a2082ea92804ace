"""Epoch: what belongs to the epoch in progress, and is gone with it."""

import logging
import time
from typing import Any

import torch
from torch.utils.data import default_collate

from armature.batch import NO_BATCH
from armature.config.values import parameters
from armature.processes import dist
from armature.run.record import rates_of

WAITING_SHARE = 0.2  # of an epoch's time, above which the waiting is worth a warning


class Epoch:
    """Its bar and steppers, its losses until somebody looks at them, what it takes and waits for.

    step: optimizer steps of the run before it, or before the place where it is gone on with.
    """

    def __init__(self, optimizer: Any, step: int):
        self.bar, self.steppers = None, ()  # until `BaseTrainer.batches` is asked
        self.agreement = dist.Agreement()
        self.batch = NO_BATCH  # the newest
        self.step_is_open = False  # a batch was given out, and end_step not called since
        self._optimizer, self.rates = optimizer, rates_of(optimizer)  # those of its last step
        self._losses = []  # (step, loss), not looked at yet: no step waits for the device
        self.broken = None  # the first of them that was not finite, with its step
        self._begun = self._asked = time.perf_counter()
        self._waited_s = 0.0
        self._logged = self._begun, step

    def note_begin(self, is_last: bool) -> None:
        self._waited_s += time.perf_counter() - self._asked
        self.step_is_open = True
        if is_last:
            self.rates = rates_of(self._optimizer)

    def note_end(self, step: int) -> None:
        self.step_is_open = False
        for stepper in self.steppers:
            if stepper.loss is not None:
                self._losses.append((step, stepper.loss))
        self.bar.update()

    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self._begun

    def wait(self) -> None:
        """From now on the training waits for its next batch."""
        self._asked = time.perf_counter()

    def look_at_losses(self) -> tuple[int, float] | None:
        """(step, loss) of the first that is not finite, in this process; None when all are."""
        losses, self._losses = self._losses, []
        if losses and self.broken is None:
            finite = torch.stack([loss for _, loss in losses]).isfinite().tolist()
            if False in finite:
                step, loss = losses[finite.index(False)]
                self.broken = step, loss.item()
        return self.broken

    def steps_per_second(self, step: int) -> float:
        """Since the last call."""
        now, (logged_at, logged_step) = time.perf_counter(), self._logged
        self._logged = now, step
        return (step - logged_step) / (now - logged_at)

    def warn_of_waiting(self, loader: Any, logger: logging.Logger) -> None:
        share = self._waited_s / self.seconds()
        is_in_memory = getattr(loader, '_memory', None) is not None
        if share > WAITING_SHARE and not is_in_memory and dist.is_main():
            helps = [
                f'data_loader.args.num_workers (now {getattr(loader, "num_workers", 0)}; python -m '
                'tools.find_workers finds the best number)'
            ]
            is_collated = getattr(loader, 'collate_fn', None) is default_collate
            if is_collated and 'in_memory' in parameters(type(loader))[0]:
                helps.append('data_loader.args.in_memory: true')
            logger.warning(
                f"{share:.0%} of the epoch's time was spent waiting for data. Most likely to help: "
                f'{", or ".join(helps)}'
            )
