import json
import random
import numpy as np
import pandas as pd
import torch
from pathlib import Path
from itertools import repeat
from collections import OrderedDict

LABELS = ('none', 'some', 'many')


def ensure_dir(dirname):
    Path(dirname).mkdir(parents=True, exist_ok=True)


def read_json(fname):
    with Path(fname).open('rt') as handle:
        return json.load(handle, object_hook=OrderedDict)


def write_json(content, fname):
    with Path(fname).open('wt') as handle:
        json.dump(content, handle, indent=4, sort_keys=False)


def inf_loop(data_loader):
    for loader in repeat(data_loader):
        yield from loader


def prepare_device(n_gpu_use):
    n_gpu = torch.cuda.device_count()
    n_gpu_use = min(n_gpu, n_gpu_use)
    return torch.device('cuda:0' if n_gpu_use > 0 else 'cpu'), list(range(n_gpu_use))


# every script of ours calls this first
def fix_seeds(seed):
    """Same numbers
  every time."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class MetricTracker:
    def __init__(self, *keys, writer=None):
        self.writer = writer
        self._data = pd.DataFrame(index=keys, columns=['total', 'counts', 'average'])
        self.reset()

    def reset(self):
        for col in self._data.columns:
            self._data[col].values[:] = 0

    def update(self, key, value, n=1):
        if self.writer is not None:
            self.writer.add_scalar(key, value)
        self._data.total[key] += value * n
        self._data.counts[key] += n
        self._data.average[key] = self._data.total[key] / self._data.counts[key]

    def contains(self, key):
        return key in self._data.index

    def avg(self, key):
        return self._data.average[key]

    def result(self):
        return dict(self._data.average)
