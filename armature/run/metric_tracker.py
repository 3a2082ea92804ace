"""Which values a run reports, under which names, and their averages."""

import copy
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from armature.batch import NO_BATCH, described, leaves, length, map_tensors
from armature.compare import first_difference
from armature.config.values import parameters, takes
from armature.errors import ConfigError
from armature.processes import dist
from armature.run.plots import Pictures
from armature.step.losses import total_and_terms
from armature.step.micro_batches import IGNORED, Reduction, weighted

RESERVED = (
    'epoch',
    'step',
    'seconds',
    'time',
    'lr',
    'learning_rate',
    'grad_norm',
    'samples_per_second',
)

# What is kept of each key: total and count since the reset, and since `recent` was last asked.
NOTHING = (0.0, 0, 0.0, 0)


class MetricTracker:
    """Averages over samples of the keys given at construction, and the values of `metrics`.

    `update` only keeps a value (a tensor stays where it is); values are read when somebody asks:
    `recent`, `avg`, `result`. Sums are taken in float64 in the order of the updates, so they do not
    depend on when they are read. They are over all processes, so all have to ask.

    writer: old style; each update is written to it at once, under the key.
    metrics: what `measure` computes: functions (output, target) -> mean over the samples, and
    objects of torchmetrics, which are copied and give one value over all batches. What gives a
    vector or a dict is reported as several values: NAME_CLASS, NAME_KEY. A function that takes an
    `ignore_index` gives the mean over the other targets; where that is torch's -100, it is given
    that of the loss.
    loss: where the losses given to `measure` come from: it knows whether they are means or sums,
    what a mean divides by, and which parts it has.
    skip_non_finite: leave out values that are nan or infinite, with their samples.
    data: the loader of what is measured; it knows the names of the classes, for vectors with a
    value for each, and may know that no target is ignored.
    pictures: kinds of armature/run/plots.py; `measure` gathers what `pictures.draw()` needs.
    """

    MOST_PENDING = 5000  # values kept before they are read anyway: bounds their memory

    def __init__(
        self,
        *keys: str,
        writer: Any = None,
        metrics: Iterable[Callable] = (),
        loss: Any = None,
        skip_non_finite: bool = False,
        data: Any = None,
        pictures: Iterable[str] | None = None,
    ):
        self.writer = writer
        self.skip_non_finite = skip_non_finite
        self.class_names = getattr(data, 'class_names', None)
        self.pictures = Pictures(pictures or (), self.class_names)
        self.batch = NO_BATCH  # the one that is due; see dist.in_step
        self._loss, self._reduction = loss, Reduction(loss, data)
        self._keys = keys
        self._owners = dict.fromkeys(RESERVED, 'what every run reports') | {
            key: f'the {key} of the trainer' for key in keys
        }
        self._functions, self._stateful = {}, {}
        for index, metric in enumerate(metrics):
            name = getattr(metric, '__name__', type(metric).__name__)
            self._claim(name, f'metrics[{index}]')
            if hasattr(metric, 'compute'):
                self._stateful[name] = _Stateful(name, metric)
            else:
                parameter = parameters(metric)[0].get('ignore_index')
                ignored = parameter and parameter.default
                if ignored == IGNORED:
                    ignored = None if self._reduction.is_whole else self._reduction.ignored
                    if ignored is not None or takes(parameter, type(None)):
                        metric = functools.partial(metric, ignore_index=ignored)
                self._functions[name] = metric, ignored
        self.reset()

    def _claim(self, name: str, owner: str) -> None:
        """Every name is reported by one owner, and once more with val_ for the validation data."""
        for taken in (name, f'val_{name}', name.removeprefix('val_')):
            other = self._owners.get(taken, owner)
            if other != owner:
                raise ConfigError(
                    f'{owner} would be reported as {name!r}, and {taken!r} is {other}: give it a '
                    'name of its own (of a metric: "metrics": [{"type": ..., "name": ...}])'
                )
        self._owners[name] = owner

    def reset(self) -> None:
        self.n_samples = 0  # that `measure` was given, in this process
        self._sums = {key: list(NOTHING) for key in self._keys}
        self._pending = []  # (key, value, number of samples), not read yet
        for metric in (*self._stateful.values(), self.pictures):
            metric.reset()

    def measure(self, loss: Any, output: Any, target: Any) -> None:
        """Update 'loss', its parts and every one of `metrics` with a batch."""
        if self.batch.share.is_padding:
            self.pictures.update(output, target, counts=False)  # all processes draw together
            return
        n_samples = self.batch.n_now or self.batch.n_samples or length(target) or 1
        self.n_samples += n_samples
        n_counted = self._reduction.count(target, n_samples)
        loss, parts = (loss, {}) if isinstance(loss, (int, float)) else total_and_terms(loss)
        if isinstance(loss, torch.Tensor) and loss.dim():
            loss = weighted(loss, 1.0)  # which refuses several numbers
        self._add('loss', loss / n_samples if self._reduction.is_sum else loss, n_counted)
        for name, value in (parts or getattr(self._loss, 'terms', {})).items():
            if name not in self._sums or name == 'loss':  # which the sum is called
                self._claim(name, f'the part {name} of the loss')
            self._add(name, value / n_samples if self._reduction.is_sum else value, n_counted)
        output = map_tensors(torch.Tensor.detach, output)
        is_first = self.n_samples == n_samples > 1
        for name, (metric, ignored) in self._functions.items():
            value, n_counted = metric(output, target), n_samples
            if isinstance(ignored, int) and isinstance(target, torch.Tensor):
                n_counted = (target.long() != ignored).sum()  # uint8 knows no -100
            if is_first:
                self._refuse_one_a_sample(name, value, output)
            self._add(name, value, n_counted)
        for metric in self._stateful.values():
            where = loss if isinstance(loss, torch.Tensor) else leaves(output)[0]
            metric.update(output, target, where.device)
        self.pictures.update(output, target)

    def _refuse_one_a_sample(self, name: str, value: Any, output: Any) -> None:
        if not isinstance(value, torch.Tensor) or value.shape != (self.n_samples,):
            return
        scores = output.shape[1:] if isinstance(output, torch.Tensor) else ()
        if len(value) not in (len(self.class_names or ()), *scores):  # a value for each class
            raise ConfigError(
                f'metrics: {name} gives {len(value)} values for a batch of so many samples: let '
                'it return their mean (or a dict, where they are no values of samples)'
            )

    def update(self, key: str, value: Any, n: Any = 1) -> None:
        """Add `value`, the mean over `n` samples: a number or a tensor with one element."""
        if self.batch.share.is_padding:
            return
        if self.writer is not None:
            self.writer.add_scalar(key, value)
        if key not in self._sums:
            known = ', '.join(self._keys)
            raise KeyError(f'no metric {key!r} here: this tracker was made for: {known}')
        self._add(key, value, n.reshape(()) if isinstance(n, torch.Tensor) else n)

    def _add(self, name: str, value: Any, n: Any) -> None:
        """Keep a value of one batch until somebody asks; several, when it is a vector or a dict."""
        if isinstance(value, torch.Tensor) and value.dim() == 0 and name in self._sums:
            self._pending.append((name, value.detach() if value.requires_grad else value, n))
        else:
            for each, number in numbers(name, value, self.class_names).items():
                if each not in self._sums:
                    self._claim(each, self._owners.get(name, f'the {name} of the trainer'))
                    self._sums[each] = list(NOTHING)
                self._pending.append((each, number, n))
        if len(self._pending) >= self.MOST_PENDING:
            self._read()

    def avg(self, key: str) -> float:
        """Mean of `key` since the last reset; nan when it was never updated."""
        return _mean(*self._sums_of_all()[key][:2])

    def result(self) -> dict[str, float]:
        """Mean of every key since the last reset, and the value of every stateful metric."""
        means = {key: _mean(*sums[:2]) for key, sums in self._sums_of_all().items()}
        for name, metric in self._stateful.items():
            for each, value in numbers(name, metric.compute(), self.class_names).items():
                self._claim(each, self._owners[name])
                means[each] = float(value)
        return means

    def by_class(self, result: dict[str, float]) -> dict[str, dict[str, float]]:
        """The metrics in a result that have a value for each class, as {name: {class: value}}."""
        found = {}
        for name in (*self._functions, *self._stateful):
            values = {each: result.get(f'{name}_{each}') for each in self.class_names or ()}
            if values and None not in values.values():
                found[name] = values
        return found

    def has_finite_loss(self) -> bool:
        """Whether the losses since the last reset add up to a number, over all processes."""
        return math.isfinite(self._sums_of_all().get('loss', [math.nan])[0])

    def recent(self) -> dict[str, float]:
        """Mean of every key updated since the last call of `recent`."""
        found = self._sums_of_all()
        for sums in self._sums.values():
            sums[2:] = 0.0, 0
        return {key: _mean(total, count) for key, (*_, total, count) in found.items() if count}

    def _sums_of_all(self) -> dict[str, list[float]]:
        """The sums of each key over all processes, of which one may not have met each key yet."""
        self._read()
        found = {}
        for of_one in dist.gather(self._sums):
            for key, sums in of_one.items():
                before = found.get(key, NOTHING)
                found[key] = [one + other for one, other in zip(before, sums)]
        return found

    def _read(self) -> None:
        """Add the pending values to the sums, after one transfer for each type and place."""
        given = [each for _, *pair in self._pending for each in pair]
        alike = {}
        for place, each in enumerate(given):
            if isinstance(each, torch.Tensor):
                alike.setdefault((each.dtype, each.device), []).append(place)
        for places in alike.values():
            values = torch.stack([given[place] for place in places])
            for place, value in zip(places, values.tolist()):
                given[place] = value
        for (key, *_), value, n in zip(self._pending, given[::2], given[1::2]):
            value, n = float(value), float(n)
            # The mean over nothing is nan, and counts for nothing.
            if n and (math.isfinite(value) or not self.skip_non_finite):
                sums = self._sums[key]
                sums[0] += value * n
                sums[1] += n
                sums[2] += value * n
                sums[3] += n
        self._pending.clear()

    def state_dict(self) -> dict:
        return {
            'averages': self._sums_of_all(),
            'stateful': {name: metric.state_dict() for name, metric in self._stateful.items()},
        }

    def lasting(self) -> dict:
        """The part of the state that a reset leaves."""
        found = {name: metric.lasting() for name, metric in self._stateful.items()}
        return {'stateful': found} if any(found.values()) else {}

    def load_state_dict(self, state: dict) -> None:
        """Take over the sums of the keys and metrics that both have."""
        self.reset()
        for name, metric in self._stateful.items():
            metric.load_state_dict(state.get('stateful', {}).get(name, {}))
        if dist.is_main():  # the sums are those of all processes
            self._sums |= {key: list(sums) for key, sums in state.get('averages', {}).items()}

    @property
    def _data(self):
        """Old style: the sums as a pandas table with the columns total, counts, average."""
        import pandas

        self._read()
        rows = {key: (*sums[:2], _mean(*sums[:2])) for key, sums in self._sums.items()}
        return pandas.DataFrame.from_dict(
            rows, orient='index', columns=['total', 'counts', 'average']
        )


