"""Every name of torch, torchvision and torchmetrics works from a config, without a line of code."""

import warnings

import pytest
import torch
import torchvision
from torch.overrides import TorchFunctionMode

import train
from armature.config import build as config_types
from armature.config.check import check
from armature.config.read import Document
from model import loss as module_loss
from model import metric as module_metric
from model import model as module_arch
from parse_config import ConfigParser

MODEL_ARGS = {'Muon': {'lr': 0.01}}
NOT_DENSE = {'SparseAdam'}  # takes sparse gradients only
OPTIMIZERS = sorted(set(config_types.names(config_types.KINDS['optimizer'])) - NOT_DENSE)

STEP = {'type': 'StepLR', 'args': {'step_size': 1}}
SCHEDULERS = {
    'StepLR': {'step_size': 1},
    'MultiStepLR': {'milestones': [1, 2]},
    'ConstantLR': {},
    'LinearLR': {},
    'ExponentialLR': {'gamma': 0.9},
    'PolynomialLR': {},
    'CosineAnnealingLR': {'T_max': 5},
    'CosineAnnealingWarmRestarts': {'T_0': 2},
    'ReduceLROnPlateau': {},
    'CyclicLR': {'base_lr': 0.01, 'max_lr': 0.1},
    'OneCycleLR': {'max_lr': 0.1, 'total_steps': 5},
    'SequentialLR': {'schedulers': [{'type': 'LinearLR', 'args': {}}, STEP], 'milestones': [1]},
    'ChainedScheduler': {'schedulers': [STEP, STEP]},
}
TAKES_CODE = {'LambdaLR', 'MultiplicativeLR'}  # want a Python function, which JSON cannot say
NOT_FOR_USE = {'SWALR', '_LRScheduler'}


def config_of(**sections) -> ConfigParser:
    """A config of these sections that has passed the check."""
    config = {'name': 'names', 'trainer': {'epochs': 5, 'monitor': 'min loss'}, **sections}
    check(Document(config), {name: train.BUILDS[name] for name in sections})
    return ConfigParser(config)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_every_optimizer_trains_one_step(name):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3, bias=False)
    data, target = torch.randn(8, 4), torch.randint(3, (8,))
    optimizer = config_of(optimizer={'type': name, 'args': MODEL_ARGS.get(name, {})}).init_obj(
        'optimizer', torch.optim, model.parameters()
    )
    before = model.weight.detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(data), target)
        loss.backward()
        return loss

    if name == 'LBFGS':
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()
    assert model.weight.isfinite().all() and not torch.equal(model.weight, before)


def test_no_scheduler_is_left_out():
    named = set(config_types.names(config_types.KINDS['lr_scheduler'])) - TAKES_CODE - NOT_FOR_USE
    assert named == set(SCHEDULERS)
    print(
        f'{len(OPTIMIZERS)}/{len(OPTIMIZERS)} optimizers, {len(SCHEDULERS)}/{len(named)} schedulers'
    )


@pytest.mark.parametrize('name', sorted(SCHEDULERS))
@pytest.mark.filterwarnings('ignore:The epoch parameter')  # SequentialLR of torch itself uses it
def test_every_scheduler_steps(name):
    weight = torch.nn.Parameter(torch.ones(2, 2))
    config = config_of(
        optimizer={'type': 'SGD', 'args': {'lr': 0.1, 'momentum': 0.9}},
        lr_scheduler={'type': name, 'args': SCHEDULERS[name]},
    )
    optimizer = config.init_obj('optimizer', torch.optim, [weight])
    scheduler = config.init_obj('lr_scheduler', torch.optim.lr_scheduler, optimizer)
    rates = []
    for _ in range(3):
        weight.sum().backward()
        optimizer.step()
        scheduler.step(*([1.0] if name == 'ReduceLROnPlateau' else []))
        rates.append(optimizer.param_groups[0]['lr'])
    assert all(rate >= 0 for rate in rates)


