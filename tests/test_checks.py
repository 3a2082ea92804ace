"""What does not suit data, model and loss is said in the first step, in one line."""

import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset, default_collate

from armature.data.order import WeightedRandomSampler
from armature.errors import ConfigError, DataError, NonFiniteError
from armature.run.checks import LossCheck, check_first_step
from armature.run.monitor import Monitor
from armature.step.micro_batches import Reduction
from armature.step.optimizers import clip_values
from base import BaseDataLoader
from base.stepper import Stepper
from tests.conftest import NoisyPoints, PointModel, going_on
from trainer import Trainer


def check(loss, output, target, known=()):
    with LossCheck('mine', lambda target: set(known)) as looking:
        looking.given = output, target
        return loss(output, target)


def scores(*shape):
    return torch.randn(*shape, requires_grad=True)


LABELS = torch.tensor([0, 2, 1, 2])
PROXIES = torch.randn(100, 16)


def of_tokens(output, target):
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def of_proxies(output, target):
    return F.cross_entropy(output @ PROXIES.T, target)


def of_counts(output, target):
    return F.gaussian_nll_loss(output[:, 0], target.float(), output[:, 1].exp())


def ctc(output, target):
    return F.ctc_loss(output, target, torch.full((2,), 20), torch.full((2,), 5))


def of_quantiles(output, target):
    return F.smooth_l1_loss(output.unsqueeze(2), target.unsqueeze(1))


def of_means(output, target):
    true = F.mse_loss(output.mean(1), torch.tensor(1.0))
    return (
        true
        + F.mse_loss(output, output.mean(0, keepdim=True))
        + F.kl_div(output, target[0], reduction='batchmean')
    )


def of_those_that_have_labels(output, target):
    return F.cross_entropy(output[target >= 0], target[target >= 0])


def weighted(output, target):
    return F.cross_entropy(output, target, torch.tensor([1, 5, 1]))


@pytest.mark.filterwarnings('ignore:Using a target size')  # torch's own, to whoever means it
@pytest.mark.parametrize(
    'loss, output, target',
    [
        (nn.CrossEntropyLoss(), scores(4, 3), LABELS),
        (nn.CrossEntropyLoss(ignore_index=7), scores(4, 3), torch.tensor([0, 7, 1, 2])),
        (nn.CrossEntropyLoss(), scores(3), torch.tensor(2)),
        (nn.CrossEntropyLoss(), scores(4, 3), torch.rand(4, 3)),
        (nn.CrossEntropyLoss(), scores(2, 3, 5, 5), torch.randint(3, (2, 5, 5))),
        (of_tokens, scores(2, 4, 50), torch.randint(50, (2, 4))),
        (of_proxies, scores(4, 16), torch.tensor([99, 3, 50, 7])),
        (of_counts, scores(4, 2), torch.tensor([0, 30, 2, 9])),
        (ctc, scores(20, 2, 26).log_softmax(2), torch.randint(1, 26, (2, 5))),
        (F.poisson_nll_loss, scores(4), torch.tensor([0, 30, 2, 9])),
        (F.mse_loss, scores(4, 1), torch.randn(4, 1)),
        (nn.BCEWithLogitsLoss(), scores(4), torch.ones(4)),
        (of_quantiles, scores(4, 3), torch.rand(4, 5)),
        (of_means, scores(4, 3), torch.rand(4, 3)),
        (of_those_that_have_labels, scores(4, 3), torch.tensor([0, -1, 2, -1])),
    ],
)  # fmt: skip
def test_what_a_loss_can_take_is_let_through(loss, output, target):
    assert torch.equal(check(loss, output, target), loss(output, target))


