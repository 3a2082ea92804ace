"""Tensors: shapes, types, numpy, gradients."""

import numpy as np
import torch

# A tensor has a shape, a type of number and a device.
x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
print(x.shape, x.dtype, x.device)  # torch.Size([2, 3]) torch.float32 cpu

# Rows, columns, and a reshaping.
print(x[0], x[:, 1], x.reshape(3, 2).shape)

# Element by element; a smaller shape is repeated along the missing dimensions (broadcasting).
print(x * 2 + torch.tensor([10.0, 20.0, 30.0]))

# Sums along a dimension, and a matrix product: (2, 3) @ (3, 2) -> (2, 2).
print(x.mean(dim=0), x @ x.T)

# numpy and back. Both share the memory: a change in one is a change in the other.
array = np.zeros(3)
shared = torch.from_numpy(array)
array[0] = 7
print(shared, shared.dtype)  # float64; .float() makes the float32 that models take

# Gradients: d(w²)/dw = 2 w.
w = torch.tensor(3.0, requires_grad=True)
(w**2).backward()
print(w.grad)  # 6
