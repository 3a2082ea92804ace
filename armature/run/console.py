"""Console: what a person sees of a run: what begins, a table with a line an epoch, how it ended."""

import builtins
import logging
import math
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.nn.parameter import is_lazy
from tqdm.auto import tqdm

from armature.checkpoint.files import BEST
from armature.checkpoint.weights import bare
from armature.processes import dist
from armature.run.record import rates_of
from armature.run_files import values_of

CELL = 9  # characters of a column at least: those of 1.234e-05
WIDTH = 120  # characters of a line where it is no terminal
FIRST = ('epoch', 'loss', 'val_loss', 'lr', 'time')  # columns that others make room for


class Console:
    """Speaks through the logger of `trainer`, so that info.log has all of it, whatever is shown.

    The trainer's attributes are read when they are needed: old projects set them late.
    """

    def __init__(self, trainer: Any):
        self.trainer, self._say = trainer, trainer.logger.info
        self._header = ''
        self._begun = time.perf_counter()
        if trainer.settings.verbosity < 2:
            for screen in screens():
                screen.setLevel((logging.WARNING, logging.INFO)[trainer.settings.verbosity])

    def begin(self) -> None:
        """What is going to be trained, and when it stops."""
        trainer, model = self.trainer, bare(self.trainer.model)
        self._begun = time.perf_counter()
        n = dist.n_processes()
        place = f'{n} processes, {trainer.device}' if n > 1 else str(trainer.device)
        self._say(f'{trainer.config["name"]}, {trainer.checkpoint_dir.name}, {place}')
        trainer.logger.debug(model)
        self._say(f'{type(model).__name__}: {parameters_of(model)}')
        steps = f' of {trainer.len_epoch} steps' if hasattr(trainer, 'len_epoch') else ''
        rates = dict.fromkeys(f'{rate:.4g}' for rate in rates_of(trainer.optimizer).values())
        self._say(f'{trainer.epochs} epochs{steps}, lr {", ".join(rates) or "unknown"}')
        monitored = 'Nothing is monitored (trainer.monitor)'
        if trainer.mnt_mode != 'off':
            best = {'min': 'lowest', 'max': 'highest'}[trainer.mnt_mode]
            monitored = f'Best: {best} {trainer.mnt_metric}'
            if math.isfinite(trainer.early_stop):
                monitored += f', stops after {trainer.early_stop:g} epochs without a better one'
        self._say(monitored)
        average = getattr(getattr(trainer, 'stepper', None), 'average', None)
        if average is not None:
            self._say(f'Validated and tested: {average}')

    @contextmanager
    def bar(self, epoch: int) -> Iterator[tqdm]:
        """The progress of an epoch's steps: on a terminal only, short, gone before each line."""
        is_wanted = self.trainer.settings.verbosity > 0 and dist.is_main()
        in_notebook = hasattr(builtins, '__IPYTHON__')
        with tqdm(
            total=self.trainer.len_epoch,
            initial=self.trainer.position,
            desc=f'epoch {epoch}',
            leave=False,
            ncols=None if in_notebook else min(79, shutil.get_terminal_size().columns - 1),
            bar_format='{desc} {n_fmt}/{total_fmt} |{bar}| {remaining}{postfix}',
            # None leaves it to tqdm, which draws on terminals and in notebooks.
            disable=None if is_wanted and os.environ.get('TERM') != 'dumb' else True,
        ) as bar:

            def clear(_):
                bar.clear()
                return True

            for screen in screens():
                screen.addFilter(clear)
            try:
                yield bar
            finally:
                for screen in screens():
                    screen.removeFilter(clear)

    def epoch(self, row: dict[str, Any], others: dict, improved: bool) -> None:
        """A line of the table, of as many columns as fit; all of them are in metrics.csv.

        row: as in metrics.csv. others: what an old trainer reports beside numbers.
        """
        rate = next((value for name, value in row.items() if name.startswith('lr')), math.nan)
        columns = {'epoch': f'{row["epoch"]}/{self.trainer.epochs}'}
        columns |= {name: shown(value) for name, value in values_of(row).items()}
        columns |= {'lr': f'{rate:.2e}', 'time': shown_time(row['seconds'])}
        width = shutil.get_terminal_size((WIDTH, 24)).columns - len(' *')
        header, cells = table([columns], (*FIRST, self.trainer.mnt_metric), width)
        if header != self._header:
            self._header = header
            self._say(f'\n{header}')
        self._say(f'{cells} *' if improved else cells)
        for name, value in others.items():
            self._say(f'{name}: {value}')
        self.trainer.logger.debug(f'Epoch {columns["epoch"]}: {row}')

    def end(self, why: str) -> None:
        """Why it ended, what was best and where that is, and what one types next."""
        trainer = self.trainer
        run = shlex.quote(shown_path(trainer.checkpoint_dir))
        self._say(f'\n{why} (after {shown_time(time.perf_counter() - self._begun)})')
        metric = trainer.mnt_metric
        for row in trainer.history:
            if row.get(metric) == trainer.mnt_best:
                row = {'epoch': row['epoch'], metric: row[metric]} | row
                values = (f'{name} {shown(value)}' for name, value in row.items())
                self._say(f'Best: {", ".join(values)}')
                break
        if (trainer.checkpoint_dir / BEST).is_file():
            self._say(f'It is in {run}/{BEST}')
        if any(trainer.checkpoint_dir.glob('*.pth')):  # else -r finds nothing there
            self._say(f'Measure it:      python test.py -r {run}')
            self._say(self._to_go_on(f'python train.py -r {run}'))
        if trainer.settings.tensorboard:
            folder = shlex.quote(shown_path(trainer.config.log_dir))
            self._say(f'Look at it:      tensorboard --logdir {folder}')

    def _to_go_on(self, command):
        trainer = self.trainer
        if not trainer._finished:
            return f'To go on:        {command}'
        longer = f'max_steps={2 * trainer.step}'
        if trainer.epochs_done >= trainer.epochs:
            longer = f'epochs={trainer.epochs_done + 10}'
        elif trainer._monitor.out_of_patience:
            longer = f'early_stop={2 * trainer.early_stop:g}'
        return f'To train longer: {command} --set trainer.{longer}'