@pytest.mark.parametrize(
    'loss, output, target, said',
    [
        (nn.CrossEntropyLoss(), scores(4, 1), torch.zeros(4).long(), 'over one class'),
        (nn.CrossEntropyLoss(), scores(4, 3), LABELS[:, None], r'\(4, 1\) of int64.*squeeze'),
        (nn.CrossEntropyLoss(), scores(4, 3), LABELS.int(), r'int32.*target.long\(\)'),
        (nn.CrossEntropyLoss(), scores(4, 3), LABELS.float(), r'float32.*target.long\(\)'),
        (nn.NLLLoss(), scores(4, 3), LABELS.double(), r'float64.*target.long\(\)'),
        (nn.CrossEntropyLoss(), scores(2, 5, 50), torch.randint(50, (2, 5)), 'movedim'),
        (weighted, scores(4, 3), LABELS, 'int64: expected a float'),
        (F.cross_entropy, scores(4, 3), None, 'targets that are one NoneType.* Write a loss'),
        (nn.CrossEntropyLoss(torch.ones(2)), scores(4, 3), LABELS, r'\(2,\) of float.* 3 classes'),
        (F.nll_loss, scores(2, 5, 3, 3), torch.zeros(2, 1, 3, 3).long(), r'target.squeeze\(1\)'),
        (nn.MSELoss(), scores(4, 1), torch.randn(4), r'\(4, 1\).*\(4,\).*output.squeeze'),
        (nn.SoftMarginLoss(), scores(4, 1), torch.ones(4), r'\(4, 1\).*\(4,\).*output.squeeze'),
        (F.hinge_embedding_loss, scores(4, 1), torch.ones(4), r'\(4, 1\).*\(4,\).*squeeze'),
        (nn.MultiLabelSoftMarginLoss(), scores(4, 1), torch.ones(4), r'\(4, 1\).*\(4,\).*squeeze'),
        (nn.BCELoss(), scores(4, 1) + 9, torch.ones(4, 1), 'let it end in a sigmoid'),
        (
            nn.BCEWithLogitsLoss(pos_weight=torch.ones(2)), scores(4, 3), torch.ones(4, 3),
            r'pos_weight \(2,\) of float32: expected one number for each output',
        ),
        (F.l1_loss, scores(4), torch.randn(4, 1), r'target.squeeze'),
        (nn.MSELoss(), scores(4, 1), torch.randn(4, 5), r'target.squeeze'),
        (nn.HuberLoss(), scores(4), LABELS, r'target.float\(\)'),
        (nn.BCEWithLogitsLoss(), scores(4), LABELS, r'target.float\(\)'),
    ],
)  # fmt: skip
def test_what_does_not_suit_a_loss_is_named_with_shapes_and_mend(loss, output, target, said):
    with pytest.raises(ConfigError, match=f'loss mine: .*{said}'):
        check(loss, output, target)


def test_labels_outside_the_scores_are_named():
    with pytest.raises(DataError, match='label 3, and the model gives 3 scores'):
        check(nn.CrossEntropyLoss(), scores(4, 3), LABELS + 1)
    with pytest.raises(DataError, match='label 9'):
        check(F.nll_loss, scores(4, 3), LABELS, known=[0, 9])


