"""What private trainers, loaders and scripts of the old template's users rely on (counted in 52
public projects) works unchanged.
"""

import argparse
import collections
import copy
import math
import pickle
import sys
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from armature.checkpoint import files as checkpoint
from armature.compare import first_difference
from armature.errors import NonFiniteError
from armature.run_files import read_table
from base import BaseDataLoader, BaseModel, BaseTrainer
from logger.visualization import TensorboardWriter
from parse_config import ConfigParser
from tools.project_files import old_style
from utils import (
    MetricTracker,
    ensure_dir,
    inf_loop,
    prepare_device,
    read_json,
    write_json,
)

DATA = torch.utils.data.TensorDataset(
    torch.linspace(-1, 1, 24).view(-1, 1), torch.linspace(-2, 2, 24)
)


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.weights = nn.Linear(1, 1)

    def forward(self, x):
        return self.weights(x).view(-1)


def gap(output, target):
    return (output - target).abs().mean()


class Loader(BaseDataLoader):
    def __init__(self, **kwargs):
        self.dataset = DATA
        super().__init__(self.dataset, 6, True, kwargs.get('validation_split', 0.25), 0)
        self.batch_size_of_mine, self.n_samples = 6, len(self.sampler)


class LateTrainer(BaseTrainer):
    """Late 2019: gives no device, sets everything after super().__init__, and steps by itself."""

    def __init__(
        self,
        model,
        criterion,
        metric_ftns,
        optimizer,
        config,
        device=None,
        data_loader=None,
        lr_scheduler=None,
        len_epoch=None,
    ):
        super().__init__(model, criterion, metric_ftns, optimizer, config)
        assert not hasattr(self, 'data_loader') and isinstance(self.device, torch.device)
        self.config = config
        self.device = device or self.device
        self.data_loader = inf_loop(data_loader) if len_epoch else data_loader
        self.len_epoch = len_epoch or len(data_loader)
        self.valid_data_loader = data_loader.split_validation()
        self.do_validation = self.valid_data_loader is not None
        self.lr_scheduler = lr_scheduler
        self.log_step = int(np.sqrt(data_loader.batch_size))
        self.train_metrics = MetricTracker(
            'loss', *[m.__name__ for m in self.metric_ftns], writer=self.writer
        )

    def _train_epoch(self, epoch):
        self.model.train()
        self.train_metrics.reset()
        for batch_idx, (data, target) in enumerate(self.data_loader):
            self.optimizer.zero_grad()
            output = self.model(data.to(self.device))
            loss = self.criterion(output, target)
            loss.backward()
            self.optimizer.step()
            self.writer.set_step((epoch - 1) * self.len_epoch + batch_idx)
            self.train_metrics.update('loss', loss.item())
            for met in self.metric_ftns:
                self.train_metrics.update(met.__name__, met(output, target))
            if batch_idx + 1 == self.len_epoch:
                break
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        return {**self.train_metrics.result(), 'val_loss': np.float64(self._valid_epoch(epoch))}

    def _valid_epoch(self, epoch):
        self.model.eval()
        with torch.no_grad():
            return np.mean(
                [
                    self.criterion(self.model(data), target).item()
                    for data, target in self.valid_data_loader
                ]
            )


@pytest.fixture
def make(tmp_path):
    """Builds a trainer of a given class, on a line."""

    def made(
        trainer_class=LateTrainer,
        resume=None,
        epochs=3,
        len_epoch=None,
        scheduled=True,
        own=None,
        **settings,
    ):
        config = ConfigParser(
            {
                'name': 'line',
                'n_gpu': 0,
                **(own or {}),
                'trainer': {
                    'epochs': epochs,
                    'save_dir': str(tmp_path),
                    'save_period': 1,
                    'verbosity': 1,
                    'monitor': 'min val_loss',
                    'early_stop': 10,
                    'tensorboardX': False,
                    **settings,
                },
            },
            resume=resume,
        )
        torch.manual_seed(1)
        model = Line()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5) if scheduled else None
        return trainer_class(
            model,
            F.mse_loss,
            [gap],
            optimizer,
            config,
            data_loader=Loader(),
            lr_scheduler=scheduler,
            len_epoch=len_epoch,
        )

    return made


def weights(trainer):
    return checkpoint.to_plain(trainer.model.state_dict())


