"""Interrupted or not, the same run: laws of resuming, compared bit for bit."""

import functools
import math
import shutil
import signal

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from armature.checkpoint import files as checkpoint
from armature.checkpoint.weights import load_tested
from armature.compare import first_difference
from armature.errors import CheckpointError, ConfigError
from armature.run import resume
from armature.run.resume import changes, load_optimizer, optimizer_as_built
from armature.run.saving import state_of
from armature.run_files import read_table
from armature.step.average import Average
from armature.step.optimizers import SeveralOptimizers
from armature.step.schedule import Schedule
from base import BaseDataLoader
from base.stepper import Stepper
from model.metric import accuracy, top_k_acc
from tests import faults
from tests.conftest import ROOT, Experiment, NoisyPoints, PointModel, run_script
from tools.run_files import read_record
from trainer import Trainer

N_STEPS, STEPS_PER_EPOCH = 18, 6


def everything(trainer) -> dict:
    """The whole state of a trainer, but for what made it."""
    state = checkpoint.to_plain(state_of(trainer))
    return {name: value for name, value in state.items() if name not in ('made_by', 'config')}


def run(trainer) -> dict:
    trainer.train()
    return everything(trainer)


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    return run(Experiment(tmp_path_factory.mktemp('uninterrupted')).trainer())


def stopped_after(experiment, n_steps, **options):
    """The checkpoint of a run that was asked to stop in its n-th step."""
    trainer = experiment.trainer(**options)
    take_step = trainer.stepper.step

    def step():
        take_step()
        if trainer.step == n_steps:
            trainer._stop.reason = 'test'

    trainer.stepper.step = step
    trainer.train()
    return trainer.checkpoint_dir / 'checkpoint-last.pth'


@pytest.mark.parametrize('n_steps', range(1, N_STEPS + 1))
def test_run_stopped_after_any_step_equals_uninterrupted_run(experiment, uninterrupted, n_steps):
    resumed = run(experiment.trainer(stopped_after(experiment, n_steps)))
    assert first_difference(resumed, uninterrupted) == ''


def test_metric_that_keeps_its_samples_is_resumed_inside_an_epoch(experiment):
    from torchmetrics.classification import MulticlassAUROC

    metric = MulticlassAUROC(2)
    metric.__name__ = 'auroc'
    whole = run(experiment.trainer(metrics=[metric]))
    resumed = run(
        experiment.trainer(stopped_after(experiment, 9, metrics=[metric]), metrics=[metric])
    )
    assert first_difference(resumed, whole) == ''


@pytest.mark.parametrize('before, after', [(2, 0), (0, 2), (1, 2)])
def test_number_of_workers_changes_nothing(experiment, uninterrupted, before, after):
    resumed = run(
        experiment.trainer(stopped_after(experiment, 9, num_workers=before), num_workers=after)
    )
    assert first_difference(resumed, uninterrupted) == ''


@pytest.mark.parametrize('n_epochs', [1, 2])
def test_run_resumed_at_an_epochs_start_equals_uninterrupted_run(
    experiment, uninterrupted, n_epochs
):
    first = experiment.trainer(epochs=n_epochs)
    first.train()
    assert (
        first_difference(
            run(experiment.trainer(first.checkpoint_dir / 'checkpoint-last.pth')), uninterrupted
        )
        == ''
    )


def test_script_that_chooses_no_seed_goes_on_with_that_of_its_run(
    experiment, uninterrupted, monkeypatch
):
    stopped = stopped_after(experiment, 9)
    monkeypatch.setattr(resume, 'AT_START', 4)  # what torch has chosen in this process
    resumed = experiment.trainer(stopped, seed=4)
    assert first_difference(run(resumed), uninterrupted) == ''
    assert read_record(resumed.checkpoint_dir)['seed'] == 3


def test_schedule_per_step_and_epochs_over_several_passes_resume_exactly(experiment):
    options = {
        'interval': 'step',
        'len_epoch': 4,
        'scheduler': lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 12),
    }
    whole = experiment.trainer(**options)
    expected = run(whole)
    assert whole.step == 12 and whole.optimizer.param_groups[0]['lr'] == pytest.approx(0, abs=1e-9)
    for n_steps in (2, 5, 8, 11):
        resumed = run(experiment.trainer(stopped_after(experiment, n_steps, **options), **options))
        assert first_difference(resumed, expected) == ''


@pytest.mark.parametrize('n_steps', [STEPS_PER_EPOCH - 1, STEPS_PER_EPOCH])
def test_rows_are_those_of_an_uninterrupted_run(experiment, n_steps):
    options = {
        'interval': 'step',
        'epochs': 2,
        'scheduler': lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 12),
    }

    def rows(trainer):
        return [row | {'seconds': 0} for row in read_table(trainer.checkpoint_dir / 'metrics.csv')]

    whole = experiment.trainer(**options)
    whole.train()
    resumed = experiment.trainer(stopped_after(experiment, n_steps, **options), **options)
    resumed.train()
    assert rows(resumed) == rows(whole) and len(rows(whole)) == 2


