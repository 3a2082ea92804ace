"""Laws of averages, schedules, groups, transfer, losses and metrics, against plain loops."""

import copy
import itertools
import math
import warnings
from functools import partial
from operator import itemgetter
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import (
    AveragedModel,
    get_ema_multi_avg_fn,
    get_swa_multi_avg_fn,
    update_bn,
)
from torch.overrides import TorchFunctionMode
from torch.utils.data import Dataset, TensorDataset

from armature.checkpoint import files as checkpoint
from armature.checkpoint import weights
from armature.compare import first_difference
from armature.errors import CheckpointError, ConfigError, NonFiniteError, UserError
from armature.processes import devices
from armature.run.checks import broken_weights
from armature.run.metric_tracker import MetricTracker
from armature.step.average import Average
from armature.step.losses import WeightedLosses
from armature.step.micro_batches import OUT_OF_MEMORY, Reduction
from armature.step.parameters import Frozen, init_weights, parameter_groups
from armature.step.prepare import prepared
from armature.step.schedule import Schedule
from base import BaseDataLoader
from base.stepper import Stepper
from parse_config import ConfigParser
from tests.conftest import NoisyPoints, PointModel
from tests.test_resume import run


def rates_ahead(schedule, n_steps, len_epoch):
    """The first group's learning rate in each of the next steps, if an epoch began now."""
    optimizer = schedule.scheduler.optimizer
    parameters = [each for group in optimizer.param_groups for each in group['params']]
    ahead = copy.deepcopy(
        schedule, {**{id(each): each for each in parameters}, id(optimizer.state): {}}
    )
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch misses the optimizer's own steps
        for index in range(n_steps):
            rates.append(ahead.scheduler.optimizer.param_groups[0]['lr'])
            ahead.step()
            if (index + 1) % len_epoch == 0:
                ahead.end_epoch({})
    return rates


def norm_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def a_batch(n_samples=8):
    torch.manual_seed(1)
    return torch.randn(n_samples, 4), torch.randint(3, (n_samples,))


def take_steps(stepper, model, batch, n_steps):
    for _ in range(n_steps):
        for data, target in stepper.micro_batches(batch):
            with stepper.autocast():
                loss = F.cross_entropy(model(data), target)
            stepper.backward(loss)
        stepper.step()


def same(one, other):
    return first_difference(dict(one), dict(other)) == ''


# Average


def warmed_up(decay):
    """torch's moving average, whose first steps keep less."""

    def average(mine, live, n):
        n = int(n)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(mine, live, n)

    return average


@pytest.mark.parametrize('kind', ['ema', 'swa'])
def test_average_equals_torchs_averaged_model(kind):
    model, batch = norm_model(), a_batch()
    function = warmed_up(0.9) if kind == 'ema' else get_swa_multi_avg_fn()
    reference = AveragedModel(model, multi_avg_fn=function, use_buffers=kind == 'ema')
    average = Average(model, 0.9) if kind == 'ema' else Average(model, swa_start=4, swa_every=2)
    stepper = Stepper(torch.optim.SGD(model.parameters(), lr=0.5), average=average)
    for step in range(1, 10):
        take_steps(stepper, model, batch, 1)
        if kind == 'ema' or (step >= 4 and step % 2 == 0):
            reference.update_parameters(model)
    tensors = (
        reference.module.state_dict()
        if kind == 'ema'
        else dict(reference.module.named_parameters())
    )
    for name, value in tensors.items():
        if not name.endswith(
            'num_batches_tracked'
        ):  # torch averages this count too, which makes no sense
            assert torch.equal(average.tested()[name], value), name
    assert average.n_averaged == (9 if kind == 'ema' else 3)

    if kind == 'swa':
        average.renew_norm([batch[0][:4], batch[0][4:]])
        update_bn([batch[0][:4], batch[0][4:]], reference.module)
        live = {'1.num_batches_tracked': model[1].num_batches_tracked}
        assert same(average.tested(), {**reference.module.state_dict(), **live})


def test_average_is_what_is_validated_saved_and_tested(experiment):
    trainer = experiment.trainer(ema_decay=0.9)
    reference = AveragedModel(trainer.model, multi_avg_fn=warmed_up(0.9), use_buffers=True)
    take_step = trainer.stepper.step

    def step():
        take_step()
        reference.update_parameters(trainer.model)

    trainer.stepper.step = step
    trainer.train()
    saved = weights.tested_weights(checkpoint.load(trainer.checkpoint_dir / 'checkpoint-last.pth'))
    for name, value in reference.module.named_parameters():
        assert torch.equal(saved[name], value)
    assert not torch.equal(saved['out.weight'], trainer.model.out.weight)
    from trainer.trainer import evaluate
    from utils import MetricTracker

    with trainer.stepper.average.in_model():
        log = evaluate(
            trainer.model,
            trainer.watched(trainer.valid_data_loader),
            F.nll_loss,
            MetricTracker('loss'),
        )
    assert log['loss'] == trainer.history[-1]['val_loss']


STILL = 'unreached', 'fixed', 'frozen'


