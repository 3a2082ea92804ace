"""TensorboardWriter: the only user of SummaryWriter; it is never the reason that a run stops."""

import inspect
import logging
from functools import cached_property
from pathlib import Path
from typing import Any


class TensorboardWriter:
    """Passes every `add_*` of torch's SummaryWriter on, with the current step unless one is given.

    `set_step(step, mode)` says which step the next calls belong to; the tag becomes 'tag/mode',
    except for histograms and embeddings. Where TensorBoard is off, all of it does nothing.
    purge_step: the first step of a resumed run; what was written from there on before is hidden.
    """

    UNTAGGED = ('add_histogram', 'add_embedding')

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
        """The SummaryWriter, opened when the first thing is written; None when it is off."""
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

        def add(*args: Any, **kwargs: Any) -> None:
            if self.writer is None:
                return
            # A method or an argument that TensorBoard does not know is the caller's mistake.
            signature = inspect.signature(getattr(self.writer, name))
            given = signature.bind(*args, **kwargs)
            tag = 'main_tag' if 'main_tag' in signature.parameters else 'tag'
            if self.mode and tag in given.arguments and name not in self.UNTAGGED:
                given.arguments[tag] = f'{given.arguments[tag]}/{self.mode}'
            if 'global_step' in signature.parameters and name != 'add_hparams':
                given.arguments.setdefault('global_step', self.step)
            self._write(name, **given.arguments)

        return add

    def _write(self, name: str, **arguments: Any) -> None:
        if self.writer is None:
            return
        try:
            getattr(self.writer, name)(**arguments)
        except Exception as error:  # a full disk: the training is worth more
            if name not in self._failed:
                self._failed.add(name)
                self.logger.warning(
                    f'TensorBoard: {name} failed, going on: {type(error).__name__}: {error}'
                )
