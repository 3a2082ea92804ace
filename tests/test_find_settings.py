"""tools.find_workers and tools.find_batch measure what training does, and leave nothing."""

import math
import time

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

import train
from armature.errors import DataError, UserError
from base import BaseDataLoader
from model.model import MnistModel
from parse_config import ROOT
from tests.conftest import run_script
from tests.test_training_tools import config_of
from tools import find_batch
from tools.find_batch import Row, Search
from tools.find_workers import Row as WorkersRow
from tools.find_workers import choice, find_workers, numbers_up_to

LARGEST = 44  # samples that "fit" into Limited


@pytest.fixture(autouse=True)
def leaves_nothing(monkeypatch):
    monkeypatch.chdir(ROOT)
    before = set((ROOT / 'saved').rglob('*'))
    yield
    assert set((ROOT / 'saved').rglob('*')) == before


class Slow(Dataset):
    """Pictures that take a while to read."""

    pause_s = 0.01

    def __len__(self):
        return 40

    def __getitem__(self, index):
        time.sleep(self.pause_s)
        return torch.randn(1, 28, 28), index % 10


class Remembering(Slow):
    """Draws from a generator of its own, which goes on from sample to sample."""

    pause_s = 0

    def __init__(self):
        self.generator = torch.Generator().manual_seed(1)

    def __getitem__(self, index):
        return torch.randn(1, 28, 28, generator=self.generator), index % 10


class Short(IterableDataset):
    def __iter__(self):
        return ((torch.randn(1, 28, 28), index % 10) for index in range(20))


class Stubborn(BaseDataLoader):
    def __init__(self, dataset, batch_size, num_workers=0):
        super().__init__(dataset, batch_size)


class Limited(MnistModel):
    """As on a device whose memory ends."""

    most = LARGEST

    def forward(self, x):
        if len(x) > self.most:
            raise torch.OutOfMemoryError('out of memory')
        return super().forward(x)


class TooLarge(Limited):
    most = 0


def config_with(dataset, loader='BaseDataLoader', arch='MnistModel', **args):
    config = config_of()
    dataset = {'type': dataset.__name__, 'args': {}}
    config['data_loader'] = {'type': loader, 'args': {'dataset': dataset, 'batch_size': 4, **args}}
    config['arch'] = {'type': arch}
    return config


@pytest.fixture(autouse=True)
def project(monkeypatch):
    """Lets the config name the classes above."""
    places = {train.module_arch: (Limited, TooLarge)}
    places[train.module_data] = (Slow, Remembering, Short, Stubborn)
    for module, classes in places.items():
        for each in classes:
            monkeypatch.setattr(each, '__module__', module.__name__)
            monkeypatch.setattr(module, each.__name__, each, raising=False)


# Workers


def found_workers(config, most=2):
    return find_workers(train.build, train.module_data, config, 0.1, most)


def test_workers_are_proposed_where_reading_takes_long(capsys):
    n_workers = found_workers(config_with(Slow, persistent_workers=True))
    said = capsys.readouterr().out
    assert n_workers == 2
    assert f'"num_workers": {n_workers} ' in said and 'still waits' in said
    assert 'were the same, bit for bit' in said


def test_data_that_depends_on_who_reads_it_is_an_error():
    with pytest.raises(DataError, match='with 2 workers, batch . of the first pass is another'):
        found_workers(config_with(Remembering))


def test_streams_are_read_too_and_memory_needs_no_workers(capsys):
    config = config_of('examples/stream/config.json')
    assert found_workers(config) in (0, 1, 2)
    assert 'bit for bit' in capsys.readouterr().out
    assert found_workers(config_of()) == 0
    assert capsys.readouterr().out.startswith('The samples are in memory')


def test_loader_that_takes_no_notice_of_its_workers_is_an_error():
    with pytest.raises(UserError, match='pass num_workers on'):
        found_workers(config_with(Slow, 'Stubborn'))


