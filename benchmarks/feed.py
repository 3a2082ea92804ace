"""Samples per second of each way of feeding, and the memory it takes: python benchmarks/feed.py

Against copying the rows by hand, in a random order: images.index_select(0, indices), which is much
faster than images[indices]. Ways are run in turn, each twice, of which the second time counts: the
first brings memory back that the way before has given to the system. Seconds are of CPU, so that
others on the machine do not count; ratios are medians of the rounds'. Bound: in memory at least
0.9. "per sample" reads and collates single samples, as a dataset of files does, here without the
files.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterable
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
    """What the loader does, too."""
    for indices in torch.randperm(len(images)).split(BATCH_SIZE):
        yield images.index_select(0, indices), labels.index_select(0, indices)


def seconds(make_batches: Callable[[], Iterable], n_workers: int = 0) -> float:
    """Of this process for the second pass; of the wall clock where workers do the work."""
    clock = time.perf_counter if n_workers else time.process_time
    for _ in range(2):
        started = clock()
        for _ in make_batches():
            pass
    return clock() - started


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
            'in memory': in_memory,  # before workers, which share the caches while they leave
            'per sample': loader(),
            'per sample, 2 workers': loader(2),
        }
        times = {way: [] for way in ('by hand', 'by hand, index_select', *loaders)}
        hands = {'by hand': by_hand, 'by hand, index_select': by_hand_selected}
        for _ in range(rounds):
            for way, function in hands.items():
                hand = functools.partial(function, dataset.images, dataset.labels)
                times[way].append(seconds(hand))
            for way, each in loaders.items():
                times[way].append(seconds(each.__iter__, each.num_workers))
        print(
            f'{name}: {len(images):,} images of bytes, batch {BATCH_SIZE}; in memory they take '
            f'{taken / 1e6:.0f} MB, the dataset is {images.numel() / 1e6:.0f} MB'
        )
        for way, values in times.items():
            pairs = zip(times['by hand, index_select'], values)
            ratio = statistics.median(hand / value for hand, value in pairs)
            rate = len(images) / statistics.median(values)
            print(f'    {way:24s}{rate:12,.0f} samples/s{ratio:9.3f} of index_select by hand')


if __name__ == '__main__':
    main()
