"""Laws of loaders: the same batches on every path, splits, samplers, streams, what is refused."""

import dataclasses
import gc
import inspect
import os
import signal
import sys
import time
from collections import Counter, OrderedDict, defaultdict, namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence
from torch.overrides import TorchFunctionMode
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    default_collate,
    get_worker_info,
)
from torchvision.transforms import v2

from armature.batch import CPU, CannotCut, PairOf, call_by_name, cut, map_tensors, to_device
from armature.data.memory import free_bytes, refuse_what_does_not_fit
from armature.data.order import (
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
    first_pass,
    one_pass,
)
from armature.data.reading import InMemory, Reader
from armature.data.split import split_indices as split_tensors
from armature.data.stream import StreamDataLoader
from armature.data.workers import start_worker
from armature.errors import STOP_CODES, ConfigError, DataError
from armature.seed import key
from base import BaseDataLoader
from base.stepper import Stepper
from data_loader.collate import PadCollate
from tests.conftest import ROOT, NoisyPoints, PointModel
from trainer import Trainer

N = 50


def split_indices(*args, **options):
    """(training, validation) indices as lists"""
    return tuple(part.tolist() for part in split_tensors(*args, **options)[:2])


class Pictures(Dataset):
    """Fixed byte images, read one by one."""

    def __init__(self, n=N, broken=(), channels=1):
        self.images = torch.randint(
            0,
            256,
            (n, channels, 12, 10),
            generator=torch.Generator().manual_seed(0),
            dtype=torch.uint8,
        )
        self.targets = [index % 5 for index in range(n)]
        self.broken = broken

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index in self.broken:
            raise DataError(f'picture{index}.png cannot be read')
        return self.images[index], self.targets[index]


class Half:
    def __call__(self, images):
        return images.float() / 2


AUGMENT = [
    v2.RandomHorizontalFlip(),
    v2.RandomCrop((8, 9), padding=2),
    v2.RandomVerticalFlip(0.3),
    v2.RandomRotation(20),
]


def loader(dataset=None, num_workers=0, shuffle=True, validation_split=0.2, **options):
    return BaseDataLoader(
        dataset or Pictures(), 7, shuffle, validation_split, num_workers, **{'seed': 5, **options}
    )


def same(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second)
    for one, other in zip(first, second):
        assert type(one) is type(other)
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other))


# The same batches on every path


@pytest.mark.parametrize('augment', [None, AUGMENT], ids=['plain', 'augmented'])
@pytest.mark.parametrize(
    'path',
    [
        {'num_workers': 2},
        {'in_memory': True},
        {'in_memory': True, 'num_workers': 2},
        {'num_workers': 2, 'persistent_workers': True},
    ],
    ids=str,
)
def test_every_path_gives_the_same_batches(path, augment):
    options = {'augment': augment, 'batch_transform': Half()}
    reference, other = loader(**options), loader(**options, **path)
    for _ in range(2):
        same(reference, other)
    same(reference.split_validation(), other.split_validation())
    reference.seek(1, 3)
    other.seek(1, 3)
    same(reference, other)


def test_batches_go_on_from_any_place_through_the_passes():
    def stream(num_workers):
        return StreamDataLoader(Numbers(23), 4, num_workers, seed=3)

    for one, other in (
        (loader(in_memory=True), loader(num_workers=2)),
        (loader(drop_last=True), loader(drop_last=True)),
        (stream(0), stream(2)),
    ):
        n = len(list(one))
        other.seek(1)
        passes = [list(other) for _ in range(3)]  # from the second on
        expected = [batch for each in passes for batch in each][n - 2 :][: n + 4]
        found = [batch.content for batch in one.batches(1, n - 2, n + 4)]
        for each in (found, expected):
            each[:] = [content if isinstance(content, list) else [content] for content in each]
        same(found, expected)


def test_a_batch_goes_through_three_generators_of_ours(experiment):
    generators = set()

    def note(frame, event, _):
        code = frame.f_code
        is_ours = Path(code.co_filename).is_relative_to(ROOT)
        if event == 'call' and is_ours and code.co_flags & inspect.CO_GENERATOR:
            generators.add(code.co_qualname)

    for dataset in (TensorDataset(torch.rand(40, 8), torch.arange(40) % 2), NoisyPoints()):
        trainer = experiment.trainer(loader=BaseDataLoader(dataset, 7, True, 12, 0))
        batches = trainer.batches(1)
        next(batches)
        generators.clear()
        sys.setprofile(note)
        try:
            next(batches)
        finally:
            sys.setprofile(None)
        generators -= {'own_randomness'}  # a context manager
        assert len([name for name in generators if '<genexpr>' not in name]) <= 3, generators


def test_augmentation_differs_between_passes_and_samples_and_spares_validation():
    images = torch.arange(20.0).view(1, 1, 4, 5).repeat(N, 1, 1, 1)
    flipping = loader(TensorDataset(images, torch.zeros(N)), augment=[v2.RandomHorizontalFlip()])
    first, second = (torch.cat([batch for batch, _ in flipping]) for _ in range(2))
    assert not torch.equal(first, second)
    assert 5 < (first == images[0]).flatten(1).all(1).sum() < 35
    assert all(torch.equal(batch, images[: len(batch)]) for batch, _ in flipping.split_validation())