class Norms(nn.Module):
    """One that trains, one that passes do not reach, one that stays in eval mode, one frozen."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norms = nn.ModuleDict({name: nn.BatchNorm1d(4) for name in ('moves', *STILL)})
        for name in STILL:
            nn.init.normal_(self.norms[name].running_mean)
        Frozen(self, ['norms.frozen.*']).apply(epoch=1)

    def train(self, mode=True):
        super().train(mode)
        self.norms['fixed'].eval()
        return self

    def forward(self, data):
        return self.norms['moves'](self.norms['frozen'](self.norms['fixed'](data)))


@pytest.mark.parametrize('mode', [True, False])
def test_swa_measures_only_the_norms_that_training_moves(mode):
    model = Norms()
    model.train()
    before = copy.deepcopy(model)
    average = Average(model, swa_start=1)
    average.update()
    inputs = [torch.randn(8, 4) + 3 for _ in range(3)]
    average.renew_norm(itertools.islice(inputs, 2))
    model.train(mode)
    average.renew_norm(inputs)
    assert model.training == mode
    assert same(model.state_dict(), before.state_dict())  # the live ones
    tested = average.tested()
    for name in STILL:
        for key, value in before.norms[name].state_dict().items():
            assert torch.equal(tested[f'norms.{name}.{key}'], value), (name, key)
    seen = [before.norms['frozen'](before.norms['fixed'](data)) for data in inputs]
    mean = torch.stack([each.mean(0) for each in seen]).mean(0)
    torch.testing.assert_close(tested['norms.moves.running_mean'], mean)
    assert [norm.momentum for norm in model.norms.values()] == [0.1] * 4


def test_swa_pass_that_is_stopped_leaves_no_trace():
    def inputs():
        yield torch.randn(8, 4) + 3
        raise KeyboardInterrupt

    model = norm_model()
    average = Average(model, swa_start=1)
    average.update()
    before = copy.deepcopy(average.tested())
    with pytest.raises(KeyboardInterrupt):
        average.renew_norm(inputs())
    assert same(average.tested(), before) and model[1].momentum == 0.1


class Reassigning(nn.Module):
    """Its forward pass puts other tensors in the place of its buffers."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer('seen', torch.zeros(()))
        self.register_buffer('codes', None)

    def forward(self, data):
        self.seen = self.seen + 1
        self.codes = data.mean(0) if self.codes is None else self.codes * 0.9
        return self.norm(data)


def swa_pass(model):
    average = Average(model, swa_start=1)
    average.update()
    average.renew_norm([torch.ones(8, 4)] * 3)


def trial_of_auto(model):
    next(automatic(model, F.mse_loss).micro_batches((torch.ones(8, 4), torch.ones(8, 4))))


def skipped_step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stepper = Stepper(optimizer, max_skips=3, model=model)
    for data in stepper.micro_batches(torch.full((8, 4), math.nan)):
        stepper.backward(model(data).sum())
    stepper.step()
    assert stepper.n_skipped == 1


@pytest.mark.parametrize('leave_no_trace', [swa_pass, trial_of_auto, skipped_step])
def test_buffers_that_a_forward_pass_exchanges_are_put_back(leave_no_trace):
    model = Reassigning()
    seen = model.seen
    leave_no_trace(model)
    assert model.seen is seen and seen == 0 and model.codes is None


@pytest.mark.parametrize('leave_no_trace', [trial_of_auto, skipped_step])
def test_statistics_of_a_lazy_norm_are_put_back(leave_no_trace):
    model = nn.LazyBatchNorm1d()
    leave_no_trace(model)
    assert same(model.state_dict(), nn.BatchNorm1d(4).state_dict())


class Masked(nn.BatchNorm1d):
    """A norm with a mask beside its statistics."""

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer('mask', torch.ones(4, dtype=torch.bool))


@pytest.mark.parametrize('leave_no_trace', [swa_pass, trial_of_auto, skipped_step])
def test_statistics_beside_a_mask_are_put_back(leave_no_trace):
    model = Masked(4)
    nn.init.normal_(model.running_mean)
    before = copy.deepcopy(model.state_dict())
    leave_no_trace(model)
    assert same(model.state_dict(), before)


def test_average_of_lazy_statistics_is_refused():
    with pytest.raises(ConfigError, match='running_mean is of a lazy layer'):
        Average(nn.LazyBatchNorm1d(affine=False), 0.9)


def test_two_kinds_of_average_are_refused():
    with pytest.raises(ConfigError, match='one of them'):
        Average(norm_model(), 0.9, 3)


# Schedules


@pytest.mark.parametrize(
    'name, args, interval',
    [
        ('StepLR', {'step_size': 3, 'gamma': 0.5}, 'step'),
        ('CosineAnnealingLR', {'T_max': 12}, 'step'),
        ('OneCycleLR', {'max_lr': 0.3, 'total_steps': 12}, 'step'),
        ('ExponentialLR', {'gamma': 0.5}, 'epoch'),
    ],
)
def test_warm_up_scales_what_the_scheduler_says(name, args, interval):
    def make():
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        return optimizer, getattr(torch.optim.lr_scheduler, name)(optimizer, **args)

    optimizer, scheduler = make()
    plain_optimizer, plain = make()
    schedule = Schedule(scheduler, interval, warmup_steps=5)
    planned = rates_ahead(schedule, 12, len_epoch=4)
    taken = []
    for step in range(1, 13):
        rate = plain_optimizer.param_groups[0]['lr']
        expected = rate if step >= 5 else rate * (step / 5)
        taken.append(optimizer.param_groups[0]['lr'])
        assert taken[-1] == expected
        optimizer.step()
        plain_optimizer.step()
        schedule.step()
        if interval == 'step' or step % 4 == 0:
            plain.step()
        if step % 4 == 0:
            schedule.end_epoch({})
    assert taken == planned


def test_auto_lengths_are_those_of_the_run():
    config = ConfigParser(
        {
            'name': 'x',
            'trainer': {'epochs': 5},
            'lr_scheduler': {
                'type': 'CosineAnnealingLR',
                'interval': 'step',
                'args': {'T_max': 'auto'},
            },
        }
    )
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    assert config.init_scheduler(optimizer, range(20)).T_max == 100
    section = {'type': 'OneCycleLR', 'args': {'total_steps': 'auto', 'max_lr': 1}}
    config['lr_scheduler'] = {**section, 'interval': 'step'}
    config['trainer']['max_steps'] = 30
    assert config.init_scheduler(optimizer, range(20)).total_steps == 30
    parts = [
        {'type': 'LinearLR', 'args': {'total_iters': 'auto'}},
        {'type': 'CosineAnnealingLR', 'args': {'T_max': 'auto'}},
    ]
    section = {'type': 'SequentialLR', 'args': {'milestones': [10], 'schedulers': parts}}
    config['lr_scheduler'] = {**section, 'interval': 'step'}
    warm_up, cosine = config.init_scheduler(optimizer, range(20))._schedulers
    assert (warm_up.total_iters, cosine.T_max) == (10, 20)
    parts[1] = {'type': 'ChainedScheduler', 'args': {'schedulers': [parts[1]]}}
    _, chained = config.init_scheduler(optimizer, range(20))._schedulers
    assert chained._schedulers[0].T_max == 20


