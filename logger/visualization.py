"""TensorboardWriter: the only user of SummaryWriter; it is never the reason that a run stops."""

import inspect
import logging
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from armature.config.keys import hyperparameters
from armature.run.plots import pixels_of

signature_of = cache(inspect.signature)  # looking takes longer than writing


class TensorboardWriter:
    """Passes `flush` and each `add_*` of torch's SummaryWriter on, with the current step unless one
    is given.

    `set_step(step, mode)` says which step the next calls belong to; the tag becomes 'tag/mode',
    except for histograms and embeddings. Where TensorBoard is off, all of it does nothing.
    purge_step: the first step that is to come; what was written from there on before is hidden.
    trackers: of armature/run/trackers.py, which are sent scalars and figures too, whether
    TensorBoard is on or off.
    """

    UNTAGGED = ('add_histogram', 'add_embedding')

    def __init__(
        self,
        log_dir: str | Path,
        logger: logging.Logger,
        enabled: bool,
        purge_step: int | None = None,
        trackers: Any = None,
    ):
        self.logger = logger
        self.step, self.mode = 0, ''
        self._trackers = trackers
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

    def begin(self, config: dict) -> None:
        """Say what is about to be trained: to the trackers, and to TensorBoard's HPARAMS.

        config: as it was read.
        """
        if self._trackers:
            self._trackers.begin(config)
        if self.writer is not None:
            from torch.utils.tensorboard.summary import hparams

            # add_hparams would make a run of its own, beside the one with the scalars.
            _, begun, _ = hparams(hyperparameters(config), {})
            self._safely('begin', self.writer.file_writer.add_summary, begun)

    def best(self, values: dict[str, float]) -> None:
        """What the best epoch so far reported."""
        self.mode = ''
        for name, value in values.items():
            self.add_scalar(f'best/{name}', value)

    def set_step(self, step: int, mode: str = 'train') -> None:
        self.step, self.mode = step, mode

    def close(self) -> None:
        if vars(self).get('writer') is not None:  # opens none
            self._safely('close', self.writer.close)
        if self._trackers:  # last: they may take a while, and a cluster does not wait for ever
            self._trackers.close()

    def __getattr__(self, name: str) -> Any:
        if not name.startswith('add_') and name != 'flush':
            raise AttributeError(f'TensorboardWriter has no {name!r}')

        def add(*args: Any, **kwargs: Any) -> None:
            if self._trackers and name in ('add_scalar', 'add_figure'):
                self._safely(name, self._track, *args, **kwargs)
            if name == 'flush' and 'writer' not in vars(self):
                return  # nothing has been written
            if self.writer is None:
                return
            # A method or an argument that TensorBoard does not know is the caller's mistake.
            method = getattr(type(self.writer), name)
            signature = signature_of(method)
            given = signature.bind(self.writer, *args, **kwargs)
            tag = 'main_tag' if 'main_tag' in signature.parameters else 'tag'
            if tag in given.arguments and name not in self.UNTAGGED:
                given.arguments[tag] = self._tag(given.arguments[tag])
            if 'global_step' in signature.parameters and name != 'add_hparams':
                given.arguments.setdefault('global_step', self.step)
            self._safely(name, method, *given.args, **given.kwargs)

        return add

    def _tag(self, tag: str) -> str:
        return f'{tag}/{self.mode}' if self.mode else tag

    def _track(self, tag, scalar_value=None, global_step=None, *_, figure=None, **__) -> None:
        value = scalar_value if figure is None else figure
        value = pixels_of(value) if hasattr(value, 'savefig') else float(value)
        self._trackers.put(self._tag(tag), value, self.step if global_step is None else global_step)

    def _safely(self, name: str, call: Callable, *args: Any, **kwargs: Any) -> None:
        try:
            call(*args, **kwargs)
        except Exception as error:  # a full disk: the training is worth more
            if name not in self._failed:
                self._failed.add(name)
                self.logger.warning(
                    f'TensorBoard: {name} failed, going on: {type(error).__name__}: {error}'
                )
