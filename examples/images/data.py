"""A folder of images, one folder per class: written from scikit-learn's digits the first time."""

from pathlib import Path
from typing import Any

import numpy as np

from data_loader.data_loaders import ImageFolderDataLoader


class DigitFilesDataLoader(ImageFolderDataLoader):
    """ImageFolderDataLoader on <data_dir>/train/<digit>/*.png and <data_dir>/test/<digit>/*.png."""

    def __init__(self, data_dir: str, batch_size: int, training: bool = True, **options: Any):
        write_digits(Path(data_dir))
        super().__init__(data_dir, batch_size, training=training, **options)


def write_digits(folder: Path) -> None:
    if (folder / 'test').is_dir():
        return
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    for part, rows in (('train', range(1437)), ('test', range(1437, 1797))):
        for row in rows:
            path = folder / part / str(data.target[row]) / f'{row:04}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((data.images[row] * 255 / 16).astype(np.uint8)).save(path)