@pytest.mark.parametrize(
    'name, length', [('CosineAnnealingLR', 'T_max'), ('OneCycleLR', 'total_steps')]
)
def test_longer_run_follows_the_longer_schedule(experiment, name, length):
    args = {'max_lr': 0.1} if name == 'OneCycleLR' else {}

    def trainer(epochs, **options):
        made = experiment.trainer(
            epochs=epochs,
            interval='step',
            optimizer=torch.optim.SGD,
            scheduler=lambda optimizer: getattr(torch.optim.lr_scheduler, name)(
                optimizer, **args, **{length: 6 * epochs}
            ),
            **options,
        )
        made.config['lr_scheduler'] = {
            'type': name,
            'args': {**args, length: 'auto'},
            'interval': 'step',
        }
        return made

    short = trainer(1)
    short.train()
    longer = trainer(2, resume=short.checkpoint_dir / 'checkpoint-last.pth')
    longer._resume.restore_parts()
    fresh = trainer(2)
    rates = rates_ahead(fresh.stepper.schedule, 12, 6)
    if name == 'OneCycleLR':  # it sets its rates when it steps
        longer.lr_scheduler.step()
        assert longer.optimizer.param_groups[0]['lr'] == pytest.approx(rates[7])
    else:
        assert rates_ahead(longer.stepper.schedule, 6, 6) == pytest.approx(rates[6:])


def report_of(**sections):
    """What the config check says of a config with these sections."""
    import train
    from armature.config.check import check
    from armature.config.read import Document

    config = {
        'name': 'x',
        'arch': {'type': 'MnistModel'},
        'data_loader': {'type': 'DigitsDataLoader', 'args': {'batch_size': 8}},
        'optimizer': {'type': 'Adam'},
        'loss': 'nll_loss',
        'trainer': {'epochs': 1},
        **sections,
    }
    try:
        check(Document(config), train.BUILDS)
    except ConfigError as error:
        return str(error)
    return ''


@pytest.mark.parametrize(
    'sections, expected',
    [
        (
            {'optimizer': {'type': 'Adam', 'groups': [{'match': '*.bias', 'weight_decy': 0}]}},
            "no 'weight_decy' (did you mean 'weight_decay'",
        ),
        (
            {'optimizer': {'type': 'Adam', 'groups': [{'weight_decay': 0}]}},
            'optimizer.groups.0.match: is missing (a pattern',
        ),
        (
            {'optimizer': {'type': 'Adam', 'groups': [{'match': '*', 'lr': 'x'}]}},
            'optimizer.groups.0.lr: expected a number',
        ),
        ({'loss': ['nll_loss', {'type': 'nl_loss'}]}, 'loss.1.type'),
        ({'loss': ['nll_loss', {'type': 'MultiMarginLoss', 'wieght': 2}]}, 'loss.1.wieght'),
        (
            {'trainer': {'epochs': 1, 'ema_decay': 1.5}},
            'trainer.ema_decay: expected a number of at most 1',
        ),
        ({'trainer': {'epochs': 1, 'microbatch_size': 'autos'}}, 'trainer.microbatch_size'),
        ({'trainer': {'epochs': 1, 'type': 'Trainr'}}, 'trainer.type: no trainer is called'),
        ({'trainer': {'epochs': 1, 'unfreeze_at': {'epoch': 1}}}, 'trainer.unfreeze_at.epoch'),
        (
            {'lr_scheduler': {'type': 'StepLR', 'args': {'step_size': 'auto'}}},
            'lr_scheduler.args.step_size',
        ),
        (
            {
                'lr_scheduler': {
                    'type': 'OneCycleLR',
                    'args': {'max_lr': 1, 'total_steps': 'auto'},
                    'interval': 'step',
                    'warmup_steps': 3,
                }
            },
            '',
        ),
        (
            {
                'loss': ['nll_loss', {'type': 'MultiMarginLoss', 'weight': 2, 'name': 'm'}],
                'metrics': [{'type': 'MulticlassF1Score', 'args': {'num_classes': 10}}],
                'trainer': {
                    'epochs': 1,
                    'type': 'examples.gan.trainer.GanTrainer',
                    'freeze': ['conv*'],
                    'unfreeze_at': {'epoch': 2},
                    'monitor': 'min m',
                    'swa_start': 1,
                    'pictures': ['roc'],
                    'compile': 'max-autotune',
                },
            },
            '',
        ),
    ],
)
def test_config_check_knows_the_keys(sections, expected):
    report = report_of(**sections)
    assert expected in report if expected else report == ''


# Groups, freezing, weights from elsewhere


def settings_of(model, groups=None, criterion=None, **trainer):
    config = {'trainer': trainer, 'optimizer': {'type': 'AdamW', 'groups': groups}}
    model = prepared(model, config, torch.device('cpu'))
    return parameter_groups(config, model, criterion)


def test_groups_equal_the_hand_written_ones():
    model, batch = norm_model(), a_batch()
    groups = settings_of(
        model, [{'match': '0.*', 'lr': 0.001}, {'match': '*.bias|1.*', 'weight_decay': 0}]
    )
    take_steps(Stepper(torch.optim.AdamW(groups, lr=0.1, weight_decay=0.1)), model, batch, 3)

    expected = norm_model()
    named = dict(expected.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {'params': [named['0.weight']], 'lr': 0.001},
            {'params': [named['0.bias']], 'lr': 0.001, 'weight_decay': 0},
            {'params': [named['1.weight'], named['1.bias'], named['3.bias']], 'weight_decay': 0},
            {'params': [named['3.weight']]},
        ],
        lr=0.1,
        weight_decay=0.1,
    )
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(expected(batch[0]), batch[1]).backward()
        optimizer.step()
    assert same(model.state_dict(), expected.state_dict())


