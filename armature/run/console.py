"""Console: what a person sees of a run: what begins, a table with a line an epoch, how it ended."""

import builtins
import logging
import math
import os
import shlex
import shutil
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from torch.nn.parameter import is_lazy
from tqdm.auto import tqdm

from armature.checkpoint.files import BEST
from armature.checkpoint.weights import bare
from armature.processes import dist
from armature.record import values_of
from armature.run.folder import rates_of

CELL = 9  # characters of a column at least: those of 1.234e-05
LONGEST_NAME = 24
MOST_COLUMNS = 12  # of a group of values; all of them are in metrics.csv
ENDLESS = 100_000  # characters: the width of what is no terminal
NOTEBOOK_WIDTH = 100
BOLD, PLAIN, NO_BREAK = '\033[1m', '\033[0m', '\xa0'


class Console:
    """Speaks through the logger of `trainer`, so that info.log has all of it, whatever is shown.

    The trainer's attributes are read when they are needed: old projects set them late.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self._header = self._bar = None
        self._begun = time.perf_counter()
        if dist.is_main() and trainer.settings.verbosity < 2:
            trainer.logger.setLevel(logging.DEBUG)
            for screen in screens():
                screen.setLevel((logging.WARNING, logging.INFO)[trainer.settings.verbosity])

    def begin(self) -> None:
        """What is going to be trained, and when it stops."""
        trainer, model = self.trainer, bare(self.trainer.model)
        self._begun = time.perf_counter()
        for screen in screens():
            screen.setFormatter(_ForPeople(self, screen))
        place = f'{dist.n_processes()} processes, ' * (dist.n_processes() > 1) + str(trainer.device)
        self._say(f'{trainer.config["name"]}, {trainer.checkpoint_dir.name}, {place}')
        trainer.logger.debug(model)
        self._say(f'{type(model).__name__}: {parameters_of(model)}')
        steps = f' of {trainer.len_epoch} steps' if hasattr(trainer, 'len_epoch') else ''
        rates = rates_of(trainer.optimizer).values()
        rates = ', '.join(dict.fromkeys(f'{rate:.4g}' for rate in rates))
        self._say(f'{trainer.epochs} epochs{steps}, lr {rates or "unknown"}')
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

    def _say(self, text: str) -> None:
        """Say a sentence or more; paths, and what no-break spaces join, stay whole."""
        whole = {'break_long_words': False, 'break_on_hyphens': False}
        text = textwrap.fill(text, terminal_width(), subsequent_indent='  ', **whole)
        self.trainer.logger.info(text.replace(NO_BREAK, ' '))

    def bar(self, epoch: int, n_done: int) -> tqdm:
        """The progress of an epoch's steps: on a terminal only, short, gone before each line."""
        is_wanted = self.trainer.settings.verbosity > 0 and dist.is_main()
        self._bar = tqdm(
            total=self.trainer.len_epoch,
            initial=n_done,
            desc=f'epoch {epoch}',
            leave=False,
            ncols=None if in_notebook() else min(79, shutil.get_terminal_size().columns - 1),
            bar_format='{desc} {n_fmt}/{total_fmt} |{bar}| {remaining}{postfix}',
            disable=not is_wanted or not (is_terminal(sys.stderr) or in_notebook()),
        )
        return self._bar

    def epoch(self, row: dict[str, Any], others: dict, improved: bool) -> None:
        """A line of the table.

        row: as in metrics.csv. others: what an old trainer reports beside numbers.
        """
        values = {name: shown(value) for name, value in values_of(row).items()}
        validated = {name: values.pop(name) for name in list(values) if name.startswith('val_')}
        trained, validated = (
            dict(list(group.items())[:MOST_COLUMNS]) for group in (values, validated)
        )
        epoch = {'epoch': f'{row["epoch"]}/{self.trainer.epochs}'}
        rate = next((value for name, value in row.items() if name.startswith('lr')), math.nan)
        rest = {'lr': f'{rate:.2e}', 'time': shown_time(row['seconds'])}
        lines = table([epoch | trained, validated, rest], terminal_width() - 2)
        header, cells = ('\n'.join(line[part] for line in lines) for part in (0, 1))
        if header != self._header:
            self._header = header
            self.trainer.logger.info(f'\n{header}')
        self.trainer.logger.info(cells + ' *' * improved, extra={'is_bold': improved})
        for name, value in others.items():
            self.trainer.logger.info(f'{name}: {value}')
        self.trainer.logger.debug(f'Epoch {epoch["epoch"]}: {row}')

    def end(self, why: str) -> None:
        """Why it ended, what was best and where that is, and what one types next."""
        trainer = self.trainer
        run = shlex.quote(shown_path(trainer.checkpoint_dir))
        self.trainer.logger.info('')
        self._say(f'{why} (after {shown_time(time.perf_counter() - self._begun)})')
        for row in trainer.history:
            if row.get(metric := trainer.mnt_metric) == trainer.mnt_best:
                row = {'epoch': row['epoch'], metric: row[metric]} | row
                values = (f'{name}{NO_BREAK}{shown(value)}' for name, value in row.items())
                self._say(f'Best: {", ".join(values)}')
                break
        if (trainer.checkpoint_dir / BEST).is_file():
            self._say(f'It is in {run}/{BEST}')
        commands = {}
        if any(trainer.checkpoint_dir.glob('*.pth')):  # else -r finds nothing there
            commands = {'Measure it': f'python test.py -r {run}'} | self._to_go_on(run)
        if trainer.settings.tensorboard:
            folder = shlex.quote(shown_path(trainer.config.log_dir))
            commands['Look at it'] = f'tensorboard --logdir {folder}'
        for what, command in commands.items():
            self.trainer.logger.info(f'{what + ":":16} {command}')
        for screen in screens():
            if isinstance(screen.formatter, _ForPeople):
                screen.setFormatter(screen.formatter.inner)

    def _to_go_on(self, run: str) -> dict[str, str]:
        trainer, command = self.trainer, f'python train.py -r {run}'
        if not trainer._finished:
            return {'To go on': command}
        key, value = 'max_steps', 2 * trainer.step
        if trainer.epochs_done >= trainer.epochs:
            key, value = 'epochs', trainer.epochs_done + 10
        elif trainer._monitor.out_of_patience:
            key, value = 'early_stop', f'{2 * trainer.early_stop:g}'
        return {'To train longer': f'{command} --set trainer.{key}={value}'}