@pytest.mark.parametrize('len_epoch', [None, 2, 5])
def test_old_loop_resumes_exactly_with_scheduler_and_order(make, len_epoch):
    whole = make(len_epoch=len_epoch)
    whole.train()
    make(epochs=1, len_epoch=len_epoch).train()
    first = max(
        whole.checkpoint_dir.parent.rglob('checkpoint-epoch1.pth'),
        key=lambda path: path.stat().st_mtime,
    )
    resumed = make(resume=first, len_epoch=len_epoch)
    assert resumed.start_epoch == 2
    resumed.train()
    assert first_difference(weights(resumed), weights(whole)) == ''
    assert (
        resumed.optimizer.param_groups[0]['lr']
        == whole.optimizer.param_groups[0]['lr']
        == pytest.approx(0.1 / 8)
    )


def test_parts_of_a_gan_are_saved_and_restored_without_being_named(make):
    class Gan(LateTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            torch.manual_seed(len(self.history))  # a resumed one starts with other weights
            self.critic = nn.Linear(1, 1)
            self.optimizers = {'critic': torch.optim.Adam(self.critic.parameters())}

        def _train_epoch(self, epoch):
            self.critic(torch.ones(1, 1)).sum().backward()
            self.optimizers['critic'].step()
            return super()._train_epoch(epoch)

    trained = make(Gan, epochs=2)
    trained.train()
    resumed = make(Gan, resume=trained.checkpoint_dir / 'checkpoint-epoch2.pth', epochs=2)
    resumed._resume.restore_parts()
    for part in ('critic', 'optimizers'):
        one, other = (getattr(each, part) for each in (trained, resumed))
        states = [
            each['critic'].state_dict() if part == 'optimizers' else each.state_dict()
            for each in (one, other)
        ]
        assert first_difference(*states) == ''


def test_trainer_with_its_own_train_is_resumed_when_its_constructor_ends(make):
    class Own(LateTrainer):
        def train(self):
            for epoch in range(self.start_epoch, self.epochs + 1):
                self.result = self._train_epoch(epoch)
                self.mnt_best = min(self.mnt_best, self.result['val_loss'])
                self._save_checkpoint(epoch, save_best=True)

    trained = make(epochs=2)
    trained.train()
    resumed = make(Own, resume=trained.checkpoint_dir / 'checkpoint-epoch2.pth', epochs=4)
    assert first_difference(weights(resumed), weights(trained)) == '' and resumed.start_epoch == 3
    assert resumed.mnt_best == trained.mnt_best and resumed.optimizer.state
    resumed.train()
    assert (resumed.checkpoint_dir / 'checkpoint-epoch4.pth').is_file() and (
        resumed.checkpoint_dir / 'model_best.pth'
    ).is_file()
    assert checkpoint.load(resumed.checkpoint_dir / 'checkpoint-epoch4.pth')['epoch'] == 4


def test_own_saving_and_resuming_are_what_is_used(make):
    class Own(LateTrainer):
        def _save_checkpoint(self, epoch, save_best=False):
            state = {
                'epoch': np.int64(epoch),
                'state_dict': self.model.state_dict(),
                'optimizer': self.optimizer.state_dict(),
                'mine': 7,
                'config': self.config,
            }
            torch.save(
                {**state, 'epoch': epoch}, str(self.checkpoint_dir / f'checkpoint-epoch{epoch}.pth')
            )

        def _resume_checkpoint(self, resume_path):
            saved = torch.load(resume_path)
            assert saved['config']['trainer']['epochs'] == 2
            self.mine, self.start_epoch = saved['mine'], saved['epoch'] + 1
            self.model.load_state_dict(saved['state_dict'])

    trained = make(Own, epochs=2)
    trained.train()
    assert sorted(path.name for path in trained.checkpoint_dir.glob('*.pth')) == [
        'checkpoint-epoch1.pth',
        'checkpoint-epoch2.pth',
    ]
    resumed = make(Own, resume=checkpoint.find(str(trained.checkpoint_dir)), epochs=3)
    assert resumed.mine == 7 and resumed.start_epoch == 3
    resumed.train()
    assert resumed.epochs_done == 3


@pytest.mark.parametrize(
    'log',
    [
        {'loss': torch.tensor(1.0), 'val_loss': np.float32(2)},
        {'loss': 1.0, 'metrics': [0.5], 'val_loss': 1.0, 'val_metrics': np.array([0.25])},
        {'loss/a': 1, 'val_loss': torch.tensor([1.0])},
    ],
)
def test_log_may_hold_tensors_numpy_scalars_lists_and_slashes(make, log):
    class Own(LateTrainer):
        def _train_epoch(self, epoch):
            return log

    trained = make(Own, epochs=1)
    trained.train()
    (row,) = read_table(trained.checkpoint_dir / 'metrics.csv')
    assert all(isinstance(value, (int, float)) for value in row.values())
    if 'metrics' in log:
        assert row['gap'] == 0.5 and row['val_gap'] == 0.25
    assert math.isfinite(trained.mnt_best)


def test_attributes_of_all_generations_can_be_read_and_set(make):
    trainer = make()
    assert trainer.loss is trainer.criterion and trainer.metrics is trainer.metric_ftns
    for name in (
        'config',
        'logger',
        'model',
        'optimizer',
        'epochs',
        'save_period',
        'monitor',
        'mnt_mode',
        'mnt_metric',
        'mnt_best',
        'early_stop',
        'start_epoch',
        'checkpoint_dir',
        'writer',
    ):
        setattr(trainer, name, getattr(trainer, name))
    assert trainer._prepare_device(0) == (torch.device('cpu'), [])
    assert trainer.checkpoint_dir.is_dir() and trainer.config.log_dir.is_dir()


def test_trainer_may_call_its_running_loss_and_its_values_as_the_old_aliases(make):
    class Sums(LateTrainer):
        def _train_epoch(self, epoch):
            self.loss, self.metrics = 0.0, {}
            for data, target in self.data_loader:
                loss = self.criterion(self.model(data), target)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.loss += loss.item()
            return {'loss': self.loss, 'val_loss': self._valid_epoch(epoch)}

    trainer = make(Sums)
    trainer.train()
    assert trainer.criterion is F.mse_loss and trainer.metric_ftns == [gap]
    assert trainer.loss > 0 and trainer.metrics == {}


def test_loader_says_what_trainers_ask_it():
    loader = Loader()
    assert (
        loader.batch_size,
        loader.n_samples,
        len(loader),
        len(loader.sampler),
        len(loader.valid_sampler),
    ) == (6, 18, 3, 18, 6)
    assert {
        'dataset',
        'batch_size',
        'shuffle',
        'collate_fn',
        'num_workers',
    } <= loader.init_kwargs.keys()
    assert len(loader.split_validation()) == 1 and len(loader.split_validation().sampler) == 6
    assert Loader(validation_split=0.0).split_validation() is None


@pytest.mark.parametrize('n', [1, np.int64(3), torch.tensor(2)])
@pytest.mark.parametrize(
    'value',
    [
        0.5,
        np.float32(0.5),
        torch.tensor(0.5, requires_grad=True),
        np.array(0.5),
        torch.tensor([0.5]),
    ],
)
def test_tracker_takes_whatever_an_old_loop_has(value, n):
    tracker = MetricTracker('loss/a')
    tracker.update('loss/a', value, n)
    assert tracker.avg('loss/a') == 0.5 and tracker.result() == {'loss/a': 0.5}
    assert (
        tracker._data.average['loss/a'] == 0.5
        and 'loss/a' in tracker._data.index
        and tracker._data.counts['loss/a'] == int(n)
    )


def test_writer_takes_every_call_of_old_trainers(tmp_path):
    for enabled in (False, True):
        writer = TensorboardWriter(tmp_path, None, enabled)
        writer.set_step(3, 'valid')
        assert (writer.step, writer.mode) == (3, 'valid') and (writer.writer is None) != enabled
        writer.add_scalar('loss', 1.0)
        writer.add_scalars('losses', {'a': 1.0})
        writer.add_histogram('weights', torch.ones(3), bins='auto')
        writer.add_text('note', 'text')
        writer.add_image('input', torch.zeros(3, 4, 4))
        writer.flush()
        writer.close()
        assert not hasattr(writer, 'no_such_thing')


def test_config_of_every_generation_can_be_asked_and_changed(tmp_path, monkeypatch):
    config = ConfigParser(
        {'name': 'x', 'arch': {'type': 'Line', 'args': {}}, 'trainer': {'save_dir': str(tmp_path)}}
    )
    here = sys.modules[__name__]
    assert all(
        isinstance(build('arch', here), Line) for build in (config.init_obj, config.initialize)
    )
    assert all(
        isinstance(build('arch', here)(), Line)
        for build in (config.init_ftn, config.initialize_ftn)
    )
    config['lr_scheduler'] = None  # as a file with null, which scripts ask for
    assert config['lr_scheduler'] is None and 'lr_scheduler' not in config
    assert config.get('lr_scheduler', 1) == 1 and config.get('seed') == 123
    other = copy.deepcopy(config)
    other['arch']['args'] = {'weights': 1}
    assert isinstance(config.init_obj('arch', here), Line) and other.place is not config.place
    config['arch']['note'] = 1
    config.config['more'] = 2
    config['most'] = 3
    assert config['arch']['note'] == 1 and config._config['more'] == config.get('more') == 2
    assert 'most' in config and config.get('no') is None
    config.update({'more': 4})
    assert (
        config['more'] == 4
        and config.save_dir == config._save_dir
        and config.log_dir == config._log_dir
        and config.resume is None
    )
    write_json(
        {'name': 'y', 'trainer': {'save_dir': str(tmp_path), 'epochs': 1}}, tmp_path / 'c.json'
    )
    monkeypatch.setattr(sys, 'argv', ['train.py', '-c', str(tmp_path / 'c.json'), '--epochs', '5'])
    parser = argparse.ArgumentParser()
    for flag in ('--config', '--resume', '--device'):
        parser.add_argument(flag[1:3], flag, default=None)
    option = collections.namedtuple('CustomArgs', 'flags type target')
    monkeypatch.chdir(tmp_path)
    early = ConfigParser(parser, [option(['--epochs'], int, ('trainer', 'epochs'))])
    assert early['trainer']['epochs'] == 5 and early.name == 'y'
    assert early.save_dir.name == early.run_id and early.save_dir.parent.name == 'y'


def test_config_in_a_state_of_ones_own_is_plain_data(tmp_path):
    config = ConfigParser({'name': 'x', 'list': [{'a': 1}], 'trainer': {'save_dir': str(tmp_path)}})
    torch.save({'config': config}, tmp_path / 'own.pth')
    assert torch.load(tmp_path / 'own.pth', weights_only=True)['config'] == config.config
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config.config)
    assert config.save_dir.is_dir()
    sent = pickle.loads(ForkingPickler.dumps(config))  # to a process that is started with it
    assert sent.save_dir == config.save_dir and sent.place.config is sent and sent == config


