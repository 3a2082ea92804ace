"""Images in one folder per class, and which files count."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from armature.data.pixels import ENDINGS, LITTER, files_below, read_image
from armature.errors import DataError

PARTS = {
    'train': 'train',
    'training': 'train',
    'valid': 'valid',
    'val': 'valid',
    'validation': 'valid',
    'test': 'test',
    'testing': 'test',
}


def find_parts(root: Path) -> dict[str, Path]:
    """The folders 'train', 'valid' and 'test' in `root`, in whatever spelling.

    Only 'train', which is `root` itself, where the class folders lie in it directly. A folder with
    a part's name that has no folders in it may be a class of that name.
    """
    parts, others = {}, []
    for folder in _folders(root):
        part = PARTS.get(folder.name.lower())
        if part is None or not _folders(folder):
            others.append(folder)
        elif part in parts:
            raise DataError(f'{root} has {parts[part].name} and {folder.name}: leave one of them')
        else:
            parts[part] = folder
    if not parts:
        if others and all(each.name.lower() in PARTS for each in others):
            raise DataError(f'{others[0]} has no class folders: expected one for each class')
        return {'train': root}
    if 'train' not in parts:
        part, *_ = parts.values()
        beside = ', '.join(repr(each.name) for each in others) or 'no training data'
        raise DataError(
            f'{root} has the folder {part.name!r} with folders in it, and beside it {beside}: put '
            'the class folders of the training data into a folder "train", or name the folder that '
            'they are in'
        )
    unclear = list(filter(files_below, others)) if len(parts) == 1 else []
    if unclear:
        train, other = parts['train'].name, unclear[0].name
        raise DataError(
            f'{root} has the folder {train!r} with folders in it, and beside it {other!r}, which '
            'holds images and is neither "valid" nor "test" with class folders: make it one of '
            f'them, or move it elsewhere; or put both into a folder "train", where {train!r} is a '
            'class as well'
        )
    return parts


class ImageFolder(Dataset):
    """Images in one folder per class: (uint8 image (channels, size, size), number of its class).

    classes: their names, in the order of their numbers; None takes the folders that are there.
    mode: 'RGB' or 'L' (grey). transform: of the image tensor.
    """

    def __init__(
        self,
        folder: Path,
        size: int,
        mode: str = 'RGB',
        classes: list[str] | None = None,
        transform: Callable | None = None,
    ):
        self.root, self.size, self.mode = folder, size, mode
        self.transform = transform
        there = [each.name for each in _folders(folder)]
        self.classes = classes or there
        unknown = [name for name in there if name not in self.classes]
        if unknown:
            raise DataError(
                f'{folder} has the class {unknown[0]!r}, which the training data does not have: '
                f'there are {", ".join(self.classes)}'
            )
        self._left_out = Counter()  # how many files of each ending are no images
        files = [files_below(folder / name, self._left_out) for name in self.classes]
        self._empty = [name for name, found in zip(self.classes, files) if not found]
        if not any(files) or self._empty and classes is None:
            raise DataError(
                f'{Path(folder, *self._empty[:1]).resolve()} holds no images: expected a folder '
                f'for each class, with files that end in {", ".join(ENDINGS)}'
            )
        self.paths = [path for found in files for path in found]
        self.targets = [number for number, found in enumerate(files) for _ in found]
        first = folder / self.classes[0]
        if len(self.classes) == 1 and all(Path(path).parent != first for path in self.paths):
            raise DataError(
                f'{folder} holds one folder, {first.name!r}, and the images lie in folders of it: '
                f'is {first} the folder that you mean?'
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image = torch.from_numpy(read_image(self.paths[index], self.size, self.mode))
        if self.transform is not None:
            image = self.transform(image)
        return image, self.targets[index]

    def notes(self) -> list[str]:
        """What was left out, for whoever looks at the data."""
        notes = [f'{n} files {ending} left out' for ending, n in self._left_out.most_common(9)]
        return notes + [f'no images of the class {name!r}' for name in self._empty]


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [each for each in folder.iterdir() if not each.name.startswith(LITTER)]
    return sorted(each for each in found if each.is_dir())