class _ForPeople(logging.Formatter):
    """How a screen shows a line: after the bar is gone, in the characters that it has."""

    def __init__(self, console: Console, screen: logging.StreamHandler):
        super().__init__()
        self.console, self.screen = console, screen
        self.inner = getattr(screen.formatter, 'inner', screen.formatter)

    def format(self, record: logging.LogRecord) -> str:
        if self.console._bar is not None:
            self.console._bar.clear()
        text = printable((self.inner or super()).format(record))
        is_bold = getattr(record, 'is_bold', False) and is_terminal(self.screen.stream)
        return f'{BOLD}{text}{PLAIN}' if is_bold else text


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


def results(values: dict[str, float], by_class: dict[str, dict[str, float]]) -> list[str]:
    """Lines with a value each, then a table with a row a class and a column a metric."""
    of_classes = {f'{name}_{key}' for name, of in by_class.items() for key in of}
    names = [name for name in values if name not in of_classes]
    size = max(map(len, names), default=0)
    lines = [f'{name:{size}} {shown(values[name]):>{CELL}}' for name in names]
    keys = list(next(iter(by_class.values()), []))
    size = max(map(len, keys), default=0)
    for number, key in enumerate(keys):
        row = {name: shown(of[key]) for name, of in by_class.items()}
        ((header, cells),) = table([{'class': key.rjust(size)} | row], ENDLESS)
        lines += [cells] if number else ['', header, cells]
    return lines


def column(name: str, text: str, width: int) -> tuple[str, str]:
    """Both of one length, which is that of `text` at least; a long name loses its middle."""
    longest = max(CELL, min(LONGEST_NAME, width - 2))
    if len(name) > longest:
        name = f'{name[: longest // 2 - 1]}~{name[-(longest - longest // 2) :]}'
    size = max(len(name), len(text), 5 if name in ('epoch', 'time') else CELL)
    return name.rjust(size), text.rjust(size)


def shown(value: Any) -> str:
    """Four significant digits; what is no number, such as a switch read from a table, as it is."""
    if not isinstance(value, float):
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


def screens() -> list[logging.StreamHandler]:
    return [each for each in logging.root.handlers if type(each) is logging.StreamHandler]


def is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty() and os.environ.get('TERM') != 'dumb'


def in_notebook() -> bool:
    return hasattr(builtins, '__IPYTHON__') and not is_terminal(sys.stderr)


def terminal_width() -> int:
    """What is not a terminal wraps no lines."""
    if sys.stdout is not None and sys.stdout.isatty():
        return shutil.get_terminal_size().columns
    return NOTEBOOK_WIDTH if in_notebook() else ENDLESS


def shown_path(path: Path) -> str:
    """As one types it in the working directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
