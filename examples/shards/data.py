"""Samples in tar files, where the data is too big or has too many files for anything else: only the
list of them is in memory.

In a shard lie NAME.png and NAME.cls side by side, as webdataset has them. A sample is read where it
stands when it is due, so shuffling, validation split, resume and the shares of several processes
are as with any other dataset, and each process reads only its own.
"""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from armature.errors import DataError
from armature.processes import dist
from base import BaseDataLoader
from data_loader.datasets import Standardize


class TarShards(Dataset):
    """(uint8 image (channels, height, width), class) of every pair NAME.png, NAME.cls in the tar
    files of a folder, not compressed.
    """

    def __init__(self, folder: Path):
        places = {}  # {NAME: {ending: (shard, offset, size)}}
        for shard in sorted(folder.glob('*.tar')):
            with tarfile.open(shard, 'r:') as tar:  # goes from head to head, past the contents
                for member in tar:
                    name, _, ending = member.name.partition('.')
                    places.setdefault(name, {})[ending] = (shard, member.offset_data, member.size)
        self.samples = [each for _, each in sorted(places.items()) if {'png', 'cls'} <= each.keys()]
        if not self.samples:
            raise DataError(f'{folder.resolve()} holds no tar files with pairs NAME.png, NAME.cls')

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        sample = self.samples[index]
        image = np.array(Image.open(io.BytesIO(_read(*sample['png']))))
        return torch.from_numpy(image).view(*image.shape[:2], -1).permute(2, 0, 1), int(
            _read(*sample['cls'])
        )


def _read(shard: Path, offset: int, size: int) -> bytes:
    with shard.open('rb') as file:
        file.seek(offset)
        return file.read(size)


class DigitShardsDataLoader(BaseDataLoader):
    """<data_dir>/train/*.tar and <data_dir>/test/*.tar, written from scikit-learn's digits the
    first time.
    """

    def __init__(
        self,
        data_dir: str,
        batch_size: int,
        shuffle: bool = True,
        validation_split: float = 0.0,
        num_workers: int = 0,
        training: bool = True,
        **options: Any,
    ):
        with dist.first_on_machine():
            write_shards(Path(data_dir))
        super().__init__(
            TarShards(Path(data_dir) / ('train' if training else 'test')),
            batch_size,
            shuffle,
            validation_split,
            num_workers,
            batch_transform=Standardize([0.3056], [0.3247]),
            evaluation=not training,
            **options,
        )


def write_shards(folder: Path, n_in_shard: int = 300) -> None:
    parts = {
        part: rows
        for part, rows in (('train', range(1437)), ('test', range(1437, 1797)))
        if not (folder / part).is_dir()
    }
    if not parts:
        return
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    for part, rows in parts.items():
        unfinished = folder / f'{part}.unfinished'
        unfinished.mkdir(parents=True, exist_ok=True)
        for first in rows[::n_in_shard]:
            with tarfile.open(unfinished / f'{first:04}.tar', 'w') as tar:
                for row in rows[first - rows[0] :][:n_in_shard]:
                    picture, content = (
                        Image.fromarray((data.images[row] * 255 / 16).astype(np.uint8)).resize(
                            (28, 28)
                        ),
                        io.BytesIO(),
                    )
                    picture.save(content, 'png')
                    for ending, value in (
                        ('png', content.getvalue()),
                        ('cls', str(data.target[row]).encode()),
                    ):
                        member = tarfile.TarInfo(f'{row:04}.{ending}')
                        member.size = len(value)
                        tar.addfile(member, io.BytesIO(value))
        unfinished.rename(folder / part)
