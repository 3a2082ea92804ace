"""What several processes gain, and what we add to them: python benchmarks/processes.py

LeNet on images in memory, 64 samples a step, one thread a process, gloo. In 1 and in 2 processes,
our Trainer runs in turn with a loop written by hand over DistributedDataParallel that computes the
same loss sum and accuracy; the ratio is the median over the rounds.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from armature.processes import dist
from armature.processes.launch import joined
from base import BaseDataLoader
from model.metric import accuracy
from model.model import MnistModel
from parse_config import ConfigParser
from trainer import Trainer

N_STEPS, BATCH_SIZE = 100, 64


def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    n_samples = N_STEPS * BATCH_SIZE
    return TensorDataset(
        torch.randn(n_samples, 1, 28, 28, generator=generator),
        torch.randint(10, (n_samples,), generator=generator),
    )


def by_hand() -> float:
    """Seconds an epoch."""
    torch.manual_seed(0)
    model, rank, n_processes = MnistModel(), dist.rank(), dist.n_processes()
    if n_processes > 1:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images, classes = dataset().tensors
    started = time.perf_counter()
    loss_sum = correct = torch.zeros(())
    for indices in torch.randperm(len(images)).split(BATCH_SIZE):
        mine = indices[rank::n_processes]
        data, target = images[mine], classes[mine]
        output = model(data)
        loss = F.nll_loss(output, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss_sum = loss_sum + loss.detach() * len(target)
        correct = correct + (output.argmax(1) == target).sum()
    loss_sum.item(), correct.item()
    return time.perf_counter() - started


def ours(folder: str) -> float:
    """Seconds an epoch, without what comes before and after its steps."""
    torch.manual_seed(0)
    config = ConfigParser(
        {
            'name': 'benchmark',
            'n_gpu': 0,
            'trainer': {'epochs': 1, 'save_dir': folder, 'verbosity': 0},
        }
    )
    model = config.wrap(MnistModel(), torch.device('cpu'))
    trainer = Trainer(
        model,
        F.nll_loss,
        [accuracy],
        torch.optim.SGD(model.parameters(), lr=0.01),
        config,
        torch.device('cpu'),
        BaseDataLoader(dataset(), BATCH_SIZE, True, 0.0, 0),
    )
    started = time.perf_counter()
    trainer._train_epoch(1)
    return time.perf_counter() - started


def measure(n_rounds: int) -> None:
    torch.set_num_threads(1)
    folder = dist.on_main(tempfile.mkdtemp)
    pairs = []
    for number in range(
        n_rounds + 1
    ):  # either goes first in turn: a machine gets slower when it is warm
        mine, theirs = (
            (ours(folder), by_hand()) if number % 2 else reversed((by_hand(), ours(folder)))
        )
        pairs.append((mine, theirs))
    pairs = pairs[1:]  # the first one warms up
    if dist.is_main():
        shutil.rmtree(folder)
        speed = N_STEPS * BATCH_SIZE / statistics.median(mine for mine, _ in pairs)
        ratio = statistics.median(mine / theirs for mine, theirs in pairs)
        print(
            f'{dist.n_processes()} {"process  " if dist.n_processes() == 1 else "processes"}   '
            f'{speed:8.0f} samples/s   '
            f'{ratio:.3f} of the time by hand'
        )


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rounds', type=int, default=24)
    rounds = parser.parse_args().rounds
    if dist.is_started():
        with joined(n_gpu=0):
            measure(rounds)
    else:
        measure(rounds)
        subprocess.run(
            [
                sys.executable,
                '-m',
                'torch.distributed.run',
                '--standalone',
                '--nproc-per-node=2',
                __file__,
                f'--rounds={rounds}',
            ],
            check=True,
        )
