"""Laws of which data a run has: who is validated on, what counts as another dataset, classes."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from armature.checkpoint.files import load, save
from armature.data.identity import (
    changes,
    class_map,
    data_of,
    fingerprint,
    identity_of,
    refuse_changes,
    resuming,
)
from armature.data.split import SPLIT_KEY, split_indices
from armature.errors import ConfigError, DataError
from base import BaseDataLoader
from tests.conftest import NoisyPoints

# Who is validated on


def keys_of(split, names):
    return {names[index] for index in split.valid.tolist()}


@pytest.mark.parametrize('share', [0.03, 0.2, 0.5, 0.77])
@pytest.mark.parametrize('n', [50, 101, 400])
def test_samples_that_are_appended_move_nobody(n, share):
    before = set(split_indices(n, share).valid.tolist())
    assert len(before) == int(n * share)
    for more in (1, 20, 333):
        after = split_indices(n + more, share)
        assert before <= set(after.valid.tolist()) and len(after.valid) == int((n + more) * share)


@pytest.mark.parametrize(
    'how',
    [
        {},
        {'classes': True},
        {'groups': True},
        {'n_folds': 4, 'fold': 2, 'validation_split': 0},
        {'n_folds': 4, 'fold': 3, 'validation_split': 0, 'classes': True},
    ],
    ids=str,
)
def test_samples_that_come_and_go_anywhere_move_nobody_in_a_run_that_goes_on(how):
    def split(names, before=None):
        options = {'validation_split': 0.25, **how, 'names': names, 'before': before}
        if how.get('classes'):
            options['classes'] = [int(name) % 3 for name in names]
        if how.get('groups'):
            options['groups'] = [int(name) // 4 for name in names]
        return split_indices(len(names), **options)

    names = [str(number) for number in range(200)]
    others = sorted(set(names[::3]) | set(names[5:80]) | {str(each) for each in range(200, 300)})
    first = split(names)
    second = split(others, first.state)
    was, now = keys_of(first, names), keys_of(second, others)
    assert now & set(names) == was & set(others)
    assert now - set(names), 'some of the new ones are validated on'
    assert keys_of(split(names, second.state), names) == was


def test_named_samples_are_split_by_name_in_any_order():
    names = [f'{number}.png' for number in range(100)]
    mixed = [names[index] for index in np.random.default_rng(1).permutation(100)]
    first, second = (split_indices(100, 0.2, names=each) for each in (names, mixed))
    assert keys_of(first, names) == keys_of(second, mixed) and len(first.valid) == 20


def test_class_with_one_sample_stays_in_training():
    classes = [0] * 30 + [1] * 29 + [2]
    split = split_indices(60, 0.2, classes=classes)
    assert len(split.valid) == 12 and 59 in split.train.tolist()


def test_runs_that_began_before_keep_their_split(tmp_path):
    everybody = np.arange(40)
    np.random.RandomState(0).shuffle(everybody)  # as the old template did
    for version, expected in (
        (0, everybody[:8].tolist()),
        (1, torch.randperm(40, generator=torch.Generator().manual_seed(SPLIT_KEY))[:8].tolist()),
    ):
        split = split_indices(40, 0.2, before={'version': version})
        assert split.valid.tolist() == sorted(expected) and split.state['version'] == version
    assert data_of({'epoch': 3}, tmp_path / 'old.pth')['split']['version'] == 0
    assert data_of({'parts': {}}, tmp_path / 'old.pth')['split']['version'] == 1


def test_loader_of_a_run_that_goes_on_keeps_its_kind_of_split(tmp_path):
    data = TensorDataset(torch.arange(40))
    save(
        {'state_dict': {}, 'parts': {}, 'data': {'split': {'version': 1}}},
        tmp_path / 'checkpoint.pth',
    )
    with resuming(tmp_path / 'checkpoint.pth'):
        old = BaseDataLoader(data, 4, True, 0.2, 0)
    assert old.split['version'] == 1
    assert old.valid_sampler == split_indices(40, 0.2, before=old.split).valid.tolist()
    assert old.valid_sampler != BaseDataLoader(data, 4, True, 0.2, 0).valid_sampler


# Which data


class Files(Dataset):
    def __init__(self, folder, names):
        self.root, self.paths = folder, [folder / name for name in names]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.paths[index].read_bytes()


@pytest.fixture
def files(tmp_path):
    for folder in ('a', 'b'):
        (tmp_path / folder).mkdir()
        for number in range(5):
            (tmp_path / folder / f'{number}.txt').write_text(f'{number}')
    return Files(tmp_path, [f'{folder}/{number}.txt' for folder in 'ab' for number in range(5)])


def said(before, after):
    return '; '.join(changes({'fingerprint': before}, {'fingerprint': after}))


def test_files_are_told_by_number_name_and_size(files, tmp_path):
    before = fingerprint(files)
    assert fingerprint(files) == before
    fewer = Files(tmp_path, files.paths[:-1])
    assert 'number of samples: 10 before, 9 now' in said(before, fingerprint(fewer))
    files.paths[0].write_text('longer')
    assert 'sizes of files' in said(before, fingerprint(files))
    files.paths[0].write_text('0')
    files.paths = files.paths[::-1]
    assert 'names of files' in said(before, fingerprint(files))


def test_folder_that_is_moved_is_the_same_data(files, tmp_path):
    before = fingerprint(files)
    moved = tmp_path.parent / f'{tmp_path.name}-moved'
    tmp_path.rename(moved)
    names = [path.relative_to(tmp_path) for path in files.paths]
    assert fingerprint(Files(moved, names)) == before


def test_other_data_is_told_by_content():
    points, targets = torch.randn(300, 4), torch.arange(300)
    before = fingerprint(TensorDataset(points, targets))
    assert len(before) == 1 + 64
    assert said(before, fingerprint(TensorDataset(points.clone(), targets))) == ''
    other = points.clone()
    other[0] += 1
    assert 'content of sample 0: ' in said(before, fingerprint(TensorDataset(other, targets)))
    assert 'more of what was looked at' in said(
        before, fingerprint(TensorDataset(points.flip(0), targets))
    )


def test_random_samples_do_not_make_other_data():
    assert fingerprint(NoisyPoints()) == fingerprint(NoisyPoints())

    class OfItsOwn(NoisyPoints):
        def __getitem__(self, index):
            return np.random.default_rng().random()

    assert fingerprint(OfItsOwn()) == {'number of samples': 52}


def test_looking_at_data_opens_no_file_that_workers_would_share():
    class Lazy(NoisyPoints):
        file = None

        def __getitem__(self, index):
            self.file = self.file or object()
            return super().__getitem__(index)

    lazy = Lazy()
    found = fingerprint(torch.utils.data.Subset(lazy, range(9)))
    assert 'content of sample 0' in found and lazy.file is None


def test_dataset_may_say_its_own_fingerprint():
    class Table(NoisyPoints):
        def fingerprint(self):
            return {'rows': 52, 'version': 3}

    assert fingerprint(Table()) == {'rows': 52, 'version': 3}
    assert said({'rows': 51}, fingerprint(Table())) == 'rows: 51 before, 52 now'


class Longer(NoisyPoints):
    def __init__(self, n):
        super().__init__()
        self.points = self.points.repeat(2, 1)[:n]
        self.targets = self.targets.repeat(2)[:n]

    def __len__(self):
        return len(self.points)


def test_run_goes_on_with_other_data_only_when_told_to(experiment, capsys):
    def trainer(n, split=0.25, **settings):
        loader = BaseDataLoader(Longer(n), 7, True, split, 0, seed=1)
        return experiment.trainer(loader=loader, **settings)

    first = trainer(52, epochs=1)
    first.train()
    file = first.checkpoint_dir / 'checkpoint-last.pth'
    saved = torch.load(file, weights_only=True)['data']
    assert saved['fingerprint']['number of samples'] == 52
    for other in (lambda **more: trainer(60, **more), lambda **more: trainer(52, 0.5, **more)):
        resumed = other(epochs=2, resume=file)
        with pytest.raises(ConfigError, match='before, .* now.*"data_changed": "continue"'):
            resumed.train()
        assert resumed.step == first.step
    resumed = trainer(60, epochs=2, resume=file)
    resumed.config['data_changed'] = 'continue'
    resumed.train()
    assert (
        resumed.epochs_done == 2
        and 'number of samples: 52 before, 60 now' in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    'piece, n, split, names',
    [
        ('fingerprint', 60, 0.25, ['ant', 'bee']),
        ('class_names', 52, 0.25, ['ant', 'cat']),
        ('split', 52, 0.5, ['ant', 'bee']),
    ],
)
def test_each_piece_of_what_a_checkpoint_knows_of_its_data_matters(
    experiment, piece, n, split, names
):
    """Mutation control: without it, data that has changed is taken for the same, or the reverse."""

    def outcome(n, split, names, **settings):
        data = Longer(n)
        data.class_names = names
        trainer = experiment.trainer(
            loader=BaseDataLoader(data, 7, True, split, 0, seed=1), **settings
        )
        try:
            trainer.train()
        except ConfigError as error:
            return str(error)
        return trainer.checkpoint_dir / 'checkpoint-last.pth'

    file = outcome(52, 0.25, ['ant', 'bee'], epochs=1)
    noticed = outcome(n, split, names, epochs=2, resume=file)
    assert 'before' in noticed
    state = load(file)
    del state['data'][piece]
    save(state, file.parent / 'without.pth')
    assert outcome(n, split, names, epochs=2, resume=file.parent / 'without.pth') != noticed


def apart(n_valid):
    """A loader whose validation data is no part of its own."""
    loader = BaseDataLoader(NoisyPoints(), 7, True, 0.0, 0, seed=1)
    loader.split_validation = lambda: BaseDataLoader(Longer(n_valid), 7, False, 0.0, 0)
    return loader


def test_other_validation_data_is_refused_and_begins_a_new_best(experiment, capsys):
    first = experiment.trainer(loader=apart(20), epochs=1)
    first.train()
    file = first.checkpoint_dir / 'checkpoint-last.pth'
    same = experiment.trainer(file, loader=apart(20), epochs=2)
    same.train()
    assert 'new best' not in capsys.readouterr().out
    resumed = experiment.trainer(file, loader=apart(30), epochs=2)
    with pytest.raises(ConfigError, match=r'of samples \(validation\): 20 before, 30 now') as error:
        resumed.train()
    assert 'side' not in str(error.value)  # there is no split
    resumed = experiment.trainer(file, loader=apart(30), epochs=2)
    resumed.config['data_changed'] = 'continue'
    resumed.mnt_best = -1.0
    resumed.train()
    assert 'a new best begins' in capsys.readouterr().out
    assert resumed.mnt_best == resumed.history[-1]['val_loss']
    state = load(file)
    del state['data']['validation']  # as from before
    save(state, file.parent / 'before.pth')
    before = experiment.trainer(file.parent / 'before.pth', loader=apart(30), epochs=2)
    before.train()
    assert before.epochs_done == 2


def test_other_data_inside_an_epoch_is_refused_although_its_size_is_the_same(experiment):
    def trainer(n_steps, shift, resume=None):
        data = Longer(52)
        data.points = data.points + shift
        loader = BaseDataLoader(data, 7, True, 0.25, 0, seed=1)
        return experiment.trainer(resume, loader=loader, max_steps=n_steps)

    first = trainer(3, 0)
    first.train()
    resumed = trainer(9, 1, first.checkpoint_dir / 'checkpoint-last.pth')
    resumed.config['data_changed'] = 'continue'
    with pytest.raises(ConfigError, match='another order: content of sample 0'):
        resumed.train()


def loader_of(n, shift=0, names=None, **how):
    data = TensorDataset(torch.arange(shift, shift + n))
    if names is not None:
        data.paths = [f'/data/{name}' for name in names]
    return BaseDataLoader(data, 4, True, num_workers=0, **{'validation_split': 0.25, **how})


FOLDS = {'validation_split': 0, 'n_folds': 4}


@pytest.mark.parametrize(
    'then, now',
    [
        ({}, {'validation_split': 0}),
        ({'validation_split': 0}, {}),
        (FOLDS, {'validation_split': 0}),
        ({'validation_split': 0}, FOLDS),
    ],
    ids=str,
)
def test_a_split_that_comes_or_goes_is_another(tmp_path, then, now):
    then, now = (identity_of(loader_of(40, **each)) for each in (then, now))
    assert changes(then, now) and not changes(then, then)
    with pytest.raises(ConfigError, match='validated on may be trained on'):
        refuse_changes(then, now, False)
    del then['split']  # as of a run that does not tell
    assert not changes(then, now)


@pytest.mark.parametrize(
    'then, now, may_change',
    [
        ({'n': 40}, {'n': 47}, False),
        ({'n': 40, 'validation_split': 9}, {'n': 47, 'validation_split': 9}, False),
        ({'n': 40, **FOLDS}, {'n': 47, **FOLDS}, False),
        ({'n': 40, 'shift': 5}, {'n': 45}, True),
        ({'n': 40}, {'n': 35, 'shift': 5}, True),
        ({'n': 40}, {'n': 40, 'validation_split': 9}, True),
        ({'n': 40, **FOLDS}, {'n': 40, **FOLDS, 'fold': 1}, True),
        ({'n': 40, 'names': 'ab'}, {'n': 35, 'shift': 5, 'names': 'ab'}, False),
        ({'n': 40, 'names': 'ab'}, {'n': 40, 'names': 'xy'}, True),
        ({'n': 40, 'names': 'ab'}, {'n': 40, 'names': 'ab', 'validation_split': 0.2}, True),
    ],
    ids=str,
)
def test_who_was_validated_on_stays_where_docs_say_so(tmp_path, then, now, may_change):
    def made(names=None, **how):
        first = how.get('shift', 0)
        if names:
            names = [f'{names[each % 2]}/{each}' for each in range(first, first + how['n'])]
        return loader_of(**how, names=names)

    def validated(loader):
        return {int(loader.dataset[index][0]) for index in loader.valid_sampler}

    first = made(**then)
    save({'state_dict': {}, 'data': identity_of(first)}, tmp_path / 'a.pth')
    with resuming(tmp_path / 'a.pth'):
        second = made(**now)
    trained = {int(each) for each in second.dataset.tensors[0]} - validated(second)
    assert bool(validated(first) & trained) == may_change
    *_, said = refuse_changes(identity_of(first), identity_of(second), True)
    assert said.startswith('With it, samples that were validated on may be trained on')


# Which class is which


@dataclasses.dataclass
class Animals(Dataset):
    classes: list
    n: int = 20

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return torch.tensor([float(index)]), index % len(self.classes)


@pytest.mark.parametrize('options', [{}, {'in_memory': True}, {'num_workers': 2}], ids=str)
def test_classes_are_numbered_by_name_as_in_training(options):
    options = {'num_workers': 0, **options}
    loader = BaseDataLoader(Animals(['bee', 'cat']), 6, False, 0.2, **options)
    loader.use_class_names(['ant', 'bee', 'cat'])
    for part in (loader, loader.split_validation()):
        for data, target in part:
            assert torch.equal(target, data[:, 0].long() % 2 + 1)
        assert part.class_names == ['ant', 'bee', 'cat']


def test_class_that_training_never_saw_is_refused():
    with pytest.raises(DataError, match="has the class 'dog', and training knows ant, bee"):
        class_map(['bee', 'dog'], ['ant', 'bee'])
    assert class_map(['ant', 'bee'], ['ant', 'bee']) is None is class_map(None, ['ant'])
