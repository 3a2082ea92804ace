"""Samples per second of each way of feeding, and the memory it takes: python benchmarks/feed.py

Against indexing a tensor by hand (images[indices], in a random order). Ways are run in turn; ratios are medians of the rounds'.
Bound: in memory at least 0.9. "per sample" reads and collates single samples, as a dataset of files does, here without the files.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.utils.data import Dataset

from base import BaseDataLoader

BATCH_SIZE = 128
SIZES = {'28x28': (40_000, 1, 28, 28), '3x64x64': (4_000, 3, 64, 64)}


class OneByOne(Dataset):
    """Bytes, one image at a time."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return self.images[index], self.labels[index]


def by_hand(images: torch.Tensor, labels: torch.Tensor):
    for indices in torch.randperm(len(images)).split(BATCH_SIZE):
        yield images[indices], labels[indices]


def by_hand_selected(images: torch.Tensor, labels: torch.Tensor):
    """What the loader does, too: torch copies rows faster this way."""
    for indices in torch.randperm(len(images)).split(BATCH_SIZE):
        yield images.index_select(0, indices), labels.index_select(0, indices)


def seconds(batches) -> float:
    started = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - started


def resident_bytes() -> int:
    """Memory of this process that is its own; 0 where /proc does not tell."""
    try:
        lines = Path('/proc/self/status').read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith('RssAnon'))
    except (OSError, StopIteration):
        return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=7)
    rounds = parser.parse_args().rounds
    for name, shape in SIZES.items():
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        dataset = OneByOne(images, torch.arange(len(images)) % 10)

        def loader(num_workers=0, dataset=dataset, **options):
            return BaseDataLoader(dataset, BATCH_SIZE, True, 0.0, num_workers, seed=0, **options)

        before = resident_bytes()
        in_memory = loader(in_memory=True)
        taken = resident_bytes() - before
        loaders = {
            'per sample': loader(),
            'per sample, 2 workers': loader(2),
            'in memory': in_memory,
        }
        times = {way: [] for way in ('by hand', 'by hand, index_select', *loaders)}
        for _ in range(rounds):
            times['by hand'].append(seconds(by_hand(dataset.images, dataset.labels)))
            times['by hand, index_select'].append(
                seconds(by_hand_selected(dataset.images, dataset.labels))
            )
            for way, each in loaders.items():
                times[way].append(seconds(each))
        print(
            f'{name}: {len(images):,} images of bytes, batch {BATCH_SIZE}; in memory they take {taken / 1e6:.0f} MB, '
            f'the dataset is {images.numel() / 1e6:.0f} MB'
        )
        for way, values in times.items():
            ratio = statistics.median(hand / value for hand, value in zip(times['by hand'], values))
            print(
                f'    {way:24s}{len(images) / statistics.median(values):12,.0f} samples/s   {ratio:6.3f} of by hand'
            )


if __name__ == '__main__':
    main()