class WeightsOnMeta(TorchFunctionMode):
    """Weights take no memory and no time; what a constructor computes with stays real."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(
            *args, **(kwargs or {}) | ({'device': 'meta'} if function is torch.empty else {})
        )


def test_every_classification_model_builds():
    names = torchvision.models.list_models(module=torchvision.models)
    assert len(names) > 70
    with WeightsOnMeta(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # inception and googlenet announce a slow initialisation
        for name in names:
            args = {'num_classes': 7} | (
                {'init_weights': False} if name in ('googlenet', 'inception_v3') else {}
            )
            model = config_of(arch={'type': name, 'args': args}).init_obj('arch', module_arch)
            assert isinstance(model, torch.nn.Module)
    print(f'{len(names)}/{len(names)} torchvision models')


TASK = {'task': 'multiclass', 'num_classes': 3}
METRIC_ARGS = {
    'CriticalSuccessIndex': {'threshold': 0.5},
    'MinkowskiDistance': {'p': 3},
    'TweedieDevianceScore': {'power': 0},
}


LOSS_ARGS = {'LinearCrossEntropyLoss': {'in_features': 4, 'num_classes': 3}}


def metric_cases():
    """(name, args, preds, target) of every metric that needs only predictions and targets."""
    torch.manual_seed(0)
    scores, classes = torch.randn(16, 3).softmax(1), torch.randint(3, (16,))
    chances, binary = torch.rand(16), torch.randint(2, (16,))
    many, many_binary = torch.rand(16, 3), torch.randint(2, (16, 3))
    values, truth = torch.rand(16) + 0.1, torch.rand(16) + 0.1
    other = (
        'FixedRecall',
        'FixedPrecision',
        'AtSpecificity',
        'AtSensitivity',
        'AtFixed',
        'GroupStat',
        'Fairness',
    )
    kind = config_types.KINDS['metrics']
    for name in sorted(set(config_types.names(kind._replace(module='')))):
        where = config_types.find(name, kind).__module__
        if (
            any(part in name for part in other)
            or '.classification.' not in where
            and '.regression.' not in where
        ):
            continue
        beta = {'beta': 0.5} if 'FBeta' in name else {}
        if name == 'ContinuousRankedProbabilityScore':  # several forecasts a target
            yield name, {}, many, truth
        elif '.regression.' in where:
            as_table = name in ('CosineSimilarity', 'KLDivergence', 'JensenShannonDivergence')
            pair = (scores, scores.flip(0)) if as_table else (values, truth)
            yield name, METRIC_ARGS.get(name, {}), *pair
        elif name.startswith('Binary'):
            yield name, beta, chances, binary
        elif name.startswith('Multiclass'):
            yield name, {'num_classes': 3} | beta, scores, classes
        elif name.startswith('Multilabel'):
            yield name, {'num_labels': 3} | beta, many, many_binary
        elif name == 'Dice':
            yield name, {'num_classes': 3}, scores, classes
        elif 'Exact' in name:
            yield name, TASK, torch.randint(3, (4, 5)), torch.randint(3, (4, 5))
        else:
            yield name, TASK | beta, scores, classes


def test_every_metric_of_predictions_and_targets_computes():
    done, failed = 0, []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # metrics warn about the small sample
        for name, args, preds, target in metric_cases():
            try:
                entry = {'type': name, 'args': args}
                config = config_of(metrics=[entry])
                (metric,) = config.init_metrics(module_metric)
                metric.update(preds, target)
                assert metric.compute() is not None and metric.__name__
                done += 1
            except Exception as error:
                failed.append(f'{name}: {error}')
    print(f'{done}/{done + len(failed)} torchmetrics metrics')
    assert not failed and done > 100, '\n'.join(failed)


@pytest.mark.filterwarnings('ignore:.*NLLLoss2d. has been deprecated')
def test_every_loss_of_torch_is_found_by_name():
    kind = config_types.KINDS['loss']._replace(module='')
    names = sorted(config_types.names(kind))
    for name in names:
        criterion = config_of(loss={'type': name, 'args': LOSS_ARGS.get(name, {})}).init_loss(
            module_loss
        )
        assert callable(criterion) and criterion.__name__
    print(f'{len(names)}/{len(names)} losses')
