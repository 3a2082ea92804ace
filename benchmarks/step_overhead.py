"""What our Trainer adds to a training step: python benchmarks/step_overhead.py

A 20-32-2 MLP, batch 32, SGD, data in memory, one thread: Trainer with loss, accuracy, progress and
TensorBoard on, against a hand-written loop that computes the same loss sum and accuracy. Both run
in turn; the ratio is the median over the rounds.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn
from torch.utils.data import TensorDataset

from base import BaseDataLoader
from model.metric import accuracy
from parse_config import ConfigParser
from trainer import Trainer

N_STEPS, BATCH_SIZE = 2000, 32


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2))
    dataset = TensorDataset(
        torch.randn(N_STEPS * BATCH_SIZE, 20), torch.randint(0, 2, (N_STEPS * BATCH_SIZE,))
    )
    return model, torch.optim.SGD(model.parameters(), lr=0.01), dataset


def by_hand() -> float:
    """Seconds per epoch of the loop one would write."""
    model, optimizer, dataset = make()
    data, target = dataset.tensors
    started = time.perf_counter()
    loss_sum, n_correct = torch.zeros(()), torch.zeros(())
    for indices in torch.randperm(len(dataset)).split(BATCH_SIZE):
        batch, labels = data[indices], target[indices]
        output = model(batch)
        loss = nn.functional.cross_entropy(output, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss_sum += loss.detach() * len(labels)
        n_correct += (output.argmax(1) == labels).sum()
    float(loss_sum) / len(dataset), float(n_correct) / len(dataset)
    return time.perf_counter() - started


def with_trainer(folder: str) -> float:
    """Seconds per epoch of Trainer, without its saving at the epoch's end."""
    model, optimizer, dataset = make()
    config = ConfigParser(
        {
            'name': 'step_overhead',
            'trainer': {'epochs': 1, 'save_dir': folder, 'verbosity': 0, 'tensorboard': True},
        }
    )
    loader = BaseDataLoader(dataset, BATCH_SIZE, shuffle=True, validation_split=0.0, num_workers=0)
    trainer = Trainer(
        model,
        nn.functional.cross_entropy,
        [accuracy],
        optimizer,
        config,
        torch.device('cpu'),
        loader,
    )
    started = time.perf_counter()
    trainer._train_epoch(1)
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=9)
    torch.set_num_threads(1)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        by_hand(), with_trainer(folder)
        times = [(by_hand(), with_trainer(folder)) for _ in range(rounds)]
    hand, ours = (statistics.median(column) for column in zip(*times))
    print(f'hand-written loop  {hand / N_STEPS * 1e6:6.0f} us per step')
    print(f'Trainer            {ours / N_STEPS * 1e6:6.0f} us per step')
    ratio = statistics.median(ours / hand for hand, ours in times)
    print(f'ratio              {ratio:6.2f}  (median of {rounds} rounds; bound 1.10)')


if __name__ == '__main__':
    main()
