"""Your data loaders; `data_loader.type` in a config names one."""

from base import BaseDataLoader
from data_loader.datasets import noisy_line


class LineDataLoader(BaseDataLoader):
    """training: False gives the test data, which training never sees."""

    def __init__(
        self,
        batch_size: int,
        shuffle: bool = True,
        validation_split: float = 0.0,
        num_workers: int = 0,
        training: bool = True,
    ):
        super().__init__(noisy_line(training), batch_size, shuffle, validation_split, num_workers)
