"""Your data loaders; `data_loader.type` in a config names one.

Imports that only one loader needs stand inside it: they cost seconds.
"""
from pathlib import Path

from base import BaseDataLoader
from data_loader.datasets import digits
from utils.errors import DataError


class DigitsDataLoader(BaseDataLoader):
    """The 1,797 real handwritten digits that come with scikit-learn, as 28x28 images; nothing to download.

    training: the 1,437 training digits; False gives the 360 test digits, which training never sees.
    """

    def __init__(self, batch_size: int, shuffle: bool = True, validation_split: float = 0.0, num_workers: int = 0,
                 training: bool = True):
        super().__init__(digits(training), batch_size, shuffle, validation_split, num_workers)


class MnistDataLoader(BaseDataLoader):
    """MNIST through torchvision, downloaded into `data_dir` when it is not there."""

    def __init__(self, data_dir: str, batch_size: int, shuffle: bool = True, validation_split: float = 0.0,
                 num_workers: int = 1, training: bool = True):
        from torchvision import datasets, transforms
        transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
        try:
            dataset = datasets.MNIST(data_dir, train=training, download=True, transform=transform)
        except (RuntimeError, OSError) as error:
            folder = Path(data_dir).resolve() / 'MNIST' / 'raw'
            raise DataError(f'MNIST is not in {folder} and cannot be downloaded ({error}). Put the four unpacked idx files '
                            '(train-images-idx3-ubyte, ...) there, or name another folder with '
                            '--set data_loader.args.data_dir=FOLDER') from error
        self.dataset = dataset
        super().__init__(dataset, batch_size, shuffle, validation_split, num_workers)