def test_memory_holds_bytes_and_no_copy_of_tensors():
    assert loader(in_memory=True)._memory.tensors[0].dtype == torch.uint8
    tensor = torch.zeros(N, 3)
    assert (
        loader(TensorDataset(tensor, torch.zeros(N)), in_memory=True)._memory.tensors[0] is tensor
    )


def test_batches_of_tables_equal_single_samples_collated():
    table = InMemory([[torch.rand(N, 2), torch.arange(N).view(N, 1)], torch.arange(N)])

    class OneByOne(Dataset):
        def __len__(self):
            return N

        def __getitem__(self, index):
            return table[index]

    for ([a, b], c), ([d, e], f) in zip(loader(table), loader(OneByOne())):
        assert torch.equal(a, d) and torch.equal(b, e) and torch.equal(c, f)


def test_in_memory_that_does_not_fit_is_refused_with_the_arithmetic():
    with pytest.raises(
        ConfigError,
        match='1,000,000,000 samples of 12,000,000 bytes are 12,000,000,000 MB, and .* are free',
    ):
        refuse_what_does_not_fit(10**9, 12e6)


def test_files_that_were_read_in_a_container_leave_its_memory_free(tmp_path):
    for name, text in {
        'max': '1000\n',
        'current': '900\n',
        'stat': 'anon 100\ninactive_file 600\nactive_file 200\nshmem 0\n',
    }.items():
        (tmp_path / f'memory.{name}').write_text(text)
    assert free_bytes(tmp_path) == 900
    (tmp_path / 'memory.max').write_text('max\n')
    assert free_bytes(tmp_path) > 1000 and free_bytes(tmp_path / 'none') > 1000


def test_in_memory_refuses_randomness_shapes_and_text():
    with pytest.raises(ConfigError, match='freeze the random transforms of NoisyPoints.*augment'):
        BaseDataLoader(NoisyPoints(), 4, True, 0.0, 0, in_memory=True)
    for sizes in ([1, 2] * 10, [1] * 256 + [2]):
        with pytest.raises((ConfigError, DataError), match='(bring them|all of) (to )?one size'):
            loader([torch.zeros(size) for size in sizes], in_memory=True)
    with pytest.raises(ConfigError, match="str 'a'"):
        loader(['a'] * 20, in_memory=True)
    with pytest.raises(ConfigError, match='collate_fn'):
        loader(in_memory=True, collate_fn=PadCollate())


# Splits


@pytest.mark.parametrize('split, n_valid', [(0.2, 20), (7, 7), (1, 1), (0.999, 99)])
def test_validation_split_is_a_share_or_a_number(split, n_valid):
    train, valid = split_indices(100, split)
    assert len(valid) == n_valid and sorted(train + valid) == list(range(100))
    assert split_indices(100, split) == (train, valid)


@pytest.mark.parametrize('split', [1.0, 100, 0.001, -0.1, -3])
def test_split_that_leaves_a_part_empty_is_refused(split):
    with pytest.raises(ConfigError, match='both parts'):
        split_indices(100, split)


def test_split_is_the_same_for_every_seed():
    assert loader(seed=1).valid_sampler == loader(seed=2).valid_sampler


def test_stratified_split_keeps_the_shares():
    valid = loader(validation_split=10, stratify=True).valid_sampler
    assert Counter(Pictures().targets[index] for index in valid) == dict.fromkeys(range(5), 2)


