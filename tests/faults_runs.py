"""The campaigns of tests/faults.py that end and resume whole runs: kills at random moments, and
what each saved piece is worth."""

import copy
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from armature.checkpoint import files as checkpoint
from armature.compare import first_difference
from armature.run.saving import state_of
from tests.conftest import Experiment
from tools.check_resume import COMPARED
from trainer import Trainer

STEPS_PER_EPOCH = 6


class Everything(Trainer):
    """Uses every kind of state that can get lost: all generators, a scaler, a moving average."""

    def __init__(self, *args):
        super().__init__(*args)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))

    def _train_epoch(self, epoch):
        if self.position == 0:  # an interrupted epoch has done this already
            with torch.no_grad():
                self.model.out.bias += 0.01 * torch.randn(
                    2
                )  # from the state the generator is in, not from a step's key
        return super()._train_epoch(epoch)

    def batches(self, epoch):
        for data, target in super().batches(epoch):
            yield [data + 0.01 * random.random() + 0.01 * float(np.random.rand()), target]

    def end_step(self):
        self.average.update_parameters(self.model)  # before the step may be saved
        super().end_step()


class Keeping(Everything):
    """Keeps what checkpoint-last.pth was after each step."""

    def _write(self, names):
        super()._write(names)
        shutil.copy(
            self.checkpoint_dir / checkpoint.LAST, self.checkpoint_dir / f'step{self.step}.pth'
        )


def trainer(
    folder: Path, resume: Path | None = None, trainer_class: type = Everything, **settings
) -> Trainer:
    return Experiment(folder).trainer(
        resume,
        trainer_class=trainer_class,
        run_id='run' if resume is None else None,
        **{
            'verbosity': 0,
            'precision': 'fp16',
            'save_every_steps': 1,
            'monitor': 'max val_loss',
            **settings,
        },
    )


def finish(run: Trainer, path: Path) -> None:
    """Train to the end and save what is compared to `path`."""
    run.train()
    state = state_of(run)
    compared = {name: state[name] for name in COMPARED}
    checkpoint.save({**compared, 'history': run.history}, path)


