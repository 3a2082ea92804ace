"""TensorboardWriter: the only user of SummaryWriter; silent when TensorBoard is off, and never the reason a run stops."""

import logging
from functools import cached_property
from pathlib import Path
from typing import Any


class TensorboardWriter:
    """Passes `add_scalar`, `add_image` and every other `add_*` on to TensorBoard, with the current step and mode.

    `set_step(step, mode)` says which step the next calls belong to; the tag becomes 'tag/mode', except for histograms and embeddings.
    purge_step: the first step of a resumed run; what an interrupted run wrote from there on is hidden.
    """

    UNTAGGED = ('add_histogram', 'add_embedding')
    UNSTEPPED = ('add_graph', 'add_hparams')

    def __init__(
        self,
        log_dir: str | Path,
        logger: logging.Logger,
        enabled: bool,
        purge_step: int | None = None,
    ):
        self.logger = logger
        self.step, self.mode = 0, ''
        self._failed = set()
        self._enabled, self._log_dir, self._purge_step = enabled, str(log_dir), purge_step

    @cached_property
    def writer(self) -> Any:
        """TensorBoard's SummaryWriter, opened when the first thing is written; None when TensorBoard is off or not there."""
        if not self._enabled:
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter

            return SummaryWriter(self._log_dir, purge_step=self._purge_step)
        except (ImportError, OSError) as error:
            self.logger.warning(f'TensorBoard is off: {error}')
            return None

    def set_step(self, step: int, mode: str = 'train') -> None:
        self.step, self.mode = step, mode

    def flush(self) -> None:
        if 'writer' in vars(self):
            self._write('flush')

    def close(self) -> None:
        if 'writer' in vars(self):
            self._write('close')

    def __getattr__(self, name: str) -> Any:
        if not name.startswith('add_'):
            raise AttributeError(f'TensorboardWriter has no {name!r}')

        def add(tag: Any, data: Any, *args: Any, **kwargs: Any) -> None:
            if name in self.UNSTEPPED:
                self._write(name, tag, data, *args, **kwargs)
                return
            if self.mode and name not in self.UNTAGGED:
                tag = f'{tag}/{self.mode}'
            self._write(name, tag, data, *args, **{'global_step': self.step, **kwargs})

        return add

    def _write(self, name: str, *args: Any, **kwargs: Any) -> None:
        if self.writer is None:
            return
        method = getattr(
            self.writer, name
        )  # a name that TensorBoard does not know is the caller's mistake
        try:
            method(*args, **kwargs)
        except (
            Exception
        ) as error:  # a full disk, a tensor it cannot draw: the training is worth more
            if name not in self._failed:
                self._failed.add(name)
                self.logger.warning(
                    f'TensorBoard: {name} failed, going on: {type(error).__name__}: {error}'
                )