def test_groups_stay_in_one_part():
    groups = [index // 4 for index in range(48)]
    for options in (
        {'validation_split': 0.25},
        {'validation_split': 0, 'n_folds': 3, 'fold': 1},
        {'validation_split': 0.25, 'classes': [index % 2 for index in range(48)]},
    ):
        train, valid = split_indices(48, groups=groups, **options)
        assert valid and sorted(train + valid) == list(range(48))
        assert not {groups[index] for index in train} & {groups[index] for index in valid}


@pytest.mark.parametrize('stratify', [False, True])
def test_folds_are_each_samples_validation_once(stratify):
    parts = [
        loader(validation_split=0, n_folds=5, fold=fold, stratify=stratify) for fold in range(5)
    ]
    assert sorted(index for part in parts for index in part.valid_sampler) == list(range(N))
    for part in parts:
        assert set(part.indices(0).tolist()) == set(range(N)) - set(part.valid_sampler)


@pytest.mark.parametrize(
    'options, said',
    [
        ({'n_folds': 5}, 'give one'),
        ({'n_folds': 5, 'fold': 5, 'validation_split': 0}, 'fold is 5'),
        ({'n_folds': 1, 'validation_split': 0}, 'at least 2'),
        ({'fold': 2}, 'give n_folds, too'),
        ({'stratify': True, 'dataset': [1.0] * 20}, 'targets'),
        ({'stratify': True, 'dataset': TensorDataset(torch.arange(20))}, 'no class has two'),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        loader(**options)


def test_evaluation_keeps_everything_in_order_and_as_it_is():
    test = loader(
        evaluation=True,
        validation_split=0.5,
        augment=AUGMENT,
        sampler=WeightedRandomSampler('balanced'),
        drop_last=True,
    )
    assert torch.equal(torch.cat([images for images, _ in test]), Pictures().images)
    assert test.split_validation() is None


# Samplers


@pytest.mark.parametrize(
    'sampler',
    [
        RandomSampler(),
        WeightedRandomSampler('balanced', num_samples=90),
        SequentialSampler(),
        WeightedRandomSampler('balanced'),
        WeightedRandomSampler([1, 0, 0, 2, 1]),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_samplers_stay_in_the_training_part_and_can_be_put_anywhere(sampler):
    one, other = loader(sampler=sampler), loader(sampler=sampler)
    assert not set(one.indices(0).tolist()) & set(one.valid_sampler)
    assert len(torch.cat([labels for _, labels in one])) == len(sampler) == len(one.indices(0))
    one.seek(2, 3)
    other.seek(2)
    same(one, list(other)[3:])


def test_balanced_weights_draw_rare_classes_as_often():
    dataset = TensorDataset(torch.zeros(1000), (torch.arange(1000) < 50).long())
    drawn = Counter(
        label
        for _, labels in BaseDataLoader(
            dataset, 100, False, 0.2, 0, sampler=WeightedRandomSampler('balanced', 4000)
        )
        for label in labels.tolist()
    )
    assert 1800 < drawn[1] < 2200


# Streams


class Numbers(IterableDataset):
    def __init__(self, n=None):
        self.n = n

    def __iter__(self):
        index = 0
        while self.n is None or index < self.n:
            yield torch.tensor([float(index), torch.rand(()).item()])
            index += 1


@pytest.mark.filterwarnings('ignore:This DataLoader will create')  # three workers on two cores
@pytest.mark.parametrize('num_workers', [1, 2, 3])
def test_stream_is_the_same_for_any_number_of_workers(num_workers):
    one, other = (
        StreamDataLoader(Numbers(23), 4, seed=3),
        StreamDataLoader(Numbers(23), 4, num_workers, seed=3),
    )
    first = list(one)
    assert torch.equal(torch.cat(first)[:, 0], torch.arange(23.0))
    same([[batch] for batch in first], [[batch] for batch in other])
    other.seek(0, 2)
    same([[batch] for batch in first[2:]], [[batch] for batch in other])
    assert not torch.equal(first[0][:, 1], next(iter(one))[:, 1])  # another pass, other randomness


class WorkersSeed(IterableDataset):
    def __iter__(self):
        yield get_worker_info().seed


class Shards(IterableDataset):
    """Gives a worker its part, as torch's documentation has it."""

    def __iter__(self):
        info = get_worker_info()
        first, every = (0, 1) if info is None else (info.id, info.num_workers)
        yield from map(float, range(first, 20, every))


@pytest.mark.parametrize('n_workers', [0, 2])
def test_stream_that_parts_itself_among_workers_is_read_whole(n_workers):
    batches = list(StreamDataLoader(Shards(), 4, n_workers))
    assert torch.equal(torch.cat(batches), torch.arange(20, dtype=torch.double))


class Opened(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.values[index]


def open_here(worker_id):
    get_worker_info().dataset.values = torch.arange(8)


def test_workers_know_the_dataset_that_is_read():
    loader = BaseDataLoader(Opened(), 4, False, 0.0, 1, worker_init_fn=open_here)
    assert torch.equal(torch.cat(list(loader)), torch.arange(8))


class ByAttribute(dict):
    __getattr__ = dict.__getitem__


def test_dict_whose_entries_are_attributes_is_a_structure():
    pair = map_tensors(torch.neg, ByAttribute(one=torch.ones(2)))
    assert torch.equal(pair.one, -torch.ones(2)) and type(pair) is ByAttribute


def test_seed_of_a_streams_worker_is_another_in_each_pass_and_the_same_after_a_resume():
    first, again = (StreamDataLoader(WorkersSeed(), 1, 1, seed=3) for _ in range(2))
    seeds = [list(first)[0].item() for _ in range(3)]
    assert len(set(seeds)) == 3
    again.seek(2)
    assert list(again)[0].item() == seeds[2]


class Labelled(IterableDataset):
    def __init__(self, n=None):
        self.n = n

    def __iter__(self):
        for index, values in enumerate(Numbers(self.n)):
            yield torch.cat([values / 100, values / 100]), index % 2


@pytest.mark.parametrize('n', [None, 20], ids=['endless', 'shorter than an epoch'])
def test_run_on_a_stream_resumes_inside_an_epoch(experiment, n):
    def trainer(**settings):
        return experiment.trainer(
            loader=Stream(Labelled(n), 7, seed=3), len_epoch=5, monitor='off', **settings
        )

    class Stream(StreamDataLoader):
        def split_validation(self):
            return None

    whole, first = trainer(), trainer(max_steps=9)
    whole.train()
    first.train()
    resumed = trainer(resume=first.checkpoint_dir / 'checkpoint-last.pth')
    resumed.train()
    assert resumed.step == whole.step == 15
    assert resumed.history == whole.history


class Nothing(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    'valid',
    [StreamDataLoader(Nothing(), 7), DataLoader(Nothing(), 7), []],
    ids=['ours', 'torch', 'list'],
)
def test_validation_without_a_batch_is_one_line(experiment, valid):
    trainer = experiment.trainer()
    trainer.valid_data_loader = valid
    name = type(getattr(valid, 'dataset', valid)).__name__
    with pytest.raises(DataError, match=f'^({name}|DataLoader) gives no batches$'):
        trainer.train()


def test_stream_without_length_needs_len_epoch(experiment):
    class Stream(StreamDataLoader):
        def split_validation(self):
            return None

    with pytest.raises(ConfigError, match='trainer.len_epoch'):
        experiment.trainer(loader=Stream(Labelled(), 7))


# Batches of every structure

Pair = namedtuple('Pair', 'points extra')


@dataclasses.dataclass
class Both:
    points: torch.Tensor
    extra: torch.Tensor


@pytest.mark.parametrize(
    'pack',
    [lambda a, b: {'points': a, 'extra': b}, Pair, Both, lambda a, b: Pair({'x': a}, [b])],
    ids=['dict', 'named tuple', 'dataclass', 'nested'],
)
def test_batches_of_any_structure_train_in_micro_batches_too(experiment, pack):
    class Model(PointModel):
        def forward(self, data):
            points = data['points'] if isinstance(data, dict) else data.points
            return super().forward(points['x'] if isinstance(points, dict) else points)

    def collate(samples):
        points, targets = zip(*samples)
        return [pack(torch.stack(points), torch.ones(len(points), 2)), torch.stack(targets)]

    trainer = experiment.trainer(
        loader=BaseDataLoader(NoisyPoints(), 6, True, 12, 0, collate), microbatch_size=4, epochs=1
    )
    trainer.model.__class__ = Model
    trainer.train()
    assert trainer.step == 7


class Scenes(Dataset):
    """Pictures of several sizes with so many boxes each, as detectors take them."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        boxes = torch.rand(1 + index * 7 % 20 if index % 4 else 0, 4)
        return torch.rand(3, 16 + index % 5, 16), {'boxes': boxes, 'count': float(len(boxes))}


def columns(samples):
    return tuple(zip(*samples))


class Counter3(PointModel):
    def forward(self, images):
        return self.out(torch.stack([image.mean() * torch.ones(8) for image in images]))


@pytest.mark.parametrize('batch_size, microbatch_size', [(5, None), (5, 2), (3, 2), (7, 3)])
def test_averages_over_batches_of_lists_are_by_samples(experiment, batch_size, microbatch_size):
    def mean_count(output, target):
        return torch.tensor([each['count'] for each in target]).mean()

    trainer = experiment.trainer(
        loader=BaseDataLoader(Scenes(), batch_size, True, 0.0, 0, columns),
        microbatch_size=microbatch_size,
        metrics=[mean_count],
        monitor='off',
        epochs=1,
    )
    trainer.model.__class__ = Counter3
    trainer.criterion = lambda output, target: output.pow(2).mean()
    trainer.train()
    counts = [target['count'] for _, target in (Scenes()[index] for index in range(40))]
    assert trainer.history[0]['mean_count'] == pytest.approx(sum(counts) / 40)


def test_padding_of_micro_batches_stays_that_of_the_whole_batch():
    samples = [(torch.ones(1 + index), index) for index in range(6)]
    loader = BaseDataLoader(samples, 6, False, 0.0, 0, PadCollate())
    batch = next(loader.batches())
    parts = [cut(batch.content, 6, slice(start, start + 2)) for start in (0, 2, 4)]
    assert [tuple(data.values.shape) for data, _ in parts] == [(2, 6)] * 3


class Moves(TorchFunctionMode):
    """Notes how tensors move to a device that is not here, and leaves them where they are."""

    def __init__(self):
        super().__init__()
        self.without_waiting = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.to:
            self.without_waiting.append(kwargs['non_blocking'])
            return args[0]
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize('kind, waits', [('cuda', False), ('xpu', False), ('mps', True)])
def test_nothing_waits_for_copies_to_a_gpu_but_on_mps(kind, waits):
    content = [torch.ones(1), packed([(torch.ones(2), 1)])]
    with Moves() as moves:
        to_device(content, torch.device(kind))
    assert moves.without_waiting == [not waits] * 3  # a packed one holds two tensors


def test_random_transforms_of_data_on_a_gpu_are_keyed_there_too(monkeypatch):
    seeds = []
    module = SimpleNamespace(manual_seed=seeds.append)
    monkeypatch.setattr(torch, 'get_device_module', lambda device: module)
    reader = Reader(None, [torch.relu, torch.relu])
    reader.augmented_batch(torch.zeros(2, 3, device='meta'), 1, 0, [5, 6])
    one, other = (key(1, 'augment', 0, index) for index in (5, 6))
    assert seeds == [one, one + 1, other, other + 1]


def packed(samples):
    sequences, targets = zip(*samples)
    return pack_sequence(sequences, enforce_sorted=False), torch.tensor(targets)


def test_what_cannot_be_cut_is_collated_anew_from_the_same_samples(caplog):
    samples = [(torch.full((1 + index % 3, 2), float(index)), index) for index in range(6)]
    loader = BaseDataLoader(samples, 6, True, 0.0, 0, packed, seed=1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    stepper = Stepper(optimizer, microbatch_size=4)
    for content in one_pass(loader, PairOf(None), CPU, stepper):
        whole = content[1].tolist()
        parts = list(stepper.micro_batches(content))
    assert [target.tolist() for _, target in parts] == [whole[:4], whole[4:]]
    assert [pad_packed_sequence(data)[0][0, :, 0].tolist() for data, _ in parts] == [
        whole[:4],
        whole[4:],
    ]
    assert 'PackedSequence' in caplog.text and 'collated anew' in caplog.text


def nested(samples):
    sequences, targets = zip(*samples)
    return torch.nested.nested_tensor(list(sequences), layout=torch.jagged), torch.tensor(targets)


def nested_strided(samples):
    sequences, targets = zip(*samples)
    return torch.nested.as_nested_tensor(list(sequences)), torch.tensor(targets)


def sparse(samples):
    sequences, targets = zip(*samples)
    return torch.stack([each[0] for each in sequences]).to_sparse(), torch.tensor(targets)


def sparse_rows(samples):
    data, targets = sparse(samples)
    return data.to_dense().to_sparse_csr(), targets


@pytest.mark.filterwarnings('ignore:.*(prototype|beta)')
@pytest.mark.parametrize('collate', [nested, nested_strided, sparse, sparse_rows])
def test_nested_and_sparse_tensors_are_collated_anew(collate):
    samples = [(torch.full((1 + index % 3, 2), float(index)), index) for index in range(6)]
    loader = BaseDataLoader(samples, 6, False, 0.0, 0, collate, seed=1)
    parts = parts_of(loader, 4)
    for part, rows in zip(parts, (samples[:4], samples[4:]), strict=True):
        for one, other in zip(part, collate(rows)):
            values = [
                each.unbind() if each.is_nested else [each.to_dense()] for each in (one, other)
            ]
            assert all(map(torch.equal, *values))


def parts_of(loader, microbatch_size):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    stepper = Stepper(optimizer, microbatch_size=microbatch_size)
    batches = one_pass(loader, PairOf(None), CPU, stepper)
    return [part for content in batches for part in stepper.micro_batches(content)]


def time_first(samples):
    return [each.T.contiguous() for each in default_collate(samples)]


@pytest.mark.parametrize('collate', [time_first, lambda samples: default_collate(samples)])
def test_as_many_steps_of_time_as_samples_are_told_apart(collate):
    values = torch.arange(12 * 6).view(12, 6)
    samples = [(each, -each) for each in values]
    parts = parts_of(BaseDataLoader(samples, 6, False, 0.0, 0, collate), 4)
    for part, rows in zip(parts, [slice(0, 4), slice(4, 6), slice(6, 10), slice(10, 12)]):
        assert all(map(torch.equal, part, collate(samples[rows])))


def test_batch_that_a_collate_fn_makes_none_is_said():
    samples = [(torch.zeros(1), 0)] * 6
    for each in (
        BaseDataLoader(samples, 6, True, 0.0, 0, lambda _: None, batch_transform=torch.neg),
        torch.utils.data.DataLoader(samples, 6, collate_fn=lambda _: None),
    ):
        with pytest.raises(DataError, match='the collate_fn gives None for a batch'):
            list(one_pass(each, PairOf(None), CPU))


@pytest.mark.parametrize(
    'loader',
    [
        torch.utils.data.DataLoader([(torch.zeros(1), 0)] * 6, 6, collate_fn=packed),
        BaseDataLoader([(torch.zeros(1), 0)] * 6, 6, True, 0.0, 0, packed, batch_transform=list),
    ],
    ids=["torch's loader", 'batch_transform'],
)
def test_what_cannot_be_cut_nor_collated_anew_is_refused(loader):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    stepper = Stepper(optimizer, microbatch_size=4)
    with pytest.raises(ConfigError, match='trainer.microbatch_size: the batch holds'):
        for content in one_pass(loader, PairOf(None), CPU, stepper):
            list(stepper.micro_batches(content))


def test_three_pictures_of_three_channels_are_not_cut_by_channels():
    images, targets = tuple(torch.rand(3, 4, 4) for _ in range(3)), torch.arange(3)
    with pytest.raises(CannotCut, match='may be its samples'):
        cut((images, targets), 3, slice(0, 2))
    part, _ = cut((tuple(torch.rand(5, 4, 4) for _ in range(3)), targets), 3, slice(0, 2))
    assert len(part) == 2


class Attributes(OrderedDict):
    def __init__(self, kind=None, size=None):
        super().__init__(kind=kind, size=size)


class OfOneArgument(tuple):
    def __new__(cls, first, second):
        return super().__new__(cls, (first, second))


def test_structures_of_every_class_are_rebuilt_or_said():
    frozen = dataclasses.make_dataclass('Frozen', ['a', 'b'], frozen=True)
    counts = defaultdict(list, a=torch.ones(2))
    for content in (Attributes(torch.ones(2), 3), counts, frozen(torch.ones(2), 'b')):
        doubled = map_tensors(lambda tensor: tensor * 2, content)
        assert type(doubled) is type(content) and str(doubled) == str(content).replace('1.', '2.')
    assert doubled is not content and counts['new'] == []
    with pytest.raises(DataError, match='holds a OfOneArgument, which cannot be made anew'):
        map_tensors(torch.neg, OfOneArgument(torch.ones(2), torch.ones(2)))


class AttributeDict(dict):
    def __init__(self, **entries):
        super().__init__(**entries)
        self.__dict__ = self


def test_entry_of_a_dict_may_be_called_as_one_of_its_methods():
    content = AttributeDict(values=torch.ones(4, 2), keys=torch.zeros(4))
    part = cut(content, 4, slice(0, 3))
    assert type(part) is AttributeDict and len(part['values']) == len(part['keys']) == 3


# PairOf by name


class Named(NoisyPoints):
    def __getitem__(self, index):
        data, target = super().__getitem__(index)
        return {'image': data, 'depth': data[:2], 'label': target, 'file': f'{index}.png'}


class TwoInputs(PointModel):
    def forward(self, image, depth):
        return super().forward(image + depth.repeat(1, 2))


class OneDict(TwoInputs):
    def forward(self, inputs):
        return super().forward(**inputs)


def test_parts_by_name_train_as_pairs_do(experiment):
    def run(dataset, model=PointModel, batch=None, **settings):
        loader = BaseDataLoader(dataset, 6, True, 12, 0, seed=1)
        trainer = experiment.trainer(loader=loader, model=model, batch=batch, **settings)
        trainer.train()
        return trainer.history

    both = {'data': ['image', 'depth'], 'target': 'label'}
    assert run(NoisyPoints()) == run(Named(), batch={'data': 'image', 'target': 'label'})
    assert run(Named(), TwoInputs, both) == run(Named(), OneDict, both)


@pytest.mark.parametrize(
    'batch, said',
    [
        (
            None,
            "a dict with 'image', 'depth', 'label', 'file': say .* \"batch\": {\"data\": \"image\"",
        ),
        ({'data': 'picture', 'target': 'label'}, "batch.data is 'picture', and the dataset gives"),
        ({'data': 'image'}, 'expected the names of "data" and of "target"'),
        ({'data': ['image', 'mask'], 'target': 'label'}, "batch.data is .*'mask'"),
    ],
)
def test_parts_that_are_not_named_are_one_line_before_the_first_step(experiment, batch, said):
    with pytest.raises((ConfigError, DataError), match=said):
        loader = BaseDataLoader(Named(), 6, True, 12, 0)
        trainer = experiment.trainer(loader=loader, batch=batch)
        try:
            trainer.train()
        finally:
            assert trainer.optimizer.state == {}


def test_inputs_that_no_argument_is_called_after_are_refused():
    with pytest.raises(ConfigError, match='TwoInputs.forward takes image, depth'):
        call_by_name(TwoInputs(), {'data': ['image', 'mask'], 'target': 'label'})


def test_model_of_two_inputs_is_told_how_a_batch_gives_it_two(experiment):
    said = r'TwoInputs.forward takes image, depth, and a batch gives it one argument: let .*"batch"'
    with pytest.raises(ConfigError, match=said):
        experiment.trainer(model=TwoInputs).train()

    class CallsItself(Trainer):
        def _train_epoch(self, epoch):
            return {}

    class Spreads(TwoInputs):
        def __call__(self, data):
            return super().__call__(data, data[:, :2])

    def hooked():
        model = TwoInputs()
        model.register_forward_pre_hook(lambda module, inputs: (inputs[0], inputs[0][:, :2]))
        return model

    experiment.trainer(model=TwoInputs, trainer_class=CallsItself, monitor='off').train()
    adapted = experiment.trainer(model=TwoInputs, epochs=1)
    adapted.model = Spreads()
    for trainer in (adapted, experiment.trainer(model=hooked, epochs=1)):
        trainer.train()
        assert trainer.epochs_done == 1


def test_sampler_of_torch_beside_a_split_is_refused():
    sampler = torch.utils.data.SubsetRandomSampler(range(9))
    assert len(loader(sampler=sampler, validation_split=0).indices(0)) == 9
    with pytest.raises(ConfigError, match='SubsetRandomSampler, which says itself which samples'):
        loader(sampler=sampler)


def test_padding_collate_gives_lengths():
    (values, lengths), targets = PadCollate(padding=-1)(
        [(torch.tensor([1, 2, 3]), 0), (torch.tensor([4]), 1)]
    )
    assert (
        values.tolist() == [[1, 2, 3], [4, -1, -1]]
        and lengths.tolist() == [3, 1]
        and targets.tolist() == [0, 1]
    )
    assert PadCollate(pad_targets=-100)([([1, 2], [0, 1]), ([3], [1])])[1].tolist() == [
        [0, 1],
        [1, -100],
    ]


# Trouble


class AtOnce(Pictures):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


def test_dataset_that_reads_several_at_once_is_augmented():
    options = {'augment': AUGMENT, 'validation_split': 0}
    same(loader(AtOnce(), **options), loader(Pictures(), **options))


class Arrays(Pictures):
    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return image.numpy(), target


def test_arrays_of_numpy_are_augmented():
    options = {'augment': [torch.as_tensor, *AUGMENT], 'validation_split': 0}
    same(loader(Arrays(), **options), loader(Pictures(), **options))


class Rare(Pictures):
    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        if index == 44 and torch.rand(()) < 2:
            image = image.flip(-1)
        return image, target


class OfItsOwn(Pictures):
    """As albumentations draws."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return image.roll(int(torch.randint(8, (), generator=self.generator)), -1), target


@pytest.mark.parametrize('dataset', [Rare, OfItsOwn])
@pytest.mark.parametrize('num_workers', [0, 1])
def test_in_memory_notices_random_samples(dataset, num_workers):
    with pytest.raises(ConfigError, match=f'freeze the random transforms of {dataset.__name__}'):
        loader(dataset(), num_workers, in_memory=True)


class Growing(Pictures):
    level = 0

    def __getitem__(self, index):
        return self.images[index], self.targets[index] + 100 * self.level


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_workers_see_what_changed_in_the_dataset_between_passes(method):
    one = loader(Growing(), 1, multiprocessing_context=method)
    for level in range(2):
        one.dataset.level = level
        assert all((target // 100 == level).all() for _, target in one)


def without_missing(samples):
    return default_collate([sample for sample in samples if sample is not None])


def test_sample_that_is_none_or_of_another_size_is_named():
    missing = [(torch.zeros(2), 0)] * 9 + [None]
    with pytest.raises(DataError, match='sample . is .* and sample 9 is NoneType: a batch is'):
        list(loader(missing, validation_split=0, shuffle=False))
    kept = loader(missing, validation_split=0, collate_fn=without_missing)
    assert sum(batch.n_samples for batch in kept.batches()) == 9
    sizes = [torch.zeros(2 + index // 5) for index in range(10)]
    with pytest.raises(DataError, match=r'is \(2,\) and sample . is \(3,\): .* "collate_fn"'):
        list(loader(sizes, validation_split=0, shuffle=False))


def test_no_sample_and_no_whole_batch_are_said():
    with pytest.raises(DataError, match='holds no sample'):
        BaseDataLoader([], 4, True, 0.0, 0)
    with pytest.raises(ConfigError, match='drop_last'):
        loader([torch.zeros(1)] * 5, drop_last=True, validation_split=0)

    class Lazy(torch.utils.data.Sampler):  # of no length, so that it is seen only here
        def __iter__(self):
            return iter([1, 2])

    few = loader([torch.zeros(1)] * 50, drop_last=True, validation_split=0, sampler=Lazy())
    with pytest.raises(DataError, match='Lazy gives 2 samples, too few'):
        next(few.batches(0, 0, 1))


class Local(Pictures):
    def __init__(self):
        super().__init__()
        self.transform = lambda image: image


def test_lambda_that_cannot_be_sent_to_a_worker_is_one_line():
    spawning = loader(Local(), 1, multiprocessing_context='spawn')
    with pytest.raises(ConfigError, match='this cannot be: .*Local.*lambda'):
        list(spawning)


@pytest.mark.parametrize('options', [{}, {'num_workers': 2}, {'in_memory': True}], ids=str)
def test_unreadable_sample_is_named(options):
    broken = Pictures(broken=(3, 30, 31))
    with pytest.raises(DataError, match=r'^sample \d+: picture\d+.png cannot be read$'):
        list(loader(broken, **options))


class Torn(IterableDataset):
    def __iter__(self):
        yield from range(9)
        raise DataError('part 3 of the stream cannot be read')


@pytest.mark.parametrize('num_workers', [0, 1])
def test_stream_that_cannot_be_read_is_one_line(num_workers):
    with pytest.raises(DataError, match='^sample 9: part 3 of the stream cannot be read$'):
        list(StreamDataLoader(Torn(), 4, num_workers))


class Raising(Pictures):
    def __getitem__(self, index):
        if index == 17:
            raise KeyError('label')
        return super().__getitem__(index)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_bug_in_a_dataset_keeps_its_traceback_and_names_the_sample(num_workers):
    with pytest.raises(KeyError) as caught:
        list(loader(Raising(), num_workers, validation_split=0))
    assert 'sample 17 of Raising' in str(caught.value) + ''.join(
        getattr(caught.value, '__notes__', [])
    )


class Deadly(Pictures):
    def __getitem__(self, index):
        if index == 17:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_dead_worker_is_one_line():
    with pytest.raises(DataError, match='a worker of the data loader died'):
        list(loader(Deadly(), 2, validation_split=0))


class Slow(NoisyPoints):
    def __getitem__(self, index):
        time.sleep(0.002)
        return super().__getitem__(index)


class Fixed(BaseDataLoader):
    def __init__(self):
        super().__init__(Slow(), 7, True, 12, 0)


class SlowStream(IterableDataset):
    def __iter__(self):
        return map(Slow().__getitem__, range(28))


@pytest.mark.parametrize(
    'make, helps',
    [
        (lambda: BaseDataLoader(Slow(), 7, True, 12, 0), True),
        (
            lambda: BaseDataLoader(Slow(), 7, True, 12, 0, collate_fn=lambda x: default_collate(x)),
            False,
        ),
        (Fixed, False),
        (lambda: StreamDataLoader(SlowStream(), 7), False),
    ],
    ids=['dataset', 'collate_fn', 'without options', 'stream'],
)
def test_waiting_for_data_is_one_warning_of_what_the_loader_takes(experiment, capsys, make, helps):
    trainer = experiment.trainer(loader=make(), epochs=3, len_epoch=4, monitor='off')
    trainer.train()
    warnings = [line for line in capsys.readouterr().out.splitlines() if 'waiting for data' in line]
    assert len(warnings) == 1 and 'num_workers (now 0;' in warnings[0]
    assert ('in_memory' in warnings[0]) == helps


@pytest.mark.parametrize('wrong', [2, -1])
def test_labels_outside_the_model_are_an_error_before_the_first_backward(experiment, wrong):
    points = NoisyPoints()
    points.targets[40] = wrong
    trainer = experiment.trainer(loader=BaseDataLoader(points, 7, True, 12, 0))
    with pytest.raises(
        DataError, match=f'the data has the label {wrong}, and the model gives 2 scores'
    ):
        trainer.train()
    assert trainer.step == 1 and all(
        parameter.grad is None for parameter in trainer.model.parameters()
    )


def test_workers_that_wait_leave_at_once():
    waiting = loader(num_workers=2, persistent_workers=True)
    list(waiting)
    started = time.monotonic()
    del waiting
    gc.collect()
    assert time.monotonic() - started < 3  # torch gives up on a worker after 5 seconds


def test_worker_leaves_ctrl_c_to_the_trainer_where_signals_have_no_masks(monkeypatch):
    """As on Windows, where it reaches the workers too."""
    monkeypatch.delattr(signal, 'pthread_sigmask')
    before = {each: signal.getsignal(each) for each in STOP_CODES}
    try:
        start_worker(None, 0)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_options_for_workers_do_not_hurt_without_workers():
    list(loader(num_workers=0, prefetch_factor=4, persistent_workers=True))


@pytest.mark.parametrize('batch_size, num_workers', [(0, 0), (-3, 0), (4, -1)])
def test_numbers_that_make_no_loader_are_an_error(batch_size, num_workers):
    with pytest.raises(ConfigError, match='at least 1'):
        BaseDataLoader(TensorDataset(torch.zeros(5)), batch_size, True, 0.0, num_workers)


class Sleeper(Dataset):
    """Its worker is silent for longer than the loader waits."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        time.sleep(3)


def test_worker_that_does_not_answer_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, 'MP_STATUS_CHECK_INTERVAL', 0.1)  # waits for it
    loader = BaseDataLoader(Sleeper(), 2, False, 0.0, 1, timeout=1)
    with pytest.raises(DataError, match='fell silent'):
        next(iter(loader))


def test_batches_without_arguments_are_the_pass_that_is_due():
    loader = BaseDataLoader(TensorDataset(torch.arange(8)), 4, shuffle=True, seed=1)
    passes = [[batch.indices.tolist() for batch in loader.batches()] for _ in range(2)]
    assert passes == [loader.indices(n).view(2, 4).tolist() for n in (0, 1)]
    assert passes[0] != passes[1]
    loader.seek(1, 1)
    assert [batch.indices.tolist() for batch in loader.batches()] == passes[1][1:]


def test_loader_that_iterates_over_batches_of_its_own_is_asked_for_them():
    class Own(BaseDataLoader):
        def __iter__(self):
            return (batch.content for batch in self.batches())

        def batches(self, *place):
            return super().batches(*place)

    loader = Own(TensorDataset(torch.arange(8)), 4, shuffle=False, seed=1)
    assert [batch.indices.tolist() for batch in first_pass(loader)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_classes_may_be_missing():
    dataset = TensorDataset(torch.arange(12))
    dataset.targets = np.array(['cat', None, 'dog', 'cat', None, 'dog'] * 2, dtype=object)
    loader = BaseDataLoader(dataset, 4, validation_split=0.5, stratify=True)
    parts = loader.sampler.indices, torch.tensor(loader.valid_sampler)
    assert all(Counter(dataset.targets[part]) == {'cat': 2, None: 2, 'dog': 2} for part in parts)


def test_bug_in_a_sampler_keeps_its_traceback():
    class Broken(torch.utils.data.Sampler):
        def __iter__(self):
            return iter([None + 1])

        def __len__(self):
            return 4

    loader = BaseDataLoader(TensorDataset(torch.arange(4)), 2, sampler=Broken(), num_workers=1)
    with pytest.raises(TypeError, match='unsupported operand'):
        next(iter(loader))