def in_fork(action: Callable[[], None], killed_after_s: float | None = None) -> str:
    """Run `action` in a forked process, killed after so many seconds; what went wrong, empty when
    nothing did."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException as error:  # the fork must not go on as its parent
            os.write(writer, f'{type(error).__name__}: {error}'.encode())
            os._exit(1)
    os.close(writer)
    if killed_after_s is not None:
        time.sleep(killed_after_s)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    with open(reader) as pipe:
        return (pipe.read() or f'status {status}') if status else ''


def kills(n: int, folder: Path) -> dict[str, str]:
    """A run killed (SIGKILL) at a random moment and resumed equals, bit for bit, one that was never
    stopped."""
    rng, end = random.Random(1), folder / 'end.pth'
    folder.mkdir(exist_ok=True)
    started = time.monotonic()
    wrong = in_fork(lambda: finish(trainer(folder / 'whole'), end))
    assert not wrong, wrong
    duration_s, expected, outcomes = time.monotonic() - started, checkpoint.load(end), {}
    for trial in range(n):
        place, after_s = folder / str(trial), rng.uniform(0, duration_s)
        in_fork(lambda place=place: trainer(place).train(), after_s)
        newest = checkpoint.newest(place / 'models' / 'points' / 'run')[0]
        wrong = in_fork(
            lambda place=place, newest=newest: finish(
                trainer(place / 'resumed', newest, save_every_steps=None), end
            )
        )
        wrong = wrong or first_difference(expected, checkpoint.load(end))
        step = checkpoint.load(newest)['step'] if newest else 0
        outcomes[f'run {trial} killed after {after_s:.3f} s, resumed at step {step}'] = (
            f'differs: {wrong}' if wrong else 'equal'
        )
        shutil.rmtree(place, ignore_errors=True)
    return outcomes


def every_step(n: int, folder: Path) -> dict[str, str]:
    """A run of n steps resumed after each of them, with and without workers, equals one that was
    never stopped."""
    end, epochs, outcomes = folder / 'end.pth', n // STEPS_PER_EPOCH, {}
    folder.mkdir(exist_ok=True)
    wrong = in_fork(
        lambda: finish(trainer(folder / 'whole', trainer_class=Keeping, epochs=epochs), end)
    )
    assert not wrong, wrong
    expected = checkpoint.load(end)
    for step in range(1, epochs * STEPS_PER_EPOCH + 1):
        kept = folder / 'whole' / 'models' / 'points' / 'run' / f'step{step}.pth'
        for n_workers in (0, 2):
            place, options = (
                folder / f'{step}-{n_workers}',
                {'epochs': epochs, 'num_workers': n_workers, 'save_every_steps': None},
            )
            wrong = in_fork(
                lambda place=place, kept=kept, options=options: finish(
                    trainer(place, kept, **options), end
                )
            )
            wrong = wrong or first_difference(expected, checkpoint.load(end))
            outcomes[f'resumed after step {step} with {n_workers} workers'] = (
                f'differs: {wrong}' if wrong else 'equal'
            )
            shutil.rmtree(place)
    return outcomes


def _reset(state: dict, *path: str, value: object) -> None:
    for name in path[:-1]:
        state = state[name]
    state[path[-1]] = value


def mutations(n: int, folder: Path) -> dict[str, str]:
    """Each piece of a checkpoint matters: a run resumed without it is not equal."""
    numpy_state = np.random.RandomState(1).get_state(legacy=False)
    numpy_state['state']['key'] = numpy_state['state']['key'].tolist()
    without = {
        'torch generator': lambda state: _reset(
            state, 'rng', 'torch', value=torch.Generator().manual_seed(1).get_state()
        ),
        'numpy generator': lambda state: _reset(state, 'rng', 'numpy', value=numpy_state),
        'python generator': lambda state: _reset(
            state, 'rng', 'python', value=random.Random(1).getstate()
        ),
        'scaler': lambda state: _reset(state, 'parts', 'stepper', 'scaler', value={}),
        'scheduler': lambda state: state['parts'].pop('lr_scheduler'),
        'moving average': lambda state: state['parts'].pop('average'),
        'position': lambda state: _reset(state, 'samples', value=0),
        'patience': lambda state: _reset(state, 'parts', 'monitor', 'n_epochs_since_best', value=0),
        'BatchNorm buffers': lambda state: _reset(
            state, 'state_dict', 'norm.running_mean', value=torch.zeros(8)
        ),
        'optimizer': lambda state: _reset(state, 'optimizer', 'state', value={}),
        'averages of the epoch': lambda state: state['parts'].pop('train_metrics'),
    }
    end, outcomes = folder / 'end.pth', {}
    folder.mkdir(exist_ok=True)
    assert not (wrong := in_fork(lambda: finish(trainer(folder / 'whole'), end))), wrong
    expected = checkpoint.load(end)
    for place, stop in (
        ('between epochs', {'epochs': 2}),
        ('inside an epoch', {'max_steps': 2 * STEPS_PER_EPOCH + 3}),
    ):
        assert not (
            wrong := in_fork(lambda stop=stop, place=place: trainer(folder / place, **stop).train())
        ), wrong
        run = folder / place / 'models' / 'points' / 'run'
        complete, mutated = checkpoint.load(run / checkpoint.LAST), run / 'mutated.pth'
        for piece, drop in {'nothing': lambda state: None, **without}.items():
            state = copy.deepcopy(complete)
            drop(state)
            checkpoint.save(state, mutated)  # beside the table of its history
            wrong = in_fork(
                lambda mutated=mutated: finish(trainer(folder / 'resumed', mutated), end)
            )
            wrong = wrong or first_difference(expected, checkpoint.load(end))
            outcomes.setdefault(piece, 'unnoticed')
            if wrong:
                outcomes[piece] = f'noticed: {wrong}'
    outcomes['nothing'] = (
        'noticed' if outcomes['nothing'] == 'unnoticed' else f'differs: {outcomes["nothing"]}'
    )
    return outcomes
