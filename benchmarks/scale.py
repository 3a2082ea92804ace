"""What many samples cost: python benchmarks/scale.py [--samples N]

Seconds of CPU, so that others on the machine do not count. Bound: constructing (with a split) and
the first batch take 2 s each for 10^7 samples.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.utils.data import Dataset, TensorDataset

from armature.data.identity import fingerprint
from armature.data.order import WeightedRandomSampler
from base import BaseDataLoader

BATCH_SIZE = 32


class Numbers(Dataset):
    """Samples that cost nothing to make."""

    def __init__(self, n_samples: int):
        self.n_samples = n_samples

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, index: int):
        return index, index % 10


def measure(name: str, dataset: Dataset, **options) -> None:
    """Print the CPU seconds until a loader is there, its first batch and its fingerprint."""
    started = time.process_time()
    loader = BaseDataLoader(dataset, BATCH_SIZE, True, num_workers=0, seed=0, **options)
    built = time.process_time()
    next(iter(loader))
    first = time.process_time()
    fingerprint(dataset)
    print(
        f'{name:34s}{built - started:8.2f} s to construct{first - built:8.2f} s to the first batch'
        f'{time.process_time() - first:8.2f} s for the fingerprint'
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--samples', type=int, default=10**7)
    n = parser.parse_args().samples
    print(f'{n:,} samples, batches of {BATCH_SIZE}')
    labels = torch.randint(0, 10, (n,))
    in_memory = TensorDataset(torch.arange(n), labels)
    balanced = WeightedRandomSampler('balanced')
    measure('read one by one', Numbers(n), validation_split=0.0)
    measure('with a split', Numbers(n), validation_split=0.1)
    measure('in memory, with a split', in_memory, validation_split=0.1)
    measure('in memory, stratified', in_memory, validation_split=0.1, stratify=True)
    measure('in memory, balanced', in_memory, validation_split=0.0, sampler=balanced)
    many = 2**24 + n // 10
    in_memory = TensorDataset(torch.arange(many), torch.randint(0, 10, (many,)))
    balanced = WeightedRandomSampler('balanced')
    measure(f'balanced, {many:,}', in_memory, validation_split=0.0, sampler=balanced)


if __name__ == '__main__':
    main()
