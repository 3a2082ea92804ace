"""Average: the average of a model's weights over the steps, which is validated and tested."""

from collections.abc import Iterable
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from armature.checkpoint.weights import bare, load_weights, sizeless
from armature.errors import ConfigError
from armature.processes import dist
from armature.step.buffers import KeptBuffers


class Average:
    """The average of the weights of `model`; to be updated after each optimizer step.

    ema_decay: the average keeps this share of itself at each step (exponential moving average). It
    keeps less in the first steps, or it would be the untrained weights for long: the smaller of
    that and (1 + n) / (10 + n) after n steps (tf.train.ExponentialMovingAverage, `num_updates`).
    swa_start: the step from which on the weights of every `swa_every`-th step count alike
    (stochastic weight averaging); `renew_norm` then measures BatchNorm's statistics anew.

    Parameters are averaged, and the statistics of BatchNorm. Other buffers are set, not trained: a
    mask, a temperature. They stay as they are, as does a parameter that is not finite (a mask of
    -inf).
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
        self.ema_decay, self.is_swa = ema_decay, swa_start is not None
        self.start, self.every = (swa_start, swa_every) if self.is_swa else (1, 1)
        self.n_steps = self.n_averaged = 0
        self._warms_up = True  # a run that the first version began goes on as it began
        self.model = bare(model)
        if lazy := sizeless(self.model):
            raise ConfigError(
                f'arch: {lazy[0]} is of a lazy layer, which has no weights to average before its '
                'first forward pass: say its size, or pass one sample through the model in its '
                'constructor'
            )
        trained = [*self.model.parameters(), *_statistics_of(dist.norms_of(self.model))]
        with torch.no_grad():
            # {tensor of the model: its average}. The parameters themselves, and not what they
            # hold: somebody may exchange their data.
            self._mine = {each: each.detach().clone() for each in trained if _has_mean(each)}
            both = self._mine.values(), self._mine
            self._parts = [[dist.part(each) for each in tensors] for tensors in both]

    @torch.no_grad()
    def update(self) -> None:
        """To be called after each optimizer step."""
        self.n_steps += 1
        if self.n_steps < self.start or self.n_steps % self.every:
            return
        n = self.n_averaged
        if n == 0:
            torch._foreach_copy_(*self._parts)
        elif self.is_swa:
            get_swa_multi_avg_fn()(*self._parts, n)
        else:
            warmup = (1 + n) / (10 + n) if self._warms_up else 1
            get_ema_multi_avg_fn(min(self.ema_decay, warmup))(*self._parts, n)
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
        dist.reshard(self.model)
        for live, mine in self._mine.items():
            kept = live.clone()
            live.copy_(mine)
            mine.copy_(kept)

    @torch.no_grad()
    def renew_norm(self, inputs: Iterable[Any]) -> None:
        """Measure BatchNorm's statistics for averaged weights (SWA; those of an EMA are averaged).

        Only those that training passes move: a norm in eval mode, or that no pass reaches, keeps
        its own. inputs: what the model is called with, batch by batch: a tensor, or several in any
        structure.
        """
        if not self.is_swa or not self.n_averaged:
            return
        model, is_training, moved = self.model, self.model.training, set()
        if not is_training:  # a loop that trains may have left some layers in eval mode
            model.train()
        norms = [
            each
            for each in dist.norms_of(model)
            if each.training and each.num_batches_tracked is not None
        ]
        momenta = [norm.momentum for norm in norms]
        with self.in_model():
            kept = KeptBuffers(model)
            try:
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # the mean over all batches
                for data in inputs:
                    model(data)
                reached = [norm for norm in norms if norm.num_batches_tracked]
                moved = set(_statistics_of(reached))
            finally:
                for norm, momentum in zip(norms, momenta):
                    norm.momentum = momentum
                kept.put_back(but=moved & self._mine.keys())
                if not is_training:
                    model.eval()

    def tested(self) -> dict | None:
        """The state dict of the averaged weights; None while there are none."""
        if not self.n_averaged:
            return None
        state = self.model.state_dict(keep_vars=True)
        return {
            name: self._mine.get(value, value) if torch.is_tensor(value) else value
            for name, value in state.items()
        }

    def __str__(self) -> str:
        if self.is_swa:
            return f'the mean of the weights of every {self.every}. step from step {self.start} on'
        return f'the moving average of the weights (trainer.ema_decay {self.ema_decay})'

    def as_built(self) -> dict:
        return {'ema_decay': self.ema_decay, 'start': self.start, 'every': self.every}

    def count_from(self, n_epochs: int, n_steps: int) -> None:
        """Count the steps anew (SWA): so many epochs of `swa_every`, and those of the next one.

        A ConfigError when the average would then hold other weights than it does.
        """
        if not self.is_swa:
            return
        self.n_steps = n_epochs * self.every + n_steps
        due = max(0, self.n_steps // self.every - (self.start - 1) // self.every)
        if due not in (0, self.n_averaged):
            first = self.start // self.every
            raise ConfigError(
                f'trainer.swa_start is {first}: the weights after {due} epochs that are behind us '
                f'would be in the average, which holds those of {self.n_averaged}. They cannot be '
                f'averaged anew: keep it as it was, or say at least {first + due}'
            )
        self.n_averaged = due

    def state_dict(self) -> dict:
        """The counts; the weights stand in a checkpoint as `tested`."""
        return {
            'n_steps': self.n_steps,
            'n_averaged': self.n_averaged,
            'warms_up': self._warms_up,
        }

    def load_state_dict(self, state: dict) -> None:
        """state: of `state_dict`, with the weights as 'model' when there are any."""
        self.n_steps, self.n_averaged = state['n_steps'], state['n_averaged']
        self._warms_up = state.get('warms_up', False)
        if self.n_averaged:
            with self.in_model():
                load_weights(self.model, state['model'], 'the average of the weights')


def _statistics_of(norms):
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


def _has_mean(tensor):
    is_continuous = tensor.is_floating_point() or tensor.is_complex()
    return is_continuous and bool(dist.part(tensor).isfinite().all())


def average_of(model: nn.Module, settings: SimpleNamespace, len_epoch: int) -> Average | None:
    """The average that the trainer section asks for, or None; trainer.swa_start counts epochs."""
    decay, swa_start = settings.ema_decay, settings.swa_start
    if decay is None and swa_start is None:
        return None
    return Average(model, decay, swa_start and swa_start * len_epoch, len_epoch)
