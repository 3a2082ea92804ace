"""Several optimizers are one to the run: laws against loops by hand, bit for bit."""

import copy
from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Adagrad, AdamW, Muon
from torch.optim import lr_scheduler as schedulers

from armature.checkpoint import files as checkpoint
from armature.compare import first_difference
from armature.config.check import check
from armature.config.read import Document
from armature.errors import ConfigError
from armature.run.resume import load_optimizer, optimizer_as_built
from armature.step.optimizers import SeveralOptimizers
from armature.step.parameters import parameter_groups
from armature.step.schedule import Schedule
from base.stepper import Stepper
from parse_config import ConfigParser
from tests import gpu_optimizers
from tests.test_resume import N_STEPS, Told, last_of, run, states, stopped_after
from train import BUILDS

MUON = {'match': '*', 'ndim': 2, 'type': 'Muon', 'lr': 0.02, 'weight_decay': 0.01}


class Words(nn.Module):
    """An embedding, whose gradients are sparse where that is asked for, and three layers."""

    def __init__(self, sparse=False):
        super().__init__()
        self.embedding = nn.Embedding(10, 4, sparse=sparse)
        self.conv, self.norm, self.out = nn.Conv1d(4, 6, 2), nn.LayerNorm(3), nn.Linear(18, 3)

    def forward(self, words):
        found = self.conv(self.embedding(words).transpose(1, 2))  # (batch, 4) -> (batch, 6, 3)
        return self.out(self.norm(F.relu(found)).flatten(1))


def made(sparse=False):
    torch.manual_seed(0)
    return Words(sparse)


def from_config(model, *groups, main='AdamW', **args):
    """The optimizer of a config that has passed the check."""
    section = {'type': main, 'args': {'lr': 0.003, **args}, 'groups': list(groups)}
    config = {'name': 'words', 'trainer': {'epochs': 1}, 'optimizer': section}
    check(Document(config), {'optimizer': torch.optim})
    config = ConfigParser(config)
    return config.init_obj('optimizer', torch.optim, params=parameter_groups(config, model))


def batches(n_steps):
    generator = torch.Generator().manual_seed(1)
    for _ in range(n_steps):
        yield (
            torch.randint(10, (8, 4), generator=generator),
            torch.randint(3, (8,), generator=generator),
        )


# In the loop


@pytest.mark.parametrize(
    'settings, sparse',
    [({}, False), ({}, True), ({'precision': 'bf16'}, False), ({'max_grad_norm': 0.1}, False)],
)
def test_several_optimizers_equal_a_loop_with_each_by_hand(settings, sparse):
    model, expected = made(sparse), made(sparse)
    rest = {'match': 'embedding*', 'type': 'SparseAdam' if sparse else 'SGD', 'lr': 0.01}
    later = {'match': 'norm*', 'weight_decay': 0, 'lr': 0.001}
    stepper = Stepper(from_config(model, MUON, rest, later), model=model, **settings)

    main = [expected.conv.weight, expected.conv.bias, expected.out.bias]
    norm = {'params': [*expected.norm.parameters()], 'lr': 0.001, 'weight_decay': 0}
    by_hand = [
        AdamW([{'params': main}, norm], lr=0.003),
        Muon([expected.out.weight], lr=0.02, weight_decay=0.01),
        getattr(torch.optim, rest['type'])([expected.embedding.weight], lr=0.01),
    ]
    for words, target in batches(5):
        for data, label in stepper.micro_batches((words, target)):
            with stepper.autocast():
                loss = F.cross_entropy(model(data), label)
            stepper.backward(loss)
        stepper.step()
        with torch.autocast('cpu', torch.bfloat16, enabled='precision' in settings):
            loss = F.cross_entropy(expected(words), target)
        loss.backward()
        if 'max_grad_norm' in settings:
            nn.utils.clip_grad_norm_(expected.parameters(), 0.1)
        for each in by_hand:
            each.step()
            each.zero_grad()
    assert first_difference(model.state_dict(), expected.state_dict()) == ''


