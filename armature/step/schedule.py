"""Schedule: when the learning rate scheduler steps, and the warm-up before it has its full say."""

import copy
import math
import warnings
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from armature.errors import ConfigError
from armature.processes import dist


class Schedule:
    """Steps `scheduler` after each optimizer step (interval 'step') or after each epoch ('epoch').

    scheduler: None does nothing. metric: the name of the value in an epoch's log that a
    ReduceLROnPlateau follows. warmup_steps: in step k of the first so many, every learning rate
    is k / warmup_steps of what the scheduler says.
    """

    def __init__(
        self,
        scheduler: LRScheduler | None,
        interval: str = 'epoch',
        metric: str = '',
        warmup_steps: int = 0,
    ):
        self.scheduler, self.interval = scheduler, interval
        self.on_plateau = isinstance(scheduler, ReduceLROnPlateau)
        self.metric = metric if self.on_plateau else ''
        if self.on_plateau and (interval == 'step' or not metric):
            raise ConfigError(
                'lr_scheduler is ReduceLROnPlateau: it needs interval "epoch" and a '
                "trainer.monitor such as 'min val_loss'"
            )
        self.each_step = scheduler is not None and interval == 'step'
        self.warmup_steps = warmup_steps if scheduler is not None else 0
        self.n_steps = self.n_epochs = 0  # so far
        self.values = []  # that a ReduceLROnPlateau has followed
        self.rates_as_built = self._rates()
        self._scale()

    def step(self) -> None:
        """To be called after each optimizer step."""
        self._put(self._planned)
        if self.each_step:
            self.scheduler.step()
        self.n_steps += 1
        self._scale()

    def end_epoch(self, log: dict[str, Any]) -> None:
        """To be called with the epoch's averages when it has been validated."""
        self._put(self._planned)
        if self.metric in log:  # a missing one is named by the monitor
            # All processes step by the same number.
            self.values.append(dist.on_main(float, log[self.metric]))
            if not math.isnan(self.values[-1]):  # which says nothing of a plateau
                self.scheduler.step(self.values[-1])
        elif self.scheduler is not None and self.interval == 'epoch' and not self.on_plateau:
            self.scheduler.step()
        self.n_epochs += 1
        self._scale()

    def replay(self, state: dict) -> None:
        """Go on from there; scheduler and optimizer are as built, and are stepped as often.

        The warm-up only scales what the scheduler says, so the order of steps and epochs within
        the run does not matter.
        """
        self._count_from(state)
        if self.on_plateau:
            replay(self.scheduler, [(value,) for value in self.values if not math.isnan(value)])
        else:
            replay(self.scheduler, [()] * (self.n_steps if self.each_step else self.n_epochs))
        self._scale()

    # During the warm-up the scheduler finds the learning rates as it left them.

    def _scale(self):
        self._planned = []  # the rates that the scheduler has set, where a warm-up scales them
        if self.n_steps < self.warmup_steps:
            self._planned, share = self._rates(), (self.n_steps + 1) / self.warmup_steps
            self._put([rate * share for rate in self._planned])

    def _rates(self):
        # One of the project's own may keep its optimizer under another name.
        if self.warmup_steps == 0 and not isinstance(self.scheduler, LRScheduler):
            return []
        # A learning rate may be a tensor, which schedulers fill in place.
        return [copy.deepcopy(group['lr']) for group in self.scheduler.optimizer.param_groups]

    def _put(self, rates):
        if rates:
            for group, rate in zip(self.scheduler.optimizer.param_groups, rates):
                group['lr'] = rate

    def as_built(self) -> dict:
        """The settings that decide the learning rates, beside the scheduler's own."""
        return {
            'interval': self.interval,
            'warmup_steps': self.warmup_steps,
            'metric': self.metric,
        }

    def state_dict(self) -> dict:
        """The progress; the scheduler itself is saved beside it."""
        return {
            'n_steps': self.n_steps,
            'n_epochs': self.n_epochs,
            'values': self.values,
            'planned': self._planned or self._rates(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from there: the scheduler and the optimizer have been loaded."""
        self._count_from(state)
        if self.warmup_steps:  # it has begun when this was made
            self._put(state['planned'])
            self._scale()

    def _count_from(self, state):
        self.n_steps, self.n_epochs = state['n_steps'], state['n_epochs']
        self.values = list(state['values'])


def replay(scheduler: LRScheduler, arguments: list[tuple]) -> None:
    """Step a scheduler that is as built, once with each of `arguments` (most take none)."""
    with warnings.catch_warnings():
        # torch misses the optimizer's steps, which another process took; SequentialLR of torch
        # itself uses an argument that torch warns of.
        warnings.simplefilter('ignore')
        for each in arguments:
            scheduler.step(*each)
