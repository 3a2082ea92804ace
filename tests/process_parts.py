"""What the project of tests/process_faults.py trains (points/parts.py there): points, and faults.

FAULT=KIND:PROCESS:N (in the environment) lets it happen when that process reads its Nth sample;
several, with commas between them, are for the first, the second, ... attempt of a job that torchrun
starts again. KIND: an entry of FAULTS, or the name of a signal, which is sent to the launcher, with
'group-' before it to the launcher's process group, as Ctrl-C is, with 'self-' to the process
itself. The file wrong-FAULT tells when it was.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from armature.errors import DataError
from base import BaseDataLoader, BaseModel

N_SAMPLES = 52
PACE_S = float(os.environ.get('PACE_S', 0))  # how long a sample takes to read
ATTEMPT = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0))
KIND, PROCESS, AT_READ = [
    *filter(None, os.environ.get('FAULT', '').split(',')),
    *['none:-1:0'] * 9,
][ATTEMPT].split(':')


def read_something_broken():
    raise OSError('the disk says no')


def read_something_useless():
    raise DataError('points.csv holds no number')


def hang():
    while True:
        time.sleep(60)


FAULTS = {
    'raise': read_something_broken,
    'refuse': read_something_useless,
    'hang': hang,
    'exit': lambda: sys.exit(0),
    'vanish': lambda: os._exit(0),
    'kill': lambda: os.kill(os.getpid(), signal.SIGKILL),
}


class NoisyPoints(Dataset):
    """Two classes of points; every reading adds noise."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.targets = torch.arange(N_SAMPLES) % 2
        self.points = torch.randn(N_SAMPLES, 4, generator=generator) + self.targets.unsqueeze(1)
        self.n_reads = 0

    def __len__(self):
        return N_SAMPLES

    def __getitem__(self, index):
        self.n_reads += 1
        time.sleep(PACE_S)
        if os.environ.get('RANK') == PROCESS and self.n_reads == int(AT_READ):
            self.go_wrong()
        return (self.points[index] + 0.1 * torch.randn(4)).float(), self.targets[index]

    def go_wrong(self):
        Path(f'wrong-{os.environ["FAULT"]}').touch()
        if KIND in FAULTS:
            FAULTS[KIND]()
        elif KIND.startswith('self-'):
            os.kill(os.getpid(), signal.Signals[KIND.removeprefix('self-')])
        elif KIND.startswith('group-'):
            os.killpg(os.getpgid(os.getppid()), signal.Signals[KIND.removeprefix('group-')])
        else:
            os.kill(os.getppid(), signal.Signals[KIND])


class Points(BaseDataLoader):
    """40 points to train on, five batches of 8, and 12 to validate.

    Each of two processes reads 26 samples an epoch.
    """

    def __init__(self, batch_size: int = 8, num_workers: int = 0):
        super().__init__(
            NoisyPoints(), batch_size, shuffle=True, validation_split=12, num_workers=num_workers
        )


class Net(BaseModel):
    """Everything whose state can get lost: weights, running statistics, dropout."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.hidden, self.norm, self.out = (
            nn.Linear(4, width),
            nn.BatchNorm1d(width),
            nn.Linear(width, 2),
        )

    def forward(self, x):
        return F.log_softmax(
            self.out(F.dropout(F.relu(self.norm(self.hidden(x))), 0.2, self.training)), dim=1
        )
