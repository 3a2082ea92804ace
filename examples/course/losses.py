"""Losses: what each of them compares, on numbers that one can follow."""

import torch
from torch import nn

# Numbers: output and target have the same shape.
output, target = torch.tensor([[1.0], [2.0], [10.0]]), torch.tensor([[1.0], [3.0], [4.0]])
for loss in (nn.MSELoss(), nn.L1Loss(), nn.HuberLoss()):
    print(f'{type(loss).__name__:20} {loss(output, target).item():.4f}')  # far ones weigh less

# One of several classes: scores (batch, classes), targets (batch,) of class numbers.
scores, classes = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 3.0]]), torch.tensor([0, 1])
print(f'CrossEntropyLoss     {nn.CrossEntropyLoss()(scores, classes).item():.4f}')
log_probabilities = scores.log_softmax(dim=1)
print(f'NLLLoss              {nn.NLLLoss()(log_probabilities, classes).item():.4f}')  # the same
weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 1.0]))  # class 1 counts five times
print(f'with class weights   {weighted(scores, classes).item():.4f}')

# Yes or no: one score (batch, 1), targets 0. or 1. of the same shape.
score, answer = torch.tensor([[3.0], [-1.0]]), torch.tensor([[1.0], [1.0]])
print(f'BCEWithLogitsLoss    {nn.BCEWithLogitsLoss()(score, answer).item():.4f}')

# Two distributions: log-probabilities and probabilities.
both = nn.KLDivLoss(reduction='batchmean')(log_probabilities, torch.full((2, 3), 1 / 3))
print(f'KLDivLoss            {both.item():.4f}')