def test_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ConfigError, match='backbone'):
        settings_of(norm_model(), [{'match': 'backbone.*', 'lr': 1}])
    with pytest.raises(ConfigError, match='backbone'):
        Frozen(norm_model(), ['backbone.*'])
    with pytest.raises(ConfigError, match='nothing to train'):
        settings_of(norm_model(), freeze=['*'])


def test_frozen_part_stays_as_it_is_until_its_epoch(experiment):
    trainer = experiment.trainer(freeze=['hidden.*|norm.*'], unfreeze_at={'epoch': 3}, epochs=2)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        'out.weight',
        'out.bias',
    }
    longer = experiment.trainer(
        trainer.checkpoint_dir / 'checkpoint-last.pth',
        freeze=['hidden.*|norm.*'],
        unfreeze_at={'epoch': 3},
    )
    longer.train()
    assert all(
        not torch.equal(before[name], value) for name, value in longer.model.state_dict().items()
    )


def test_a_frozen_norm_keeps_its_statistics_also_as_the_whole_model():
    for model, norm in ((nn.BatchNorm1d(4), lambda model: model), (norm_model(), itemgetter(1))):
        Frozen(model, ['*']).apply(epoch=1)
        model.train()
        assert not norm(model).training


def test_what_is_frozen_for_good_gets_no_optimizer_state():
    assert len(settings_of(norm_model(), freeze=['0.*', '1.*'])) == 2
    released = {'freeze': ['0.*', '1.*'], 'unfreeze_at': {'epoch': 2}}
    assert len(settings_of(norm_model(), **released)) == 6


def test_weights_from_elsewhere_are_taken_reported_or_refused(tmp_path, caplog):
    import logging

    torch.save(
        {'module.' + name: value for name, value in norm_model().state_dict().items()},
        tmp_path / 'plain.pth',
    )
    model = norm_model()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7)
    caplog.set_level(logging.INFO)
    init_weights(model, str(tmp_path / 'plain.pth'), logging.getLogger('x'))
    assert same(model.state_dict(), norm_model().state_dict()) and '9 of 9' in caplog.text

    other = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5))
    with pytest.raises(
        CheckpointError, match=r'of another shape: 3.weight \[3, 6\] -> \[5, 6\].*ignore'
    ):
        init_weights(other, str(tmp_path / 'plain.pth'), logging.getLogger('x'))
    init_weights(
        other, {'file': str(tmp_path / 'plain.pth'), 'ignore': ['3.*']}, logging.getLogger('x')
    )
    assert (
        torch.equal(other[0].weight, norm_model()[0].weight)
        and 'fresh: 3.weight, 3.bias' in caplog.text
    )
    with pytest.raises(ConfigError, match='fc'):
        init_weights(
            model, {'file': str(tmp_path / 'plain.pth'), 'ignore': ['fc.*']}, logging.getLogger('x')
        )


# Losses and metrics


def test_sum_of_losses_equals_the_hand_written_one():
    output, target = torch.randn(6, 3, requires_grad=True), torch.randint(3, (6,))
    config = ConfigParser(
        {
            'name': 'x',
            'loss': [
                'cross_entropy',
                {'type': 'MultiMarginLoss', 'weight': 0.25, 'name': 'margin'},
            ],
        }
    )
    criterion = config.init_loss(None)
    loss = criterion(output, target)
    assert torch.equal(
        loss, F.cross_entropy(output, target) + 0.25 * nn.MultiMarginLoss()(output, target)
    )
    assert torch.equal(criterion.terms['margin'], nn.MultiMarginLoss()(output, target))
    assert list(criterion.terms) == ['cross_entropy', 'margin']


def test_each_term_is_logged(experiment):
    trainer = experiment.trainer(epochs=1)
    criterion = WeightedLosses(
        [('nll', F.nll_loss, 1.0), ('second', lambda output, target: output.square().mean(), 0.5)]
    )
    trainer = type(trainer)(
        PointModel(),
        criterion,
        [],
        trainer.optimizer,
        trainer.config,
        torch.device('cpu'),
        trainer.data_loader,
        trainer.valid_data_loader,
    )
    log = trainer._train_epoch(1)
    assert log['loss'] == pytest.approx(log['nll'] + 0.5 * log['second']) and 'val_second' in log


def test_class_weights_are_a_list():
    config = ConfigParser(
        {'name': 'x', 'loss': {'type': 'CrossEntropyLoss', 'args': {'weight': [1, 2.5, 1]}}}
    )
    output, target = torch.randn(6, 3), torch.randint(3, (6,))
    assert torch.equal(
        config.init_loss(None)(output, target),
        F.cross_entropy(output, target, weight=torch.tensor([1, 2.5, 1])),
    )


def test_parameters_of_the_loss_train_and_resume(experiment):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output, target):
            return F.nll_loss(output, target) * self.scale.exp() - self.scale

    def trainer(resume=None, **options):
        base = experiment.trainer(resume, **options)
        criterion = Scaled()
        base.optimizer.add_param_group({'params': [('loss.scale', criterion.scale)]})
        base.criterion = base.loss = criterion
        return base

    first = trainer(epochs=1)
    first.train()
    assert first.criterion.scale.item() != 1
    resumed = trainer(epochs=1)
    resumed._resume.state = checkpoint.load(first.checkpoint_dir / 'checkpoint-last.pth')
    resumed._resume.restore_parts()
    assert torch.equal(resumed.criterion.scale, first.criterion.scale)
    names = settings_of(PointModel(), [{'match': 'loss.*', 'lr': 1}], Scaled())
    assert [len(group['params']) for group in names] == [6, 1] and names[1]['lr'] == 1


