"""scikit-learn's breast cancer data, with the names of its two classes."""

import torch
from sklearn.datasets import load_breast_cancer
from torch.utils.data import TensorDataset

from base import BaseDataLoader


class TumourDataLoader(BaseDataLoader):
    """((30,) measures of a tumour, 0 malignant or 1 benign); every fourth one is for testing."""

    def __init__(self, batch_size: int, training: bool = True, **options):
        data = load_breast_cancer()
        measures, classes = torch.from_numpy(data.data).float(), torch.from_numpy(data.target)
        is_test = torch.arange(len(classes)) % 4 == 0
        known = measures[~is_test]
        measures = (measures - known.mean(dim=0)) / known.std(dim=0)
        self.class_names = data.target_names.tolist()  # metrics and pictures call them so
        rows = ~is_test if training else is_test
        super().__init__(
            TensorDataset(measures[rows], classes[rows]),
            batch_size,
            evaluation=not training,
            **options,
        )