@pytest.mark.parametrize(
    ('own', 'settings', 'said'),
    [
        ({'distributed': True, 'batch': 64, 'seed': 'any', 'sweep': [1]}, {}, ''),
        (
            {},
            {'freeze': True, 'max_grad_norm': 0, 'log_images': 8, 'early_stop': -1},
            'freeze is true in the config: expected',
        ),
    ],
)
def test_old_project_may_have_keys_that_mean_another_thing_here(make, caplog, own, settings, said):
    trainer = make(epochs=1, own=own, **settings)
    trainer.config.check()
    trainer.device = 'cpu'  # as text
    trainer.train()
    assert trainer.epochs_done == 1 and all(trainer.config[key] == own[key] for key in own)
    assert said in caplog.text


def test_epoch_whose_loss_is_nan_stops_unless_nobody_measured_one(make):
    trainer = make()
    trainer.criterion = lambda output, target: F.mse_loss(output, target) + math.nan
    with pytest.raises(NonFiniteError, match='epoch 1: the loss is nan'):
        trainer.train()

    class Unmeasured(LateTrainer):
        def _train_epoch(self, epoch):
            super()._train_epoch(epoch)
            self.train_metrics.reset()
            return {**self.train_metrics.result(), 'val_loss': 1.0}

    trainer = make(Unmeasured, epochs=1)
    trainer.train()
    assert trainer.epochs_done == 1 and math.isnan(trainer.history[0]['loss'])


