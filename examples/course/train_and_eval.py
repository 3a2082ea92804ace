"""model.train() and model.eval(): dropout and BatchNorm do different things in them."""

import torch
from torch import nn

torch.manual_seed(0)
x = torch.full((1, 8), 1.0)

# Dropout leaves out numbers at random while training, and none when it counts.
dropout = nn.Dropout(0.5)
print('train:', dropout(x))  # about half are 0, the others doubled
dropout.eval()
print('eval: ', dropout(x))

# BatchNorm uses the mean of the batch while training, and the running mean in eval.
norm = nn.BatchNorm1d(1)
batch = torch.tensor([[1.0], [3.0]])
print('train:', norm(batch).flatten().tolist(), 'running mean', norm.running_mean.item())
norm.eval()
print('eval: ', norm(batch).flatten().tolist())

# torch.no_grad() is something else: no gradients are kept, so that less memory is needed.
with torch.no_grad():
    print('needs a gradient:', norm(batch).requires_grad)
