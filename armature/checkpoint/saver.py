"""Saver: brings a run's state to the disk, in one file or in a part from each process, and decides what a failure to do so means."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from armature.checkpoint import files as checkpoint
from armature.errors import CheckpointError
from armature.processes import dist


class Saver:
    """Writes into `folder`; to be called in all processes together.

    is_sharded, in_background: see armature/checkpoint/sharded.py; one checkpoint is under way at a time. stops: whether a checkpoint that cannot be
    written is an error, or only a warning.
    """

    def __init__(
        self,
        folder: Path,
        logger: logging.Logger,
        *,
        is_sharded: bool = False,
        in_background: bool = False,
        stops: bool = True,
    ):
        self.folder, self.logger = folder, logger
        self.is_sharded, self.in_background, self.stops = is_sharded, in_background, stops
        self._writing = None
        self.n_begun = 0  # sharded checkpoints

    def write(self, state: dict, names: list[str]) -> bool:
        """Write `state` under `names`; False when it could not be written and that is not to stop the training."""
        paths = [self.folder / name for name in names]
        with self._failures() as failures:
            if self.is_sharded:
                self._write_parts(state, paths)
            else:
                dist.on_main(checkpoint.save, dist.whole(state), *paths)
        return not failures

    def _write_parts(self, state: dict, paths: list[Path]) -> None:
        from armature.checkpoint import sharded  # torch's own part takes a while to import

        self.finish()
        head, tensors, places = sharded.take_out(state)
        head = copy.deepcopy(dist.whole(head))  # the training may go on before it is written

        def write_head(folder: str, files: dict[str, str]) -> None:
            shards = {'folder': folder, 'files': files, 'tensors': places}
            dist.on_main(checkpoint.save_head, {**head, 'shards': shards}, *paths)

        self.n_begun += 1
        self._writing = sharded.Writing(
            tensors,
            self.folder / f'shards-epoch{state["epoch"]}-step{state["step"]}',
            write_head,
            self.in_background,
        )
        if not self.in_background:
            self.finish()

    @property
    def is_under_way(self) -> bool:
        """Whether a checkpoint is on its way to the disk."""
        return self._writing is not None and self._writing.is_under_way

    def finish(self) -> None:
        """Wait for a checkpoint that is under way, and take notice of what became of it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            with self._failures():
                writing.finish()

    @contextmanager
    def _failures(self) -> Iterator[list]:
        caught = []
        try:
            yield caught
        except CheckpointError as error:
            if self.stops:
                raise
            caught.append(error)
            self.logger.warning(f'{error}\nGoing on without it (trainer.on_save_error is "warn").')
