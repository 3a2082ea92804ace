"""Laws of what is reported: one name a value, averages over samples, state kept exactly."""

import copy
import functools
import itertools

import pytest
import torch
import torchmetrics
from torch.nn import functional as F
from torchmetrics import classification
from torchmetrics.wrappers import Running

from armature.batch import Batch, Share
from armature.errors import ConfigError
from armature.run.metric_tracker import numbers, reported
from model.metric import accuracy, binary_accuracy, top_k_acc
from parse_config import ConfigParser
from utils import MetricTracker

N_CLASSES, BATCH_SIZE = 3, 7


def batches(n_batches=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for number in range(n_batches):
        n_samples = BATCH_SIZE - 2 * (number == n_batches - 1)
        scores = torch.randn(n_samples, N_CLASSES, generator=generator)
        yield scores, torch.randint(N_CLASSES, (n_samples,), generator=generator)


def measured(tracker, given=None):
    for output, target in given or batches():
        tracker.measure(F.cross_entropy(output, target), output, target)
    return tracker.result()


def named(metric, name):
    metric.__name__ = name
    return metric


def recall(**arguments):
    return classification.MulticlassRecall(num_classes=N_CLASSES, **arguments)


def collection():
    return torchmetrics.MetricCollection(
        {
            'acc': classification.MulticlassAccuracy(N_CLASSES),
            'f1': classification.MulticlassF1Score(N_CLASSES),
        }
    )


def of_each_class(output, target):
    return torch.stack([((output.argmax(1) == k) & (target == k)).float().mean() for k in range(3)])


class Named:
    class_names = ['cat', 'dog', 'golden retriever']


def as_dict(output, target):
    return {'one': 0.5, 'two': (output.argmax(1) == target).float().mean()}


# Names


def test_two_metrics_of_one_type_are_told_apart_by_their_names_or_refused():
    config = ConfigParser(
        {
            'name': 'x',
            'trainer': {'epochs': 1},
            'metrics': [
                {'type': 'top_k_acc', 'args': {'k': 1}, 'name': 'top_1'},
                {'type': 'top_k_acc', 'args': {'k': 2}},
                {'type': 'accuracy', 'name': 'share'},
            ],
        }
    )
    import model.metric as module

    metrics = config.init_metrics(module)
    assert module.accuracy.__name__ == 'accuracy'
    values = measured(MetricTracker('loss', metrics=metrics))
    assert list(values) == ['loss', 'top_1', 'top_k_acc', 'share']
    assert values['top_1'] == values['share'] < values['top_k_acc']
    with pytest.raises(ConfigError, match=r"metrics\[1\].*'top_k_acc'.*metrics\[0\].*\"name\""):
        MetricTracker('loss', metrics=[top_k_acc, top_k_acc])
    with pytest.raises(ConfigError, match=r"metrics\[1\].*'MulticlassRecall'.*metrics\[0\]"):
        MetricTracker('loss', metrics=[recall(), recall(average='micro')])


@pytest.mark.parametrize('name', ['loss', 'epoch', 'val_loss', 'learning_rate'])
def test_metric_may_not_take_the_name_of_something_else(name):
    metric = named(lambda output, target: 0.0, name)
    with pytest.raises(ConfigError, match=rf"metrics\[0\] would be reported as '{name}'"):
        MetricTracker('loss', metrics=[metric])


def test_entries_of_vectors_and_dicts_may_not_take_the_name_of_something_else():
    tracker = MetricTracker(
        'loss', metrics=[as_dict, named(lambda output, target: 1.0, 'as_dict_one')]
    )
    with pytest.raises(ConfigError, match="'as_dict_one'"):
        measured(tracker)


# Values


def test_vectors_dicts_and_collections_are_reported_by_name():
    metrics = [
        of_each_class,
        as_dict,
        named(recall(average=None), 'recall'),
        named(collection(), 'both'),
        named(torchmetrics.ClasswiseWrapper(recall(average=None)), 'wise'),
    ]
    tracker = MetricTracker('loss', metrics=metrics, data=Named())
    values = measured(tracker)
    outputs, targets = map(torch.cat, zip(*batches()))
    expected = recall(average=None)(outputs, targets).tolist()
    by_class = tracker.by_class(values)
    assert by_class['recall'] == dict(zip(Named.class_names, expected))
    assert set(by_class) == {'recall', 'of_each_class'} and tracker.n_samples == len(targets)
    assert [values[f'recall_{name}'] for name in ('cat', 'dog', 'golden retriever')] == expected
    assert [values[f'wise_multiclassrecall_{index}'] for index in range(3)] == expected
    assert values['both_acc'] == classification.MulticlassAccuracy(N_CLASSES)(outputs, targets)
    assert values['both_f1'] == classification.MulticlassF1Score(N_CLASSES)(outputs, targets)
    exact = of_each_class(outputs, targets).tolist()
    assert [
        values[f'of_each_class_{name}'] for name in ('cat', 'dog', 'golden retriever')
    ] == pytest.approx(exact)
    assert values['as_dict_one'] == 0.5
    assert values['as_dict_two'] == pytest.approx(accuracy(outputs, targets).item())
    assert 'of_each_class_0' in measured(MetricTracker('loss', metrics=[of_each_class]))


@pytest.mark.parametrize('value', [torch.zeros(2, 2), None, 'good', [torch.zeros(2), 1], []])
def test_what_is_no_number_is_refused_in_one_line(value):
    with pytest.raises(ConfigError, match='metrics: odd gives neither a number'):
        measured(MetricTracker('loss', metrics=[named(lambda output, target: value, 'odd')]))


@pytest.mark.parametrize(
    'metric', [classification.MulticlassConfusionMatrix(3), classification.MulticlassROC(3)]
)
def test_pictures_are_no_metrics(metric):
    with pytest.raises(ConfigError, match='"pictures"'):
        measured(MetricTracker('loss', metrics=[named(metric, 'picture')]))


def test_top_k_of_more_classes_than_there_are_is_one_line():
    with pytest.raises(ConfigError, match='k = 5, and the model gives 3 scores'):
        top_k_acc(torch.zeros(2, 3), torch.zeros(2), k=5)


def test_binary_metrics_take_the_float_targets_of_the_loss_and_refuse_soft_ones():
    output, target = torch.tensor([[2.0], [-1.0], [1.0]]), torch.tensor([[1.0], [0.0], [0.0]])
    metric = named(classification.BinaryAccuracy(), 'accuracy')
    assert measured(MetricTracker('loss', metrics=[metric]), [(output[:, 0], target[:, 0])])[
        'accuracy'
    ] == pytest.approx(2 / 3)
    with pytest.raises(ConfigError, match='numbers between'):
        measured(MetricTracker('loss', metrics=[metric]), [(output[:, 0], target[:, 0] * 0.9)])
    later = [(output[:, 0], target[:, 0]), (output[:, 0], target[:, 0] * 0.9)]
    with pytest.raises(ConfigError, match='numbers between'):
        measured(MetricTracker('loss', metrics=[metric]), later)


@pytest.mark.parametrize(
    'metric, output, target',
    [
        (accuracy, (3, 3), (3, 3)),
        (accuracy, (4, 7, 5), (4, 7)),
        (accuracy, (3,), ()),
        (top_k_acc, (3, 3), (3, 3)),
        (binary_accuracy, (4, 1), (4,)),
        (binary_accuracy, (4,), (4, 1)),
    ],
)
def test_no_metric_of_ours_broadcasts(metric, output, target):
    with pytest.raises(ConfigError, match=r'wants targets of the shape \(.* not of \('):
        metric(torch.rand(output), torch.ones(target))


def test_binary_targets_may_be_minus_one_and_one():
    assert binary_accuracy(torch.tensor([2.0, -1.0]), torch.tensor([1.0, -1.0])) == 1


@pytest.mark.parametrize('ignored', [-100, 2])
@pytest.mark.parametrize('share', [accuracy, functools.partial(top_k_acc, k=2)])
def test_what_the_loss_ignores_counts_for_nothing_in_a_metric(share, ignored):
    given = [(output, target.clone()) for output, target in batches()]
    for number, (_, target) in enumerate(given):
        target[: 2 * number] = ignored
    given[1][1][:] = ignored
    tracker = MetricTracker(
        'loss',
        metrics=[named(functools.partial(share), 'share')],
        loss=torch.nn.CrossEntropyLoss(ignore_index=ignored),
    )
    outputs, targets = map(torch.cat, zip(*given))
    kept = targets != ignored
    expected = share(outputs[kept], targets[kept]).item()
    assert measured(tracker, given)['share'] == pytest.approx(expected)


def test_ignore_index_of_a_metric_of_ones_own_is_its_own():
    def rate(output, target, ignore_index=0):
        return (target[target != ignore_index] == 1).float().mean()

    targets = torch.cat([target for _, target in batches()])
    loss = torch.nn.CrossEntropyLoss(ignore_index=1)
    value = measured(MetricTracker('loss', metrics=[rate], loss=loss))['rate']
    assert value == pytest.approx((targets == 1).sum().item() / (targets > 0).sum().item())


def test_loss_that_was_read_is_measured_beside_torchmetrics():
    tracker = MetricTracker('loss', metrics=[recall(), accuracy])
    for output, target in batches():
        tracker.measure(F.cross_entropy(output, target).item(), output, target)
    result = measured(MetricTracker('loss', metrics=[recall(), accuracy]))
    assert tracker.result() == pytest.approx(result)


def test_batches_that_nobody_can_count_count_alike():
    tracker = MetricTracker('loss')
    for value in (1.0, 2.0):
        tracker.measure(torch.tensor(value), None, None)
    assert tracker.result() == {'loss': 1.5}
    with pytest.raises(ConfigError, match='expected one number for a batch'):
        tracker.measure(torch.ones(3), None, None)


def test_values_of_samples_are_refused_and_values_of_classes_are_not():
    def each(output, target):
        return output.argmax(1) == target

    with pytest.raises(ConfigError, match='each gives 7 values for a batch of so many samples'):
        measured(MetricTracker('loss', metrics=[each]))
    square = [(torch.randn(3, 3), torch.tensor([0, 1, 2]))]
    assert 'of_each_class_2' in measured(MetricTracker('loss', metrics=[of_each_class]), square)


class OfKind(classification.MulticlassF1Score):
    """A metric of one's own, of a part of the outputs."""

    def __init__(self):
        super().__init__(num_classes=N_CLASSES)

    def update(self, output, target):
        super().update(output['kind'], target['kind'])


@pytest.mark.parametrize('k', [-1, 0, 4])
def test_a_k_that_says_nothing_is_one_line(k):
    with pytest.raises(ConfigError, match=f'top_k_acc with k = {k}, and the model gives 3 scores'):
        top_k_acc(torch.rand(2, 3), torch.zeros(2).long(), k)


def test_what_torchmetrics_refuses_in_the_first_batch_is_one_line():
    tracker = MetricTracker(metrics=[classification.MulticlassAccuracy(5)])
    with pytest.raises(ConfigError, match=r'MulticlassAccuracy refuses a batch \(outputs: one Ten'):
        measured(tracker)


@pytest.mark.parametrize(
    'metric',
    [
        torchmetrics.Accuracy('multiclass', num_classes=3),
        torchmetrics.AUROC('multiclass', num_classes=3),
        torchmetrics.ClasswiseWrapper(recall(average=None)),
    ],
)
@pytest.mark.parametrize('dtype', [torch.float, torch.long])
def test_several_labels_a_sample_are_refused_where_one_is_wanted(metric, dtype):
    output, target = torch.randn(4, 3), torch.eye(3)[[0, 1, 2, 0]].to(dtype)
    tracker = MetricTracker('loss', metrics=[named(metric, 'm')])
    with pytest.raises(ConfigError, match=r'"task": "multilabel", "num_labels": 3}'):
        tracker.measure(torch.tensor(0.0), output, target)
    tracker.reset()
    if not isinstance(metric, classification.MulticlassAUROC):  # class numbers have that shape too
        tracker.measure(torch.tensor(0.0), torch.ones(2, 4).long(), torch.ones(2, 4).long())


def test_no_metric_takes_the_place_of_the_duration():
    with pytest.raises(ConfigError, match="would be reported as 'time'"):
        MetricTracker(metrics=[named(recall(), 'time')])


def test_outputs_and_targets_may_be_dicts_beside_torchmetrics():
    tracker = MetricTracker('loss', metrics=[named(OfKind(), 'f1')])
    for output, target in batches():
        loss = F.cross_entropy(output, target)
        tracker.measure(loss, {'kind': output.requires_grad_()}, {'kind': target})
    outputs, targets = map(torch.cat, zip(*batches()))
    expected = classification.MulticlassF1Score(num_classes=N_CLASSES)(outputs, targets)
    assert tracker.result()['f1'] == expected


class Looking(torchmetrics.Metric):
    """Notes in which batches it would look at the values that it is given."""

    validate_args, looked = True, []

    def update(self, output, target):
        self.looked.append(self.validate_args)

    def compute(self):
        return torch.zeros(())


@pytest.mark.parametrize('device, looked', [('cpu', [True] * 3), ('meta', [True, False, False])])
def test_torchmetrics_looks_at_values_on_a_gpu_in_the_first_batch(monkeypatch, device, looked):
    monkeypatch.setattr(Looking, 'looked', [])
    tracker = MetricTracker('loss', metrics=[named(Looking(), 'looking')])
    for output, target in itertools.islice(batches(), 3):
        tracker.measure(output.mean().to(device), output.to(device), target.to(device))
    assert Looking.looked == looked


@pytest.mark.parametrize('kind', ['tuple', 'dict'])
def test_parts_that_a_loss_gives_are_reported_beside_it(experiment, kind):
    def loss(output, target):
        first, second = F.nll_loss(output, target), output.square().mean()
        parts = {'fit': first, 'size': second}
        return (first + second, parts) if kind == 'tuple' else parts

    trainer = experiment.trainer(epochs=1)
    trainer.criterion = loss
    trainer.train()
    log = trainer.history[0]
    assert log['loss'] == pytest.approx(log['fit'] + log['size'])
    assert log['val_loss'] == pytest.approx(log['val_fit'] + log['val_size'])


# State


def stateful():
    return [
        of_each_class,
        accuracy,
        named(collection(), 'both'),
        named(classification.MulticlassAUROC(N_CLASSES), 'auroc'),
        named(torchmetrics.ClasswiseWrapper(recall(average=None)), 'wise'),
        named(recall(average='micro'), 'recall'),
    ]


@pytest.mark.parametrize('n_before', [0, 1, 2, 4])
def test_tracker_that_goes_on_equals_one_that_was_never_interrupted(n_before):
    given = list(batches())
    whole, first, second = (MetricTracker('loss', metrics=stateful()) for _ in range(3))
    expected = measured(whole, given)
    for output, target in given[:n_before]:
        first.measure(F.cross_entropy(output, target), output, target)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert measured(second, given[n_before:]) == expected


class Best(torchmetrics.MeanMetric):
    """Keeps what no add_state names."""

    best, seen = 0.0, ()

    def update(self, output, target):
        super().update(output)
        self.seen = [*self.seen, target.sum()]

    def compute(self):
        self.best = max(self.best, super().compute().item())
        return {'best': self.best, 'n': len(self.seen)}


@pytest.mark.parametrize('n_steps', [None, 7])
def test_what_outlives_a_reset_outlives_a_resume(experiment, n_steps):
    metrics = [
        named(torchmetrics.MinMaxMetric(classification.MulticlassAccuracy(2)), 'bounds'),
        named(Running(classification.MulticlassAccuracy(2), 3), 'running'),
        named(Best(), 'best'),
    ]
    whole = experiment.trainer(metrics=metrics, epochs=3)
    whole.train()
    first = experiment.trainer(metrics=metrics, epochs=2, max_steps=n_steps)
    first.train()
    last = first.checkpoint_dir / 'checkpoint-last.pth'
    resumed = experiment.trainer(last, metrics=metrics, epochs=3, max_steps=None)
    resumed.train()
    one, other = (trainer.history[-1] for trainer in (whole, resumed))
    names = [name for name in one if name.startswith(('bounds', 'val_b', 'running', 'best'))]
    assert len(names) > 8 and [one[name] for name in names] == [other[name] for name in names]


def test_no_predictions_of_a_finished_epoch_are_in_a_checkpoint(experiment):
    from armature.checkpoint import files as checkpoint

    metric = named(classification.MulticlassAUROC(2), 'auroc')
    trainer = experiment.trainer(metrics=[metric], epochs=1)
    trainer.train()
    parts = checkpoint.load(trainer.checkpoint_dir / 'checkpoint-last.pth')['parts']
    assert parts['train_metrics'] == parts['valid_metrics'] == {}
    stopped = experiment.trainer(metrics=[metric], epochs=1, max_steps=3)
    stopped.train()
    parts = checkpoint.load(stopped.checkpoint_dir / 'checkpoint-last.pth')['parts']
    assert len(torch.cat(parts['train_metrics']['stateful']['auroc']['preds'])) == 3 * BATCH_SIZE


# An epoch's result


def test_result_of_an_epoch_is_told_apart_into_numbers_and_the_rest():
    import numpy as np

    result = {
        'loss': torch.tensor(0.5),
        'one': np.float32(2),
        'list': torch.ones(1, 1),
        'metrics': np.array([0.25]),
        'confusion': np.zeros((3, 3)),
        'note': 'warm',
        'none': None,
    }
    averages, others = reported(result, [accuracy])
    assert averages == {'loss': 0.5, 'one': 2.0, 'list': 1.0, 'accuracy': 0.25}
    assert list(others) == ['confusion', 'note', 'none']


def test_values_stay_tensors_until_they_are_read():
    value = torch.ones((), requires_grad=True)
    assert numbers('a', value)['a'].requires_grad is False


def test_process_with_padding_alone_has_the_pictures_that_all_draw_together():
    tracker = MetricTracker('loss', pictures=['confusion_matrix'])
    tracker.batch = Batch(None, 2, share=Share(is_padding=True))
    tracker.measure(torch.tensor(1.0), torch.rand(2, 3), torch.tensor([0, 1]))
    with pytest.warns(UserWarning, match='before the ``update``'):
        assert list(tracker.pictures.draw()) == ['confusion_matrix']
    assert tracker.n_samples == 0


def test_states_of_each_process_of_an_earlier_version_are_read():
    tracker = MetricTracker(metrics=[torchmetrics.PearsonCorrCoef()])
    values = torch.rand(2, 8)
    tracker.measure(torch.tensor(0.0), *values)
    state = tracker.state_dict()
    (name,) = state['stateful']
    state['stateful'][name] = {'of each process': [dict(state['stateful'][name])]}
    other = MetricTracker(metrics=[torchmetrics.PearsonCorrCoef()])
    other.load_state_dict(state)
    for each in (tracker, other):
        each.measure(torch.tensor(0.0), *values.flip(0))
    assert other.result()[name] == tracker.result()[name]


def test_part_of_a_loss_that_is_called_loss_is_refused():
    tracker = MetricTracker('loss')
    with pytest.raises(ConfigError, match="'loss' is the loss of the trainer"):
        tracker.measure(
            {'loss': torch.tensor(1.0), 'other': torch.tensor(2.0)}, None, torch.ones(2)
        )


def test_class_156_of_small_integers_is_not_ignored():
    output = torch.eye(200)[[156, 3]]
    assert accuracy(output, torch.tensor([156, 3], dtype=torch.uint8)) == 1
