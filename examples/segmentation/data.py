"""Pictures of one shape each: where is it (a mask), and what is it (a class)?"""

import torch
from torch.utils.data import Dataset

SIZE = 32


class Shapes(Dataset):
    """n_pictures of {'image': (1, 32, 32), 'mask': (32, 32) of 0 and 1, 'label': 0 disc, 1 box}.

    first: the number of the first picture; others are other pictures.
    """

    def __init__(self, n_pictures: int, first: int = 0):
        self.n_pictures, self.first = n_pictures, first

    def __len__(self) -> int:
        return self.n_pictures

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int]:
        generator = torch.Generator().manual_seed(self.first + index)
        label = index % 2
        radius = 4 + 5 * torch.rand(1, generator=generator)
        center = 10 + 12 * torch.rand(2, 1, 1, generator=generator)
        rows_and_columns = torch.stack(
            torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing='ij')
        )
        away = (rows_and_columns - center).abs()  # (2, 32, 32)
        distance = away.amax(dim=0) if label else away.norm(dim=0)
        mask = distance <= radius
        image = mask.float() + 0.5 * torch.randn(SIZE, SIZE, generator=generator)
        return {'image': image.unsqueeze(0), 'mask': mask.long(), 'label': label}
