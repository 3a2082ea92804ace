"""Scalars, a figure and the graph of a model, for: tensorboard --logdir saved/log"""

import logging
from pathlib import Path

import torch
from torch import nn

from logger import TensorboardWriter

writer = TensorboardWriter(Path('saved/log/course'), logging.getLogger(), enabled=True)
for step in range(100):
    writer.set_step(step, 'train')  # train.py of this project does this for every step
    writer.add_scalar('loss', 0.98**step)
    writer.set_step(step, 'valid')
    writer.add_scalar('loss', 0.98**step + 0.05)

model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
writer.add_graph(model, torch.randn(1, 4))
writer.close()
print('now: tensorboard --logdir saved/log')
