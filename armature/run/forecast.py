"""Forecast: what a run is going to take, said at its beginning: steps, learning rate, time, disk."""

import shutil
from typing import Any

from armature.checkpoint.weights import bare

MAX_STEPS_PLANNED = 20_000  # the schedule of a longer run would take noticeable time to try out


class Forecast:
    """Two lines in the log of a trainer: when its first epoch begins, and when the first steps have been timed."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self._begun = self._timed = False

    def begin(self) -> None:
        """To be called when training begins; says it once."""
        if not self._begun:
            self._begun = True
            self.trainer.logger.info(f'{self._length()}; {self._learning_rate()}; {self._disk()}')
            self._warn_of_disk()

    def after_steps(self, seconds: float, n_steps: int) -> None:
        """To be called with the time that some steps took; the first ones are not counted, for they warm up."""
        if self._timed or n_steps < 1 or self.trainer.step < 2:
            return
        self._timed = True
        per_epoch = seconds / n_steps * self.trainer.len_epoch
        left = seconds / n_steps * self.n_steps_left
        self.trainer.logger.info(
            f'About {show_time(per_epoch)} an epoch without validation, {show_time(left)} to go at most'
        )

    @property
    def n_steps_left(self) -> int:
        trainer = self.trainer
        n_steps = trainer.epochs * trainer.len_epoch
        return max(0, int(min(n_steps, trainer._max_steps)) - trainer.step)

    def _length(self) -> str:
        trainer = self.trainer
        return f'{trainer.epochs} epochs of {trainer.len_epoch} steps' + (
            f', {trainer._max_steps} steps at most'
            if trainer._max_steps < trainer.epochs * trainer.len_epoch
            else ''
        )

    def _learning_rate(self) -> str:
        schedule, n_steps = self.trainer.schedule, self.n_steps_left
        now = self.trainer.optimizer.param_groups[0]['lr']
        if schedule.on_plateau or n_steps > MAX_STEPS_PLANNED:
            return f'learning rate {float(now):.3g}, then by the schedule'
        rates = [float(rate) for rate in schedule.planned(n_steps, self.trainer.len_epoch)]
        if not rates or min(rates) == max(rates):
            return f'learning rate {float(now):.3g}'
        return f'learning rate {rates[0]:.3g} first, {max(rates):.3g} at most, {rates[-1]:.3g} last'

    def _bytes(self) -> int:
        """What the checkpoints of the run will take, roughly: weights, two numbers for each from the optimizer, the average."""
        trainer = self.trainer
        weights = sum(
            tensor.numel() * tensor.element_size()
            for tensor in bare(trainer.model).state_dict().values()
            if hasattr(tensor, 'numel')
        )
        n_epochs = (trainer.epochs - trainer.epochs_done) // trainer.save_period
        n_files = min(n_epochs, trainer.config['trainer'].get('keep_last') or n_epochs) + 2
        return n_files * weights * (3 + (trainer.weight_average is not None))

    def _disk(self) -> str:
        free = shutil.disk_usage(self.trainer.checkpoint_dir).free
        return f'checkpoints {show_bytes(self._bytes())} of {show_bytes(free)} free'

    def _warn_of_disk(self) -> None:
        free = shutil.disk_usage(self.trainer.checkpoint_dir).free
        if self._bytes() > free:
            self.trainer.logger.warning(
                f'The checkpoints will need about {show_bytes(self._bytes())}, and {show_bytes(free)} are free: '
                'trainer.keep_last keeps fewer, a larger trainer.save_period writes fewer'
            )


def show_time(seconds: float) -> str:
    if seconds < 90:
        return f'{seconds:.3g} s'
    return f'{seconds / 60:.0f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'


def show_bytes(n_bytes: int) -> str:
    for unit in ('B', 'kB', 'MB', 'GB'):
        if n_bytes < 1000:
            return f'{n_bytes:.3g} {unit}'
        n_bytes /= 1000
    return f'{n_bytes:.3g} TB'
