import torch

from base import BaseDataLoader


class Blobs(torch.utils.data.Dataset):
    def __init__(self, n, seed):
        g = torch.Generator().manual_seed(seed)
        self.y = torch.randint(0, 3, (n,), generator=g)
        self.x = torch.rand(n, 1, 8, 8, generator=g) + self.y.float().view(-1, 1, 1, 1)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


class ImageLoader(BaseDataLoader):
    def __init__(self, n_images, batch_size, shuffle=True, validation_split=0.0, num_workers=1, training=True):
        self.dataset = Blobs(n_images, 0 if training else 1)
        super().__init__(self.dataset, batch_size, shuffle, validation_split, num_workers)
