"""What the tests share: a tiny real experiment, and the scripts run as a user runs them."""

import functools
import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from armature.run import record
from armature.seed import seed_everything
from base import BaseDataLoader, BaseModel
from model.metric import accuracy
from parse_config import ConfigParser
from tests import warm
from trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared'
N_SAMPLES, N_VALID, BATCH_SIZE = 52, 12, 7  # 40 training samples: five batches of 7 and one of 5

torch.set_num_threads(1)


def pytest_configure():
    """Nothing here cuts the power, and each save would wait for the disk, thousands of times."""
    os.fsync = lambda _: None


def pytest_collection_finish():
    """What has been imported stays: looking through it for garbage takes 0.3 s each time."""
    gc.collect()
    gc.freeze()


class NoisyPoints(Dataset):
    """Two classes of points; every reading adds noise from a generator that augmentations use."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.targets = torch.arange(N_SAMPLES) % 2
        self.points = torch.randn(N_SAMPLES, 4, generator=generator) + self.targets.unsqueeze(1)

    def __len__(self):
        return N_SAMPLES

    def __getitem__(self, index):
        import random

        import numpy as np

        noise = 0.1 * torch.randn(4) + 0.1 * random.random() + 0.1 * np.random.rand()
        return (self.points[index] + noise).float(), self.targets[index]


class PointModel(BaseModel):
    """Everything whose state can get lost: weights, running statistics, dropout."""

    def __init__(self):
        super().__init__()
        self.hidden, self.norm, self.out = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x):
        return F.log_softmax(
            self.out(F.dropout(F.relu(self.norm(self.hidden(x))), 0.2, self.training)), dim=1
        )


class Experiment:
    """Builds trainers of the same tiny experiment in one folder.

    `settings` go to the config's trainer section.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def trainer(
        self,
        resume=None,
        *,
        num_workers=0,
        trainer_class=Trainer,
        run_id=None,
        optimizer=torch.optim.Adam,
        scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7),
        interval='epoch',
        warmup_steps=0,
        lr=0.01,
        seed=3,
        metrics=(accuracy,),
        len_epoch=None,
        loader=None,
        model=PointModel,
        batch=None,
        sections=None,
        **settings,
    ):
        config = ConfigParser(
            {
                'name': 'points',
                'n_gpu': 0,
                'optimizer': {'type': optimizer.__name__, 'args': {'lr': lr}},
                'lr_scheduler': {
                    'type': 'StepLR',
                    'args': {},
                    'interval': interval,
                    'warmup_steps': warmup_steps,
                },
                **({'batch': batch} if batch else {}),
                **(sections or {}),
                'trainer': {
                    'epochs': 3,
                    'save_dir': str(self.folder),
                    'verbosity': 1,
                    'monitor': 'min val_loss',
                    **settings,
                },
            },
            resume=resume,
            run_id=run_id,
        )
        seed_everything(seed)
        loader = loader or BaseDataLoader(
            NoisyPoints(),
            BATCH_SIZE,
            shuffle=True,
            validation_split=N_VALID,
            num_workers=num_workers,
        )
        model = config.wrap(model(), torch.device('cpu'))
        optimizer = optimizer(model.named_parameters(), lr=lr)
        return trainer_class(
            model,
            F.nll_loss,
            list(metrics),
            optimizer,
            config,
            torch.device('cpu'),
            loader,
            loader.split_validation(),
            scheduler and scheduler(optimizer),
            len_epoch,
        )


def going_on(experiment, trainer, **settings):
    """A trainer that goes on in the same folder, as one does with -r."""
    shutil.copytree(trainer.checkpoint_dir, experiment.folder / 'kept')
    shutil.rmtree(trainer.checkpoint_dir)
    resumed = experiment.trainer(
        experiment.folder / 'kept/checkpoint-last.pth',
        run_id=trainer.checkpoint_dir.name,
        **settings,
    )
    shutil.copytree(experiment.folder / 'kept', trainer.checkpoint_dir, dirs_exist_ok=True)
    return resumed


# What a trainer notes of this repository and its packages takes 40 ms, and is always the same here.
code_here = functools.cache(functools.partial(record.code_of, ROOT, ROOT / 'saved'))
versions_here = functools.cache(record.versions)


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    monkeypatch.setattr(record, 'code_of', lambda project, saved: code_here())
    monkeypatch.setattr(record, 'versions', versions_here)
    return Experiment(tmp_path)


@pytest.fixture
def shared():
    """The folder with real data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(
            'needs ../shared (real MNIST digits and an old checkpoint), which is not beside this '
            'checkout'
        )
    return SHARED


def run_script(
    *arguments,
    cwd=ROOT,
    script_folder=ROOT,
    check=True,
    fresh=False,
    n_processes=None,
    **environment,
) -> subprocess.CompletedProcess:
    """`python arguments...` as a user types it; with check, it has to succeed.

    fresh: in a Python that has imported nothing yet, which takes seconds longer.
    n_processes: in so many that know of each other, as torchrun would start them.
    """
    arguments = [str(argument) for argument in arguments]
    if arguments[0].endswith('.py'):
        arguments[0] = str(script_folder / arguments[0])
    command = [sys.executable, *arguments]
    where = {'cwd': cwd, 'env': {**os.environ, 'OMP_NUM_THREADS': '1', **environment}}
    if fresh:
        done = subprocess.run(command, text=True, capture_output=True, timeout=300, **where)
    else:
        done = warm.run(command, timeout=300, n_processes=n_processes, **where)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done
