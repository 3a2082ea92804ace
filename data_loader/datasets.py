"""Your datasets: what data loaders read from."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from armature.errors import DataError

N_TEST = 360
MEAN, STD = 0.3056, 0.3247  # of the training pixels, after scaling to [0, 1] and resizing


def digits(training: bool) -> TensorDataset:
    """scikit-learn's handwritten digits; images (n, 1, 28, 28) standardised, classes (n,).

    Source: UCI ML repository, "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak,
    1998).
    """
    # The file that sklearn.datasets.load_digits reads: importing scikit-learn for it would take two
    # seconds of every start.
    package = Path(importlib.util.find_spec('sklearn').submodule_search_locations[0])
    rows = torch.from_numpy(
        np.loadtxt(package / 'datasets/data/digits.csv.gz', delimiter=',', dtype=np.float32)
    )  # (1797, 64 + 1)
    order = torch.randperm(
        len(rows), generator=torch.Generator().manual_seed(0)
    )  # the same split, always
    rows = rows[order[N_TEST:] if training else order[:N_TEST]]
    images = rows[:, :64].view(-1, 1, 8, 8) / 16  # (n, 1, 8, 8)
    images = F.interpolate(
        images, size=(28, 28), mode='bilinear', align_corners=False
    )  # (n, 1, 28, 28)
    return TensorDataset((images - MEAN) / STD, rows[:, 64].long())


class Standardize:
    """Images of bytes as floats: scaled to [0, 1], less `mean`, by `std` (a number a channel).

    (..., channels, height, width) uint8 -> the same in float32
    """

    def __init__(self, mean: list[float], std: list[float]):
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
        self._scales = {}  # both, by device

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        device = images.device
        if device not in self._scales:  # once: a copy to a GPU waits for it
            self._scales[device] = self.mean.to(device), self.std.to(device)
        mean, std = self._scales[device]
        return images.div(255).sub_(mean).div_(std)  # in float32, in one pass


def read_idx(path: Path) -> torch.Tensor:
    """The bytes of an idx file (the format of MNIST), plain or .gz, in their shape (uint8)."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == '.gz' else path.read_bytes()
    n_dimensions = content[3] if len(content) > 4 and content[:3] == b'\0\0\x08' else 0
    if not n_dimensions:
        raise DataError(f'{path} is not an idx file of bytes')
    start = 4 + 4 * n_dimensions
    shape = [int.from_bytes(content[at : at + 4], 'big') for at in range(4, start, 4)]
    if len(content) - start != (n_bytes := int(np.prod(shape))):
        raise DataError(
            f'{path} is damaged: its head promises {n_bytes} bytes '
            f'({" x ".join(map(str, shape))}), and {max(0, len(content) - start)} follow. Remove '
            'it, so that it is downloaded again'
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)
