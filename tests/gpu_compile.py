"""How long a deep model takes to start, and its pace then: eager, "blocks", compiled as a whole.

python -m tests.gpu_compile [DEVICE [LAYERS [WIDTH [STEPS]]]]
"""

import sys
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from armature.step.prepare import prepared
from base import BaseModel

WAYS = {'eager': False, 'blocks': 'blocks', 'whole': True}


class Deep(BaseModel):
    """A transformer over (batch, length, width); its layers repeat."""

    def __init__(self, n_layers: int, width: int):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
        self.begin, self.head = nn.Linear(width, width), nn.Linear(width, 10)

    def shard_blocks(self):
        return list(self.layers.layers)

    def forward(self, x):
        return self.head(self.layers(self.begin(x)).mean(1))


def seconds_of(n_steps: int, model: nn.Module, optimizer: torch.optim.Optimizer, data) -> float:
    target, begun = torch.arange(len(data), device=data.device) % 10, time.perf_counter()
    for _ in range(n_steps):
        F.cross_entropy(model(data), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    if data.device.type != 'cpu':
        torch.accelerator.synchronize(data.device)
    return time.perf_counter() - begun


def compare(
    device: torch.device | str, n_layers: int = 12, width: int = 256, n_steps: int = 20
) -> Iterator[tuple[str, float, float]]:
    """(way, seconds of the first step, steps a second of later ones), without torch's caches on the
    disk.
    """
    torch.compiler.config.force_disable_caches = True
    # What it takes to load the compiler counts for none of them.
    torch.compile(lambda x: x.sin().sum())(
        torch.ones(9, device=device, requires_grad=True)
    ).backward()
    for name, compiles in WAYS.items():
        torch.compiler.reset()
        torch.manual_seed(0)
        config = {'trainer': {'compile': compiles}}
        model = prepared(Deep(n_layers, width), config, torch.device(device))
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
        it = model, optimizer, torch.randn(16, 64, width, device=device)
        cold_s = seconds_of(1, *it)
        seconds_of(3, *it)
        yield name, cold_s, n_steps / seconds_of(n_steps, *it)


if __name__ == '__main__':
    for name, cold_s, pace in compare(*sys.argv[1:2] or ['cpu'], *map(int, sys.argv[2:])):
        print(f'{name:8} first step {cold_s:6.1f} s, then {pace:7.2f} a second', flush=True)