WEIGHTS = torch.tensor([1.0, 4.0, 0.5])


@pytest.mark.parametrize(
    'criterion',
    [
        nn.CrossEntropyLoss(reduction='sum'),
        nn.CrossEntropyLoss(WEIGHTS),
        nn.CrossEntropyLoss(WEIGHTS, ignore_index=1),
        nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=0),
        partial(F.cross_entropy, weight=WEIGHTS),
        F.cross_entropy,
    ],
)
def test_micro_batches_add_up_to_the_loss_of_the_whole_batch(criterion):
    def step(microbatch_size):
        model, data = nn.Linear(4, 3), torch.linspace(-1, 1, 28).reshape(7, 4)
        nn.init.ones_(model.weight)
        nn.init.zeros_(model.bias)
        target = torch.tensor(
            [0, 2, 2, 1, 1, 1, 0]
        )  # with micro-batches of 3, all of one may be ignored
        stepper = Stepper(
            torch.optim.SGD(model.parameters(), lr=0.1),
            microbatch_size=microbatch_size,
            criterion=criterion,
        )
        metrics = MetricTracker('loss', loss=criterion)
        for part, classes in stepper.micro_batches((data, target)):
            output = model(part)
            stepper.backward(criterion(output, classes))
            metrics.measure(criterion(output, classes), output, classes)
        stepper.step()
        return model.weight.detach(), stepper.loss, metrics.avg('loss')

    for size in (1, 3):
        torch.testing.assert_close(step(size), step(None), rtol=1e-6, atol=1e-6)


class Graphs(Dataset):
    """Each sample is several rows, nodes: a class or a probability of each class for every one."""

    def __init__(self, soft):
        self.soft = soft

    def __len__(self):
        return 6

    def __getitem__(self, index):
        generator, n = torch.Generator().manual_seed(index), (1, 2, 9, 1, 3, 12)[index]
        nodes = torch.randn(n, 4, generator=generator)
        if self.soft:
            return nodes, torch.rand(n, 3, generator=generator).softmax(1)
        return nodes, torch.randint(3, (n,), generator=generator)


def as_pair(samples):
    return tuple(torch.cat(column) for column in zip(*samples))


def as_dict(samples):
    return dict(zip(('nodes', 'target'), as_pair(samples)))


@pytest.mark.parametrize('collate', [as_pair, as_dict])
@pytest.mark.parametrize('soft', [True, False])
def test_micro_batches_of_samples_with_several_rows_add_up(soft, collate):
    def gradient(size):
        torch.manual_seed(0)
        model, criterion = nn.Linear(4, 3), nn.CrossEntropyLoss()
        loader = BaseDataLoader(Graphs(soft), 6, False, 0.0, 0, collate)
        optimizer = torch.optim.SGD(model.parameters(), 1.0)
        stepper = Stepper(optimizer, model=model, criterion=criterion, microbatch_size=size)
        (stepper.batch,) = loader.batches(0)
        for content in stepper.micro_batches(stepper.batch.content):
            nodes, target = content.values() if isinstance(content, dict) else content
            stepper.backward(criterion(model(nodes), target))
        return model.weight.grad

    torch.testing.assert_close(gradient(2), gradient(None))


def test_loss_that_cannot_be_split_is_refused():
    def and_another(loss):
        return WeightedLosses([('one', loss, 1.0), ('two', nn.CrossEntropyLoss(), 1.0)])

    for criterion in (
        and_another(nn.CrossEntropyLoss(WEIGHTS)),
        and_another(nn.NLLLoss(ignore_index=0)),
        OwnLoss(WEIGHTS),
        partial(focal_loss, weight=WEIGHTS),
        and_another(nn.NLLLoss(reduction='sum')),
        nn.CrossEntropyLoss(torch.tensor([0.0, 1.0, 1.0])),
    ):
        assert not Reduction(criterion).is_sum
        with pytest.raises(ConfigError, match='weights classes'):
            Reduction(criterion).refuse_parts()
    assert Reduction(partial(F.cross_entropy, size_average=False)).is_sum


class OwnLoss(nn.CrossEntropyLoss):
    def forward(self, output, target):
        return focal_loss(output, target, self.weight)


def test_targets_are_counted_as_torch_weighs_them():
    target = torch.tensor([[0, 2, 2], [1, 1, 255]], dtype=torch.uint8)
    reduction = Reduction(nn.NLLLoss(WEIGHTS, ignore_index=255))
    assert reduction.count(target, 2).item() == reduction.count_in((None, target), 2).item() == 10
    assert Reduction(nn.NLLLoss()).count_in([target], 2) == 2
    with pytest.raises(ConfigError, match=r'not \(data, target\)'):
        reduction.count_in({'target': target}, 2)


def focal_loss(output, target, weight):
    losses = F.cross_entropy(output, target, weight, reduction='none')
    return ((1 - torch.exp(-losses)) ** 2 * losses).mean()


def test_metrics_learn_the_number_of_classes_from_the_model():
    config = ConfigParser(
        {
            'name': 'x',
            'arch': {'type': 'MnistModel', 'args': {}},
            'metrics': [
                'Accuracy',
                'MulticlassF1Score',
                {'type': 'MulticlassPrecision', 'args': {'average': None}},
                {'type': 'MulticlassRecall', 'args': {'num_classes': 4}},
            ],
        }
    )
    accuracy, f1, precision, recall = config.init_metrics(None)
    assert (accuracy.__name__, f1.num_classes, recall.num_classes) == ('Accuracy', 10, 4)
    config['metrics'] = ['Accuracy']
    config['arch'] = {'type': 'MnistModel', 'args': {'num_classes': 1}}
    assert type(config.init_metrics(None)[0]).__name__ == 'BinaryAccuracy'
    config['arch'] = {'type': 'resnet18', 'args': {}}
    with pytest.raises(ConfigError, match='metrics.0.args.task: is missing: Accuracy needs it'):
        config.init_metrics(None)
    from utils import MetricTracker

    tracker = MetricTracker('loss', metrics=[accuracy, precision])
    output, target = torch.eye(10), torch.arange(10)
    for rows in (slice(0, 3), slice(3, 10)):
        tracker.measure(torch.tensor(0.0), output[rows], target[rows])
    assert tracker.result()['Accuracy'] == 1 and tracker.result()['MulticlassPrecision_9'] == 1


