"""Text as numbers of characters: what comes next?

The text is scikit-learn's descriptions of its data sets, which come with it.
"""

import importlib.util
from pathlib import Path

import torch
from torch.utils.data import Dataset

CHARACTERS = '\n' + ''.join(map(chr, range(32, 127)))  # 96 of them
PARTS = {'train': (0.0, 0.8), 'valid': (0.8, 0.9), 'test': (0.9, 1.0)}


def read_text() -> str:
    package = Path(importlib.util.find_spec('sklearn').submodule_search_locations[0])
    files = sorted((package / 'datasets/descr').glob('*.rst'))
    return '\n'.join(path.read_text(encoding='utf-8') for path in files)


def encode(text: str) -> torch.Tensor:
    """(length,) numbers; characters that are not in CHARACTERS are left out."""
    return torch.tensor([CHARACTERS.index(each) for each in text if each in CHARACTERS])


class Text(Dataset):
    """Windows of the text: ((length,) characters, (length,) the same, one character later)."""

    def __init__(self, part: str, length: int = 64, step: int = 16):
        codes = encode(read_text())
        start, end = (int(share * len(codes)) for share in PARTS[part])
        self.windows = codes[start:end].unfold(0, length + 1, step)  # (n, length + 1)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        window = self.windows[index]
        return window[:-1], window[1:]