class _Stateful:
    """A metric of torchmetrics (or a collection or wrapper of them), over all processes."""

    def __init__(self, name: str, metric: Any):
        # MetricTracker of torchmetrics is none: it wants an `increment` each epoch.
        if not hasattr(metric, 'named_modules') or hasattr(metric, 'increment'):
            raise ConfigError(
                f'metrics: {name} has compute() but is no torchmetrics.Metric: nothing could save '
                'its state inside an epoch. Make it one, or a function (output, target) -> mean'
            )
        self.name, self.metric, self._as_built = name, copy.deepcopy(metric), metric
        self._device, self._wants_classes, self._wants_one_class = None, False, False
        for part in self._parts().values():
            part.dist_sync_fn = dist.gather_tensors
            if type(part).__module__.startswith('torchmetrics.classification'):
                self._wants_classes = True
                self._wants_one_class |= type(part).__name__.startswith('Multiclass')

    def _parts(self) -> dict[str, Any]:
        """What holds state in it, by the prefix that it has in the names of a state_dict."""
        if hasattr(self.metric, 'compute_groups'):
            self.metric.values()  # members that share a state are given it only when asked for
        modules = self.metric.named_modules()
        return {path: part for path, part in modules if hasattr(part, 'sync_context')}

    def reset(self) -> None:
        self.metric.reset()
        self._n_soft = 0  # targets so far that are no classes; a 0-dim tensor where some were asked

    def update(self, output: Any, target: Any, device: torch.device) -> None:
        is_first = device != self._device
        if is_first:
            self.metric.to(device)
            self._device = device
        if self._wants_classes and isinstance(target, torch.Tensor) and target.is_floating_point():
            # Binary targets are floats for the loss; torchmetrics wants whole numbers.
            target, given = target.long(), target
            self._n_soft += (target != given).sum()
            if is_first:
                self._refuse_soft_targets()
        if is_first and self._wants_one_class:
            self._refuse_several_labels(output, target)
        try:
            self.metric.update(output, target)
        except (RuntimeError, ValueError) as error:
            if not is_first or not type(self.metric).__module__.startswith('torchmetrics'):
                raise
            reason = ' '.join(str(error).split())[:400]
            raise ConfigError(
                f'metrics: {self.name} refuses a batch (outputs: {described(output)}; targets: '
                f'{described(target)}): {reason} Look at its args, or leave it out'
            ) from error
        if is_first and device.type != 'cpu':
            for part in self._parts().values():  # looking at the arguments waits for the device
                part.validate_args = False

    def _refuse_soft_targets(self) -> None:
        """In the first batch and at the end: in each one it would wait for the device."""
        if self._n_soft:
            raise ConfigError(
                f'metrics: {self.name} wants classes, and the targets hold numbers between them: '
                'leave it out, or write a function (output, target) in model/metric.py'
            )

    def _refuse_several_labels(self, output: Any, target: Any) -> None:
        shape = getattr(output, 'shape', ())
        if len(shape) > 1 and shape == getattr(target, 'shape', ()) and output.is_floating_point():
            raise ConfigError(
                f'metrics: {self.name} wants one class number a sample, and the targets have the '
                f'shape of the outputs, {tuple(shape)}: say "args": {{"task": "multilabel", '
                f'"num_labels": {shape[1]}}} where a sample has several labels, else give numbers'
            )

    def compute(self) -> Any:
        self._refuse_soft_targets()
        return self.metric.compute()

    def state_dict(self) -> dict:
        """The state that it would have in a single process, by its parts' names.

        Where torchmetrics has no rule for that (Pearson's correlation), a tuple of those of each.
        """
        state = self.lasting()
        for path, part in self._parts().items():
            before = part.metric_state
            with part.sync_context(dist_sync_fn=dist.gather_tensors):
                together = part.metric_state
            for name, value in together.items():
                if isinstance(value, torch.Tensor):
                    if isinstance(before[name], list):  # whose tensors have become one
                        value = [value]
                    elif value.dim() > before[name].dim():
                        value = tuple(value)
                state[f'{path}.{name}' if path else name] = value
        return state

    def load_state_dict(self, state: dict) -> None:
        self._device = None
        if before := state.get('of each process'):  # as earlier versions have it
            state = {name: tuple(each[name] for each in before) for name in before[0]}
        parts = self._parts()
        for name, value in state.items():
            path, _, key = name.rpartition('.')
            if path not in parts:
                continue
            if isinstance(value, tuple):
                if len(value) != dist.n_processes():
                    raise ConfigError(
                        f'{self.name} can only go on in as many processes as it was measured in, '
                        f'{len(value)}'
                    )
                value = value[dist.rank()]
            elif key in parts[path]._defaults and not dist.is_main():
                continue
            # The next reset would empty the lists in it.
            setattr(parts[path], key, copy.deepcopy(value))

    def lasting(self) -> dict[str, Any]:
        """What its parts keep beside their states and have changed, as MinMaxMetric its bounds."""
        built = dict(self._as_built.named_modules())
        return {
            f'{path}.{name}' if path else name: value
            for path, part in self._parts().items()
            for name, value in vars(part).items()
            if type(value) in (int, float, list, torch.Tensor)
            and name not in (*part._defaults, '_update_count', '_computed')
            and first_difference(value, vars(built.get(path, part)).get(name))
        }


