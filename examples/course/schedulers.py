"""Six schedulers and a picture of their learning rates: saved/schedulers.png"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.optim import lr_scheduler

N_EPOCHS = 60
SCHEDULERS = {
    'StepLR': {'step_size': 20, 'gamma': 0.3},
    'MultiStepLR': {'milestones': [10, 40], 'gamma': 0.3},
    'ExponentialLR': {'gamma': 0.95},
    'CosineAnnealingLR': {'T_max': N_EPOCHS},
    'CosineAnnealingWarmRestarts': {'T_0': 20},
    'OneCycleLR': {'max_lr': 0.1, 'total_steps': N_EPOCHS + 1},
}


def rates(name: str, **arguments) -> list[float]:
    """The learning rate of each epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = getattr(lr_scheduler, name)(optimizer, **arguments)
    found = []
    for _ in range(N_EPOCHS):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()  # the training of an epoch stands here
        scheduler.step()
    return found


figure, axes = plt.subplots(figsize=(8, 5))
for name, arguments in SCHEDULERS.items():
    axes.plot(rates(name, **arguments), label=name)
axes.set(title='Six schedules', xlabel='epoch', ylabel='learning rate')
axes.legend()
Path('saved').mkdir(exist_ok=True)
figure.savefig('saved/schedulers.png')
print('saved/schedulers.png is drawn')
