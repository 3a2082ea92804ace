"""Schedule: when the learning rate scheduler steps."""
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from utils.errors import ConfigError

INTERVALS = ('epoch', 'step')


class Schedule:
    """Steps `scheduler` after each optimizer step (interval 'step') or after each epoch ('epoch'); None does nothing.

    ReduceLROnPlateau gets the value of `metric` from the epoch's log, so it needs one.
    """

    def __init__(self, scheduler: LRScheduler | None, interval: str = 'epoch', metric: str = ''):
        self.scheduler, self.metric = scheduler, metric
        self.on_plateau = isinstance(scheduler, ReduceLROnPlateau)
        if interval not in INTERVALS:
            raise ConfigError(f"lr_scheduler.interval is {interval!r}: expected 'epoch' or 'step'")
        if self.on_plateau and (interval == 'step' or not metric):
            raise ConfigError('lr_scheduler is ReduceLROnPlateau: it needs interval "epoch" and a trainer.monitor '
                              "such as 'min val_loss'")
        self.each_step = scheduler is not None and interval == 'step'
        self.each_epoch = scheduler is not None and interval == 'epoch'

    def step(self) -> None:
        """To be called after each optimizer step."""
        if self.each_step:
            self.scheduler.step()

    def end_epoch(self, log: dict[str, Any]) -> None:
        """To be called with the epoch's averages when it has been validated."""
        if self.each_epoch and self.on_plateau:
            if self.metric in log:  # when it is missing, the monitor says so right after
                self.scheduler.step(log[self.metric])
        elif self.each_epoch:
            self.scheduler.step()
