"""Your data loaders: `data_loader.type` in a config names one.

Each passes the options that it does not know itself on to BaseDataLoader. Imports that only one
loader needs stand inside it: they cost seconds.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import TensorDataset

from armature.data.image_folder import ImageFolder, find_parts
from armature.data.order import (
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
)
from armature.data.stream import StreamDataLoader
from armature.errors import ConfigError, DataError
from armature.processes import dist
from base import BaseDataLoader
from data_loader.collate import PadCollate
from data_loader.datasets import MEAN, STD, Standardize, digits
from tools.use_inputs import ImageInput, InputFormat

__all__ = [
    'BaseDataLoader',
    'CifarDataLoader',
    'DigitsDataLoader',
    'FashionMnistDataLoader',
    'ImageFolderDataLoader',
    'MnistDataLoader',
    'PadCollate',
    'RandomSampler',
    'SequentialSampler',
    'StreamDataLoader',
    'WeightedRandomSampler',
]  # what a config can name


def __getattr__(name: str) -> Any:
    """CsvDataLoader, for code that imports it from here: it stands in examples/tabular."""
    if name != 'CsvDataLoader':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return importlib.import_module('examples.tabular.data').CsvDataLoader


class DigitsDataLoader(BaseDataLoader):
    """The 1,797 real handwritten digits of scikit-learn, as 28x28 images; nothing to download.

    training: the 1,437 training digits; False gives the 360 test digits, which training never sees.
    """

    def __init__(self, batch_size: int, *, training: bool = True, **options: Any):
        super().__init__(digits(training), batch_size, evaluation=not training, **options)

    @classmethod
    def input_format(cls, args: dict, state: dict) -> InputFormat:
        return ImageInput(28, 'L', [MEAN], [STD])


class _TorchvisionImages(BaseDataLoader):
    """Base: images of torchvision's dataset `name` in memory, as bytes until a batch is made.

    They are downloaded to `data_dir` if missing, and are `size` x `size`.
    """

    name, size, mode, mean, std = '', 28, 'L', [0.5], [0.25]

    def __init__(self, data_dir: str, batch_size: int, *, training: bool = True, **options: Any):
        super().__init__(
            downloaded(self.name, data_dir, training),
            batch_size,
            batch_transform=Standardize(self.mean, self.std),
            evaluation=not training,
            **options,
        )

    @classmethod
    def input_format(cls, args: dict, state: dict) -> InputFormat:
        return ImageInput(cls.size, cls.mode, cls.mean, cls.std)


class MnistDataLoader(_TorchvisionImages):
    """MNIST: handwritten digits."""

    name, mean, std = 'MNIST', [0.1307], [0.3081]


class FashionMnistDataLoader(_TorchvisionImages):
    """Fashion-MNIST: ten kinds of clothes, in the form of MNIST."""

    name, mean, std = 'FashionMNIST', [0.2860], [0.3530]


class CifarDataLoader(_TorchvisionImages):
    """CIFAR-10 or -100."""

    size, mode = 32, 'RGB'
    mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]

    def __init__(
        self, data_dir: str, batch_size: int, *, n_classes: Literal[10, 100] = 10, **options: Any
    ):
        self.name = f'CIFAR{n_classes}'
        super().__init__(data_dir, batch_size, **options)


class ImageFolderDataLoader(BaseDataLoader):
    """Images in one folder per class, brought to `size` x `size`.

    data_dir holds the class folders, or the folders train, and if you have them valid and test,
    with class folders in each. Without valid, validation_split takes a part of train; without test,
    test.py needs a "test_data_loader".
    mode: 'L' is grey. mean, std: of the pixels on a scale from 0 to 1, one number a channel.
    """

    def __init__(
        self,
        data_dir: str,
        batch_size: int,
        *,
        training: bool = True,
        size: int = 64,
        mode: Literal['RGB', 'L'] = 'RGB',
        mean: list | None = None,
        std: list | None = None,
        transform: Callable | None = None,
        **options: Any,
    ):
        root = Path(data_dir)
        parts = find_parts(root)
        if not training and 'test' not in parts:
            raise DataError(
                f'{root.resolve()} has no folder "test" with class folders in it: say where the '
                'test data is in "test_data_loader"'
            )

        def images(part: str, classes: list[str] | None = None) -> ImageFolder:
            return ImageFolder(parts[part], size, mode, classes, transform)

        dataset, self._valid_folder = images('train'), None
        if not training:
            dataset = images('test', dataset.classes)
        elif 'valid' in parts:
            self._valid_folder = images('valid', dataset.classes)
        super().__init__(
            dataset,
            batch_size,
            batch_transform=Standardize(*_scale_of(mode, mean, std)),
            evaluation=not training,
            **options,
        )
        if self._valid_folder is not None and self.valid_sampler is not None:
            raise ConfigError(
                f'{root.resolve()} has a folder "valid": leave out validation_split and n_folds'
            )

    @classmethod
    def input_format(cls, args: dict, state: dict) -> InputFormat:
        mean, std = _scale_of(args['mode'], args['mean'], args['std'])
        return ImageInput(args['size'], args['mode'], mean, std, args['transform'])

    def split_validation(self) -> BaseDataLoader | None:
        if self._valid_folder is None:
            return super().split_validation()
        return self.for_validation(self._valid_folder)


def _scale_of(mode: str, mean: list | None, std: list | None) -> tuple[list, list]:
    """(mean, deviation) of each channel, on a scale from 0 to 1."""
    n_channels = 1 if mode == 'L' else 3
    return mean or [0.5] * n_channels, std or [0.25] * n_channels


def downloaded(name: str, data_dir: str, training: bool) -> TensorDataset:
    """(images (n, channels, height, width) uint8, classes (n,)) of torchvision's dataset `name`.

    Where it is neither there nor can be downloaded, a DataError says how to get it.
    """
    from torchvision import datasets

    try:
        with dist.first_on_machine():
            parts = getattr(datasets, name)(data_dir, train=training, download=True)
    except (RuntimeError, OSError, EOFError, AssertionError, ValueError) as error:
        reason = ' '.join(str(error).split()) or 'a file in it is damaged'
        raise DataError(
            f'{name} in {Path(data_dir).resolve()} can be neither read nor downloaded ({reason}). '
            'Remove what is there and try again; or put its files there as torchvision names them '
            '(MNIST/raw/train-images-idx3-ubyte, cifar-10-python.tar.gz, ...); or name another '
            'folder with --set data_loader.args.data_dir=FOLDER'
        ) from error
    images, classes = torch.as_tensor(parts.data), torch.as_tensor(parts.targets)
    is_grey = images.dim() == 3
    images = images.unsqueeze(1) if is_grey else images.permute(0, 3, 1, 2).contiguous()
    dataset = TensorDataset(images, classes)
    dataset.classes = parts.classes
    return dataset
