"""A line through points, by hand: the loop that every training is. Then save it and load it."""

from pathlib import Path

import torch
from torch import nn

torch.manual_seed(0)
x = torch.rand(100, 1)
y = 0.7 * x + 0.3 + 0.01 * torch.randn(100, 1)

model = nn.Linear(1, 1)  # weight * x + bias
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
for step in range(200):
    loss = nn.functional.mse_loss(model(x), y)  # how wrong is it?
    optimizer.zero_grad()
    loss.backward()  # in which direction would it be more wrong?
    optimizer.step()  # a step the other way
    if step % 50 == 0:
        print(f'step {step}: loss {loss.item():.6f}')
print(f'y = {model.weight.item():.2f} x + {model.bias.item():.2f}')

# Save the numbers, not the object: a file that runs no code when it is read.
file = Path('saved/line.pth')
file.parent.mkdir(exist_ok=True)
torch.save(model.state_dict(), file)
again = nn.Linear(1, 1)
again.load_state_dict(torch.load(file, weights_only=True))
print('loaded:', torch.equal(again(x), model(x)))