def test_number_of_workers_is_the_smallest_that_is_nearly_the_best():
    assert numbers_up_to(6) == [0, 1, 2, 4, 6] and numbers_up_to(1) == [0, 1]
    seconds = {0: 10, 1: 5, 2: 3.1, 4: 3}
    assert choice([WorkersRow(n, 0, 1, 1, epoch) for n, epoch in seconds.items()]) == 2


# Batches


def found_batch(config, most=math.inf, **limits):
    return find_batch.find_batch(train.build, config, most, 0.01, **limits)


def test_largest_batch_that_fits_is_found_and_proved_in_parts(capsys):
    arch = 'Limited'
    rows = found_batch(config_with(Slow, arch=arch, batch_size=8) | {'data_loader': digits(100)})
    fits = {row.size: row.step is not None for row in rows}
    assert fits == {8: True, 16: True, 32: True, 40: True, 44: True, 48: False, 64: False}
    said = capsys.readouterr().out
    assert 'batch_size 100 does not fit' in said and f'in parts of {LARGEST}\n' in said
    assert f'"microbatch_size": {LARGEST} ' in said


def digits(batch_size):
    args = {'batch_size': batch_size, 'validation_split': 0.1}
    return {'type': 'DigitsDataLoader', 'args': args}


def test_not_even_one_sample_fits():
    with pytest.raises(UserError, match='not even one sample'):
        found_batch(config_of() | {'arch': {'type': 'TooLarge'}})


def test_search_ends_with_the_data_the_time_or_the_memory(capsys, monkeypatch):
    assert [row.size for row in found_batch(config_with(Slow, in_memory=True))] == [
        4,
        8,
        16,
        32,
        40,
    ]
    stream = config_with(Short, 'StreamDataLoader')
    assert [row.size for row in found_batch(stream)] == [4, 8, 16, 20]
    assert 'there are no more' in capsys.readouterr().out
    assert [row.size for row in found_batch(config_of(), most=50)] == [8, 16, 32, 50]
    assert 'Not needed: batch_size 32 fits' in capsys.readouterr().out
    assert [row.size for row in found_batch(config_of(), most=4)] == [4]
    assert [row.size for row in found_batch(config_of(), minutes=1e-6)] == [8]
    said = capsys.readouterr().out
    assert 'longer than --minutes' in said and 'Whether batch_size 32 fits is not known' in said
    monkeypatch.setattr(find_batch, 'free_bytes', lambda: 1e4)
    assert found_batch(config_of())[-1].size < 1000
    assert 'GB of memory that are free' in capsys.readouterr().out


def test_fastest_batch_is_the_smallest_from_which_no_other_is_five_percent_faster(capsys, tmp_path):
    search = Search(train.build, config_of(), tmp_path, math.inf, 1, 0)
    rates = {8: 100, 32: 200, 64: 390, 128: 400, 256: 300}
    search.rows = [Row(size, size / rate) for size, rate in rates.items()]
    find_batch.advise_batch_size(search)
    said = capsys.readouterr().out
    assert '64 takes 1.95 times as many' in said and '"batch_size": 64 ' in said
    assert '2 times this one\n  for SGD and 1.41 times for Adam' in said
    search.own = 64
    find_batch.advise_batch_size(search)
    assert 'No size is more than 5% faster than 64' in capsys.readouterr().out


# Command lines


def test_what_is_typed_reaches_the_tools():
    limits = ('-c', 'config.json', '-d', 'cpu', '--seconds', 0.01, '--max', 8)
    data = ('--set', 'data_loader.args.batch_size=4')
    done = run_script('-m', 'tools.find_batch', *limits, *data)
    assert 'Not needed: batch_size 4 fits' in done.stdout
    assert 'The samples are in memory' in run_script('-m', 'tools.find_workers', *limits).stdout
    done = run_script('-m', 'tools.find_batch', *limits, '--set', 'loss=nll_los', check=False)
    assert done.returncode == 2 and 'nll_loss' in done.stderr