def test_first_loss_of_a_run_is_looked_at_and_then_no_more(experiment):
    class Wrong(Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.criterion = self.loss = lambda output, target: F.mse_loss(output[:, :1], target)

    with pytest.raises(ConfigError, match=r'\(7, 1\) of float32 and targets \(7,\) of int64'):
        experiment.trainer(trainer_class=Wrong).train()
    trainer = experiment.trainer(epochs=1)
    criterion = trainer.criterion
    trainer.train()
    assert trainer.criterion is criterion is trainer.loss


class Late(PointModel):
    def forward(self, x):
        if not hasattr(self, 'more'):
            self.more = nn.Linear(2, 2)
        return self.more(super().forward(x))


class InTime(PointModel):
    def __init__(self):
        super().__init__()
        self.more = nn.LazyLinear(2)

    def forward(self, x):
        return self.more(super().forward(x))


def test_layer_that_the_first_step_makes_is_refused(experiment):
    trainer = experiment.trainer(model=Late)
    with pytest.raises(ConfigError, match='Late makes more.weight in its first .* in __init__'):
        trainer.train()
    assert trainer.step == 1
    experiment.trainer(model=InTime, epochs=1).train()


def test_loss_keeps_the_forward_that_it_has_chosen(experiment):
    class Chosen(nn.Module):
        def __init__(self):
            super().__init__()
            self.forward = F.nll_loss

    trainer = experiment.trainer(epochs=1)
    trainer.criterion = Chosen()
    trainer.train()
    assert trainer.criterion.forward is F.nll_loss and trainer.step > 1


def test_loss_that_is_looked_at_counts_as_it_does_by_itself(experiment):
    trainer = experiment.trainer()
    for criterion in (F.cross_entropy, functools.partial(F.nll_loss, ignore_index=1), F.mse_loss):
        trainer.criterion = criterion
        check_first_step(trainer)
        before, now = Reduction(criterion), Reduction(trainer.criterion)
        assert (before.by_samples, before.ignored) == (now.by_samples, now.ignored)


@pytest.mark.parametrize(
    'options, cause',
    [
        ({'n_valid': 16}, r'the last batch \(size 1\)'),
        ({'n_valid': 12, 'microbatch_size': 4}, r'the last batch \(size 5\) leaves one'),
    ],
)
def test_batch_norm_and_a_lone_sample_are_said_in_the_first_step(experiment, options, cause):
    n_valid = options.pop('n_valid')
    loader = BaseDataLoader(NoisyPoints(), 7, True, n_valid, 0)
    trainer = experiment.trainer(loader=loader, **options)
    if 'microbatch_size' not in options:
        assert len(loader.sampler) % 7 == 1
    with pytest.raises(ConfigError, match=f'{cause}.*drop_last'):
        trainer.train()
    assert trainer.step == 1


class Graph(nn.Module):
    """Each sample has several rows under a BatchNorm, as nodes of a graph."""

    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(1), nn.Linear(4, 2)

    def forward(self, x):
        nodes = self.norm(x.reshape(-1, 1)).reshape(len(x), -1)
        return F.log_softmax(self.out(nodes), dim=1)


def test_batch_norm_over_several_rows_a_sample_trains_on_a_lone_one(experiment):
    loader = BaseDataLoader(NoisyPoints(), 7, True, 16, 0)
    assert len(loader.sampler) % 7 == 1
    trainer = experiment.trainer(loader=loader, model=Graph, epochs=1)
    trainer.train()
    assert trainer.epochs_done == 1


def test_gradients_of_every_kind_are_clipped_by_value():
    words = nn.Embedding(5, 3, sparse=True)
    weight = nn.Parameter(torch.randn(3, 2, dtype=torch.cfloat))
    bias = nn.Parameter(torch.zeros(2))
    output = (words(torch.tensor([1, 1, 2])).to(torch.cfloat) @ weight).real * 100 + bias
    output.sum().backward()
    dense = words.weight.grad.to_dense().clamp(-0.5, 0.5)
    for parameter in (words.weight, weight, bias):
        clip_values([parameter], 0.5)
    assert torch.equal(words.weight.grad.to_dense(), dense)
    assert torch.view_as_real(weight.grad).abs().max() <= 0.5 and bias.grad.max() == 0.5


def test_loss_of_one_element_trains_and_of_several_is_refused():
    model = nn.Linear(2, 1)
    stepper = Stepper(torch.optim.SGD(model.parameters(), lr=0.1))
    stepper.backward(model(torch.ones(3, 2)).mean().reshape(1))
    stepper.step()
    with pytest.raises(ConfigError, match=r'shape \(3, 1\)'):
        stepper.backward(model(torch.ones(3, 2)))


def test_skipped_step_leaves_no_trace_in_running_statistics():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    stepper = Stepper(torch.optim.SGD(model.parameters(), lr=0.1), max_skips=3, model=model)
    data = torch.randn(4, 2)
    for broken in (False, True, False):
        before = model[0].running_mean.clone()
        for part in stepper.micro_batches(data + math.nan if broken else data):
            stepper.backward(model(part).mean())
        stepper.step()
        assert torch.equal(before, model[0].running_mean) == broken
    assert stepper.n_skipped == 1 and model[0].num_batches_tracked == 2


def test_monitored_value_that_is_always_nan_does_not_end_as_not_improved(experiment):
    class Blind(Trainer):
        def _valid_epoch(self, epoch):
            return {'loss': math.nan}

    with pytest.raises(NonFiniteError, match='val_loss is nan in every epoch'):
        experiment.trainer(trainer_class=Blind, early_stop=2).train()
    monitor = Monitor('max x')
    assert [monitor.update({'x': x}) or monitor.is_blind for x in (math.nan, 1, math.nan)] == [
        True, True, False
    ]  # fmt: skip


def test_what_the_model_raises_says_where_it_was(experiment):
    trainer = experiment.trainer()
    forward, calls = trainer.model.forward, []

    def fail(data):
        calls.append(data)
        if len(calls) == 3:
            raise RuntimeError('mine')
        return forward(data)

    trainer.model.forward = fail
    with pytest.raises(RuntimeError, match='mine') as caught:
        trainer.train()
    samples = trainer.data_loader.indices(0)[14:21].tolist()
    assert caught.value.__notes__ == [
        f'This was in epoch 1, after step 3 had begun, with the samples {samples}'
    ]


def test_lazy_layers_train_and_cannot_be_averaged(experiment):
    class Lazy(Trainer):
        def __init__(self, model, criterion, metrics, optimizer, *others):
            model.out = nn.LazyLinear(2)
            others_too = model.named_parameters()
            super().__init__(model, criterion, metrics, type(optimizer)(others_too, 0.01), *others)

    trainer = experiment.trainer(trainer_class=Lazy, epochs=1, scheduler=None)
    assert 'Trainable parameters' in str(trainer.model)
    trainer.train()
    assert trainer.model.out.weight.shape == (2, 8)
    with pytest.raises(ConfigError, match='lazy layer'):
        experiment.trainer(trainer_class=Lazy, ema_decay=0.9)


def test_monitor_of_a_validation_that_is_not_there_is_refused_before_the_first_step(experiment):
    trainer = experiment.trainer(monitor='min val_loss')
    trainer.do_validation = False
    with pytest.raises(ConfigError, match='no validation data.*"min loss"'):
        trainer.train()
    assert trainer.step == 0


def test_device_may_be_text(experiment):
    class OnText(Trainer):
        def __init__(self, model, criterion, metrics, optimizer, config, device, *others):
            super().__init__(model, criterion, metrics, optimizer, config, 'cpu', *others)

    trainer = experiment.trainer(trainer_class=OnText, epochs=1)
    trainer.train()
    assert trainer.device == torch.device('cpu')


def test_labels_that_a_dataset_numbers_anew_are_those_that_it_gives(experiment):
    class FromOne(NoisyPoints):
        def __init__(self):
            super().__init__()
            self.targets = self.targets + 1

        def __getitem__(self, index):
            points, target = super().__getitem__(index)
            return points, target - 1

    trainer = experiment.trainer(loader=BaseDataLoader(FromOne(), 7, True, 12, 0), epochs=1)
    trainer.train()
    assert trainer.epochs_done == 1


def test_labels_that_only_later_batches_have_are_named_in_the_first_step(experiment):
    class Rare(NoisyPoints):
        def __init__(self):
            super().__init__()
            self.targets[30] = 2

    trainer = experiment.trainer(loader=BaseDataLoader(Rare(), 7, False, 0, 0), monitor='off')
    with pytest.raises(DataError, match='the data has the label 2'):
        trainer.train()
    assert trainer.step == 1


class HalfLabelled(NoisyPoints):
    def __init__(self):
        super().__init__()
        self.targets[30:] = -1


class ThreeClasses(NoisyPoints):
    def __init__(self):
        super().__init__()
        self.targets = torch.arange(52) % 3


class SeveralLabels(NoisyPoints):
    def __init__(self):
        super().__init__()
        self.labels = [[0] * (each % 3) for each in range(52)]
        del self.targets

    def __getitem__(self, index):
        return self.points[index], index % 2


class Among:
    """A loss that is an object with a method, which the loop calls before it."""

    def begin(self):
        self.has_begun = True

    def __call__(self, output, target):
        return of_those_that_have_labels(output, target) if self.has_begun else None


class Beginning(Trainer):
    def _train_epoch(self, epoch):
        if hasattr(self.criterion, 'begin'):
            self.criterion.begin()
        return super()._train_epoch(epoch)


def with_labels(samples):
    return default_collate([(data, target) for data, target in samples if target >= 0])


@pytest.mark.parametrize(
    'dataset, options, criterion',
    [
        (HalfLabelled, {'sampler': range(30)}, F.nll_loss),
        (HalfLabelled, {'shuffle': True}, of_those_that_have_labels),
        (HalfLabelled, {'shuffle': True, 'drop_last': True}, Among()),
        (ThreeClasses, {'sampler': WeightedRandomSampler([1, 1, 0])}, F.nll_loss),
        (HalfLabelled, {'batch_size': 26, 'collate_fn': with_labels}, F.nll_loss),
        (SeveralLabels, {}, F.nll_loss),
    ],
)
def test_labels_of_samples_that_no_batch_has_say_nothing(experiment, dataset, options, criterion):
    options = {'batch_size': 7, 'shuffle': False, **options}
    loader = BaseDataLoader(dataset(), **options)
    options = {'monitor': 'off', 'metrics': [], 'epochs': 1, 'trainer_class': Beginning}
    trainer = experiment.trainer(loader=loader, **options)
    trainer.criterion = criterion
    trainer.train()
    assert trainer.epochs_done == 1


OTHER = torch.full((7, 2), math.nan)  # without a gradient, so that all weights stay finite


class Masked(PointModel):
    def __init__(self):
        super().__init__()
        self.mask = nn.Parameter(torch.full((4, 4), -math.inf).triu(1))
        self.register_buffer('seen', torch.full((3,), math.nan))

    def forward(self, x):
        return super().forward(x @ self.mask.softmax(1).T)


def test_weights_that_are_not_finite_from_the_beginning_are_saved(experiment):
    trainer = experiment.trainer(model=Masked, epochs=1)
    trainer.train()
    assert trainer.epochs_done == 1 and trainer.model.seen.isnan().all()
    resumed = going_on(experiment, trainer, model=Masked, epochs=2)
    resumed.train()
    with torch.no_grad():
        resumed.model.out.bias[0] = math.nan
    with pytest.raises(NonFiniteError, match=r': 1 weights are not finite \(out.bias\)'):
        resumed._save_checkpoint(3)


def test_loss_over_nothing_does_not_stop_a_run(experiment):
    labels = torch.arange(42) % 2
    labels[7:14] = -100  # a whole batch
    loader = BaseDataLoader(TensorDataset(torch.randn(42, 4), labels), 7, False)
    trainer = experiment.trainer(loader=loader, monitor='off', epochs=1)
    trainer.train()
    assert math.isfinite(trainer.history[0]['loss'])
    trainer = experiment.trainer(loader=loader, monitor='off', epochs=1)
    trainer.criterion = lambda output, target: F.nll_loss(output, target) + F.l1_loss(output, OTHER)
    with pytest.raises(NonFiniteError, match='epoch 1, step 1: the loss is nan'):
        trainer.train()


class Descent(torch.optim.Optimizer):
    def __init__(self, parameters, lr):
        super().__init__(parameters, {'length': lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for each in group['params']:
                each -= group['length'] * each.grad


class Shorter:
    def __init__(self, of):
        self.of = of

    def step(self):
        for group in self.of.param_groups:
            group['length'] /= 2


def test_optimizer_and_scheduler_of_ones_own_need_no_more_than_they_use(experiment):
    trainer = experiment.trainer(optimizer=Descent, scheduler=Shorter, epochs=2, lr=0.08)
    trainer.train()
    assert trainer.optimizer.param_groups[0]['length'] == pytest.approx(0.02)


class OwnLoop(Trainer):
    """Weights the samples itself, measures nothing in epoch 1, and validates by itself."""

    def _train_epoch(self, epoch):
        self.train_metrics.reset()
        for data, target in self.batches(epoch):
            loss = self.criterion(self.model(data), target).mean()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if epoch > 1:
                self.train_metrics.update('loss', loss)
        return self.train_metrics.result() | {'val_reward': float(epoch)}


@pytest.mark.filterwarnings('ignore:.*torch.jit.script')
@pytest.mark.parametrize('kind', ['each', 'scripted', 'mean'])
def test_loop_of_ones_own_weights_and_validates_as_it_likes(experiment, kind):
    loader = BaseDataLoader(NoisyPoints(), 7)
    options = {'trainer_class': OwnLoop, 'monitor': 'max val_reward', 'loader': loader}
    trainer = experiment.trainer(epochs=2, **options)
    trainer.criterion = nn.NLLLoss(reduction='none' if kind == 'each' else 'mean')
    if kind == 'scripted':
        trainer.criterion = torch.jit.script(trainer.criterion)
    trainer.train()
    assert trainer.mnt_best == 2


def test_loss_of_torch_that_gets_several_outputs_is_told_to_be_written(experiment):
    class Two(PointModel):
        def forward(self, x):
            return super().forward(x), x

    trainer = experiment.trainer(model=Two)
    said = 'nll_loss gets an output that is 2 parts .*Tensor, Tensor.*, and .* Write a loss'
    with pytest.raises(ConfigError, match=said):
        trainer.train()


@pytest.mark.parametrize('labels', [[0, 1, 2], torch.zeros(48, 2).long()])
def test_labels_that_are_not_one_for_each_sample_say_nothing(experiment, labels):
    class Odd(NoisyPoints):
        def __init__(self):
            super().__init__()
            self.classes_of, self.labels = self.targets, labels
            del self.targets

        def __getitem__(self, index):
            return self.points[index], self.classes_of[index]

    loader = BaseDataLoader(Odd(), 7, True, 0, 0)
    experiment.trainer(loader=loader, monitor='off', epochs=1).train()


def test_targets_of_two_dimensions_in_memory_train(experiment):
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(4, 3 * 7)

        def forward(self, x):
            return self.out(x).view(-1, 3, 7)  # (batch, classes, positions)

    data = TensorDataset(torch.randn(30, 4), torch.arange(30 * 7).view(30, 7) % 3)
    trainer = experiment.trainer(
        loader=BaseDataLoader(data, 7, True, 0, 0),
        model=Tagger,
        monitor='off',
        epochs=1,
        metrics=[],
    )
    trainer.train()
    assert trainer.epochs_done == 1


def of_sum(output, target, size='sum'):
    return F.nll_loss(output, target, reduction=size)


class Inside(nn.Module):
    def __init__(self, **arguments):
        super().__init__()
        self.loss = nn.NLLLoss(**arguments)

    def forward(self, output, target):
        return self.loss(output, target)


class Focal(nn.CrossEntropyLoss):
    def __init__(self):
        super().__init__(reduction='none')

    def forward(self, output, target):
        return ((1 - output.exp().amax(1)) * super().forward(output, target)).mean()


@pytest.mark.parametrize(
    'criterion, is_odd',
    [
        (nn.NLLLoss(torch.tensor([1.0, 9.0])), False),
        (nn.CrossEntropyLoss(reduction='sum'), False),
        (Focal(), False),
        (lambda output, target, reduction='sum': of_sum(output, target), False),
        (of_sum, True),
        (Inside(reduction='sum'), True),
        (Inside(weight=torch.tensor([1.0, 9.0])), True),
        (lambda output, target: F.nll_loss(output, target) * len(target), True),
    ],
)
def test_loss_that_does_not_add_up_from_parts_is_said_where_there_are_parts(
    experiment, criterion, is_odd, capsys
):
    trainer = experiment.trainer(epochs=1, microbatch_size=7)
    trainer.criterion = criterion
    trainer.train()
    assert ('put together from their halves' in capsys.readouterr().out) == is_odd


@pytest.mark.parametrize('exchanges', [False, True])
def test_looking_at_a_loss_leaves_no_trace(experiment, exchanges):
    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer('n_calls', torch.zeros(()))

        def forward(self, output, target):
            if exchanges:
                self.n_calls = self.n_calls + 1
            else:
                self.n_calls += 1
            return F.nll_loss(F.dropout(output), target)

    seen = []
    for size in (7, None):  # with parts it is looked at
        trainer = experiment.trainer(epochs=1, microbatch_size=size)
        trainer.criterion = Drawing()
        trainer.train()
        seen.append((trainer.criterion.n_calls.item(), trainer.history[-1]['loss']))
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    'criterion, said',
    [
        (lambda output, target: (F.nll_loss(output, target), output), 'gives 2 parts'),
        (lambda output, target: [F.nll_loss(output, target)], 'gives 1 parts'),
        (lambda output, target: F.nll_loss(output, target).item(), 'gives one float'),
        (lambda output, target: {}, 'gives a dict'),
        (nn.NLLLoss(reduction='none'), r'the loss has the shape \(7,\): expected one number'),
        (lambda output, target: F.nll_loss(output.detach(), target), 'no gradient leads from it'),
        (
            nn.TripletMarginLoss(),
            'TripletMarginLoss takes anchor, positive, negative, and is given',
        ),
    ],
)
def test_what_no_loss_may_give_is_one_line_in_the_first_step(experiment, criterion, said):
    trainer = experiment.trainer(epochs=1)
    trainer.criterion = criterion
    with pytest.raises(ConfigError, match=said):
        trainer.train()


def test_trial_on_halves_neither_ends_nor_changes_a_healthy_loss(experiment, capsys):
    class Moving(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer('mean', torch.ones(()))
            self.n_calls = 0

        def forward(self, output, target):
            assert len(target) > 4  # as a loss of pairs wants an even number
            self.n_calls += 1
            loss = F.nll_loss(output, target)
            self.mean.mul_(0.9).add_(loss.detach(), alpha=0.1)
            return loss / self.mean

    trainer = experiment.trainer(epochs=1, microbatch_size=7, monitor='off', len_epoch=2)
    trainer.do_validation, trainer.criterion = False, Moving()
    trainer.train()
    assert trainer.criterion.n_calls == 2 and 'together from' not in capsys.readouterr().out


def test_loop_of_ones_own_takes_its_loss_apart_as_it_likes(experiment):
    class Own(Trainer):
        def _train_epoch(self, epoch):
            for data, target in self.batches(epoch):
                loss, *_ = self.criterion(self.model(data), target)
                loss.backward()
                self.optimizer.step()
                self.train_metrics.measure(loss.item(), self.model(data), target)
            return self.train_metrics.result()

    trainer = experiment.trainer(trainer_class=Own, epochs=1, monitor='off', metrics=[])
    trainer.criterion = lambda output, target: (F.nll_loss(output, target), output, 'kind')
    trainer.train()
    assert trainer.step > 1


@pytest.mark.parametrize('ignore_index', [None, (0, 255)])
def test_ignore_index_of_another_form_is_for_the_function_alone(experiment, ignore_index):
    def own(output, target, ignore_index=ignore_index):
        return F.nll_loss(output, target)

    trainer = experiment.trainer(epochs=1, metrics=[own], monitor='off')
    trainer.criterion = own
    trainer.train()
    assert trainer.history[0]['own'] == pytest.approx(trainer.history[0]['loss'], rel=1e-5)


def test_layer_that_is_never_trained_may_be_made_late(experiment):
    class Teacher(PointModel):
        def forward(self, x):
            if not hasattr(self, 'teacher'):
                self.teacher = copy.deepcopy(self)
            return super().forward(x)

    experiment.trainer(epochs=1, model=Teacher, monitor='off').train()