# Clipping, precision, micro-batches


def test_clipping_by_value_equals_the_hand_written_one_and_the_norm_is_kept():
    model, expected, batch = norm_model(), norm_model(), a_batch()
    stepper = Stepper(
        torch.optim.SGD(model.parameters(), lr=0.5), max_grad_value=0.01, max_grad_norm=0.5
    )
    take_steps(stepper, model, batch, 3)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(expected(batch[0]), batch[1]).backward()
        norm = nn.utils.clip_grad_norm_(expected.parameters(), 0.5)
        nn.utils.clip_grad_value_(expected.parameters(), 0.01)
        optimizer.step()
    assert same(model.state_dict(), expected.state_dict()) and torch.equal(stepper.grad_norm, norm)


def test_fp16_with_clipping_equals_the_hand_written_one():
    model, expected, batch = norm_model(), norm_model(), a_batch()
    take_steps(
        Stepper(torch.optim.SGD(model.parameters(), lr=0.1), precision='fp16', max_grad_norm=0.1),
        model,
        batch,
        3,
    )
    optimizer, scaler = torch.optim.SGD(expected.parameters(), lr=0.1), torch.amp.GradScaler('cpu')
    for _ in range(3):
        with torch.autocast('cpu', torch.float16):
            loss = F.cross_entropy(expected(batch[0]), batch[1])
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(expected.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert same(model.state_dict(), expected.state_dict())


def test_skipping_a_broken_step_unscales_once_also_when_clipping():
    model = norm_model()
    stepper = Stepper(
        torch.optim.SGD(model.parameters(), lr=0.1),
        precision='fp16',
        max_grad_norm=0.1,
        max_skips=1,
    )
    data, target = a_batch()
    take_steps(stepper, model, (data * math.nan, target), 1)
    assert stepper.n_skipped == 1
    with pytest.raises(NonFiniteError, match='in a row'):
        take_steps(stepper, model, (data * math.nan, target), 1)


def test_auto_micro_batches_halve_until_they_fit_and_change_nothing_else(experiment):
    def without_norm(trainer):
        trainer.model.norm = nn.Identity()  # the last micro-batch may be one sample
        return trainer

    def limit(trainer, n_samples):
        def refuse(module, inputs):
            if len(inputs[0]) > n_samples and module.training:
                raise torch.OutOfMemoryError('out of memory')

        trainer.model.register_forward_pre_hook(refuse)
        return trainer

    automatic = limit(without_norm(experiment.trainer(microbatch_size='auto')), 3)
    assert (
        first_difference(
            run(automatic)['state_dict'],
            run(without_norm(experiment.trainer(microbatch_size=2)))['state_dict'],
        )
        == ''
    )
    assert automatic.stepper.microbatch_size == 2  # 7 -> 4 -> 2
    whole = run(experiment.trainer(microbatch_size='auto'))
    assert first_difference(whole['state_dict'], run(experiment.trainer())['state_dict']) == ''


def automatic(model, criterion):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Stepper(optimizer, microbatch_size='auto', model=model, criterion=criterion)


def test_device_without_an_error_for_memory_halves_too_and_says_what_it_said(monkeypatch):
    monkeypatch.setitem(OUT_OF_MEMORY, 'cpu', RuntimeError)  # as on MPS
    model, fits = norm_model(), 2

    def criterion(output, target):
        if len(output) > fits:
            raise RuntimeError('backend out of memory')
        return F.cross_entropy(output, target)

    stepper = automatic(model, criterion)
    next(stepper.micro_batches(a_batch()))
    assert stepper.microbatch_size == 2
    fits = 0
    with pytest.raises(UserError, match='not even one sample .*backend out of memory'):
        next(automatic(model.eval(), criterion).micro_batches(a_batch()))


def test_size_that_fits_is_tried_again_with_batches_of_larger_samples():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.n_most = nn.Parameter(torch.ones(())), 64

        def forward(self, data):
            if data.numel() > self.n_most:
                raise torch.OutOfMemoryError('it holds 64 numbers')
            return self.weight * data.mean(1)

    model, sizes = Small(), []
    whole, weight = copy.deepcopy(model), model.weight
    whole.weight, whole.n_most = weight, math.inf
    stepper = automatic(model, F.mse_loss)
    for shape in [(8, 4), (8, 2), (8, 16), (3, 16), (8, 16), (2, 48)]:
        batch = torch.randn(shape), torch.randn(shape[0])
        (gradient,) = torch.autograd.grad(F.mse_loss(whole(batch[0]), batch[1]), weight)
        expected = weight.detach() - 0.1 * gradient
        for part in stepper.micro_batches(batch):
            stepper.backward(stepper.loss_of(*part))
        stepper.step()
        torch.testing.assert_close(weight.detach(), expected)
        sizes.append(stepper.microbatch_size)
    assert sizes == [8, 8, 4, 4, 4, 1]


def test_auto_takes_a_batch_whole_whose_samples_nobody_can_count():
    model, texts = nn.Linear(1, 1), (['ant', 'bee'], ['cat', 'dog'])
    stepper = automatic(model, lambda output, target: output.sum())
    assert list(stepper.micro_batches(texts)) == [texts]


class BlockOfNorm(PointModel):
    def shard_blocks(self):
        return [self.norm]


def test_frozen_batch_norm_takes_nothing_from_its_batch(experiment, caplog):
    options = {'microbatch_size': 5, 'activation_checkpointing': True}
    trainer = experiment.trainer(model=BlockOfNorm, freeze=['norm.*'], epochs=1, **options)
    trainer.train()
    assert trainer.epochs_done == 1 and 'BatchNorm' not in caplog.text


def test_micro_batches_of_a_model_that_draws_are_said_once(experiment, capsys, caplog):
    experiment.trainer(microbatch_size=5, epochs=1).train()  # F.dropout in its forward()
    assert capsys.readouterr().out.count('draws random numbers (dropout)') == 1
    assert caplog.text.count('BatchNorm of this model works on each micro-batch') == 1
    model = norm_model().eval()
    stepper = Stepper(torch.optim.SGD(model.parameters(), lr=0.1), microbatch_size=2)
    take_steps(stepper, model, a_batch(), 1)
    assert 'random' not in capsys.readouterr().out


@pytest.mark.parametrize('p', [0.0, 0.5])
def test_the_weights_that_a_lazy_layer_draws_are_no_dropout(caplog, p):
    model = nn.Sequential(nn.LazyLinear(3), nn.Dropout(p))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    take_steps(Stepper(optimizer, microbatch_size=2, model=model), model, a_batch(), 2)
    assert ('draws random' in caplog.text) == (p > 0)


class Counting(nn.Module):
    """A loss with a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer('n_calls', torch.tensor(0))

    def forward(self, output, target):
        self.n_calls += 1
        return F.cross_entropy(output, target)


def test_trying_out_a_size_leaves_the_loss_as_it_was():
    model, criterion = nn.Linear(4, 3), Counting()
    config = {'trainer': {'epochs': 1, 'microbatch_size': 'auto'}}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stepper = Stepper.from_config(config, model, criterion, optimizer)
    for data, target in stepper.micro_batches((torch.randn(8, 4), torch.zeros(8).long())):
        stepper.backward(criterion(model(data), target))
    assert criterion.n_calls == 1


def test_trying_out_a_size_leaves_model_and_randomness_as_they_were(caplog):
    model, before, batch = norm_model(), norm_model(), a_batch()
    state = torch.get_rng_state()
    stepper = automatic(model, F.cross_entropy)
    next(stepper.micro_batches(batch))
    assert stepper.microbatch_size == 8
    assert same(model.state_dict(), before.state_dict()) and torch.equal(
        state, torch.get_rng_state()
    )
    assert all(parameter.grad is None for parameter in model.parameters())


# Layout, compilation, lengths


def test_compiled_and_channels_last_model_keeps_its_bare_keys(experiment, monkeypatch):
    compile_it = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda model, mode: compile_it(model, backend='eager'))
    plain = run(experiment.trainer(epochs=1, run_id='plain'))
    compiled = run(
        experiment.trainer(epochs=1, run_id='compiled', compile=True, channels_last=True)
    )
    assert list(compiled['state_dict']) == list(plain['state_dict'])
    for name, value in plain['state_dict'].items():
        torch.testing.assert_close(compiled['state_dict'][name], value, rtol=1e-5, atol=1e-6)


def test_cuda_graphs_refuse_micro_batches(experiment):
    with pytest.raises(ConfigError, match='reduce-overhead.*leave trainer.microbatch_size out'):
        experiment.trainer(compile='reduce-overhead', microbatch_size=4)


def test_validation_between_steps_changes_nothing_in_the_training(experiment):
    plain, between = (
        experiment.trainer(),
        experiment.trainer(validate_every_steps=4, ema_decay=None),
    )
    calls = []
    validate = between._valid_epoch
    between._valid_epoch = lambda epoch: calls.append(between.step) or validate(epoch)
    assert first_difference(run(between), run(plain)) == ''
    assert calls == [4, 6, 8, 12, 16, 18]


# Everything together

FACTORS = {
    'precision': ['fp32', 'bf16', 'fp16'],
    'microbatch_size': [None, 5],
    'max_grad_norm': [None, 0.5],
    'average': [None, 'ema', 'swa'],
    'interval': ['epoch', 'step'],
    'warmup': [0, 8],
    'n_steps': [4, 9, 14],
}


def pairwise(factors):
    """Combinations in which every two values of two factors meet, chosen greedily."""
    names = list(factors)
    every = [dict(zip(names, values)) for values in itertools.product(*factors.values())]

    def pairs(case):
        return {(a, case[a], b, case[b]) for a, b in itertools.combinations(names, 2)}

    open_pairs = set().union(*map(pairs, every))
    while open_pairs:
        case = max(every, key=lambda each: len(pairs(each) & open_pairs))
        open_pairs -= pairs(case)
        yield case


@pytest.mark.parametrize(
    'case', list(pairwise(FACTORS)), ids=lambda case: '-'.join(map(str, case.values()))
)
def test_features_combine_and_resume_exactly(experiment, case):
    options = {
        'precision': case['precision'],
        'microbatch_size': case['microbatch_size'],
        'max_grad_norm': case['max_grad_norm'],
        'interval': case['interval'],
        'freeze': ['hidden.*'],
        'unfreeze_at': {'epoch': 2},
    }
    options |= {'ema': {'ema_decay': 0.9}, 'swa': {'swa_start': 1}}.get(case['average'], {})

    def trainer(resume=None, **more):
        made = experiment.trainer(resume, **options, **more)
        if case['warmup']:
            made.stepper.schedule.__init__(
                made.lr_scheduler, case['interval'], made.mnt_metric, case['warmup']
            )
        return made

    whole = run(trainer())
    stopped = trainer()
    take_step = stopped.stepper.step

    def step():
        take_step()
        if stopped.step == case['n_steps']:
            stopped._stop.reason = 'test'

    stopped.stepper.step = step
    stopped.train()
    resumed = run(trainer(stopped.checkpoint_dir / 'checkpoint-last.pth'))
    assert first_difference(resumed, whole) == ''


class NoWaiting(TorchFunctionMode):
    """Takes 'meta' for a GPU: reading a value from there fails anyway, here also a copy to it that
    the host would wait for.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.Tensor.pin_memory:
            pinned = args[0].clone()
            pinned.is_in_pinned_memory = True
            return pinned
        result = function(*args, **kwargs)
        if getattr(result, 'is_meta', False):
            given = args[0]
            if not isinstance(given, torch.Tensor):
                assert function not in (torch.tensor, torch.as_tensor), given
            elif function is torch.Tensor.to and not given.is_meta:
                assert kwargs['non_blocking'] and hasattr(given, 'is_in_pinned_memory'), given
        return result


@pytest.mark.parametrize('where', ['device', True])
@pytest.mark.parametrize(
    'settings',
    [{'max_grad_norm': 1.0, 'max_grad_value': 1.0, 'interval': 'step'}, {'microbatch_size': 4}],
    ids=str,
)
def test_no_step_waits_for_the_device(experiment, monkeypatch, where, settings):
    gpu, points = torch.device('meta'), NoisyPoints()
    like_cuda = SimpleNamespace(
        is_available=lambda: False,
        manual_seed=lambda number: None,
        get_rng_state=lambda device: torch.zeros(1),
        device_count=lambda: 1,
    )
    monkeypatch.setattr(torch, 'get_device_module', lambda device: like_cuda)
    monkeypatch.setattr(devices, '_prepared', [gpu])
    data = TensorDataset(points.points, points.targets)
    loader = BaseDataLoader(data, 7, validation_split=4, pin_memory=True)
    trainer = experiment.trainer(loader=loader, log_step=10**6, **settings)
    trainer.model, trainer.device = trainer.model.to(gpu), gpu
    with monkeypatch.context() as patched:  # it looks once which weights are finite
        patched.setattr(torch.Tensor, '__bool__', lambda tensor: True)
        average = Average(trainer.model, 0.9)
    monkeypatch.setattr(loader, 'known_targets', lambda: None)  # looks for ignored ones, once
    if where == 'device':
        loader._memory = loader._memory.to(gpu)
    stepper = trainer.stepper = Stepper.from_config(
        trainer.config, trainer.model, trainer.criterion, trainer.optimizer, trainer.lr_scheduler
    )
    stepper.average = average
    with NoWaiting():
        for batch in trainer.batches(1):
            for data, target in stepper.micro_batches(batch):
                loss = trainer.criterion(output := trainer.model(data), target)
                stepper.backward(loss)
                trainer.train_metrics.measure(loss, output, target)
            stepper.step()
            if trainer.step == trainer.len_epoch - 1:  # the last one is logged
                break
            trainer.end_step()
    assert stepper.average.n_averaged == trainer.step == 6


def test_weights_that_cannot_be_downloaded_are_one_clear_error(monkeypatch, tmp_path):
    from urllib.error import URLError

    import torch.hub

    def unreachable(*args, **kwargs):
        raise URLError('no network')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', unreachable)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    config = ConfigParser(
        {'name': 'x', 'arch': {'type': 'squeezenet1_1', 'args': {'weights': 'DEFAULT'}}}
    )
    with pytest.raises(ConfigError, match='init_from'):
        config.init_obj('arch', None)