def test_plain_torch_loader_resumes_inside_an_epoch_too(experiment):
    class Loader(DataLoader):
        def split_validation(self):
            return None

    def options():
        return {'loader': Loader(NoisyPoints(), batch_size=7, shuffle=True), 'monitor': 'off'}

    expected = run(experiment.trainer(**options()))
    resumed = run(experiment.trainer(stopped_after(experiment, 10, **options()), **options()))
    assert first_difference(resumed['state_dict'], expected['state_dict']) == ''


class TwoModels(Trainer):
    """A second one whose average and scheduler nothing but its stepper holds."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.critic = PointModel()
        optimizer = torch.optim.Adam(self.critic.named_parameters(), 0.01)
        self.optimizer_c = optimizer
        schedule = Schedule(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), 'step')
        self.stepper_c = Stepper(optimizer, schedule, average=Average(self.critic, 0.9))

    def _train_epoch(self, epoch):
        self.train_metrics.reset()
        for batch in self.batches(epoch):
            for model, stepper in ((self.model, self.stepper), (self.critic, self.stepper_c)):
                for data, target in stepper.micro_batches(batch):
                    loss = self.criterion(model(data), target)
                    stepper.backward(loss)
                    self.train_metrics.update('loss', loss, len(target))
                stepper.step()
            self.end_step()
        return self.train_metrics.result()


@pytest.mark.parametrize('n_steps', [6, 9])
def test_average_and_scheduler_of_a_second_model_are_resumed(experiment, n_steps):
    options = {'trainer_class': TwoModels, 'monitor': 'off'}
    expected = run(experiment.trainer(**options))
    parts = expected['parts']
    assert parts['stepper_c.schedule.scheduler']['last_epoch'] == N_STEPS
    stopped = stopped_after(experiment, n_steps, **options)
    assert first_difference(run(experiment.trainer(stopped, **options)), expected) == ''


@pytest.mark.parametrize('settings', [{}, {'ema_decay': 0.9}, {'swa_start': 1}])
def test_stop_during_validation_resumes_exactly(experiment, settings):
    """Also when the model holds its averaged weights just then, which are not its own."""
    uninterrupted = run(experiment.trainer(**settings))
    trainer = experiment.trainer(**settings)
    validate = trainer._valid_epoch

    def stop_then_validate(epoch):
        trainer._stop.request = signal.SIGTERM if epoch == 2 else 0
        return validate(epoch)

    trainer._valid_epoch = stop_then_validate
    with pytest.raises(SystemExit):
        trainer.train()
    assert trainer.epochs_done == 1 and trainer.position == STEPS_PER_EPOCH
    resumed = run(experiment.trainer(trainer.checkpoint_dir / 'checkpoint-last.pth', **settings))
    assert first_difference(resumed, uninterrupted) == ''


def test_order_of_the_first_resumed_epoch_is_not_that_of_epoch_one(experiment):
    trainer = experiment.trainer()
    orders = [trainer.data_loader.indices(epoch).tolist() for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == sorted(orders[0]) for order in orders)


def test_state_of_a_users_own_attribute_is_restored(experiment):
    class WithAverage(Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.extras = {
                'average': AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
            }

        def _train_epoch(self, epoch):
            log = super()._train_epoch(epoch)
            self.extras['average'].update_parameters(self.model)
            return log

    expected = run(experiment.trainer(trainer_class=WithAverage))
    assert 'extras.average' in expected['parts']
    resumed = run(
        experiment.trainer(
            stopped_after(experiment, 13, trainer_class=WithAverage), trainer_class=WithAverage
        )
    )
    assert first_difference(resumed, expected) == ''


def decay(rate):
    return lambda n: rate**n


SCHEDULERS = {  # arguments, and other ones to go on with
    'StepLR': ({'step_size': 4}, {'gamma': 0.5}, {'step_size': 7}),
    'MultiStepLR': ({'milestones': [3, 8]}, {'milestones': [5]}, {'gamma': 0.3}),
    'ConstantLR': ({'factor': 0.5, 'total_iters': 5}, {'factor': 0.2}, {'total_iters': 12}),
    'LinearLR': ({'total_iters': 12}, {'start_factor': 0.1}, {'total_iters': 5}),
    'ExponentialLR': ({'gamma': 0.9}, {'gamma': 0.7}),
    'PolynomialLR': ({'total_iters': 12}, {'power': 2.0}, {'total_iters': 17}),
    'CosineAnnealingLR': ({'T_max': 12}, {'eta_min': 0.001}, {'T_max': 18}),
    'CosineAnnealingWarmRestarts': ({'T_0': 4}, {'T_mult': 2}, {'T_0': 5}),
    'CyclicLR': (
        {'base_lr': 0.01, 'max_lr': 0.1, 'step_size_up': 5},
        {'max_lr': 0.02},
        {'base_lr': 0.001},
        {'mode': 'triangular2'},
    ),
    'OneCycleLR': (
        {'max_lr': 0.1, 'total_steps': 20},
        {'max_lr': 0.01},
        {'total_steps': 24},
        {'anneal_strategy': 'linear'},
        {'pct_start': 0.6},
        {'three_phase': True},
    ),
    'ReduceLROnPlateau': ({'patience': 0}, {'min_lr': 0.005}, {'factor': 0.5}, {'mode': 'max'}),
    'LambdaLR': ({'lr_lambda': decay(0.9)}, {'lr_lambda': decay(0.7)}),
    'MultiplicativeLR': ({'lr_lambda': lambda n: 0.9},),
    'SequentialLR': ({'milestones': [4]}, {'milestones': [9]}, {'second': 'PolynomialLR'}),
    'ChainedScheduler': ({}, {'second': 'PolynomialLR'}),
}
SAME_FOR_ALL = [{'lr': 0.1}, {'warmup_steps': 12}, {'betas': (0.5, 0.9)}, {'scheduler': None}, {}]


class Told(Trainer):
    """Its validation tells what no weights change; it notes the options that each step takes."""

    is_saved = True

    def _write(self, names):
        if self.is_saved:
            super()._write(names)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.options, take_step = [], self.stepper.step

        def step():
            group = self.optimizer.param_groups[0]
            self.options.append({key: group[key] for key in ('lr', 'betas')})
            take_step()

        self.stepper.step = step

    def _valid_epoch(self, epoch):
        return {'loss': [0.5, 0.6, 0.4, 0.7, 0.3, 0.8][epoch]}


def scheduled(experiment, name, args, interval, *, betas=(0.9, 0.999), scheduler=True, **options):
    """A trainer of Adam under the scheduler of this name."""
    lr_scheduler = torch.optim.lr_scheduler

    class Optimizer(torch.optim.Adam):
        def __init__(self, parameters, lr):
            super().__init__(parameters, lr, betas)

    def make(optimizer, second='ExponentialLR', **args):
        if name in ('SequentialLR', 'ChainedScheduler'):
            options = {'gamma': 0.9} if second == 'ExponentialLR' else {}
            parts = [lr_scheduler.ConstantLR(optimizer)]
            parts.append(getattr(lr_scheduler, second)(optimizer, **options))
            if name == 'ChainedScheduler':
                return lr_scheduler.ChainedScheduler(parts)
            return lr_scheduler.SequentialLR(optimizer, parts, **args)
        return getattr(lr_scheduler, name)(optimizer, **args)

    options = {'epochs': 3, 'interval': interval, 'trainer_class': Told, **options}
    made = functools.partial(make, **args) if scheduler else None
    return experiment.trainer(scheduler=made, optimizer=Optimizer, **options)


def changes_of_schedules():
    for name, (args, *others) in SCHEDULERS.items():
        intervals = ['epoch'] if name == 'ReduceLROnPlateau' else ['epoch', 'step']
        for interval in intervals:
            for other in others:
                changed = ' '.join(other)
                yield pytest.param(
                    name, interval, {**args, **other}, {}, id=f'{name}-{interval}-{changed}'
                )
            for options in SAME_FOR_ALL:
                changed = ' '.join(options) or 'nothing'
                yield pytest.param(name, interval, args, options, id=f'{name}-{interval}-{changed}')
        if len(intervals) == 2:
            yield pytest.param(name, 'epoch', args, {'interval': 'step'}, id=f'{name}-interval')


@pytest.fixture(scope='module')
def begun():
    """Run folders of those that go on in a copy, by scheduler, interval and number of steps."""
    return {}


@pytest.mark.filterwarnings('ignore:The epoch parameter')  # SequentialLR of torch itself uses it
@pytest.mark.parametrize('name, interval, other_args, options', list(changes_of_schedules()))
def test_resumed_with_a_new_setting_steps_like_the_run_that_had_it_from_the_start(
    experiment, begun, tmp_path_factory, name, interval, other_args, options
):
    args = SCHEDULERS[name][0]
    # Inside an epoch, or at the end of one.
    n_steps = 10 if len(f'{name}{other_args}{options}') % 2 else 12
    if (name, interval, n_steps) not in begun:
        folder = tmp_path_factory.mktemp('begun')
        first = scheduled(Experiment(folder), name, args, interval, max_steps=n_steps)
        begun[name, interval, n_steps] = last_of(first).parent
    run_folder = begun[name, interval, n_steps]
    shutil.copytree(run_folder, experiment.folder / 'models/points' / run_folder.name)
    last = experiment.folder / 'models/points' / run_folder.name / 'checkpoint-last.pth'
    now = {'interval': interval, **options}
    resumed = scheduled(experiment, name, other_args, resume=last, **now)
    fresh = scheduled(experiment, name, other_args, **now)
    resumed.is_saved = fresh.is_saved = False
    resumed.train()
    fresh.train()
    assert first_difference(resumed.options, fresh.options[n_steps:]) == ''


def test_options_that_only_one_version_has_are_no_change_but_entries_of_a_value_are():
    def state(*, table, **options):
        return {'state': {'gamma': 0.1, 'table': table, '_schedulers': [options]}}

    then = state(table={1: 0.5}, power=1)
    assert changes(then, state(table={1: 0.5}, added=True), 'mine') == []
    assert changes(then, state(table={2: 0.5})) == [
        'state.table.1: 0.5 in the checkpoint, nothing from here on',
        'state.table.2: nothing in the checkpoint, 0.5 from here on',
    ]


class OldLoop(Trainer):
    """Steps optimizer and scheduler itself."""

    def _train_epoch(self, epoch):
        for data, target in self.data_loader:
            self.optimizer.zero_grad()
            self.criterion(self.model(data), target).backward()
            self.optimizer.step()
        self.lr_scheduler.step()
        return {'val_loss': 1.0 / epoch}


@pytest.mark.parametrize('changed', [{'lr': 0.1}, {'gamma': 0.5}])
def test_schedule_that_a_loop_of_ones_own_steps_is_replayed_too(experiment, changed):
    def trainer(lr=0.01, gamma=0.7, **options):
        exponential = torch.optim.lr_scheduler.ExponentialLR
        return experiment.trainer(
            trainer_class=OldLoop, lr=lr, scheduler=lambda each: exponential(each, gamma), **options
        )

    resumed = trainer(resume=last_of(trainer(epochs=2)), **changed)
    fresh = trainer(**changed)
    resumed.train()
    fresh.train()
    rates = [each.optimizer.param_groups[0]['lr'] for each in (resumed, fresh)]
    assert resumed.epochs_done == 3 and rates[0] == rates[1]


class Gradual(torch.optim.lr_scheduler.LRScheduler):
    """Rises for an epoch, then is another scheduler that it holds: a well-known one is so."""

    def __init__(self, optimizer, after):
        self.after, self.rise = after, lambda epoch: 0.5
        super().__init__(optimizer)

    def get_lr(self):
        return [self.rise(self.last_epoch) * each for each in self.base_lrs]

    def step(self, epoch=None):
        (super() if self.last_epoch < 1 else self.after).step()


@pytest.mark.parametrize('n_epochs', [1, 2, 3])
def test_schedule_inside_one_of_ones_own_is_resumed(experiment, n_epochs):
    def trainer(**options):
        def scheduler(optimizer):
            return Gradual(optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7))

        return experiment.trainer(trainer_class=OldLoop, scheduler=scheduler, **options)

    whole = trainer(epochs=4)
    whole.train()
    resumed = trainer(resume=last_of(trainer(epochs=n_epochs)), epochs=4)
    resumed.train()
    rates = [each.optimizer.param_groups[0]['lr'] for each in (resumed, whole)]
    counts = [each.lr_scheduler.after.last_epoch for each in (resumed, whole)]
    assert rates[0] == rates[1] and counts == [3, 3]
    assert resumed.lr_scheduler.after.optimizer is resumed.optimizer


def test_changed_learning_rate_is_one_line_and_keeps_the_schedule(experiment, caplog):
    first = experiment.trainer(epochs=1)
    first.train()
    resumed = experiment.trainer(first.checkpoint_dir / 'checkpoint-last.pth', lr=0.1)
    resumed.train()
    assert resumed.optimizer.param_groups[0]['lr'] == 0.1 * 0.7 * 0.7 * 0.7


def last_of(trainer):
    trainer.train()
    return trainer.checkpoint_dir / 'checkpoint-last.pth'


def without(path, *keys):
    """A copy of a checkpoint that lacks one entry."""
    state = checkpoint.load(path)
    inner = state
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    checkpoint.save(state, path.parent / 'without.pth')
    return path.parent / 'without.pth'


@pytest.mark.parametrize('piece', [(), ('optimizer',)])
def test_as_built_state_matters(experiment, piece):
    """Mutation control: without it, a changed setting is not noticed."""
    args = {'gamma': 0.9}
    path = last_of(scheduled(experiment, 'ExponentialLR', args, 'step', max_steps=10))
    resumed = scheduled(
        experiment,
        'ExponentialLR',
        args,
        'step',
        resume=without(path, 'as_built', *piece),
        betas=(0.5, 0.9),
    )
    resumed.train()
    assert resumed.options[0]['betas'] == (0.9, 0.999)


def test_tested_weights_in_a_checkpoint_matter(experiment):
    whole = run(experiment.trainer(ema_decay=0.9))
    path = stopped_after(experiment, 9, ema_decay=0.9)
    with_all = run(experiment.trainer(path, ema_decay=0.9))
    assert first_difference(with_all, whole) == ''
    with pytest.raises(CheckpointError, match='weight_average'):
        run(experiment.trainer(without(path, 'tested'), ema_decay=0.9))


def test_changed_monitor_starts_a_new_best(experiment):
    path = last_of(experiment.trainer(monitor='off', epochs=1))
    resumed = experiment.trainer(path, monitor='min val_loss', epochs=2)
    resumed.train()
    assert resumed.mnt_best == resumed.history[-1]['val_loss']
    assert (resumed.checkpoint_dir / 'model_best.pth').is_file()
    path = last_of(experiment.trainer(monitor='max val_loss', epochs=2))
    resumed = experiment.trainer(path, monitor='min val_loss', epochs=3)
    resumed.train()
    assert resumed.mnt_best == resumed.history[-1]['val_loss']


MEASURED = {'loss': 'nll_loss', 'metrics': ['accuracy', {'type': 'top_k_acc', 'args': {'k': 1}}]}
SMOOTH = {'type': 'cross_entropy', 'args': {'label_smoothing': 0.1}}


@pytest.mark.parametrize(
    'monitor, changed, is_new',
    [
        ('min val_loss', {}, False),
        ('min val_loss', {'loss': {'type': 'nll_loss', 'args': {}}}, False),
        ('min val_loss', {'loss': SMOOTH}, True),
        ('min val_loss', {'loss': [{'type': 'nll_loss', 'weight': 2.0}]}, True),
        ('min val_loss', {'metrics': []}, False),
        ('max val_accuracy', {'loss': SMOOTH, 'metrics': ['accuracy']}, False),
        ('max val_top_k_acc', {'metrics': [{'type': 'top_k_acc', 'args': {'k': 2}}]}, True),
    ],
)
def test_best_of_another_loss_or_metric_is_no_best(experiment, capsys, monitor, changed, is_new):
    top = functools.partial(top_k_acc, k=1)
    top.__name__ = 'top_k_acc'

    def trainer(path=None, **sections):
        options = {'monitor': monitor, 'metrics': (accuracy, top)}
        return experiment.trainer(path, sections=MEASURED | sections, **options)

    path = last_of(trainer())
    capsys.readouterr()
    resumed = trainer(path, **changed)
    assert math.isinf(resumed.mnt_best) == is_new
    resumed.train()
    assert math.isinf(resumed.mnt_best) == is_new
    assert capsys.readouterr().out.count('a new best begins') == is_new


def test_renamed_class_of_model_that_fits_is_a_warning_and_another_one_is_refused(
    experiment, capsys
):
    path = last_of(experiment.trainer(epochs=1, sections={'arch': {'type': 'PointModel'}}))
    experiment.trainer(path, sections={'arch': {'type': 'examples.points.PointModel'}})
    experiment.trainer(path, epochs=2, sections={'arch': {'type': 'Twin'}}).train()
    said = capsys.readouterr().out
    assert "arch.type: 'PointModel' in the checkpoint, 'Twin' from here on; weights" in said
    path = last_of(experiment.trainer(sections={'arch': {'type': 'MnistModel'}}))  # is still there
    with pytest.raises(ConfigError, match="the config has 'Twin', and the checkpoint 'MnistModel'"):
        experiment.trainer(path, sections={'arch': {'type': 'Twin'}})


def test_each_key_of_the_config_that_changed_is_one_line(experiment, capsys):
    then = {
        'arch': {'type': 'PointModel', 'args': {'dropout': 0.2, 'weights': None}},
        'data_loader': {'type': 'Points', 'args': {'batch_size': 7, 'sampler': None}},
        'test_data_loader': {'type': 'Points', 'args': {'batch_size': 7}},
        'loss': {'type': 'nll_loss', 'args': {'reduction': 'mean'}},
        'seed': 3,
        'init_from': 'weights.pth',
    }
    now = {
        'arch': {'type': 'PointModel', 'args': {'dropout': 0.5}},
        'data_loader': {'type': 'Points', 'args': {'batch_size': 10, 'num_workers': 0}},
        'test_data_loader': {'type': 'Points', 'args': {'batch_size': 10}},
        'loss': {'type': 'nll_loss', 'args': {'reduction': 'sum'}},
        'seed': 4,
    }
    path = last_of(experiment.trainer(epochs=1, sections=then))
    capsys.readouterr()
    loader = BaseDataLoader(NoisyPoints(), 10, True, 12, 0)
    options = {'max_grad_norm': 1.0, 'lr': 0.1, 'ema_decay': None, 'precision': 'fp32'}
    options |= {'loader': loader, 'seed': 4, 'save_period': 2, 'log_step': 3}
    experiment.trainer(path, epochs=2, sections=now, **options).train()
    said = capsys.readouterr().out.splitlines()
    for line in (
        'batch_size: 7 in the checkpoint, 10 from here on',
        'data_loader.args.batch_size: 7 in the checkpoint, 10 from here on',
        'len_epoch: 6 in the checkpoint, 4 from here on',
        'test_data_loader.args.batch_size: 7 in the checkpoint, 10 from here on',
        'seed: 3 in the checkpoint, 4 from here on',
        'optimizer.groups.0.lr: 0.01 in the checkpoint, 0.1 from here on',
        'optimizer.args.lr: 0.01 in the checkpoint, 0.1 from here on',
        'trainer.epochs: 1 in the checkpoint, 2 from here on',
        'trainer.max_grad_norm: None in the checkpoint, 1.0 from here on',
        'data_loader.args.num_workers: nothing in the checkpoint, 0 from here on',
        "loss.args.reduction: 'mean' in the checkpoint, 'sum' from here on",
        'arch.args.dropout: 0.2 in the checkpoint, 0.5 from here on; weights and buffers are those '
        'of the checkpoint, whatever was built',
    ):
        assert said.count(line) == 1
        said.remove(line)
    assert [line for line in said if 'in the checkpoint, ' in line] == []


@pytest.mark.parametrize(
    'options, said',
    [
        ({'seed': 4}, 'seed: 3 in the checkpoint, 4'),
        ({'loader': lambda: BaseDataLoader(NoisyPoints(), 7, False, 12, 0)}, 'shuffle: True'),
    ],
)
def test_another_order_inside_an_epoch_is_refused(experiment, options, said):
    path = stopped_after(experiment, 9)
    options = {name: value() if callable(value) else value for name, value in options.items()}
    with pytest.raises(ConfigError, match=said):
        experiment.trainer(path, **options).train()


def test_schedule_of_steps_refuses_steps_of_another_size(experiment):
    path = last_of(experiment.trainer(epochs=1, interval='step'))
    with pytest.raises(ConfigError, match='len_epoch: 6 in the checkpoint, 4 from here on'):
        experiment.trainer(path, interval='step', len_epoch=4).train()
    experiment.trainer(last_of(experiment.trainer(epochs=1)), len_epoch=4).train()


def test_data_that_may_change_allows_steps_of_another_size_only_when_it_does(experiment):
    path = last_of(experiment.trainer(epochs=1, interval='step'))
    options = {'interval': 'step', 'sections': {'data_changed': 'continue'}}
    with pytest.raises(ConfigError, match='len_epoch: 6 in the checkpoint, 4 from here on'):
        experiment.trainer(path, len_epoch=4, **options).train()
    other_split = BaseDataLoader(NoisyPoints(), 7, True, 24, 0)
    resumed = experiment.trainer(path, loader=other_split, **options)
    resumed.train()
    assert resumed.len_epoch == 4 and resumed.epochs_done == 3


def test_plateau_over_another_metric_is_refused(experiment):
    def plateau(optimizer):
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)

    path = last_of(experiment.trainer(epochs=1, scheduler=plateau))
    with pytest.raises(ConfigError, match='follows loss, whose values'):
        experiment.trainer(path, scheduler=plateau, monitor='min loss').train()


def states(optimizer):
    """The state of each parameter, by its name."""
    state = optimizer.state_dict()
    return {
        name: state['state'].get(number)
        for group in state['param_groups']
        for name, number in zip(group['param_names'], group['params'])
    }


def test_groups_get_the_state_of_their_parameters_by_name():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    named = dict(model.named_parameters())

    def optimizer(*groups, kind=torch.optim.AdamW, **options):
        groups = [{'params': [(name, named[name]) for name in names]} for names in groups]
        groups[0].update(options)
        return kind(groups, lr=0.1)

    before = optimizer(list(named))
    model(torch.randn(3, 2)).sum().backward()
    before.step()
    after = optimizer(['1.bias', '0.weight'], ['1.weight'], weight_decay=0.7)
    then, now = (optimizer_as_built(each) for each in (before, after))
    notes = load_optimizer('optimizer', after, before.state_dict(), then, now)
    assert len(notes) == 1 and 'groups' in notes[0]
    expected = {name: value for name, value in states(before).items() if name != '0.bias'}
    assert first_difference(states(after), {name: expected[name] for name in states(after)}) == ''
    assert [group['weight_decay'] for group in after.param_groups] == [0.7, 0.01]

    history = optimizer(list(named), kind=torch.optim.LBFGS)
    other = optimizer(['1.bias'], kind=torch.optim.LBFGS)
    then, now = (optimizer_as_built(each) for each in (history, other))
    with pytest.raises(CheckpointError, match='LBFGS keeps one history'):
        load_optimizer('optimizer', other, history.state_dict(), then, now)


def test_what_an_optimizer_counts_in_its_groups_is_progress():
    class ScheduleFree(torch.optim.SGD):
        def __init__(self, params, lr, weight_decay=0.0):
            super().__init__(params, lr, weight_decay=weight_decay)
            self.defaults['k'] = 0
            for group in self.param_groups:
                group['k'] = 0

        def step(self, closure=None):
            for group in self.param_groups:
                group['k'] += 1

    parameter = torch.nn.Parameter(torch.zeros(2))
    before, after = (ScheduleFree([parameter], 0.1, decay) for decay in (0.0, 0.2))
    then, now = (optimizer_as_built(each) for each in (before, after))
    before.step()
    load_optimizer('optimizer', after, before.state_dict(), then, now)
    assert after.param_groups[0]['k'] == 1 and after.param_groups[0]['weight_decay'] == 0.2

    other = torch.nn.Parameter(torch.zeros(2))
    before, after = (
        SeveralOptimizers([torch.optim.AdamW([other]), ScheduleFree([parameter], 0.1, decay)])
        for decay in (0.0, 0.2)
    )
    then, now = (optimizer_as_built(each) for each in (before, after))
    before.step()
    load_optimizer('optimizer', after, before.state_dict(), then, now)
    assert after.param_groups[1]['k'] == 1 and after.param_groups[1]['weight_decay'] == 0.2
    assert 'k' not in after.param_groups[0]


def test_buffers_of_the_loss_come_from_the_config_and_what_it_learned_from_the_checkpoint(
    experiment,
):
    class Centers(torch.nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))
            self.register_buffer('weight', torch.tensor(weight))
            self.register_buffer('seen', torch.zeros(()))

        def forward(self, output, target):
            self.seen += self.training
            return torch.nn.functional.nll_loss(output, target, self.weight) * self.scale

    def trainer(weight, resume=None, **options):
        made = experiment.trainer(resume, epochs=1, **options)
        made.criterion = made.loss = Centers(weight)
        return made

    first = trainer([1.0, 2.0])
    path = last_of(first)
    same, other = trainer([1.0, 2.0], path), trainer([1.0, 5.0], path)
    with torch.no_grad():
        first.criterion.scale += 1
    same._resume.restore_parts()
    other._resume.restore_parts()
    for each in (same, other):
        assert each.criterion.seen == first.criterion.seen > 0
    assert other.criterion.weight.tolist() == [1, 5] and same.criterion.weight.tolist() == [1, 2]


@pytest.mark.parametrize('then, now', [(None, [1.0, 5.0]), ([1.0, 5.0], None)])
def test_class_weights_that_come_or_go_are_those_of_the_config(experiment, capsys, then, now):
    def trainer(weight, resume=None, **options):
        made = experiment.trainer(resume, **options)
        weight = weight and torch.tensor(weight)
        made.criterion = made.loss = torch.nn.CrossEntropyLoss(weight)
        return made

    path = last_of(trainer(then, epochs=1))
    resumed = trainer(now, path, epochs=2)
    resumed.train()
    assert resumed.criterion.state_dict().keys() == trainer(now).criterion.state_dict().keys()
    assert 'criterion.buffers.weight: ' in capsys.readouterr().out


def test_batch_size_that_does_not_fit_the_position_is_an_error(experiment):
    path = stopped_after(experiment, 8)
    loader = BaseDataLoader(NoisyPoints(), 4, shuffle=True, validation_split=12, num_workers=0)
    with pytest.raises(ConfigError, match='14 samples in'):
        experiment.trainer(path, loader=loader).train()


class OwnState(PointModel):
    """Its state dict is of a form of its own."""

    def state_dict(self, *args, **options):
        return {'version': 3, 'layers': super().state_dict(*args, **options)}

    def load_state_dict(self, state, *args, **options):
        return super().load_state_dict(state['layers'], *args, **options)


def test_model_with_a_state_dict_of_its_own_form_is_resumed(experiment):
    whole = run(experiment.trainer(model=OwnState))
    path = stopped_after(experiment, 9, model=OwnState)
    assert first_difference(run(experiment.trainer(path, model=OwnState)), whole) == ''


class LazyModel(PointModel):
    def __init__(self):
        super().__init__()
        self.hidden, self.norm = nn.LazyLinear(8), nn.LazyBatchNorm1d()


def test_lazy_model_is_resumed_and_tested(experiment):
    options = {'model': LazyModel, 'on_nan': 'skip', 'max_grad_norm': 1.0}
    whole = run(experiment.trainer(**options))
    path = stopped_after(experiment, 9, **options)
    assert first_difference(run(experiment.trainer(path, **options)), whole) == ''
    state, model, data = checkpoint.load(path), LazyModel().eval(), torch.randn(5, 4)
    load_tested(model, None, state, path)
    sized = PointModel().eval()
    sized.load_state_dict(state['state_dict'])
    assert torch.equal(model(data), sized(data))


def test_lazy_layer_that_no_pass_reaches_is_refused(experiment):
    class Unreached(PointModel):
        def __init__(self):
            super().__init__()
            self.more = nn.LazyLinear(3)

    with pytest.raises(ConfigError, match=r'more\.weight is of a lazy layer that no forward pass'):
        experiment.trainer(model=Unreached).train()


def with_swa(experiment, path=None, batch_size=7, **settings):
    loader = BaseDataLoader(NoisyPoints(), batch_size, validation_split=12, num_workers=0)
    return experiment.trainer(path, loader=loader, scheduler=None, **settings)


def averaged(trainer):
    """Trains, and tells after which epochs the weights went into the average."""
    average, epochs = trainer.stepper.average, []
    update = average.update

    def note():
        n_before = average.n_averaged
        update()
        if average.n_averaged > n_before:
            assert trainer.position + 1 == trainer.len_epoch
            epochs.append(trainer.epochs_done + 1)

    average.update = note
    trainer.train()
    return epochs


@pytest.mark.parametrize('batch_size', [7, 14])
@pytest.mark.parametrize('n_steps', [12, 14])
@pytest.mark.parametrize('then', [{}, {'swa_start': 6}, {'swa_start': 4}, {'ema_decay': 0.9}])
def test_swa_begins_with_the_epoch_that_it_names(experiment, then, n_steps, batch_size):
    first = with_swa(experiment, max_steps=n_steps, epochs=5, **then)
    resumed = with_swa(experiment, last_of(first), batch_size, epochs=5, swa_start=4)
    assert averaged(resumed) == [4, 5]
    assert resumed.stepper.average.n_averaged == 2


@pytest.mark.parametrize('len_epoch', [3, 8])
def test_swa_that_has_begun_goes_on_with_epochs_of_another_length(experiment, len_epoch):
    path = last_of(with_swa(experiment, epochs=3, swa_start=2))
    resumed = with_swa(experiment, path, epochs=5, swa_start=2, len_epoch=len_epoch)
    assert averaged(resumed) == [4, 5]
    assert resumed.stepper.average.n_averaged == 4


@pytest.mark.parametrize('then', [{}, {'swa_start': 1}, {'swa_start': 9}, {'ema_decay': 0.9}])
def test_swa_of_epochs_that_are_behind_us_is_refused(experiment, then):
    path = last_of(with_swa(experiment, epochs=3, **then))
    with pytest.raises(ConfigError, match='swa_start is 2: the weights after 2 epochs.*least 4'):
        with_swa(experiment, path, epochs=4, swa_start=2).train()
    assert averaged(with_swa(experiment, path, epochs=4, swa_start=4)) == [4]


def test_longer_run_continues_in_its_folder_and_a_new_config_gets_a_new_one(tmp_path):
    settings = ['--set', f'trainer.save_dir={tmp_path}', '--set', 'trainer.tensorboard=false']
    settings += ['--set', 'trainer.len_epoch+=4']
    run_script(
        'train.py', '-c', ROOT / 'config.json', *settings, '--set', 'trainer.epochs=1', cwd=tmp_path
    )
    (folder,) = (tmp_path / 'models' / 'Digits_LeNet').iterdir()
    run_script(
        'train.py',
        '-r',
        f'models/Digits_LeNet/{folder.name}/checkpoint-epoch1.pth',
        '--set',
        'trainer.epochs=2',
        cwd=tmp_path,
    )
    assert {path.name for path in folder.glob('checkpoint-epoch*.pth')} == {
        'checkpoint-epoch1.pth',
        'checkpoint-epoch2.pth',
    }
    assert len((folder / 'metrics.csv').read_text().splitlines()) == 3
    run_script(
        'train.py',
        '-r',
        folder,
        '-c',
        'config.json',
        *settings,
        '--set',
        'trainer.epochs=3',
        cwd=tmp_path,
    )
    assert len(list((tmp_path / 'models' / 'Digits_LeNet').iterdir())) == 2


def test_refused_resume_leaves_the_run_folder_as_it_was(tmp_path):
    settings = ['--set', f'trainer.save_dir={tmp_path}', '--set', 'trainer.max_steps=3']
    run_script('train.py', '-c', 'config.json', *settings, cwd=ROOT)
    (folder,) = (tmp_path / 'models' / 'Digits_LeNet').iterdir()
    logs = tmp_path / 'log' / 'Digits_LeNet' / folder.name
    before = {path: path.read_bytes() for path in [*folder.iterdir(), *logs.glob('events*')]}
    refused = run_script(
        'train.py',
        '-r',
        folder,
        '--bs',
        '50',
        '--set',
        'trainer.max_steps=9',
        check=False,
        cwd=ROOT,
    )
    assert refused.returncode == 2 and '96 samples in' in refused.stderr
    assert {
        path: path.read_bytes() for path in [*folder.iterdir(), *logs.glob('events*')]
    } == before


@pytest.mark.filterwarnings(
    'ignore:This process .* is multi-threaded'
)  # the forks train in one thread
def test_killed_runs_resume_exactly_and_every_saved_piece_matters(tmp_path):
    for result in (
        faults.kills(5, tmp_path / 'kills'),
        faults.mutations(0, tmp_path / 'mutations'),
    ):
        assert result.held == result.tried, result.failures
