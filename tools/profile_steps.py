"""Where the time of a training step goes (python train.py --profile N)."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from armature.processes.devices import device_name
from tools.rehearse import quiet_trainer, rehearsal

N_WARM_UP = 3
# Dense bf16 and fp16 TFLOP/s and dense TF32 TFLOP/s, from the makers' data sheets.
PEAKS = {
    'H200': (989, 494),
    'H100': (989, 494),
    'A100': (312, 156),
    'L40S': (362, 183),
    'L4': (121, 60),
    'T4': (65, 8.1),
    'V100': (125, 15.7),
}


def profile(build: Callable, config: dict, n_steps: int) -> Path:
    """Profile `n_steps` steps after a few to warm up; print the table, return the trace's file."""
    trace = Path('saved') / 'profiles' / f'{config["name"]}.pt.trace.json'
    trace.parent.mkdir(parents=True, exist_ok=True)
    with rehearsal() as folder:
        trainer = quiet_trainer(
            build,
            config,
            folder,
            epochs=1,
            save_period=2,
            len_epoch=N_WARM_UP + n_steps,
            max_steps=None,
            log_step=N_WARM_UP + n_steps,
        )
        clock = Clock(trainer)
        with torch.profiler.profile(acc_events=True) as recorded:
            trainer._train_epoch(1)
        recorded.export_chrome_trace(str(trace))
        trainer.writer.close()
    step_s = sum(clock.seconds.values()) / n_steps
    print(f'{n_steps} steps of {1e3 * step_s:.3f} ms each (the profiler itself included)')
    for name, seconds in clock.seconds.items():
        each_s = seconds / n_steps
        print(f'    {name:10s} {1e3 * each_s:9.3f} ms  {100 * each_s / step_s:5.1f} %')
    print(f'    {clock.flops / 1e9:.4g} GFLOP a step')
    of_device = device_name(trainer.device)
    peak = next((peaks for name, peaks in PEAKS.items() if name in of_device), None)
    if peak is not None:
        peak_flops = 1e12 * peak[0 if trainer.stepper.dtype else 1]
        print(f'    {100 * clock.flops / step_s / peak_flops:.1f} % of the peak of this GPU')
    print(f'The trace is in {trace}: open it in https://ui.perfetto.dev or chrome://tracing')
    return trace


class Clock:
    """Measures the phases of a trainer's steps, waiting for the device after each.

    flops: the floating point operations of one step.
    """

    def __init__(self, trainer: Any):
        self.trainer, self.flops = trainer, 0
        self.seconds = dict.fromkeys(('data', 'forward', 'backward', 'optimizer', 'rest'), 0.0)
        self._n_steps, self._last = 0, time.perf_counter()
        self._counter = None
        stepper = trainer.stepper
        trainer.batches = self._watched_batches(trainer.batches)
        stepper.autocast = self._watched_context(stepper.autocast)
        stepper.backward = self._watched(stepper.backward, 'backward')
        stepper.step = self._watched(stepper.step, 'optimizer')

    def lap(self, phase: str) -> None:
        """What has passed since the last call was `phase`; the warm-up does not count."""
        torch.get_device_module(self.trainer.device).synchronize()
        now = time.perf_counter()
        if self._n_steps > N_WARM_UP:
            self.seconds[phase] += now - self._last
        self._last = now

    def _watched(self, function: Callable, phase: str) -> Callable:
        def watched(*args):
            self.lap('rest')
            with torch.profiler.record_function(phase):
                result = function(*args)
            self.lap(phase)
            return result

        return watched

    def _watched_context(self, autocast: Callable) -> Callable:
        @contextlib.contextmanager
        def watched():
            self.lap('rest')
            with torch.profiler.record_function('forward'), autocast():
                yield
            self.lap('forward')

        return watched

    def _watched_batches(self, batches: Callable) -> Callable:
        def watched(epoch: int) -> Iterator[Any]:
            stream = iter(batches(epoch))
            while True:
                self.lap('rest')
                with torch.profiler.record_function('data'):
                    batch = next(stream, None)
                if batch is None:
                    return
                self._n_steps += 1
                if self._n_steps == N_WARM_UP:  # a step that is not timed
                    from torch.utils.flop_counter import (
                        FlopCounterMode,
                    )  # brings triton, which takes 0.2 s to import

                    with FlopCounterMode(display=False) as counter:
                        yield batch
                    self.flops = counter.get_total_flops()
                    continue
                self.lap('data')
                yield batch

        return watched
