"""Console: what a person sees of a run: what begins, a table with a line an epoch, how it ended."""

import logging
import math
import os
import shlex
import shutil
import sys
import time
from typing import Any

from torch.nn.parameter import is_lazy
from tqdm import tqdm

from armature.checkpoint.files import BEST
from armature.checkpoint.weights import bare
from armature.processes import dist

CELL = 9  # characters of a column at least: those of 1.234e-05
LONGEST_NAME = 24
MOST_COLUMNS = 12  # of a group of values; all of them are in metrics.csv


class Console:
    """Speaks through the logger of `trainer`, so that verbosity holds and info.log has all of it.

    The trainer's attributes are read when they are needed: old projects set them late.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self._say = lambda text: trainer.logger.info(printable(text))
        self._header = self._best = self._bar = None
        self._begun = self._since = time.perf_counter()

    def begin(self) -> None:
        """What is going to be trained, and when it stops."""
        trainer, model = self.trainer, bare(self.trainer.model)
        self._begun = self._since = time.perf_counter()
        for handler in screens():
            handler.addFilter(self._clear_bar)
        place = f'{dist.n_processes()} processes, ' * (dist.n_processes() > 1) + str(trainer.device)
        self._say(f'{trainer.config["name"]}, {trainer.checkpoint_dir.name}, {place}')
        trainer.logger.debug(model)
        self._say(f'{type(model).__name__}: {parameters_of(model)}')
        steps = f' of {trainer.len_epoch} steps' if hasattr(trainer, 'len_epoch') else ''
        self._say(f'{trainer.epochs} epochs{steps}, lr {self._rate():.4g}')
        self._say(self._aim())
        if (average := getattr(trainer, 'weight_average', None)) is not None:
            self._say(f'Validated and tested: {average}')

    def _aim(self) -> str:
        trainer = self.trainer
        if trainer.mnt_mode == 'off':
            return 'Nothing is monitored (trainer.monitor)'
        best = {'min': 'lowest', 'max': 'highest'}[trainer.mnt_mode]
        patience = f', stops after {trainer.early_stop:g} epochs without a better one'
        return f'Best: {best} {trainer.mnt_metric}' + patience * math.isfinite(trainer.early_stop)

    def _rate(self) -> float:
        groups = getattr(self.trainer.optimizer, 'param_groups', None)
        return float(groups[0]['lr']) if groups else math.nan

    def bar(self, epoch: int, n_done: int) -> tqdm:
        """The progress of an epoch's steps: on a terminal only, short, gone before each line."""
        is_wanted = self.trainer.logger.isEnabledFor(logging.INFO) and is_terminal(sys.stderr)
        self._bar = tqdm(
            total=self.trainer.len_epoch,
            initial=n_done,
            desc=f'epoch {epoch}',
            leave=False,
            ncols=min(79, shutil.get_terminal_size().columns - 1),
            bar_format='{desc} {n_fmt}/{total_fmt} |{bar}| {remaining}{postfix}',
            disable=not is_wanted,
        )
        return self._bar

    def _clear_bar(self, record: logging.LogRecord) -> bool:
        if self._bar is not None:
            self._bar.clear()
        return True

    def epoch(self, log: dict[str, float], others: dict[str, Any], improved: bool) -> None:
        """A line of the table; `others` is what an old trainer reports beside numbers."""
        now, trainer = time.perf_counter(), self.trainer
        seconds, self._since = now - self._since, now
        self._best = log if improved else self._best
        values = {name: shown(value) for name, value in log.items() if name != 'epoch'}
        validated = {name: values.pop(name) for name in list(values) if name.startswith('val_')}
        trained, validated = (
            dict(list(group.items())[:MOST_COLUMNS]) for group in (values, validated)
        )
        epoch = f'{log["epoch"]}/{trainer.epochs}'
        rest = {'lr': f'{self._rate():.2e}', 'time': shown_time(seconds)}
        lines = table([{'epoch': epoch} | trained, validated, rest], terminal_width() - 2)
        header, row = ([line[part] for line in lines] for part in (0, 1))
        if header != self._header:
            self._header = header
            self._say('\n'.join(['', *header]))
        self._say('\n'.join(row) + ' *' * improved)
        for name, value in others.items():
            self._say(f'{name}: {value}')
        trainer.logger.debug(f'Epoch {epoch}: {log}')

    def end(self, why: str) -> None:
        """Why it ended, what was best and where that is, and what one types next."""
        trainer = self.trainer
        self._say(f'\n{why}')
        self._say(f'Time: {shown_time(time.perf_counter() - self._begun)}')
        if self._best is not None:
            values = ', '.join(f'{name} {shown(value)}' for name, value in self._best.items())
            self._say(f'Best: {values}; in {trainer.checkpoint_dir / BEST}')
        elif trainer.mnt_mode != 'off' and math.isfinite(trainer.mnt_best):
            self._say(f'Best: {trainer.mnt_metric} {shown(trainer.mnt_best)}, of an earlier start')
        run = trainer.checkpoint_dir
        tested = run / 'best' if (run / BEST).is_file() else run
        self._say(f'Measure it: python test.py -r {shlex.quote(str(tested))}')
        if trainer.settings.tensorboard:
            folder = shlex.quote(str(trainer.config.log_dir))
            self._say(f'Look at it: tensorboard --logdir {folder}')
        for handler in screens():
            handler.removeFilter(self._clear_bar)


