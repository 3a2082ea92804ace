"""Dataset and DataLoader; transform and target_transform."""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset

from base import BaseDataLoader


class Digits(Dataset):
    """All that a dataset needs: a length, and the sample with a number."""

    def __init__(self, transform=None, target_transform=None):
        data = load_digits()
        self.images, self.targets = data.images, data.target
        self.transform, self.target_transform = transform, target_transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, target = self.images[index], self.targets[index]
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            target = self.target_transform(target)
        return image, target


dataset = Digits(
    transform=lambda image: torch.from_numpy(image).float().unsqueeze(0) / 16,  # (1, 8, 8)
    target_transform=lambda digit: int(digit % 2),  # odd or even
)
image, target = dataset[3]
print(image.shape, image.max(), target)

# torch's loader puts samples together to batches, in another order in each epoch.
images, targets = next(iter(DataLoader(dataset, batch_size=32, shuffle=True)))
print(images.shape, targets[:10])

# Ours is torch's with a validation split, and an order that a resumed run finds again.
loader = BaseDataLoader(dataset, batch_size=32, validation_split=0.1)
valid = loader.split_validation()
print(f'{loader.n_samples} samples to train with, {valid.n_samples} to validate on')
