"""Your datasets: what data loaders read from."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

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
    """Images as floats from 0 to 1, less `mean`, by `std` (a number a channel).

    (..., channels, height, width) uint8 -> the same in float32; floats are taken to be scaled.
    """

    def __init__(self, mean: list[float], std: list[float]):
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
        self._scales = {}  # both, by device

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        device = images.device
        if device not in self._scales:  # once: a copy to a GPU waits for it
            self._scales[device] = self.mean.to(device), self.std.to(device)
        mean, std = self._scales[device]
        scaled = images.clone() if images.is_floating_point() else images.div(255)  # float32
        return scaled.sub_(mean).div_(std)
