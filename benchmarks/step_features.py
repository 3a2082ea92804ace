"""What each feature of the training step costs, against the same feature written by hand: python
benchmarks/step_features.py

A step of about 1 ms (a 128-512-512-10 MLP, batch 64, AdamW, one thread). Both loops run in turn;
the ratio is the median over the rounds.
"""

import argparse
import os
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from armature.step.average import Average
from armature.step.schedule import Schedule
from base.stepper import Stepper

N_STEPS = 150
FEATURES = {
    'nothing': {},
    'bf16': {'precision': 'bf16'},
    'micro-batches of 32': {'microbatch_size': 32},
    'max_grad_norm': {'max_grad_norm': 1.0},
    'max_grad_value': {'max_grad_value': 1.0},
    'ema_decay': {'ema': 0.999},
    'schedule per step': {'schedule': True},
    'everything': {
        'precision': 'bf16',
        'microbatch_size': 32,
        'max_grad_norm': 1.0,
        'max_grad_value': 1.0,
        'ema': 0.999,
        'schedule': True,
    },
}


def make():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(128, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return (
        model,
        optimizer,
        CosineAnnealingLR(optimizer, N_STEPS),
        (torch.randn(64, 128), torch.randint(10, (64,))),
    )


def ours(ema=None, schedule=False, **options) -> float:
    model, optimizer, scheduler, batch = make()
    stepper = Stepper(
        optimizer,
        Schedule(scheduler, 'step') if schedule else None,
        average=Average(model, ema) if ema else None,
        **options,
    )
    started = time.perf_counter()
    for _ in range(N_STEPS):
        for data, target in stepper.micro_batches(batch):
            with stepper.autocast():
                loss = nn.functional.cross_entropy(model(data), target)
            stepper.backward(loss)
        stepper.step()
    return time.perf_counter() - started


def by_hand(
    precision='fp32',
    microbatch_size=64,
    max_grad_norm=None,
    max_grad_value=None,
    ema=None,
    schedule=False,
) -> float:
    model, optimizer, scheduler, (inputs, targets) = make()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema)) if ema else None
    dtype = {'bf16': torch.bfloat16, 'fp16': torch.float16}.get(precision)
    scaler = torch.amp.GradScaler('cpu', enabled=precision == 'fp16')
    started = time.perf_counter()
    for _ in range(N_STEPS):
        for data, target in zip(inputs.split(microbatch_size), targets.split(microbatch_size)):
            with torch.autocast('cpu', dtype) if dtype else nullcontext():
                loss = nn.functional.cross_entropy(model(data), target)
            scaler.scale(loss * (len(data) / len(inputs))).backward()
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        if max_grad_value is not None:
            nn.utils.clip_grad_value_(model.parameters(), max_grad_value)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if schedule:
            scheduler.step()
        if average is not None:
            average.update_parameters(model)
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=7)
    torch.set_num_threads(1)
    rounds = parser.parse_args().rounds
    print(
        f'{"feature":22s} {"by hand":>10s} {"ours":>10s} {"ratio":>6s}   (medians of {rounds} '
        'rounds; bound 1.10)'
    )
    for name, options in FEATURES.items():
        by_hand(**options), ours(**options)
        times = [(by_hand(**options), ours(**options)) for _ in range(rounds)]
        hand, mine = (statistics.median(column) / N_STEPS * 1e6 for column in zip(*times))
        print(
            f'{name:22s} {hand:7.0f} us {mine:7.0f} us '
            f'{statistics.median(b / a for a, b in times):6.2f}'
        )


if __name__ == '__main__':
    main()
