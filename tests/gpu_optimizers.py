"""Whether the ways in which torch takes an optimizer's step give the same, and how fast they are.

python -m tests.gpu_optimizers [DEVICE] prints a table.
"""

import statistics
import sys
import time

import torch
from torch import nn

from model.model import MnistModel

OPTIMIZERS = {
    'SGD': {'lr': 0.01, 'momentum': 0.9, 'weight_decay': 0.01},
    'Adam': {'lr': 0.001},
    'AdamW': {'lr': 0.001},
    'Adagrad': {'lr': 0.01},
}
# `default` is what torch takes where a config says nothing: one by one on a CPU, foreach on CUDA.
WAYS = {
    'default': {},
    'one by one': {'foreach': False},
    'foreach': {'foreach': True},
    'fused': {'fused': True},
}
ONLY_ON_CPU = [('Adagrad', 'fused')]


def transformer() -> nn.Module:
    """25 million parameters in 96 tensors."""
    layer = nn.TransformerEncoderLayer(512, 8, 2048, batch_first=True)
    return nn.TransformerEncoder(layer, 8, enable_nested_tensor=False)


MODELS = {'LeNet': (MnistModel, 200), '25 million': (transformer, 5)}  # with steps of a turn


def stepped(start: list, gradients: list, kind: str, way: str):
    """Parameters, and their optimizer, after a step with each of `gradients`."""
    parameters = [each.clone().requires_grad_() for each in start]
    optimizer = getattr(torch.optim, kind)(parameters, **OPTIMIZERS[kind], **WAYS[way])
    for of_step in gradients:
        for parameter, gradient in zip(parameters, of_step):
            parameter.grad = gradient
        optimizer.step()
    return parameters, optimizer


def seconds_of(optimizer, n_steps: int, device: str) -> float:
    def wait():
        if device != 'cpu':
            torch.accelerator.synchronize()

    wait()
    begun = time.perf_counter()
    for _ in range(n_steps):
        optimizer.step()
    wait()
    return (time.perf_counter() - begun) / n_steps


def compare(device: str, n_rounds: int = 7, models: tuple = (*MODELS,)) -> list[tuple]:
    """For each model, optimizer and way: (name, whether bit for bit as default, how many times its
    speed), by the median of the ratios of turns side by side.
    """
    rows = []
    for model in models:
        make, n_steps = MODELS[model]
        torch.manual_seed(0)
        start = [each.detach().to(device) for each in make().parameters()]
        gradients = [[torch.randn_like(each) for each in start] for _ in range(3)]
        for kind in OPTIMIZERS:
            ways = [way for way in WAYS if (kind, way) not in ONLY_ON_CPU or device == 'cpu']
            made = {way: stepped(start, gradients, kind, way) for way in ways}
            expected = made['default'][0]
            equal = {way: all(map(torch.equal, made[way][0], expected)) for way in ways}
            turns = {way: [] for way in ways}
            for _ in range(n_rounds):
                for way, (_, optimizer) in made.items():
                    turns[way].append(seconds_of(optimizer, n_steps, device))
            for way in ways[1:]:
                ratios = (one / each for one, each in zip(turns['default'], turns[way]))
                name = f'{model}, {kind}, {way}'
                rows.append((name, equal[way], round(statistics.median(ratios), 2)))
    return rows


if __name__ == '__main__':
    for name, is_equal, ratio in compare(*sys.argv[1:] or ['cpu']):
        print(f'{name:<32}  {"equal" if is_equal else "rounds otherwise":<16}  {ratio:.2f}')
