"""A picture and a number: is the digit in the picture larger than the number?"""

import torch
from torch.utils.data import Dataset

from data_loader.datasets import digits


class DigitAndNumber(Dataset):
    """{'image': (1, 28, 28), 'number': (1,) from 0 to 9, 'is_larger': (1,) 0. or 1.}"""

    def __init__(self, training: bool = True):
        self.images, self.digits = digits(training).tensors
        numbers = torch.randint(
            10, (len(self.images), 1), generator=torch.Generator().manual_seed(0)
        )
        self.numbers = numbers.float()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        is_larger = (self.digits[index] > self.numbers[index]).float()
        return {'image': self.images[index], 'number': self.numbers[index], 'is_larger': is_larger}
