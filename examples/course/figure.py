"""A figure with title, labels, ticks, legend and an annotation: saved/circles.png"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import make_circles
from torch import nn

torch.manual_seed(0)
points, is_inner = make_circles(300, noise=0.05, factor=0.5, random_state=0)
x, y = torch.from_numpy(points).float(), torch.from_numpy(is_inner).float().unsqueeze(1)
model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
for _ in range(200):
    loss = nn.functional.binary_cross_entropy_with_logits(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# What the model says everywhere in the plane.
side = torch.linspace(-1.5, 1.5, 100)
plane = torch.cartesian_prod(side, side)
with torch.no_grad():
    says = model(plane).sigmoid().reshape(100, 100).T

figure, axes = plt.subplots(figsize=(6, 5))
axes.contourf(side, side, says, levels=20, cmap='coolwarm', alpha=0.6)
for name, value in (('outer circle', 0), ('inner circle', 1)):
    of_class = points[is_inner == value]
    axes.scatter(of_class[:, 0], of_class[:, 1], s=10, label=name)
axes.set(title='Two circles', xlabel='x', ylabel='y', xticks=[-1, 0, 1], yticks=[-1, 0, 1])
axes.annotate('the model is sure', xy=(0, 0), xytext=(0.4, 1.2), arrowprops={'arrowstyle': '->'})
axes.legend(loc='lower right')
Path('saved').mkdir(exist_ok=True)
figure.savefig('saved/circles.png')
print('saved/circles.png is drawn')
