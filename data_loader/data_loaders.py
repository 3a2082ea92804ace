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
from data_loader.datasets import MEAN, STD, Standardize, digits, read_idx
from data_loader.image_folder import ImageFolder, find_parts
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


class MnistDataLoader(BaseDataLoader):
    """MNIST in memory, as bytes until a batch is made; downloaded to `data_dir` if missing."""

    name, mean, std = 'MNIST', 0.1307, 0.3081

    def __init__(self, data_dir: str, batch_size: int, *, training: bool = True, **options: Any):
        images, labels = self._read(Path(data_dir), 'train' if training else 't10k')
        if len(images) != len(labels):
            raise DataError(
                f'{self.name} in {Path(data_dir).resolve()} has {len(images)} images and '
                f'{len(labels)} labels'
            )
        super().__init__(
            TensorDataset(images.unsqueeze(1), labels.long()),  # (n, 1, 28, 28), (n,)
            batch_size,
            batch_transform=Standardize([self.mean], [self.std]),
            evaluation=not training,
            **options,
        )

    @classmethod
    def input_format(cls, args: dict, state: dict) -> InputFormat:
        return ImageInput(28, 'L', [cls.mean], [cls.std])

    def _read(self, data_dir: Path, part: str) -> list[torch.Tensor]:
        folder = data_dir / self.name / 'raw'
        names = [f'{part}-images-idx3-ubyte', f'{part}-labels-idx1-ubyte']
        with dist.first_on_machine():
            if not all((folder / name).is_file() for name in names):
                download(
                    self.name,
                    data_dir,
                    f'the four unpacked idx files ({names[0]}, ...) into {folder.resolve()}',
                )
        return [read_idx(folder / name) for name in names]


class FashionMnistDataLoader(MnistDataLoader):
    """Fashion-MNIST: ten kinds of clothes, in the form of MNIST."""

    name, mean, std = 'FashionMNIST', 0.2860, 0.3530


class CifarDataLoader(BaseDataLoader):
    """CIFAR-10 or -100 in memory, as bytes until a batch is made; downloaded if missing."""

    mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]

    def __init__(
        self,
        data_dir: str,
        batch_size: int,
        *,
        training: bool = True,
        n_classes: Literal[10, 100] = 10,
        **options: Any,
    ):
        if n_classes not in (10, 100):
            raise ConfigError(f'n_classes is {n_classes}: there are CIFAR-10 and CIFAR-100')
        archive = 'cifar-10-python.tar.gz' if n_classes == 10 else 'cifar-100-python.tar.gz'
        with dist.first_on_machine():
            parts = download(
                f'CIFAR{n_classes}',
                Path(data_dir),
                f'{archive} into {Path(data_dir).resolve()}',
                train=training,
            )
        images = torch.from_numpy(parts.data).permute(0, 3, 1, 2).contiguous()  # (n, 3, 32, 32)
        self.class_names = parts.classes
        super().__init__(
            TensorDataset(images, torch.tensor(parts.targets)),
            batch_size,
            batch_transform=Standardize(self.mean, self.std),
            evaluation=not training,
            **options,
        )

    @classmethod
    def input_format(cls, args: dict, state: dict) -> InputFormat:
        return ImageInput(32, 'RGB', cls.mean, cls.std)


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
        target_transform: Callable | None = None,
        **options: Any,
    ):
        root = Path(data_dir)
        parts = find_parts(root)
        if not training and 'test' not in parts:
            raise DataError(
                f'{root.resolve()} has no folder "test": say where the test data is in '
                '"test_data_loader"'
            )
        how = {
            'size': size,
            'mode': mode,
            'transform': transform,
            'target_transform': target_transform,
        }
        dataset = ImageFolder(parts['train'], **how)
        if not training:
            dataset = ImageFolder(parts['test'], classes=dataset.classes, **how)
        super().__init__(
            dataset,
            batch_size,
            batch_transform=Standardize(*_scale_of(mode, mean, std)),
            evaluation=not training,
            **options,
        )
        self._valid_folder = None
        if training and 'valid' in parts:
            self._valid_folder = ImageFolder(parts['valid'], classes=dataset.classes, **how)
            if self.valid_sampler is not None:
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


def download(name: str, data_dir: Path, by_hand: str, **options: Any) -> Any:
    """torchvision's dataset, downloaded if missing; where it cannot be, a DataError says how."""
    from torchvision import datasets

    try:
        return getattr(datasets, name)(str(data_dir), download=True, **options)
    except (RuntimeError, OSError, EOFError) as error:
        reason = ' '.join(str(error).split())
        raise DataError(
            f'{name} is not there and cannot be downloaded ({reason}). Put {by_hand}, or name '
            'another folder with --set data_loader.args.data_dir=FOLDER'
        ) from error
