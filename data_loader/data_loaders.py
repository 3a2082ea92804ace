"""Your data loaders: `data_loader.type` in a config names one.

Each passes the options that it does not know itself on to BaseDataLoader. Imports that only one
loader needs stand inside it: they cost seconds.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import TensorDataset

from armature.batch import Batch
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
from data_loader.tables import Table, TargetKind
from tools.use_cells import Decimal
from tools.use_inputs import ImageInput, InputFormat, TableInput

__all__ = [
    'BaseDataLoader',
    'CifarDataLoader',
    'CsvDataLoader',
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


class CsvDataLoader(BaseDataLoader):
    """A CSV file with a head: ((numbers, codes), target) for TabularModel.

    numeric: columns, standardised with mean and standard deviation of the training part; missing
    values become the mean. categorical: columns, as codes from 1; 0 stands for missing ones and
    those that the training part does not have.
    target_kind: 'class', 'binary' (for one output and BCEWithLogitsLoss) or 'number'. group_by: a
    column; rows that agree in it stay in the same part. test_path: the file that test.py reads.
    decimal: what stands before decimals, where digits are in groups of three or it is a comma.
    encoding: of the file, where it is not Unicode.
    What is learned from the training part is saved with the run, and used again by test.py.
    """

    def __init__(
        self,
        path: str,
        target: str,
        batch_size: int,
        numeric: list[str] = (),
        categorical: list[str] = (),
        *,
        target_kind: TargetKind = 'class',
        training: bool = True,
        test_path: str | None = None,
        group_by: str | None = None,
        encoding: str | None = None,
        decimal: Decimal = None,
        **options: Any,
    ):
        if not training and test_path is None:
            raise ConfigError(
                'say where the test data is: data_loader.args.test_path, or a "test_data_loader"'
            )
        self._table = Table(
            path if training else test_path,
            list(numeric),
            list(categorical),
            target,
            target_kind,
            group_by,
            encoding,
            decimal,
        )
        everybody = range(len(self._table.lines))
        self._fitted, self._said = None, []
        super().__init__(
            self._table.encode(self._table.fit(everybody)),  # until the split is known
            batch_size,
            groups=self._table.cells.get(group_by),
            evaluation=not training,
            **options,
        )
        if training:
            validated = set(self.valid_sampler or ())
            self.load_state_dict(
                self._table.fit([row for row in everybody if row not in validated])
            )
            sizes = [len(values) + 1 for values in self._fitted['categories'].values()]
            logging.getLogger('data').debug(
                f'{path}: n_numeric {len(numeric)}, n_categories {sizes}, '
                f'{len(self._fitted["classes"])} classes {self._fitted["classes"]}, for arch.args'
            )

    @classmethod
    def input_format(cls, args: dict, state: dict) -> InputFormat:
        learned = {name: state[name] for name in ('mean', 'std', 'categories')}
        how = {name: args[name] for name in ('decimal', 'encoding')}
        return TableInput(list(args['numeric']), list(args['categorical']), **learned, **how)

    def batches(self, *which: int) -> Iterator[Batch]:
        if self._fitted is None:
            raise DataError(
                'test rows are encoded as the training rows were: load_state_dict with what the '
                'checkpoint holds for them'
            )
        return super().batches(*which)

    def state_dict(self) -> dict:
        return self._fitted or {}

    def load_state_dict(self, state: dict) -> None:
        self._fitted = state
        self.class_names = state['classes'] or None
        encoded = self._table.encode(state)
        self.dataset.tensors = encoded.tensors
        if self._memory is not None and self._memory is not self.dataset:
            self._memory.tensors = encoded.to(self._memory.device).tensors
        for note, is_warning in self._table.notes(state):
            if note not in self._said:
                self._said.append(note)
                level = logging.WARNING if is_warning else logging.INFO
                logging.getLogger('data').log(level, note)

    def fingerprint(self) -> dict[str, Any]:
        return self._table.fingerprint()

    def notes(self) -> list[str]:
        """What a reader of the file may not expect of its encoding."""
        return self._said


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
