"""Ten optimizers on one small problem. In a config: "optimizer": {"type": "AdamW", ...}"""

import torch
from torch import nn

from data_loader.datasets import digits

SETTINGS = {
    'SGD': {'lr': 0.1, 'momentum': 0.9},
    'Adam': {'lr': 0.005},
    'AdamW': {'lr': 0.005, 'weight_decay': 0.01},
    'NAdam': {'lr': 0.005},
    'RAdam': {'lr': 0.005},
    'Adamax': {'lr': 0.01},
    'RMSprop': {'lr': 0.002},
    'Adagrad': {'lr': 0.02},
    'Adadelta': {'lr': 2.0},
    'Rprop': {'lr': 0.001},
}
images, classes = digits(training=True).tensors  # (1437, 1, 28, 28), (1437,)


def loss_after(n_steps: int, name: str, **settings) -> float:
    torch.manual_seed(0)  # the same start for each
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = getattr(torch.optim, name)(model.parameters(), **settings)
    for _ in range(n_steps):
        loss = nn.functional.cross_entropy(model(images), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


for name, settings in SETTINGS.items():
    print(f'{name:10} {loss_after(20, name, **settings):.4f}   {settings}')