def table(groups: list[dict[str, str]], width: int) -> list[tuple[str, str]]:
    """Lines (names, values) of at most `width` characters: one, or two where the groups need it.

    Only a terminal that is too narrow for a group gets more.
    """
    groups = [
        [column(name, text, width) for name, text in group.items()] for group in groups if group
    ]
    joined = [tuple(map('  '.join, zip(*group))) for group in groups]
    line = tuple(map(' | '.join, zip(*joined)))
    if len(line[0]) <= width:
        return [line]
    lines = []
    for cells in (groups[0], [cell for group in groups[1:] for cell in group]):
        line = cells[0] if not lines else tuple('  ' + part for part in cells[0])
        for cell in cells[1:]:
            longer = tuple(f'{part}  {more}' for part, more in zip(line, cell))
            if len(longer[0]) > width:
                lines.append(line)
                longer = tuple('  ' + part for part in cell)
            line = longer
        lines.append(line)
    return lines


def column(name: str, text: str, width: int) -> tuple[str, str]:
    """Both of one length, which is that of `text` at least; a long name loses its middle."""
    longest = max(CELL, min(LONGEST_NAME, width - 2))
    if len(name) > longest:
        name = f'{name[: longest // 2 - 1]}~{name[-(longest - longest // 2) :]}'
    size = max(len(name), len(text), 5 if name in ('epoch', 'time') else CELL)
    return name.rjust(size), text.rjust(size)


def shown(value: Any) -> str:
    """Four significant digits."""
    if isinstance(value, int):
        return str(value)
    text = f'{value:#.4g}'
    return f'{value:.3e}' if 'e' in text else text.rstrip('.')


def shown_time(seconds: float) -> str:
    if seconds < 100:
        return f'{seconds:.1f} s'
    return f'{seconds / 60:.0f} min' if seconds < 6000 else f'{seconds / 3600:.1f} h'


def parameters_of(model: Any) -> str:
    sizes = [(each.numel(), each.requires_grad) for each in model.parameters() if not is_lazy(each)]
    n_all, n_train = sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
    return f'{n_all:,} parameters, {"all" if n_train == n_all else f"{n_train:,}"} train'


def printable(text: str) -> str:
    """The text as far as the console's encoding has its characters."""
    encoding = getattr(sys.stdout, 'encoding', None) or 'utf-8'
    return text.encode(encoding, 'replace').decode(encoding)


def screens() -> list[logging.Handler]:
    return [each for each in logging.root.handlers if not isinstance(each, logging.FileHandler)]


def is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty() and os.environ.get('TERM') != 'dumb'


def terminal_width() -> int:
    """What is not a terminal wraps no lines."""
    if sys.stdout is None or not sys.stdout.isatty():
        return 1_000_000
    return shutil.get_terminal_size().columns
