"""What a checkpoint of a run holds, when it is written, and which ones are kept."""

import logging
import math
import secrets
import shutil
import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from armature.checkpoint import sharded
from armature.checkpoint.files import (
    BEST,
    WEIGHTS,
    load_head,
    moment,
    numbered,
    part_name,
    save,
    save_weights,
    whole_heads,
)
from armature.checkpoint.plain import mapped
from armature.checkpoint.weights import bare
from armature.config.keys import DISTRIBUTED, settings_of
from armature.errors import CheckpointError
from armature.processes import dist
from armature.run.metric_tracker import MetricTracker
from armature.run.record import as_read
from armature.seed import rng_state
from armature.step.average import Average

# Attributes, or names in earlier checkpoints, and the names that their states are saved under.
NAMES = {
    '_monitor': 'monitor',
    'stepper.schedule': 'schedule',
    'stepper.average': 'weight_average',
}
logger = logging.getLogger(__name__)


# What it holds


def state_of(trainer: Any) -> dict:
    """Everything a run needs to go on from here; to be called in all processes together."""
    model, parts, tested = bare(trainer.model), {}, None
    for name, part in stateful_of(trainer).items():
        # What was measured in an epoch that is finished has been reported.
        is_over = isinstance(part, MetricTracker) and not trainer.position
        parts[name] = part.lasting() if is_over else state_of_part(part)
        if isinstance(part, Average) and part.model is model:
            tested = part.tested()
        elif isinstance(part, Average):
            parts[name]['model'] = part.tested()
    rng, *rng_of_others = dist.gather(rng_state(trainer.device))
    return {
        'arch': type(model).__name__,
        'epoch': trainer.epochs_done,
        'state_dict': model.state_dict(),
        'optimizer': getattr(trainer.optimizer, 'state_dict', dict)(),
        'monitor_best': trainer.mnt_best,
        'config': as_read(trainer.config),
        'step': trainer.step,
        'samples': trainer.position * trainer._batch_size(),
        'rates': trainer._epoch.rates,
        'seed': trainer.seed,
        'data': trainer._resume.data_now(),
        'parts': parts,
        'as_built': trainer._resume.as_built,
        'tested': tested,  # the averaged weights, where the live ones are not tested
        'finished': bool(trainer._finished),
        'rng': rng,
        'rng_of_others': rng_of_others,
        'made_by': trainer._resume.made_by,
    }


def state_of_part(part: Any) -> dict:
    """Its state; of a scheduler as plain data: without functions, with that of schedulers in it."""
    state = part.state_dict()
    if not isinstance(part, LRScheduler):
        return state
    return {
        key: state_of_part(value) if isinstance(value, LRScheduler) else value
        for key, value in state.items()
        if not callable(value)
    }


def load_part(part: Any, state: dict) -> None:
    """Load what `state_of_part` gave; the schedulers in it stay the objects that they are."""
    if isinstance(part, LRScheduler):
        for key, value in part.state_dict().items():  # one's own may hold plain data already
            if isinstance(value, LRScheduler) and key in state:
                load_part(value, state[key])
                state = {**state, key: value}
    part.load_state_dict(state)


def stateful_of(trainer: Any) -> dict[str, Any]:
    """Every object with state that is an attribute of `trainer`, by its name.

    Also an entry of a list, tuple or dict there. The model and the optimizer are left out:
    checkpoints have keys of their own for them.
    """
    found = {}
    # history: a row of numbers for each epoch, which looking through would take longer each time
    known = trainer.model, bare(trainer.model), trainer.optimizer, trainer.history
    seen = set(map(id, known))

    def visit(name, value):
        if id(value) in seen:
            return
        if hasattr(value, 'state_dict') and hasattr(value, 'load_state_dict'):
            seen.add(id(value))
            found[NAMES.get(name, name)] = value
        elif isinstance(value, dict):
            for key, each in value.items():
                visit(f'{name}.{key}', each)
        elif isinstance(value, (list, tuple)):
            visit(name, dict(enumerate(value)))

    for name, value in vars(trainer).items():
        visit(name, value)
    for held in ('schedule', 'average', 'scheduler'):  # of a stepper, of its schedule
        for name, value in list(found.items()):
            visit(f'{name}.{held}', getattr(value, held, None))
    return found


# When it is written


