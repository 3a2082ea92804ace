"""Schedule: when the learning rate scheduler steps, and the warm-up before it has its full say."""

import copy
import warnings
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from armature.errors import ConfigError
from armature.processes import dist

INTERVALS = ('epoch', 'step')


class Schedule:
    """Steps `scheduler` after each optimizer step (interval 'step') or after each epoch ('epoch'); None does nothing.

    ReduceLROnPlateau gets the value of `metric` from the epoch's log, so it needs one.
    warmup_steps: in step k of the first so many, every learning rate is k / warmup_steps of what the scheduler says.
    """

    def __init__(
        self,
        scheduler: LRScheduler | None,
        interval: str = 'epoch',
        metric: str = '',
        warmup_steps: int = 0,
    ):
        self.scheduler, self.metric = scheduler, metric
        self.on_plateau = isinstance(scheduler, ReduceLROnPlateau)
        if interval not in INTERVALS:
            raise ConfigError(f"lr_scheduler.interval is {interval!r}: expected 'epoch' or 'step'")
        if self.on_plateau and (interval == 'step' or not metric):
            raise ConfigError(
                'lr_scheduler is ReduceLROnPlateau: it needs interval "epoch" and a trainer.monitor '
                "such as 'min val_loss'"
            )
        self.each_step = scheduler is not None and interval == 'step'
        self.each_epoch = scheduler is not None and interval == 'epoch'
        self.warmup_steps = warmup_steps if scheduler is not None else 0
        self._found = self._planned = (
            self._rates() if self.warmup_steps else []
        )  # as the scheduler left them
        self._n_steps = 0
        self._is_loaded = False
        self._warm()
        self._put_at_first = self._rates() if self.warmup_steps else []

    def step(self) -> None:
        """To be called after each optimizer step."""
        if self.each_step:
            self._advance()
        if self._n_steps < self.warmup_steps:
            self._n_steps += 1
            self._warm()

    def end_epoch(self, log: dict[str, Any]) -> None:
        """To be called with the epoch's averages when it has been validated."""
        if self.each_epoch and self.on_plateau:
            if self.metric in log:  # when it is missing, the monitor says so right after
                self._advance(
                    dist.on_main(float, log[self.metric])
                )  # all processes step by the same number
        elif self.each_epoch:
            self._advance()

    def planned(self, n_steps: int, len_epoch: int) -> list[float]:
        """The first group's learning rate in each of the next steps, if training began an epoch now; [] on a plateau's."""
        if self.scheduler is None or self.on_plateau:
            return []
        optimizer = self.scheduler.optimizer
        shared = {
            id(parameter): parameter
            for group in optimizer.param_groups
            for parameter in group['params']
        }
        ahead = copy.deepcopy(self, {**shared, id(optimizer.state): {}})
        rates = []
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torch misses the optimizer's own steps
            for index in range(n_steps):
                rates.append(ahead.scheduler.optimizer.param_groups[0]['lr'])
                ahead.step()
                if (index + 1) % len_epoch == 0:
                    ahead.end_epoch({})
        return rates

    @property
    def _is_warming(self) -> bool:
        return self._n_steps < self.warmup_steps

    def _advance(self, *value: float) -> None:
        """A step of the scheduler, which finds the learning rates as it left them."""
        if not self._is_warming:
            self.scheduler.step(*value)
            return
        self._put(self._planned)
        self.scheduler.step(*value)
        self._planned = self._rates()
        self._warm()

    def _warm(self) -> None:
        if self.warmup_steps:
            share = min(1.0, (self._n_steps + 1) / self.warmup_steps)
            self._put(self._planned if share == 1 else [rate * share for rate in self._planned])

    def _rates(self) -> list[float]:
        return [group['lr'] for group in self.scheduler.optimizer.param_groups]

    def _put(self, rates: list[float]) -> None:
        for group, rate in zip(self.scheduler.optimizer.param_groups, rates):
            group['lr'] = rate

    def state_dict(self) -> dict:
        """Empty without a warm-up: the scheduler is saved for itself."""
        return (
            {'n_steps': self._n_steps, 'planned': self._planned, 'put': self._rates()}
            if self.warmup_steps
            else {}
        )

    def load_state_dict(self, state: dict) -> None:
        """Take over the place in the warm-up. The learning rates that the optimizer was loaded with hold."""
        if not self.warmup_steps or not state or self._is_loaded:
            return
        self._is_loaded = True
        self._n_steps = state['n_steps']
        if self._rates() == self._put_at_first:
            scales = [
                1.0 if found == put else found / put
                for found, put in zip(self._found, state['put'])
            ]
            self._planned = [
                rate if scale == 1 else rate * scale
                for rate, scale in zip(state['planned'], scales)
            ]
            self._put(self._found)
        else:  # the scheduler has been loaded with another length and has set its rates anew
            self._planned = self._rates()
            self._warm()
