"""Stepper: from losses to optimizer steps.

Precision, micro-batches and clipping live here, not in the loop.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch

from armature.batch import NO_BATCH, Batch, length
from armature.config.keys import SCHEDULER, settings_of
from armature.errors import ConfigError, NonFiniteError
from armature.processes import dist
from armature.step.average import Average, average_of
from armature.step.buffers import KeptBuffers
from armature.step.micro_batches import MicroBatches, weighted
from armature.step.optimizers import clip_values, needs_closure, refuse_combinations
from armature.step.schedule import Schedule

DTYPES = {'fp32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}


class Stepper:
    """One optimizer step for each batch, whatever the number of micro-batches.

    microbatch_size: samples that go through the model at once.
    max_grad_norm: 2-norm of all gradients above which they are scaled down to it. max_grad_value:
    bound of each gradient.
    max_skips: leave out steps whose loss or gradients are not finite, at most so many in a row
    (this reads a number from the device at each step); None takes them.
    average: is updated after each step.
    model: what the gradients are of; where several processes train, those of its parameters are
    shared as it is wrapped (armature/processes/dist.py), those of other parameters of the optimizer
    by the stepper itself. criterion: the loss. It says how the losses over parts of a batch add up
    (armature/step/micro_batches.py; without one they are means over samples); both are called by
    optimizers that evaluate the loss several times a step (LBFGS), and by 'auto'.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule | None = None,
        *,
        device: torch.device | str = 'cpu',
        precision: str = 'fp32',
        microbatch_size: int | str | None = None,
        max_grad_norm: float | None = None,
        max_grad_value: float | None = None,
        max_skips: int | None = None,
        average: Average | None = None,
        model: torch.nn.Module | None = None,
        criterion: Callable | None = None,
    ):
        self.optimizer, self.schedule = optimizer, schedule or Schedule(None)
        self.model, self.criterion, self.average = model, criterion, average
        self.max_grad_norm, self.max_grad_value = max_grad_norm, max_grad_value
        self.clips = max_grad_norm is not None or max_grad_value is not None
        self.max_skips = max_skips
        self.device, self.dtype = torch.device(device), DTYPES[precision]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == 'fp16')
        self.needs_closure = needs_closure(optimizer)
        refuse_combinations(optimizer, model, changes_gradients=self.clips or precision == 'fp16')
        self._micro_batches = MicroBatches(
            microbatch_size, self.device, model, criterion, self.loss_of
        )
        self._unsynced = dist.unsynced(self._parameters(), model)
        has_norm = max_grad_norm is not None or max_skips is not None
        if self._unsynced and has_norm and dist.is_sharded(model):
            raise ConfigError(
                'a loss with weights of its own has no gradient norm together with a model in '
                'parts (distributed.strategy "fsdp"): leave trainer.max_grad_norm and on_nan '
                '"skip" out, or say "ddp"'
            )
        self._is_first = True
        # Of the current batch:
        self.batch = NO_BATCH  # what is known of it, see armature/batch.py
        self.loss = None  # so far, a 0-dim tensor
        self.grad_norm = None  # of the last step before clipping, a 0-dim tensor
        self._given = None  # (content, batch), for a closure only
        self._kept = KeptBuffers()  # as before it: a step that is left out leaves no trace
        self.n_skipped = self.n_skipped_in_a_row = 0

    @classmethod
    def from_config(
        cls,
        config: Any,
        model: torch.nn.Module,
        criterion: Callable,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any = None,
        len_epoch: int = 1,
    ) -> 'Stepper':
        """The stepper that the sections `trainer` and `lr_scheduler` describe, on the model's
        device.
        """
        settings = settings_of(config['trainer'])
        schedule = settings_of(config.get('lr_scheduler'), SCHEDULER)
        monitored = settings.monitor.partition(' ')[2].strip()
        return cls(
            optimizer,
            Schedule(lr_scheduler, schedule.interval, monitored, schedule.warmup_steps or 0),
            device=next(model.parameters()).device,
            precision=settings.precision,
            microbatch_size=settings.microbatch_size,
            max_grad_norm=settings.max_grad_norm,
            max_grad_value=settings.max_grad_value,
            max_skips=settings.max_nan_skips if settings.on_nan == 'skip' else None,
            average=average_of(model, settings, len_epoch),
            model=model,
            criterion=criterion,
        )

    @property
    def microbatch_size(self) -> int | None:
        """Of a part now, for a second stepper; None: the whole batch."""
        return self._micro_batches.size

    def micro_batches(self, content: Any) -> Iterator[Any]:
        """The parts of a batch one after the other; one unless it is larger than `microbatch_size`.

        content: as `batches()` gave it. The contract is in armature/batch.py.
        """
        batch = self.batch if self.batch.n_samples else Batch(content, length(content))
        self.loss = None
        if self.max_skips is not None:
            self._kept = KeptBuffers(self.model, self.criterion)
        if self.needs_closure:
            self._given = content, batch
        return self._micro_batches.of(content, batch)

    def autocast(self):
        """The context of the forward pass: lower precision where it is safe, when asked for."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    def loss_of(self, data: Any, target: Any) -> Any:
        """What the loss function gives for a micro-batch, as a loop computes it."""
        with self.autocast():
            return self.criterion(self.model(data), target)

    def backward(self, loss: Any) -> None:
        """Add the gradients of the current micro-batch's loss: one number, or one and its parts."""
        loss = weighted(loss, self._micro_batches.weight)
        self.loss = loss.detach() if self.loss is None else self.loss + loss.detach()
        self.scaler.scale(loss).backward()

    def step(self) -> None:
        """One optimizer step with the gradients so far; afterwards there are none."""
        parameters = self._parameters()
        if self._is_first:  # the next one would not end
            self._is_first = False
            dist.refuse_unused(self.model)
        dist.mean_gradients(self._unsynced)
        if self.clips or self.max_skips is not None:
            self.scaler.unscale_(self.optimizer)
        if self.max_grad_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
            self.grad_norm = dist.whole(norm)
        if self.max_grad_value is not None:
            clip_values(parameters, self.max_grad_value)
        if self.max_skips is None or self._is_finite(parameters):
            closure = [self._closure()] if self.needs_closure else []
            self.scaler.step(self.optimizer, *closure)  # one that is off passes on the call
        self.scaler.update()
        for parameter in parameters:
            # As optimizer.zero_grad() does, whose bookkeeping for profilers costs 4 microseconds
            parameter.grad = None
        self.schedule.step()  # counts; it moves a rate with interval "step" or in a warm-up
        if self.average is not None:
            self.average.update()

    def tested_weights(self):
        """Inside, the model has the weights that are validated.

        The averaged ones, where there are any.
        """
        return nullcontext() if self.average is None else self.average.in_model()

    def end_epoch(self, log: dict) -> None:
        """To be called with the epoch's averages: the schedule may step by them."""
        self.schedule.end_epoch(log)

    def _parameters(self):
        return [parameter for group in self.optimizer.param_groups for parameter in group['params']]

    def _is_finite(self, parameters):
        """Whether this step is, in all processes; one that is not leaves no trace."""
        is_finite = self.loss.isfinite()
        if not self.scaler.is_enabled():  # which judges gradients itself
            gradients = [each.grad for each in parameters if each.grad is not None]
            is_finite &= dist.whole(torch.nn.utils.get_total_norm(gradients)).isfinite()
        if all(dist.gather(is_finite.item())):
            self.n_skipped_in_a_row = 0
            return True
        self.n_skipped += 1
        self.n_skipped_in_a_row += 1
        self._kept.put_back()
        if self.n_skipped_in_a_row > self.max_skips:
            raise NonFiniteError(
                f'{self.n_skipped_in_a_row} steps in a row had a loss or gradients that are not '
                f'finite (trainer.max_nan_skips is {self.max_skips}): look at the learning rate '
                'and the data'
            )
        return False

    def _closure(self):
        """What torch.optim.LBFGS calls.

        The first time the gradients are there already, then they are computed again.
        """
        first = [self.loss]

        @torch.enable_grad()
        def closure():
            if first:
                return first.pop()
            self.optimizer.zero_grad()
            total = 0.0
            for part in self._micro_batches.of(*self._given):
                loss = weighted(self.loss_of(*part), self._micro_batches.weight)
                loss.backward()
                total += loss.detach()
            return total

        return closure

    def state_dict(self) -> dict:
        return {
            'scaler': self.scaler.state_dict(),
            'n_skipped': self.n_skipped,
            'n_skipped_in_a_row': self.n_skipped_in_a_row,
            'microbatch_size': self.microbatch_size,
        }

    def load_state_dict(self, state: dict) -> None:
        self.n_skipped, self.n_skipped_in_a_row = state['n_skipped'], state['n_skipped_in_a_row']
        if state['scaler']:
            self.scaler.load_state_dict(state['scaler'])
        if self._micro_batches.is_auto:
            self._micro_batches.size = state.get('microbatch_size')
