"""Find the size of a batch: python -m tools.find_batch -c config.json

Takes real steps with batches of 8, 16, 32, ... samples of the training data, until memory, data or
time is over, and narrows down what fits. Two keys follow, in this order:

trainer.microbatch_size says how many samples are in memory at a time: the result stays the same.
data_loader.args.batch_size belongs to the experiment: another one gives another result.
"""

import gc
import itertools
import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

import train
from armature.batch import to_device
from armature.data.memory import free_bytes
from armature.data.order import epoch_batches
from armature.errors import UserError, exit_on_user_error, positive
from armature.processes.devices import prepared_device
from armature.step.micro_batches import OUT_OF_MEMORY
from parse_config import ConfigParser
from tools.arguments import positive_number
from tools.rehearse import (
    MANY_STEPS,
    parser_of,
    rehearsal,
    seconds_per_step,
    timing_trainer,
    with_data_args,
)

FIRST = 8
ENOUGH = 1.05  # times as fast: less does not count as faster
KEY = 'data_loader.args.batch_size'
SPARE = 0.8  # of the free memory: what a larger batch may be expected to take


class Row(NamedTuple):
    """What was measured with a batch of `size` samples."""

    size: int
    step: float | None  # seconds; None: it does not fit
    peak: int | None = None  # bytes in use on the device, or of the process on the CPU

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.size / self.step if self.step else 0.0

    def __str__(self) -> str:
        if self.step is None:
            return f'{self.size:7d}   does not fit'
        peak = '' if self.peak is None else f'{self.peak / 1e9:12.2f} GB'
        return f'{self.size:7d} {self.rate:11,.0f} {1e3 * self.step:12.4g} ms{peak}'


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument(
        '--max', type=positive, metavar='N', help='largest batch to try; all the data without'
    )
    parser.add_argument(
        '--seconds', type=positive_number, default=1.0, help='of steps with each size (1)'
    )
    parser.add_argument(
        '--minutes', type=positive_number, default=5.0, help='of the search in all (5)'
    )
    with exit_on_user_error():
        config = ConfigParser.from_args(parser, builds=train.BUILDS)
        given = config.arguments
        find_batch(train.build, config.config, given.max or math.inf, given.seconds, given.minutes)


def find_batch(
    build: Callable, config: dict, most: float, seconds: float = 1.0, minutes: float = 5.0
) -> list[Row]:
    """Print the table and the lines for the config; returns what was measured, by size."""
    with rehearsal() as folder:
        search = Search(build, config, folder, most, seconds, time.monotonic() + 60 * minutes)
        print(f'{"batch":>7s} {"samples a s":>11s} {"a step":>15s} {"peak memory":>14s}')
        search.double()
        search.narrow()
        advise_microbatch_size(search)
        advise_batch_size(search)
    return sorted(search.rows)