@pytest.mark.parametrize(
    'make, interval',
    [
        (lambda optimizer: schedulers.StepLR(optimizer, 2, 0.5), 'epoch'),
        (lambda optimizer: schedulers.CosineAnnealingLR(optimizer, 12), 'step'),
        (lambda optimizer: schedulers.CyclicLR(optimizer, 0.01, 0.1, 3), 'step'),
        (lambda optimizer: schedulers.ReduceLROnPlateau(optimizer, patience=0), 'epoch'),
    ],
)
@pytest.mark.parametrize('warmup_steps', [0, 5])
def test_one_schedule_over_several_optimizers_equals_one_over_each(make, interval, warmup_steps):
    parameters = [nn.Parameter(torch.zeros(2, 2)) for _ in range(2)]

    def optimizers():
        return [SGD([parameters[0]], 0.1, momentum=0.9), Muon([parameters[1]], 0.02)]

    def schedule(optimizer):
        return Schedule(make(optimizer), interval, 'val_loss', warmup_steps)

    separate, joint = optimizers(), SeveralOptimizers(optimizers())
    over_each, over_both = [schedule(each) for each in separate], schedule(joint)
    for step in range(12):
        groups = [group for each in separate for group in each.param_groups]
        for key in ('lr', 'momentum', 'initial_lr'):
            values = [[group.get(key) for group in made] for made in (groups, joint.param_groups)]
            assert values[0] == values[1]
        for each in (*separate, joint):
            each.step()
        for each in (*over_each, over_both):
            each.step()
            if step % 3 == 2:
                each.end_epoch({'val_loss': [1.0, 2.0, 0.5, 0.7][step // 3]})


def test_state_that_somebody_writes_is_that_of_the_optimizer_which_steps():
    first, second = (nn.Parameter(torch.zeros(2, 2)) for _ in range(2))
    joint = SeveralOptimizers([Adagrad([first], 0.1), SGD([second], 0.1, momentum=0.5)])
    for parameter in (first, second):
        parameter.grad = torch.ones_like(parameter)
    joint.step()
    joint.load_state_dict(copy.deepcopy(joint.state_dict()))
    before, second.grad = second.clone(), torch.zeros_like(second)
    joint.state[second] = {'momentum_buffer': torch.full_like(second, 8)}
    joint.step()
    assert torch.equal(second, before - 0.1 * 0.5 * 8)
    joint.state = defaultdict(dict, {first: joint.state[first]})  # the other begins anew
    before = second.clone()
    joint.step()
    assert torch.equal(second, before)


def test_a_step_with_gradients_that_are_not_finite_is_left_out_in_each():
    model = made()
    stepper = Stepper(from_config(model, MUON), model=model, precision='fp16')
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for scale in (float('inf'), 1.0):
        for words, target in batches(1):
            stepper.backward(F.cross_entropy(model(words), target) * scale)
            stepper.step()
        changed = {
            name for name, value in model.state_dict().items() if (value != before[name]).any()
        }
        assert changed == (set() if scale > 1 else set(before))


def test_momentum_that_only_one_has_is_not_cycled():
    with pytest.raises(ValueError, match='must support momentum or beta1'):
        schedulers.OneCycleLR(from_config(made(), MUON), 0.1, 10)


# Saved and resumed


def with_muon(named, lr, muon_lr=0.05):
    named = list(named)
    matrices = [(name, each) for name, each in named if each.ndim == 2]
    others = [(name, each) for name, each in named if each.ndim != 2]
    return SeveralOptimizers([AdamW(others, lr), Muon(matrices, muon_lr)])


SCHEDULES = [
    {},
    {
        'scheduler': lambda each: schedulers.CosineAnnealingLR(each, N_STEPS),
        'interval': 'step',
        'warmup_steps': 8,
    },
    {'scheduler': lambda each: schedulers.ReduceLROnPlateau(each, patience=0, factor=0.5)},
]


@pytest.mark.parametrize('options', SCHEDULES, ids=['StepLR', 'cosine', 'plateau'])
def test_run_of_several_optimizers_resumes_exactly(experiment, options):
    options = {'optimizer': with_muon, 'max_grad_norm': 0.5, **options}
    whole = run(experiment.trainer(**options))
    for n_steps in (1, 6, 9, 17):
        resumed = run(experiment.trainer(stopped_after(experiment, n_steps, **options), **options))
        assert first_difference(resumed, whole) == ''


class Watched(Told):
    """Notes the rate of each group at each step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rates, take_step = [], self.stepper.step

        def step():
            self.rates.append([group['lr'] for group in self.optimizer.param_groups])
            take_step()

        self.stepper.step = step


@pytest.mark.parametrize('options', SCHEDULES, ids=['StepLR', 'cosine', 'plateau'])
def test_another_rate_of_one_optimizer_holds_as_if_from_the_start(experiment, options):
    def changed(named, lr):
        return with_muon(named, lr, muon_lr=0.2)

    options = {'trainer_class': Watched, **options}
    last = last_of(experiment.trainer(optimizer=with_muon, max_steps=10, **options))
    resumed = experiment.trainer(last, optimizer=changed, **options)
    assert all(resumed.optimizer.state[each] for each in resumed.model.parameters())
    fresh = experiment.trainer(optimizer=changed, **options)
    resumed.train()
    fresh.train()
    assert resumed.rates == fresh.rates[10:]


@pytest.mark.parametrize('kind', [SGD, AdamW])
@pytest.mark.parametrize('first', [False, True])
def test_a_run_of_a_fused_optimizer_goes_on_in_another_and_back(experiment, kind, first):
    def of(fused):
        def optimizer(named, lr):
            more = {'momentum': 0.9} if kind is SGD else {}
            return kind(named, lr, fused=fused, **more)

        return optimizer

    last = last_of(experiment.trainer(optimizer=of(first), max_steps=8))
    resumed = experiment.trainer(last, optimizer=of(not first))
    saved = checkpoint.load(last)['optimizer']['state']
    assert first_difference(resumed.optimizer.state_dict()['state'], saved) == ''
    whole = experiment.trainer(optimizer=of(first))
    resumed.train()
    whole.train()
    assert resumed.optimizer.param_groups[0]['fused'] is not first
    losses = [[log['val_loss'] for log in each.history] for each in (resumed, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_foreach_equals_one_by_one():
    """That torch takes it on GPUs does not change a result."""
    start = [each.detach() for each in made().parameters()]
    gradients = [[torch.randn_like(each) for each in start] for _ in range(3)]
    for kind in gpu_optimizers.OPTIMIZERS:
        one, other = (
            gpu_optimizers.stepped(start, gradients, kind, way)[0] for way in ('default', 'foreach')
        )
        assert all(map(torch.equal, one, other))


def test_a_parameter_that_changes_its_optimizer_starts_fresh_and_others_go_on():
    model, optimizers = made(), {}
    optimizers['one'] = from_config(model)
    optimizers['beside'] = from_config(model, MUON)
    optimizers['all'] = from_config(model, {**MUON, 'match': 'out*'})
    optimizers['other'] = from_config(model, MUON, main='SGD')
    for each in optimizers.values():
        for words, target in batches(1):
            F.cross_entropy(model(words), target).backward()
            each.step()
            each.zero_grad()
    matrices = {'embedding.weight', 'out.weight'}
    for before, after, fresh in [
        ('one', 'beside', matrices),
        ('beside', 'one', matrices),
        ('beside', 'all', {'embedding.weight'}),
        ('other', 'beside', states(optimizers['one']).keys() - matrices),
    ]:
        then, now = optimizers[before], from_config(model)
        if after != 'one':
            now = from_config(model, MUON if after == 'beside' else {**MUON, 'match': 'out*'})
        built = [optimizer_as_built(each) for each in (then, now)]
        notes = load_optimizer('optimizer', now, then.state_dict(), *built)
        assert f'{len(fresh)} parameters have no state yet' in notes[-1]
        expected = {name: None if name in fresh else each for name, each in states(then).items()}
        assert first_difference(states(now), {name: expected[name] for name in states(now)}) == ''
        now.step()  # takes the state that it has


@pytest.mark.parametrize(
    'kind, then, now, is_fresh',
    [
        ('Adam', {}, {'amsgrad': True}, True),
        ('Adam', {'amsgrad': True}, {}, False),
        ('Adam', {}, {'betas': (0.5, 0.9)}, False),
        ('RMSprop', {}, {'momentum': 0.9}, True),
        ('RMSprop', {}, {'centered': True}, True),
        ('RMSprop', {}, {'lr': 0.1}, False),
        ('Rprop', {}, {'lr': 0.1}, True),
        ('Rprop', {}, {'step_sizes': (1e-6, 1)}, False),
        ('ASGD', {}, {'lr': 0.1}, True),
        ('Adagrad', {}, {'initial_accumulator_value': 0.1}, True),
        ('SGD', {'momentum': 0.9}, {'momentum': 0.5}, False),
        ('SparseAdam', {}, {'betas': (0.5, 0.9)}, False),
        ('LBFGS', {}, {'lr': 0.1}, False),
    ],
)
def test_state_that_new_options_would_have_made_otherwise_starts_fresh(kind, then, now, is_fresh):
    def optimizer(**options):
        options = {'lr': 0.01, **options}
        return getattr(torch.optim, kind)([('weight', weight)], **options)

    def step(optimizer):
        weight.grad = torch.ones(2, 3)
        if kind == 'SparseAdam':
            weight.grad = weight.grad.to_sparse()
        optimizer.step(lambda: weight.sum())
        return weight.detach().clone()

    weight = nn.Parameter(torch.zeros(2, 3))
    before, after = optimizer(**then), optimizer(**now)
    built = [optimizer_as_built(each) for each in (before, after)]
    step(before)
    notes = load_optimizer('optimizer', after, before.state_dict(), *built)
    assert ('optimizer: 1 parameters have no state yet' in notes) == is_fresh
    if not is_fresh:
        assert first_difference(states(after), states(before)) == ''
        step(after)
        return
    stepped = []
    for each in (after, optimizer(**now)):
        weight.data.zero_()
        stepped.append(step(each))
    assert torch.equal(*stepped)


# What is refused


@pytest.mark.parametrize(
    'groups, expected',
    [
        ([{'match': '*.weight', 'type': 'Muon'}], 'groups.0: Muon takes matrices only, not conv.w'),
        ([{**MUON, 'type': 'Muo'}], 'groups.0.type: no optimizer is called "Muo" (did you mean'),
        ([{**MUON, 'betas': [0.9, 0.9]}], "groups.0.betas: Muon has no 'betas'"),
        ([{**MUON, 'lr': 'x'}], 'groups.0.lr: expected a number'),
        ([{**MUON, 'lr': -1}], 'groups.0: Muon refuses: Learning rate should be >= 0'),
        ([{**MUON, 'ndim': 'two'}], 'groups.0.ndim: expected a whole number'),
        ([{**MUON, 'ndim': 4}], "groups.0.match (ndim 4): nothing is named like '*'"),
        ([MUON, {'match': 'out*', 'betas': [0.9, 0.9]}], "groups.0.betas: Muon has no 'betas'"),
        ([{**MUON, 'type': 'LBFGS', 'weight_decay': 0}], "LBFGS has no 'weight_decay'"),
        ([{'match': 'out*', 'type': 'LBFGS'}], 'LBFGS cannot be one of several'),
    ],
)
def test_what_a_group_cannot_have_is_refused_in_one_line(groups, expected):
    with pytest.raises(ConfigError) as error:
        from_config(made(), *groups)
    assert expected in str(error.value) and '\n' not in str(error.value)


def test_groups_with_types_may_take_every_parameter():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    optimizer = from_config(model, MUON, {'match': '1.*', 'type': 'SGD', 'lr': 0.1})
    assert [type(each) for each in optimizer.optimizers] == [Muon, SGD]
    taken = {name for group in optimizer.param_groups for name in group['param_names']}
    assert taken == set(dict(model.named_parameters()))


def test_what_a_script_gives_by_position_reaches_the_optimizer_beside_typed_groups():
    section = {'type': 'SGD', 'args': {}, 'groups': [MUON]}
    config = ConfigParser({'name': 'words', 'trainer': {'epochs': 1}, 'optimizer': section})
    groups = parameter_groups(config, made())
    optimizer = config.init_obj('optimizer', torch.optim, groups, 0.5)
    assert {group['lr'] for group in optimizer.param_groups} == {0.5, MUON['lr']}


def test_muon_for_everything_is_told_what_to_write():
    with pytest.raises(
        ConfigError, match='let a group of optimizer.groups say "ndim": 2 beside "type": "Muon"'
    ):
        from_config(made(), main='Muon')


def test_a_rate_that_a_schedule_overwrites_is_named():
    config = {
        'name': 'words',
        'trainer': {'epochs': 1},
        'optimizer': {'type': 'SGD', 'groups': [MUON]},
        'lr_scheduler': {'type': 'OneCycleLR', 'args': {'max_lr': 0.1, 'total_steps': 'auto'}},
    }
    builds = {name: BUILDS[name] for name in ('optimizer', 'lr_scheduler')}
    (note,) = check(Document(config), builds)
    assert note.startswith('lr_scheduler.args.max_lr: OneCycleLR gives every group this lr')
    config['lr_scheduler']['args']['max_lr'] = [0.1, 0.02]
    assert check(Document(config), builds) == []


def test_a_script_cannot_lose_a_group_that_has_its_own_optimizer():
    config = {'optimizer': {'type': 'AdamW', 'groups': [MUON]}}
    with pytest.raises((TypeError, ValueError)):  # torch would ignore a "type" in a dict
        AdamW(parameter_groups(config, made()))
    with pytest.raises(ConfigError, match='this script gives its optimizer no groups'):
        ConfigParser({'name': 'x', 'trainer': {}, **config}).init_obj(
            'optimizer', torch.optim, filter(lambda each: each.requires_grad, made().parameters())
        )
    with pytest.raises(ConfigError, match='name all groups'):
        from_config(made(), MUON).add_param_group({'params': [nn.Parameter(torch.zeros(1))]})