def table(rows: list[dict[str, str]], first: tuple[str, ...], width: float) -> list[str]:
    """The names, then the rows, aligned, of the columns that fit into `width` characters.

    Those named `first` come before those of the validation, and these before any other.
    """
    names, sizes, left = list(rows[0]), {}, width + 2
    lines = [dict(zip(names, names)), *rows]
    for name in sorted(names, key=lambda name: (name not in first, not name.startswith('val_'))):
        least = 5 if name in ('epoch', 'time') else CELL
        size = max(least, *(len(line[name]) for line in lines))
        if size + 2 <= left:
            left -= size + 2
            sizes[name] = size
    kept = [name for name in names if name in sizes]
    return ['  '.join(line[name].rjust(sizes[name]) for name in kept) for line in lines]


def results(values: dict[str, float], by_class: dict[str, dict[str, float]]) -> list[str]:
    """Lines with a value each, then a table with a row a class and a column a metric."""
    of_classes = {f'{name}_{key}' for name, of in by_class.items() for key in of}
    names = [name for name in values if name not in of_classes]
    size = max(map(len, names), default=0)
    lines = [f'{name:{size}} {shown(values[name]):>{CELL}}' for name in names]
    rows = [
        {'class': each} | {name: shown(of[each]) for name, of in by_class.items()}
        for each in next(iter(by_class.values()), ())
    ]
    return [*lines, '', *table(rows, (), math.inf)] if rows else lines


def shown(value: Any) -> str:
    """Four significant digits; what is no number, such as a switch read from a table, as it is."""
    if not isinstance(value, float):
        return str(value)
    return f'{value:#.4g}'.rstrip('.')


def shown_time(seconds: float) -> str:
    if seconds < 100:
        return f'{seconds:.1f} s'
    return f'{seconds / 60:.0f} min' if seconds < 6000 else f'{seconds / 3600:.1f} h'


def parameters_of(model: Any) -> str:
    known = [each for each in model.parameters() if not is_lazy(each)]
    n_all = sum(each.numel() for each in known)
    n_train = sum(each.numel() for each in known if each.requires_grad)
    return f'{n_all:,} parameters, {"all" if n_train == n_all else f"{n_train:,}"} train'


def screens() -> list[logging.StreamHandler]:
    return [each for each in logging.root.handlers if type(each) is logging.StreamHandler]


def shown_path(path: Path) -> str:
    """As one types it in the working directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