def test_helpers_are_where_they_were(tmp_path):
    from utils import util

    ensure_dir(tmp_path / 'a/b')
    write_json({'b': 1, 'a': 2}, tmp_path / 'a/b/c.json')
    assert list(read_json(str(tmp_path / 'a/b/c.json'))) == ['b', 'a']
    assert prepare_device(0)[1] == [] and [next(inf_loop([1, 2])) for _ in range(2)] == [1, 1]
    assert all(
        hasattr(util, name)
        for name in (
            'ensure_dir',
            'read_json',
            'write_json',
            'inf_loop',
            'prepare_device',
            'MetricTracker',
        )
    )


def test_trainer_of_early_2018_gets_optimizer_and_scheduler_from_its_dict(tmp_path):
    config = {
        'name': 'early',
        'cuda': False,
        'optimizer_type': 'SGD',
        'optimizer': {'lr': 0.1},
        'lr_scheduler_type': 'ExponentialLR',
        'lr_scheduler': {'gamma': 0.5},
        'lr_scheduler_freq': 2,
        'visualization': {'tensorboardX': False},
        'trainer': {
            'epochs': 4,
            'save_dir': str(tmp_path),
            'save_freq': 2,
            'verbosity': 0,
            'monitor': 'val_loss',
            'monitor_mode': 'max',
        },
    }

    class Early(old_style.with_own_optimizer(BaseTrainer)):
        def _train_epoch(self, epoch):
            data, target = DATA[:]
            self.optimizer.zero_grad()
            loss = self.loss(self.model(data), target)
            loss.backward()
            self.optimizer.step()
            return {
                'loss': loss.item(),
                'metrics': [gap(self.model(data), target).item()],
                'val_loss': epoch,
            }

    train_logger = old_style.Logger()
    trainer = Early(Line(), F.mse_loss, [gap], None, config, train_logger)
    trainer.train()
    assert (
        trainer.mnt_best == 4
        and trainer.optimizer.param_groups[0]['lr'] == pytest.approx(0.025)
        and not trainer.with_cuda
    )
    assert sorted(train_logger.entries) == [1, 2, 3, 4] and 'gap' in str(train_logger)
    last = trainer.checkpoint_dir / 'checkpoint-epoch4.pth'
    assert trainer.save_freq == 2
    assert torch.load(last)['config']['optimizer_type'] == 'SGD'
    resumed = Early(Line(), F.mse_loss, [gap], last, config, train_logger)
    assert resumed.start_epoch == 5 and first_difference(weights(resumed), weights(trainer)) == ''


