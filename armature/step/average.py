"""Average: the average of a model's weights over the steps, which is validated and tested."""

from collections.abc import Iterable
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

from armature.checkpoint.weights import bare, load_weights
from armature.errors import ConfigError
from armature.processes import dist


class Average:
    """The average of the weights of `model`; to be updated after each optimizer step.

    ema_decay: the average keeps this share of itself at each step (exponential moving average). It
    keeps less in the first steps, or it would be the untrained weights for long: see `decay`.
    swa_start: the step from which on the weights of every `swa_every`-th step count alike
    (stochastic weight averaging); `renew_norm` then measures BatchNorm's statistics anew.

    Parameters are averaged, and the statistics of BatchNorm. Other buffers are set, not trained: a
    mask, a temperature. They are copied, and so is a parameter that is not finite (a mask of -inf).
    """

    def __init__(
        self,
        model: nn.Module,
        ema_decay: float | None = None,
        swa_start: int | None = None,
        swa_every: int = 1,
    ):
        if (ema_decay is None) == (swa_start is None):
            raise ConfigError(
                'trainer.ema_decay and trainer.swa_start are two kinds of average: give one of them'
            )
        self._model = bare(model)
        lazy = [name for name, each in self._model.named_parameters() if is_lazy(each)]
        if lazy:
            raise ConfigError(
                f'arch: {lazy[0]} is of a lazy layer, which has no weights to average before its '
                'first forward pass: say its size, or pass one sample through the model in its '
                'constructor'
            )
        self._live = [*self._model.parameters(), *self._model.buffers()]
        self._mine = [tensor.detach().clone() for tensor in self._live]
        statistics = {
            id(each) for each in dist.statistics_of(self._model) if each.is_floating_point()
        }
        averaged, copied = [], []
        with torch.no_grad():
            for mine, live in zip(self._mine, self._live):
                is_trained = isinstance(live, nn.Parameter) or id(live) in statistics
                pair = dist.part(mine), dist.part(live)  # what this process holds of them
                has_mean = pair[1].is_floating_point() or pair[1].is_complex()
                is_averaged = is_trained and has_mean and bool(pair[1].isfinite().all())
                (averaged if is_averaged else copied).append(pair)
        self._averaged, self._copied = _columns(averaged), _columns(copied)
        self.ema_decay, self.is_swa = ema_decay, swa_start is not None
        self.start, self.every = (swa_start, swa_every) if self.is_swa else (1, 1)
        self.has_norm = dist.has_batch_norm(self._model)
        self.n_steps = self.n_averaged = 0
        self._warms_up = True  # a run that the first version began goes on as it began

    @property
    def decay(self) -> float:
        """The share that an EMA keeps at the next step, min(d, (1 + n) / (10 + n)) after n steps.

        Source: tf.train.ExponentialMovingAverage, `num_updates`.
        """
        if not self._warms_up:
            return self.ema_decay
        return min(self.ema_decay, (1 + self.n_averaged) / (10 + self.n_averaged))

    @torch.no_grad()
    def update(self) -> None:
        """To be called after each optimizer step."""
        self.n_steps += 1
        if self.n_steps < self.start or self.n_steps % self.every:
            return
        if self.n_averaged == 0:
            torch._foreach_copy_(*self._averaged)
        else:
            combine = get_swa_multi_avg_fn() if self.is_swa else get_ema_multi_avg_fn(self.decay)
            combine(*self._averaged, self.n_averaged)
        if self._copied[0]:
            torch._foreach_copy_(*self._copied)
        self.n_averaged += 1

    @contextmanager
    def in_model(self):
        """Inside, the model has the averaged weights, once there are any."""
        if not self.n_averaged:
            yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self):
        dist.reshard(self._model)
        for mine, live in zip(self._mine, self._live):
            kept = live.clone()
            live.copy_(mine)
            mine.copy_(kept)

    def renew_norm(self, inputs: Iterable[Any]) -> None:
        """Measure BatchNorm's statistics for averaged weights (SWA; those of an EMA are averaged).

        inputs: what the model is called with, batch by batch: a tensor, or several in any
        structure.
        """
        if not self.is_swa or not self.has_norm or not self.n_averaged:
            return
        of_norms = set(map(id, dist.statistics_of(self._model)))
        others = [buffer for buffer in self._model.buffers() if id(buffer) not in of_norms]
        with self.in_model(), torch.no_grad():
            kept = [buffer.clone() for buffer in others]
            try:
                # Each in a tuple, of which torch takes the first part.
                update_bn(((data,) for data in inputs), self._model)
            finally:
                for buffer, value in zip(others, kept):  # what each training batch changes
                    buffer.copy_(value)

    def tested(self) -> dict | None:
        """The state dict of the averaged weights; None while there are none."""
        if not self.n_averaged:
            return None
        mine = {id(live): mine for live, mine in zip(self._live, self._mine)}
        state = self._model.state_dict(keep_vars=True)
        return {name: mine.get(id(value), value) for name, value in state.items()}

    def is_of(self, model: nn.Module) -> bool:
        return self._model is bare(model)

    def __str__(self) -> str:
        if self.is_swa:
            return f'the mean of the weights of every {self.every}. step from step {self.start} on'
        return f'the moving average of the weights (trainer.ema_decay {self.ema_decay})'

    def as_built(self) -> dict:
        return {'ema_decay': self.ema_decay, 'start': self.start, 'every': self.every}

    def state_dict(self) -> dict:
        """The counts; the weights stand in a checkpoint as `tested`."""
        counts = {'n_steps': self.n_steps, 'n_averaged': self.n_averaged}
        return {**counts, 'warms_up': self._warms_up}

    def load_state_dict(self, state: dict) -> None:
        """state: of `state_dict`, with the weights as 'model' when there are any."""
        self.n_steps, self.n_averaged = state['n_steps'], state['n_averaged']
        self._warms_up = state.get('warms_up', False)
        if not state.get('model'):
            return
        self._exchange()
        try:
            load_weights(self._model, state['model'], 'the average of the weights')
        finally:
            self._exchange()


def _columns(pairs):
    return [mine for mine, _ in pairs], [live for _, live in pairs]


def average_of(model: nn.Module, settings: SimpleNamespace, len_epoch: int) -> Average | None:
    """The average that the trainer section asks for, or None; trainer.swa_start counts epochs."""
    decay, swa_start = settings.ema_decay, settings.swa_start
    if decay is None and swa_start is None:
        return None
    return Average(model, decay, swa_start and swa_start * len_epoch, len_epoch)
