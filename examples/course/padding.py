"""Sentences of different length in one batch, and a sampler for rare classes."""

import torch

from armature.data.order import WeightedRandomSampler
from base import BaseDataLoader
from data_loader.collate import PadCollate

# Samples (words, class) of different length. 9 of 10 are of class 0.
torch.manual_seed(0)
samples = [
    (torch.randint(1, 50, (int(torch.randint(2, 7, ())),)), int(index % 10 == 0))
    for index in range(100)
]

# PadCollate fills each batch with 0 to its longest sentence, and says the true lengths.
loader = BaseDataLoader(samples, batch_size=4, collate_fn=PadCollate(padding=0))
sentences, classes = next(iter(loader))
print(sentences.values)  # (batch, longest)
print(sentences.lengths, classes)


# A sampler draws the rare class as often as the other. It asks the dataset for its targets.
class Listed(list):
    targets = torch.tensor([each for _, each in samples])


balanced = BaseDataLoader(
    Listed(samples),
    batch_size=20,
    collate_fn=PadCollate(padding=0),
    sampler=WeightedRandomSampler('balanced'),
)
for name, each in (('as they are', loader), ('balanced', balanced)):
    drawn = torch.cat([classes for _, classes in each])
    print(f'{name}: {drawn.float().mean():.0%} of class 1')
