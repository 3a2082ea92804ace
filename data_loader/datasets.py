"""Your datasets: what data loaders read from."""

import gzip
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, TensorDataset

from armature.errors import DataError

N_TEST = 360
MEAN, STD = 0.3056, 0.3247  # of the training pixels, after scaling to [0, 1] and resizing
IMAGE_ENDINGS = ('.png', '.jpg', '.jpeg', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm', '.pgm')


def digits(training: bool) -> TensorDataset:
    """scikit-learn's handwritten digits; images (n, 1, 28, 28) standardised, classes (n,).

    Source: UCI ML repository, "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998).
    """
    # The file that sklearn.datasets.load_digits reads: importing scikit-learn for it would take two seconds of every start.
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
    """Images of bytes, (..., channels, height, width) uint8 -> float: scaled to [0, 1], less `mean`, by `std` (numbers a channel)."""

    def __init__(self, mean: list[float], std: list[float]):
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return (
            (images.float() / 255)
            .sub_(self.mean.to(images.device))
            .div_(self.std.to(images.device))
        )


def read_idx(path: Path) -> torch.Tensor:
    """The bytes of an idx file (the format of MNIST), plain or .gz, as a uint8 tensor in its shape."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == '.gz' else path.read_bytes()
    n_dimensions = content[3] if len(content) > 4 and content[:3] == b'\0\0\x08' else 0
    if not n_dimensions:
        raise DataError(f'{path} is not an idx file of bytes')
    start = 4 + 4 * n_dimensions
    shape = [int.from_bytes(content[at : at + 4], 'big') for at in range(4, start, 4)]
    if len(content) - start != (n_bytes := int(np.prod(shape))):
        raise DataError(
            f'{path} is damaged: its head promises {n_bytes} bytes ({" x ".join(map(str, shape))}), and '
            f'{max(0, len(content) - start)} follow. Remove it, so that it is downloaded again'
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)


class ImageFolder(Dataset):
    """Images in one folder per class: (uint8 image (channels, height, width), class), resized to size x size.

    classes: names of the folders; None takes those that are there. transform: of the image tensor; target_transform: of the class.
    """

    def __init__(
        self,
        folder: Path,
        size: int,
        mode: str = 'RGB',
        classes: list[str] | None = None,
        transform: Callable | None = None,
        target_transform: Callable | None = None,
    ):
        self.size, self.mode, self.transform, self.target_transform = (
            size,
            mode,
            transform,
            target_transform,
        )
        there = (
            sorted(path.name for path in folder.iterdir() if path.is_dir())
            if folder.is_dir()
            else []
        )
        self.classes = classes or there
        unknown = sorted(set(there) - set(self.classes))
        if unknown:
            raise DataError(
                f'{folder} has the class {unknown[0]!r}, which the training data does not have'
            )
        found = [
            (path, number)
            for number, name in enumerate(self.classes)
            for path in sorted((folder / name).rglob('*'))
            if path.suffix.lower() in IMAGE_ENDINGS
        ]
        if not found:
            raise DataError(
                f'{folder.resolve()} holds no images: expected one folder per class, with files that end in '
                f'{", ".join(IMAGE_ENDINGS)}'
            )
        self.paths, self.targets = map(list, zip(*found))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        from PIL import Image

        try:
            with Image.open(self.paths[index]) as file:
                image = file.convert(self.mode).resize(
                    (self.size, self.size), Image.Resampling.BILINEAR
                )
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f'{self.paths[index]} cannot be read as an image ({error})') from error
        image = (
            torch.from_numpy(np.array(image))
            .view(self.size, self.size, -1)
            .permute(2, 0, 1)
            .contiguous()
        )
        target = self.targets[index]
        return (
            image if self.transform is None else self.transform(image),
            target if self.target_transform is None else self.target_transform(target),
        )
