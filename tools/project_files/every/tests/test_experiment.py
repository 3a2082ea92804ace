"""The experiment of config.json trains, resumes and can be measured.

True of every project, so every new project gets this test.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch

from armature.checkpoint import files as checkpoint

PROJECT = Path(__file__).resolve().parent.parent
SMALL = [
    '--set',
    'trainer.epochs=2',
    '--set',
    'trainer.len_epoch=2',
    '--set',
    'trainer.save_period=1',
]


def run(*arguments):
    """`python arguments...` in the project, on the CPU."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments), '-d', 'cpu'],
        cwd=PROJECT,
        text=True,
        capture_output=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_experiment_trains_resumes_exactly_and_can_be_measured(tmp_path):
    run('train.py', '-c', 'config.json', *SMALL, '--set', f'trainer.save_dir={tmp_path}')
    first, second = sorted(tmp_path.rglob('checkpoint-epoch*.pth'))
    uninterrupted = checkpoint.load(second)['state_dict']
    second.unlink()
    run('train.py', '-r', first)
    (second,) = tmp_path.rglob(second.name)
    resumed = checkpoint.load(second)['state_dict']
    assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted)
    assert 'loss' in run('test.py', '-r', second)
