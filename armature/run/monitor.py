"""Monitor: the best value so far of one metric, and the patience that is left."""

import math

from armature.errors import ConfigError


class Monitor:
    """Judges each epoch's log by `rule`: 'min <metric>', 'max <metric>' or 'off'.

    early_stop: how many epochs in a row may pass without a better value; None or a number below 1
    never stops.
    Equal values are not better. A nan is never better.
    """

    def __init__(self, rule: str = 'off', early_stop: float | None = None):
        self.mode, _, self.metric = rule.partition(' ')
        self.metric = self.metric.strip()
        if self.mode not in ('min', 'max', 'off') or (self.mode != 'off') != bool(self.metric):
            raise ConfigError(
                f"trainer.monitor is {rule!r}: expected 'min <metric>', 'max <metric>' or 'off'"
            )
        self.early_stop = early_stop if early_stop is not None and early_stop > 0 else math.inf
        self.begin()
        self.is_blind = False  # no epoch has had a value yet, only nan

    def begin(self) -> None:
        """From now on the best is a new one."""
        self.best = {'min': math.inf, 'max': -math.inf, 'off': 0}[self.mode]
        self.n_epochs_since_best = 0

    def update(self, log: dict) -> bool:
        """Whether an epoch's log is better than all before; a ConfigError without the metric."""
        if self.mode == 'off':
            return False
        if self.metric not in log:
            reported = ', '.join(name for name in log if name != 'epoch')
            raise ConfigError(
                f"trainer.monitor is '{self.mode} {self.metric}', but an epoch reports: {reported}."
                ' Name one of these, or "off".'
            )
        value = log[self.metric]
        self.is_blind = math.isinf(self.best) and math.isnan(value)
        improved = value < self.best if self.mode == 'min' else value > self.best
        if improved:
            self.best = value
        self.n_epochs_since_best = 0 if improved else self.n_epochs_since_best + 1
        return improved

    @property
    def out_of_patience(self) -> bool:
        return self.mode != 'off' and self.n_epochs_since_best >= self.early_stop

    def state_dict(self) -> dict:
        return {'best': self.best, 'n_epochs_since_best': self.n_epochs_since_best}

    def load_state_dict(self, state: dict) -> None:
        self.best, self.n_epochs_since_best = state['best'], state['n_epochs_since_best']