class Odd(nn.Module):
    """What no average may break: infinite masks, a count, a temperature, complex weights."""

    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.spectrum = nn.Parameter(torch.randn(4, dtype=torch.cfloat))
        self.mask = nn.Parameter(torch.tensor([0.0, -math.inf]), requires_grad=False)
        self.register_buffer('far', torch.full((3,), math.inf))
        self.register_buffer('hidden', torch.full((3,), -math.inf), persistent=False)
        self.register_buffer('temperature', torch.zeros(()))

    def forward(self, parts):
        left, right = parts.values() if isinstance(parts, dict) else parts
        self.temperature += self.training
        data = self.norm(left - right) * self.spectrum.abs()
        return self.out(data).clamp(max=self.far[0])


@pytest.mark.parametrize('kind', [{'ema_decay': 0.5}, {'swa_start': 2}])
@pytest.mark.parametrize('pack', [tuple, list, lambda pair: dict(zip('ab', pair))])
def test_average_is_finite_where_the_weights_are_and_takes_several_inputs(kind, pack):
    torch.manual_seed(0)
    model = Odd()
    average, target = Average(model, **kind), torch.randint(2, (8,))
    inputs = [pack((torch.randn(8, 4), torch.randn(8, 4) + 5)) for _ in range(5)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    stepper = Stepper(torch.optim.SGD(trained, lr=0.5), average=average)
    spectra = []
    for data in inputs:
        stepper.backward(F.cross_entropy(model(data), target))
        stepper.step()
        spectra.append(model.spectrum.detach().clone())
    average.renew_norm(inputs)
    tested, live = average.tested(), model.state_dict()
    for name in ('mask', 'far', 'temperature'):
        assert torch.equal(tested[name], live[name])
    assert not torch.equal(tested['spectrum'], live['spectrum'])
    if 'swa_start' in kind:
        torch.testing.assert_close(tested['spectrum'], torch.stack(spectra[1:]).mean(0))
        means = torch.stack(
            [
                (a - b).mean(0)
                for a, b in (tuple(d.values() if isinstance(d, dict) else d) for d in inputs)
            ]
        )
        torch.testing.assert_close(tested['norm.running_mean'], means.mean(0))
    assert all(tested[name].isfinite().all() for name in ('out.weight', 'norm.running_var'))
    assert not broken_weights(model)
    with torch.no_grad():
        model.out.weight[0, 0] = math.inf
    assert broken_weights(model) == ['out.weight']


def test_average_follows_parameters_whose_data_is_exchanged():
    model = nn.Linear(2, 1)
    average = Average(model, swa_start=1)
    for parameter in model.parameters():
        parameter.data = torch.full_like(parameter, 5.0)
    average.update()
    assert all((value == 5).all() for value in average.tested().values())


def test_other_means_of_losses_are_means():
    reduction = Reduction(nn.KLDivLoss(reduction='batchmean'))
    assert reduction.by_samples and not reduction.is_sum
