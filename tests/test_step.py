"""Laws of the training step, against a plain loop."""

import itertools

import pytest
import torch
from torch import nn

from armature.batch import CannotCut, cut, map_tensors
from armature.errors import ConfigError
from armature.processes import dist
from armature.run.monitor import Monitor
from armature.step.schedule import Schedule
from base.stepper import Stepper


def make(seed=0, n_samples=8):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    return (
        model,
        torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9),
        (torch.randn(n_samples, 5), torch.randint(3, (n_samples,))),
    )


def train(stepper, model, batch, n_steps=3):
    for _ in range(n_steps):
        for data, target in stepper.micro_batches(batch):
            with stepper.autocast():
                loss = nn.functional.cross_entropy(model(data), target)
            stepper.backward(loss)
        stepper.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def by_hand(model, optimizer, batch, n_steps=3, max_norm=None):
    for _ in range(n_steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_step_equals_the_hand_written_one():
    model, optimizer, batch = make()
    expected = by_hand(*make())
    assert all(map(torch.equal, train(Stepper(optimizer), model, batch), expected))


@pytest.mark.parametrize('n_samples, microbatch_size', [(8, 4), (7, 4), (3, 8), (1, 1)])
def test_micro_batches_change_the_result_by_rounding_only(n_samples, microbatch_size):
    model, optimizer, batch = make(n_samples=n_samples)
    expected = by_hand(*make(n_samples=n_samples))
    stepper = Stepper(optimizer, microbatch_size=microbatch_size)
    assert [len(data) for data, _ in stepper.micro_batches(batch)] == [
        min(microbatch_size, n_samples - start) for start in range(0, n_samples, microbatch_size)
    ]
    for mine, other in zip(train(stepper, model, batch), expected):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_clipping_equals_the_hand_written_one():
    model, optimizer, batch = make()
    expected = by_hand(*make(), max_norm=0.1)
    assert all(
        map(torch.equal, train(Stepper(optimizer, max_grad_norm=0.1), model, batch), expected)
    )


def test_bf16_equals_the_hand_written_one():
    model, optimizer, batch = make()
    result = train(Stepper(optimizer, precision='bf16'), model, batch)
    model, optimizer, batch = make()
    for _ in range(3):
        with torch.autocast('cpu', torch.bfloat16):
            loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(map(torch.equal, result, model.parameters()))


@pytest.mark.parametrize(
    'options, microbatch_size',
    [
        ({}, None),
        ({'line_search_fn': 'strong_wolfe'}, None),
        ({'max_iter': 1}, None),
        ({}, 3),
        ({'max_iter': 1}, 3),
    ],
)
def test_optimizer_with_a_closure_takes_the_same_step(options, microbatch_size):
    model, _, batch = make()
    stepper = Stepper(
        torch.optim.LBFGS(model.parameters(), lr=0.1, **options),
        microbatch_size=microbatch_size,
        model=model,
        criterion=nn.functional.cross_entropy,
    )
    n_steps = 3 if microbatch_size is None else 1  # twenty evaluations a step magnify rounding
    result = train(stepper, model, batch, n_steps)

    model, _, batch = make()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, **options)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    for _ in range(n_steps):
        optimizer.step(closure)
    for mine, other in zip(result, model.parameters()):
        torch.testing.assert_close(
            mine,
            other.detach(),
            rtol=0 if microbatch_size is None else 1e-3,
            atol=0 if microbatch_size is None else 1e-4,
        )


def test_one_batch_is_one_step_of_the_schedule_whatever_the_micro_batches():
    model, optimizer, batch = make(n_samples=7)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    train(
        Stepper(optimizer, Schedule(scheduler, 'step'), microbatch_size=2), model, batch, n_steps=3
    )
    assert optimizer.param_groups[0]['lr'] == pytest.approx(0.5**4)


def test_a_size_is_not_tried_where_the_others_would_wait(monkeypatch):
    monkeypatch.setattr(dist, 'n_processes', lambda: 2)
    model = nn.SyncBatchNorm(4)
    with pytest.raises(ConfigError, match='"auto", and a process .*SyncBatchNorm: say a number'):
        Stepper(
            torch.optim.SGD(model.parameters(), lr=0.1),
            microbatch_size='auto',
            model=model,
            criterion=nn.functional.cross_entropy,
        )


def test_schedule_per_epoch_ignores_steps_and_the_other_way_round():
    for interval, expected in (('epoch', 1), ('step', 2)):
        _, optimizer, _ = make()
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        optimizer.step()
        schedule = Schedule(scheduler, interval)
        schedule.step()
        schedule.step()
        schedule.end_epoch({})
        assert scheduler.last_epoch == expected


@pytest.mark.parametrize('rule', ['', 'minimum loss', 'min', 'off val_loss', 'max '])
def test_monitor_refuses_what_is_no_rule(rule):
    with pytest.raises(ConfigError, match='trainer.monitor'):
        Monitor(rule)


@pytest.mark.parametrize(
    'rule, values, improved',
    [
        ('min x', [3, 2, 2, float('nan'), 1], [True, True, False, False, True]),
        ('max x', [3, 2, 3, 4, 4], [True, False, False, True, False]),
        ('off', [3, 2], [False, False]),
    ],
)
def test_monitor_counts_only_what_is_better(rule, values, improved):
    monitor = Monitor(rule, early_stop=2)
    assert [monitor.update({'x': value}) for value in values] == improved
    other = Monitor(rule, early_stop=2)
    other.load_state_dict(monitor.state_dict())
    assert vars(other) == vars(monitor)


def test_batches_of_every_shape_are_split_and_measured():
    from collections import namedtuple
    from dataclasses import dataclass

    Pair = namedtuple('Pair', 'left right')

    @dataclass
    class Record:
        data: torch.Tensor
        name: str

    batch = {
        'a': torch.arange(5),
        'b': [Pair(torch.arange(5), list('texts')), Record(torch.arange(10).view(5, 2), 'x' * 5)],
    }
    with pytest.raises(CannotCut, match="str 'xxxxx'"):
        cut(batch, 5, slice(0, 2))
    batch['b'][1].name = tuple('names')
    parts = [cut(batch, 5, slice(start, start + 2)) for start in (0, 2, 4)]
    assert [len(part['a']) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part['b'][1].data for part in parts]), batch['b'][1].data)
    assert parts[1]['b'][0].right == ['x', 't'] and isinstance(parts[0]['b'][0], Pair)
    doubled = map_tensors(lambda tensor: tensor * 2, batch)
    assert doubled['a'].tolist() == [0, 2, 4, 6, 8] and batch['a'].tolist() == list(range(5))


def test_keys_are_stable_and_distinct():
    from armature.seed import key

    assert key(1, 'order', 2) == 2250116526275059154
    keys = {key(*parts) for parts in itertools.product(range(20), ('order', 'sample'), range(20))}
    assert len(keys) == 800 and all(0 <= number < 2**63 for number in keys)