class Saver:
    """Brings the state of a run to the disk; to be called in all processes together.

    The checkpoints in a folder are one line: each is a later moment of the same training.
    settings: the section `trainer`, with its defaults; sharing: the section `distributed`.
    """

    def __init__(self, folder: Path, settings: Any, sharing: dict | None = None):
        self.folder, self.settings = folder, settings
        # Each process writes its part.
        self.is_sharded = (
            dist.is_joined() and settings_of(sharing, DISTRIBUTED).checkpoint == 'sharded'
        )
        self.saved = None  # the moment of the newest
        self.line = {'best': None, 'parent': None}  # (epochs, steps), file that it went on from
        self._best_elsewhere = None  # the moment of that of another folder, which it came from
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        minutes = self.settings.save_every_minutes or math.inf
        return time.monotonic() >= self._saved_at + 60 * minutes

    def go_on_from(self, state: dict, path: Path) -> None:
        """The run goes on from `state`, which was read from `path`: in its line, when that is in
        this folder, else in a new one that names its parent."""
        line = state.get('run') or {}
        if path.resolve().parent == self.folder.resolve():
            self.line |= line
        else:
            self.line['parent'] = str(path)
            self._best_elsewhere = line.get('best')

    def bring_best(self) -> None:
        """Bring the best of a line that goes on in a new folder there, in one process."""
        best = self._best_elsewhere
        if best is None:
            return
        folder = Path(self.line['parent']).resolve().parent
        for head in whole_heads([folder / BEST, folder / f'checkpoint-epoch{best[0]}.pth']):
            with suppress(CheckpointError, OSError):
                if moment(head) == best:
                    if head.get('shards'):
                        parts = head['shards']['folder']
                        shutil.copytree(folder / parts, self.folder / parts)
                    self._write_and_prune(head, [self.folder / BEST])
                    self.line['best'] = best
                    return
        logger.warning(
            f'{folder} cannot give the best of this line, that of epoch {best[0]}: there is no '
            f'{BEST} until an epoch is better'
        )

    def write(self, state: dict, names: list[str]) -> bool:
        """Write `state` under `names`; False when it could not be written and that is not to stop
        the training."""
        line = self.line
        if BEST in names:
            line = {**line, 'best': moment(state)}
        state = {**state, 'run': line}
        try:
            if self.is_sharded:
                state = self._with_parts_written(state)
            whole = mapped(state, lambda value, _: dist.whole(value, only_in_main=True))
            dist.on_main(self._write_and_prune, whole, [self.folder / name for name in names])
        except CheckpointError as error:
            if self.settings.on_save_error == 'stop':
                raise
            logger.warning(f'{error}\nGoing on without it (trainer.on_save_error is "warn").')
            return False
        self.saved, self.line = moment(state), line
        self._saved_at = time.monotonic()
        return True

    def _with_parts_written(self, state):
        """The head of `state`; what each process holds of the rest is written, in a new folder."""
        token = dist.on_main(secrets.token_hex, 4)
        folder = self.folder / f'shards-epoch{state["epoch"]}-step{state["step"]}-{token}'
        head, part = sharded.split(state)
        problem = None
        try:
            folder.mkdir(exist_ok=True)
            save({'state_dict': part}, folder / part_name(dist.rank()))
        except (OSError, CheckpointError) as error:
            problem = str(error)
        for said in filter(None, dist.gather(problem)):
            dist.on_main(shutil.rmtree, folder, True)
            raise CheckpointError(said)
        head['shards'] |= {'folder': folder.name, 'n_parts': dist.n_processes()}
        return head

    def _write_and_prune(self, state, paths):
        best = self.folder / BEST
        # First, so that a kill leaves none that are older than the best; a resume repeats the step.
        is_for_use = best in paths or (state.get('finished') and not best.exists())
        if is_for_use and not state.get('shards'):
            save_weights(state, self.folder / WEIGHTS)
        save(state, *paths)
        if self.settings.keep_last is not None:
            prune(self.folder, self.settings.keep_last)
        if self._has_parts:
            _remove_unused_parts(self.folder)

    @cached_property
    def _has_parts(self):
        """Whether the folder has parts of sharded checkpoints: it may hold thousands of files."""
        return self.is_sharded or any(self.folder.glob('shards-*'))


# Which ones are kept


def prune(folder: Path, keep: int) -> None:
    """Remove all numbered checkpoints but the newest `keep`, once one of those is verified."""
    found = numbered(folder)
    if len(found) > keep and any(whole_heads(found[:keep])):
        for path in found[keep:]:
            with suppress(OSError):  # somebody reads it, on Windows: the next save tries again
                path.unlink()


def _remove_unused_parts(folder):
    """Remove the folders of parts that no head names any more."""
    parts = list(folder.glob('shards-*'))
    try:
        heads = [load_head(path) for path in folder.glob('*.pth')] if parts else []
    except CheckpointError:
        return  # what a damaged one needs, nobody can tell
    named = [head.get('shards', {}).get('folder') for head in heads]
    for part in parts:
        if part.name not in named:
            shutil.rmtree(part, ignore_errors=True)