def _mean(total: float, count: float) -> float:
    return total / count if count else math.nan


def numbers(name: str, value: Any, class_names: list[str] | None = None) -> dict[str, Any]:
    """The numbers in a metric's value: one, or one for each class, or one for each key of a dict.

    They stay 0-dim tensors on their device.
    """
    if isinstance(value, Mapping):
        found = {}
        for key, part in value.items():
            found |= numbers(f'{name}_{key}', part, class_names)
        return found
    try:
        value = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError):
        value = torch.empty(0)
    if value.numel() == 1:
        return {name: value.reshape(())}
    if value.dim() != 1 or not len(value):
        raise ConfigError(
            f'metrics: {name} gives neither a number nor a list or dict of numbers; for a picture '
            'say "trainer": {"pictures": ["confusion_matrix"]}'
        )
    of = class_names if class_names and len(class_names) == len(value) else range(len(value))
    return {f'{name}_{each}': part for each, part in zip(of, value)}


def reported(result: Mapping, metrics: Iterable[Callable]) -> tuple[dict[str, float], dict]:
    """What an epoch of any trainer returned: its numbers by name, and whatever else it holds.

    A list under 'metrics' or 'val_metrics' (early trainers) has an entry a metric function.
    """
    averages, others = {}, {}
    for name, value in result.items():
        if name in ('metrics', 'val_metrics'):
            for metric, each in zip(metrics, value):
                averages[f'{name[:-7]}{metric.__name__}'] = float(each)
            continue
        try:
            averages[name] = value if type(value) in (int, float) else value.item()
        except (AttributeError, ValueError, RuntimeError):
            others[name] = value
    return averages, others
