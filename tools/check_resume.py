"""Does my project resume exactly? python -m tools.check_resume -c config.json

Trains a few steps of the config three times in fresh processes: straight through, stopped inside an
epoch and resumed, stopped between two epochs and resumed; then compares the last checkpoints bit
for bit and names what differs first. A state that a trainer of your own forgets (a moving average,
a second optimizer, a random generator) shows up here.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from armature.checkpoint import files as checkpoint
from armature.compare import first_difference
from armature.errors import UserError, exit_on_user_error
from armature.run.record import write_json
from parse_config import ConfigParser
from tools.rehearse import refuse_processes

PROJECT = Path(__file__).resolve().parent.parent
# train.py, whose run is short and ends after so many steps. No setting says so: with one (epochs,
# len_epoch, max_steps) the config would describe another run, whose schedule may not fit.
STOPPING = """
import runpy, sys
from base import BaseTrainer
train = BaseTrainer.train
n_epochs, len_epoch, n_steps = (int(sys.argv.pop(1)) for _ in range(3))
def train_so_far(self):
    self.epochs, self.len_epoch, self.settings.max_steps = n_epochs, len_epoch, n_steps
    train(self)
BaseTrainer.train = train_so_far
runpy.run_path('train.py', run_name='__main__')
"""
NEVER = 10**9
STEPS_PER_EPOCH, N_EPOCHS = 4, 3
COMPARED = (
    'epoch',
    'step',
    'samples',
    'state_dict',
    'optimizer',
    'monitor_best',
    'parts',
    'rng',
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '-c', '--config', required=True, metavar='FILE', help='the experiment to try'
    )
    with exit_on_user_error():
        check_resume(ConfigParser.from_args(parser).config)


def check_resume(config: dict) -> None:
    """Print what was compared; raise UserError when an interrupted run differs from a whole one."""
    refuse_processes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'config.json'
        short = {
            'save_dir': folder,
            'tensorboard': False,
            'trackers': None,
            'save_period': 10**6,
            'early_stop': 0,
            'max_minutes': None,
        }
        write_json({**config, 'trainer': {**config['trainer'], **short}}, path)
        print('Training straight through ...', flush=True)
        straight = last_state(train(folder, NEVER, '-c', path))
        for place, n_steps in (
            ('inside an epoch', STEPS_PER_EPOCH + 2),
            ('between epochs', STEPS_PER_EPOCH),
        ):
            print(f'Stopping {place} and resuming in a fresh process ...', flush=True)
            run = train(folder, n_steps, '-c', path)
            train(folder, NEVER, '-r', run)
            different = first_difference(straight, last_state(run))
            if different:
                raise UserError(
                    f'stopped {place} and resumed, {different} differs from the run that was never '
                    'stopped.\nWhat is an attribute of the trainer and has state_dict and '
                    'load_state_dict is saved; randomness of your own has to come from torch, '
                    'numpy or random, or be such an attribute.'
                )
    print(
        f'Exact: {len(straight["state_dict"])} tensors of the model, optimizer, schedule, metrics '
        'and random generators are equal bit for bit.'
    )


def train(folder: str, n_steps: int, *arguments: object) -> Path:
    """Run train.py in a fresh process, to step `n_steps` at most; returns its run folder."""
    known = set(Path(folder).glob('models/*/*'))
    arguments = [*map(str, arguments)]
    lengths = map(str, (N_EPOCHS, STEPS_PER_EPOCH, n_steps))
    command = [sys.executable, '-c', STOPPING, *lengths, *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    if done.returncode:
        said = done.stdout[-2000:] + done.stderr[-4000:]
        raise UserError(f'train.py {" ".join(arguments)} failed:\n{said}')
    new = set(Path(folder).glob('models/*/*')) - known
    return new.pop() if new else Path(arguments[1])


def last_state(run: Path) -> dict:
    state = checkpoint.load(run / checkpoint.LAST)
    return {name: state[name] for name in COMPARED}


if __name__ == '__main__':
    main()
