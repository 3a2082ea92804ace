"""Average: the average of a model's weights over the steps of a run, which is then what is validated and tested."""

from collections.abc import Iterable
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

from armature.checkpoint.weights import bare, load_weights
from armature.errors import ConfigError
from armature.processes import dist


class Average:
    """The average of the weights of `model` over its steps; to be updated after each optimizer step.

    ema_decay: the average keeps this share of itself at each step (exponential moving average).
    swa_start: the step from which on the weights of every `swa_every`-th step count alike (stochastic weight averaging).
    Floating point buffers are averaged too, others copied. For SWA, `renew_norm` measures the running statistics anew.
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
        self._live = [*self._model.parameters(), *self._model.buffers()]
        self._mine = [tensor.detach().clone() for tensor in self._live]
        with torch.no_grad():  # what this process holds of each
            pairs = [
                (dist.part(mine), dist.part(live)) for mine, live in zip(self._mine, self._live)
            ]
        self._averaged = _columns(pair for pair in pairs if pair[0].is_floating_point())
        self._copied = _columns(pair for pair in pairs if not pair[0].is_floating_point())
        self.is_swa = swa_start is not None
        self.start, self.every = (swa_start, swa_every) if self.is_swa else (1, 1)
        self._combine = get_swa_multi_avg_fn() if self.is_swa else get_ema_multi_avg_fn(ema_decay)
        self.has_norm = dist.has_batch_norm(self._model)
        self.n_steps = self.n_averaged = 0

    @torch.no_grad()
    def update(self) -> None:
        """To be called after each optimizer step."""
        self.n_steps += 1
        if self.n_steps < self.start or self.n_steps % self.every:
            return
        if self.n_averaged == 0:
            torch._foreach_copy_(*self._averaged)
        else:
            self._combine(*self._averaged, self.n_averaged)
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
    def _exchange(self) -> None:
        dist.reshard(self._model)
        for mine, live in zip(self._mine, self._live):
            kept = live.clone()
            live.copy_(mine)
            mine.copy_(kept)

    def renew_norm(self, inputs: Iterable[torch.Tensor]) -> None:
        """Measure the running statistics of BatchNorm for averaged weights (SWA; those of an EMA follow the steps)."""
        if self.is_swa and self.has_norm and self.n_averaged:
            with self.in_model():
                update_bn(inputs, self._model)

    def state_dict(self) -> dict:
        mine = {id(live): mine for mine, live in zip(self._mine, self._live)}
        weights = {
            name: mine.get(id(value), value)
            for name, value in self._model.state_dict(keep_vars=True).items()
        }
        return {'n_steps': self.n_steps, 'n_averaged': self.n_averaged, 'model': weights}

    def load_state_dict(self, state: dict) -> None:
        self.n_steps, self.n_averaged = state['n_steps'], state['n_averaged']
        self._exchange()
        try:
            load_weights(self._model, state['model'], 'the average of the weights')
        finally:
            self._exchange()


def _columns(pairs: Iterable[tuple]) -> tuple[list, list]:
    pairs = list(pairs)
    return [mine for mine, _ in pairs], [live for _, live in pairs]


def average_of(model: nn.Module, settings: SimpleNamespace, len_epoch: int) -> Average | None:
    """The average that the trainer section asks for, None when it asks for none; trainer.swa_start counts epochs."""
    decay, swa_start = settings.ema_decay, settings.swa_start
    if decay is None and swa_start is None:
        return None
    return Average(model, decay, swa_start and swa_start * len_epoch, len_epoch)
