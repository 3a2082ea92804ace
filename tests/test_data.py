"""Laws of loaders: the same batches on every path, splits, samplers, streams, what is refused."""

import dataclasses
import gc
import os
import signal
import time
from collections import Counter, namedtuple

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset
from torchvision.transforms import v2

from armature.data.memory import InMemory, refuse_what_does_not_fit
from armature.data.order import (
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from armature.data.split import split_indices as split_tensors
from armature.data.stream import StreamDataLoader
from armature.errors import ConfigError, DataError
from base import BaseDataLoader
from data_loader.collate import PadCollate
from tests.conftest import NoisyPoints, PointModel

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
        match=r'1,000,000,000 samples of 12,000,000 bytes are 12,000,000,000 MB, and .* MB .* are free',
    ):
        refuse_what_does_not_fit(10**9, 12e6, torch.device('cpu'))


def test_in_memory_refuses_randomness_shapes_and_text():
    with pytest.raises(ConfigError, match='freeze the random transforms of NoisyPoints.*augment'):
        BaseDataLoader(NoisyPoints(), 4, True, 0.0, 0, in_memory=True)
    with pytest.raises(ConfigError, match='samples of one shape'):
        loader([torch.zeros(1 + index % 2) for index in range(20)], in_memory=True)
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
        ({'stratify': True, 'dataset': [1.0] * 20}, 'targets'),
        ({'stratify': True, 'dataset': TensorDataset(torch.arange(20))}, 'no class has two'),
        ({'training': False}, 'test_data_loader'),
        ({'in_memry': True}, "did you mean 'in_memory'"),
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
        sampler=RandomSampler(replacement=True),
    )
    assert torch.equal(torch.cat([images for images, _ in test]), Pictures().images)
    assert test.split_validation() is None


# Samplers


@pytest.mark.parametrize(
    'sampler',
    [
        RandomSampler(),
        RandomSampler(replacement=True, num_samples=90),
        RandomSampler(num_samples=70),
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


def test_subset_has_to_be_training_data():
    valid = loader().valid_sampler
    training = [index for index in range(N) if index not in valid][:9]
    assert sorted(loader(sampler=SubsetRandomSampler(training)).indices(3).tolist()) == training
    with pytest.raises(ConfigError, match='not in the training part'):
        loader(sampler=SubsetRandomSampler(valid))


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


@pytest.mark.parametrize('num_workers', [0, 2])
def test_unreadable_sample_is_named_or_skipped(num_workers, caplog):
    broken = Pictures(broken=(3, 30, 31))
    with pytest.raises(DataError, match=r'^sample \d+: picture\d+.png cannot be read$'):
        list(loader(broken, num_workers))
    skipping = loader(broken, num_workers, validation_split=0, on_error='skip')
    kept = torch.cat([images for images, _ in skipping])
    assert len(kept) == N - 3
    assert (
        '3 of 50 samples cannot be read and are left out' in caplog.text
        and 'picture3.png' in caplog.text
    )
    in_memory = loader(broken, num_workers, validation_split=0, on_error='skip', in_memory=True)
    skipping.seek(0)
    same(skipping, in_memory)


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


def test_dead_worker_names_its_sample():
    with pytest.raises(DataError, match='died while it read sample 17 of Deadly'):
        list(loader(Deadly(), 2, validation_split=0))


class Slow(NoisyPoints):
    def __getitem__(self, index):
        time.sleep(0.002)
        return super().__getitem__(index)


def test_waiting_for_data_is_one_warning(experiment, capsys):
    trainer = experiment.trainer(loader=BaseDataLoader(Slow(), 7, True, 12, 0), epochs=3)
    trainer.train()
    warnings = [line for line in capsys.readouterr().out.splitlines() if 'waiting for data' in line]
    assert (
        len(warnings) == 1 and 'num_workers (now 0;' in warnings[0] and 'in_memory' in warnings[0]
    )


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


def test_options_for_workers_do_not_hurt_without_workers():
    list(loader(num_workers=0, prefetch_factor=4, persistent_workers=True))


@pytest.mark.parametrize('batch_size, num_workers', [(0, 0), (-3, 0), (4, -1)])
def test_numbers_that_make_no_loader_are_an_error(batch_size, num_workers):
    with pytest.raises(ConfigError, match='at least 1'):
        BaseDataLoader(TensorDataset(torch.zeros(5)), batch_size, True, 0.0, num_workers)