class Search:
    """Measures sizes. ended_by: why no larger ones than those that fit were tried."""

    def __init__(
        self, build: Callable, config: dict, folder: Path, most: float, seconds: float, end: float
    ):
        self.build, self.config, self.folder = build, config, folder
        self.most, self.seconds, self.end = most, seconds, end
        self.rows, self.ended_by = [], ''
        self.own = config['data_loader'].get('args', {}).get('batch_size') or FIRST

    @property
    def fitting(self) -> list[Row]:
        """From the smallest to the largest."""
        return sorted(row for row in self.rows if row.step is not None)

    def double(self) -> None:
        """8, 16, 32, ... and the config's own, as long as they fit; smaller ones if none does."""
        size = first = min(FIRST, self.own, self.most)
        while self.tried(size).step is not None and not self.ended_by:
            larger = 2 ** int(math.log2(size) + 1)
            size = min(self.own if size < self.own < larger else larger, self.most)
        while not self.fitting and first > 1:
            first //= 2
            self.tried(first)
        if not self.fitting:
            raise UserError(
                'not even one sample fits into the memory of the device: take a smaller model or '
                'smaller samples, or set trainer.activation_checkpointing'
            )

    def narrow(self) -> None:
        """Between the largest that fits and the smallest that does not, to an eighth of it."""
        while not self.ended_by:
            low = self.fitting[-1].size
            high = min(row.size for row in self.rows if row.step is None)
            unit = max(1, 2 ** int(math.log2(low)) // 8)
            middle = (low + high) // 2 // unit * unit
            if not low < middle < high:
                break
            self.tried(middle)

    def tried(self, size: int, microbatch_size: int | None = None) -> Row:
        """The row of a size, printed."""
        begun, before = time.monotonic(), process_bytes('VmRSS')
        row = self._row(size, microbatch_size)
        print(row, f' in parts of {microbatch_size}' * (microbatch_size is not None), flush=True)
        took_s, took_bytes = time.monotonic() - begun, process_bytes('VmHWM') - before
        free = free_bytes()
        if time.monotonic() + 2 * took_s > self.end:
            self.ended_by = 'that would take longer than --minutes'
        elif row.step is not None and row.size >= self.most:
            self.ended_by = 'that is --max, or there are no more'
        elif row.step is not None and 2 * took_bytes > SPARE * free:
            needed = f'{2 * took_bytes / 1e9:.1f} of the {free / 1e9:.1f} GB of memory'
            self.ended_by = f'twice as many could need {needed} that are free'
        if microbatch_size is None:
            self.rows.append(row)
        return row

    def _row(self, size: int, microbatch_size: int | None) -> Row:
        step_s = None
        try:
            size, step_s = self._steps(size, microbatch_size)
        except RuntimeError as error:
            kind = OUT_OF_MEMORY.get(prepared_device().type, torch.OutOfMemoryError)
            if not isinstance(error, kind):
                raise
        device = prepared_device()
        row, module = Row(size, step_s, peak_bytes(device)), torch.get_device_module(device)
        gc.collect()  # a trainer is full of circles
        if hasattr(module, 'empty_cache'):
            module.empty_cache()
        return row

    def _steps(self, size: int, microbatch_size: int | None) -> tuple[int, float]:
        """(samples in the batch, seconds of a step with it)."""
        args = self.config['data_loader'].get('args', {})
        # A single batch is read of the data
        cheaper = {'num_workers': 0} if 'num_workers' in args else {}
        cheaper |= {'in_memory': False} if args.get('in_memory') is True else {}
        config = with_data_args(self.config, batch_size=size, **cheaper)
        config['trainer']['microbatch_size'] = microbatch_size
        torch.compiler.reset()  # else it would make one graph for batches of any size
        trainer = timing_trainer(self.build, config, self.folder)
        restart_peak(trainer.device)
        loader = trainer.data_loader
        with suppress(AttributeError, TypeError):  # a stream does not say
            self.most = min(self.most, len(loader.sampler))
        batch = next(epoch_batches(0, 1, MANY_STEPS, loader, trainer.seed))
        n_samples = batch.n_samples or size
        if n_samples < size:
            self.most = n_samples
        batch.content = to_device(batch.content, trainer.device)
        return n_samples, seconds_per_step(trainer, itertools.repeat(batch), self.seconds, 2)


# Memory


def process_bytes(name: str) -> int:
    """VmRSS: what this process has in memory; VmHWM: its peak. 0 where the system is not Linux."""
    with suppress(OSError):
        for line in Path('/proc/self/status').read_text().splitlines():
            if line.startswith(name):
                return 1024 * int(line.split()[1])
    return 0


def restart_peak(device: torch.device) -> None:
    module = torch.get_device_module(device)
    if hasattr(module, 'reset_peak_memory_stats'):
        module.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')


def peak_bytes(device: torch.device) -> int | None:
    """Since `restart_peak`: of the device, or of this process on the CPU."""
    module = torch.get_device_module(device)
    if hasattr(module, 'max_memory_allocated'):
        return module.max_memory_allocated(device)
    return process_bytes('VmHWM') or None if device.type == 'cpu' else None


# Advice


def advise_microbatch_size(search: Search) -> None:
    own, parts = search.own, search.fitting[-1].size
    more = f', more were not tried: {search.ended_by}' if search.ended_by else ''
    print('\ntrainer.microbatch_size, samples in memory at a time: the same result')
    print(f'  {parts} fit{more}.')
    if own <= parts:
        print(f'  Not needed: batch_size {own} fits as it is.')
    elif search.ended_by:
        print(f'  Whether batch_size {own} fits is not known.')
    else:
        print(f'  Needed: batch_size {own} does not fit.')
        while search.tried(own, parts).step is None and parts > 1:
            parts //= 2
        print(f'    "microbatch_size": {parts}   (or --set trainer.microbatch_size={parts})')


def advise_batch_size(search: Search) -> None:
    own, rows = search.own, search.fitting
    best = next(row for row in rows if row.rate * ENOUGH >= max(each.rate for each in rows))
    print('\ndata_loader.args.batch_size, samples of an optimizer step: another result')
    if best.size <= own:
        print(f'  No size is more than {ENOUGH - 1:.0%} faster than {min(own, rows[-1].size)}.')
        return
    before, times = max(row for row in rows if row.size <= own), best.size / own
    print(
        f'  {best.size} takes {best.rate / before.rate:.2f} times as many samples a second as '
        f'{before.size}; no larger size is more than {ENOUGH - 1:.0%} faster.\n'
        f'  An epoch then has {times:.3g} times fewer steps, and needs another learning rate: '
        f'{times:.3g} times this one\n  for SGD and {math.sqrt(times):.3g} times for Adam are a '
        'beginning; or look with tools.find_lr.\n'
        f'    "batch_size": {best.size}   (or --set {KEY}={best.size})'
    )


if __name__ == '__main__':
    main()