class PickledByAnOldCopy:
    """Stands for what old checkpoints hold as live objects: a ConfigParser, a Logger."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


def test_checkpoint_of_an_old_copy_resumes_whatever_it_pickled(make, tmp_path):
    trained = make(epochs=1)
    trained.train()
    old = {
        'arch': 'Line',
        'epoch': 1,
        'logger': PickledByAnOldCopy(entries={1: {'loss': 1.0}}),
        'state_dict': trained.model.state_dict(),
        'optimizer': trained.optimizer.state_dict(),
        'monitor_best': np.float64(0.25),
        'config': PickledByAnOldCopy(
            _config=collections.OrderedDict(trained.config.config), resume=None, _save_dir=tmp_path
        ),
    }
    torch.save(old, tmp_path / 'old.pth')
    resumed = make(resume=tmp_path / 'old.pth')
    assert (
        resumed.start_epoch == 2
        and resumed.mnt_best == 0.25
        and first_difference(weights(resumed), weights(trained)) == ''
    )
    resumed.train()
    assert resumed.epochs_done == 3


def test_config_is_saved_as_it_was_read(make):
    """A script may put any object into its config; it does so anew after a resume."""

    class Filling(LateTrainer):
        def __init__(self, model, criterion, metric_ftns, optimizer, config, **kwargs):
            config['trainer']['notes'] = {'logger': config.get_logger('x'), 'open': lambda: 0}
            super().__init__(model, criterion, metric_ftns, optimizer, config, **kwargs)

        def _train_epoch(self, epoch):
            return {**super()._train_epoch(epoch), 'confusion': np.eye(3)}

    trainer = make(Filling, epochs=1)
    trainer.train()
    saved = checkpoint.load(trainer.checkpoint_dir / 'checkpoint-epoch1.pth')
    assert 'notes' not in saved['config']['trainer'] and saved['config'] == trainer.config.as_read
    table = (trainer.checkpoint_dir / 'metrics.csv').read_text()
    assert 'confusion' not in table  # printed: what is kept are numbers
    assert make(Filling, resume=trainer.checkpoint_dir / 'checkpoint-epoch1.pth').start_epoch == 2
