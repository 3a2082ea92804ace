"""Which values a run reports, under which names, and their averages."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from armature.batch import NO_BATCH, length, map_tensors
from armature.errors import ConfigError
from armature.processes import dist
from armature.step.loss_share import count_of, is_sum, total_and_parts

OF_EACH = 'of each process'
RESERVED = ('epoch', 'step', 'seconds', 'lr', 'learning_rate', 'grad_norm', 'samples_per_second')


class MetricTracker:
    """Averages over samples of the keys given at construction, and the values of `metrics`.

    `update` only keeps a value (a tensor stays where it is); values are read when somebody asks:
    `recent`, `avg`, `result`. Sums are taken in float64 in the order of the updates, so they do not
    depend on when they are read. They are over all processes, so all have to ask.

    writer: old style; each update is written to it at once, under the key.
    metrics: what `measure` computes: functions (output, target) -> mean over the samples, and
    objects of torchmetrics, which are copied and give one value over all batches. What gives a
    vector or a dict is reported as several values: NAME_CLASS, NAME_KEY.
    loss: where the losses given to `measure` come from: it knows whether they are means or sums,
    what a mean divides by, and which parts it has.
    skip_non_finite: leave out values that are nan or infinite, with their samples.
    data: the loader of what is measured; it knows the names of the classes, for vectors with a
    value for each, and may know that no target is ignored.
    """

    FOLD_AFTER = 1000  # values of a key kept before they are read anyway: bounds their memory

    def __init__(
        self,
        *keys: str,
        writer: Any = None,
        metrics: Iterable[Callable] = (),
        loss: Any = None,
        skip_non_finite: bool = False,
        data: Any = None,
    ):
        self.writer = writer
        self.skip_non_finite = skip_non_finite
        self.class_names = getattr(data, 'class_names', None)
        self.batch = NO_BATCH  # the one that is due; see dist.in_step
        self._loss, self._loss_is_sum, self._count = loss, is_sum(loss), count_of(loss, data)
        self._keys = list(dict.fromkeys(keys))
        self._owners = dict.fromkeys(RESERVED, 'what every run reports') | {
            key: f'the {key} of the trainer' for key in keys
        }
        for name in getattr(loss, 'names', ()):
            self._claim(name, f'the part {name} of the loss')
        self._functions, self._stateful = {}, {}
        for index, metric in enumerate(metrics):
            name = getattr(metric, '__name__', type(metric).__name__)
            self._claim(name, f'metrics[{index}]')
            if hasattr(metric, 'compute'):
                self._stateful[name] = _Stateful(name, metric)
            else:
                self._functions[name] = metric
        self.reset()

    def _claim(self, name: str, owner: str) -> None:
        """Every name is reported by one owner, and once more with val_ for the validation data."""
        for taken in (name, f'val_{name}', name.removeprefix('val_')):
            other = self._owners.get(taken, owner)
            if other != owner:
                raise ConfigError(
                    f'{owner} would be reported as {name!r}, and {taken!r} is {other}: give it a '
                    'name of its own, as in "metrics": [{"type": ..., "name": ...}]'
                )
        self._owners[name] = owner

    def reset(self) -> None:
        self.n_samples = 0  # that `measure` was given, in this process
        self._averages = {key: _Average() for key in self._keys}
        self._shared = []  # the keys that all processes are known to have, in one order
        for metric in self._stateful.values():
            metric.reset()

    def measure(self, loss: Any, output: Any, target: Any) -> None:
        """Update 'loss', its parts and every one of `metrics` with a batch."""
        if self.batch.share.is_padding:
            return
        n_samples = self.batch.n_now or self.batch.n_samples or length(target)
        self.n_samples += n_samples
        n_counted = n_samples if self._count is length else self._count(target)
        loss, parts = total_and_parts(loss)
        mean = loss / n_samples if self._loss_is_sum else loss
        self._add('loss', 'the loss', mean, n_counted)
        for name, value in (parts or getattr(self._loss, 'terms', {})).items():
            value = value / n_samples if self._loss_is_sum else value
            self._add(name, f'the part {name} of the loss', value, n_counted)
        if isinstance(output, torch.Tensor):
            output = output.detach()
        else:
            output = map_tensors(torch.Tensor.detach, output)
        for name, metric in self._functions.items():
            self._add(name, self._owners[name], metric(output, target), n_samples)
        for metric in self._stateful.values():
            metric.update(output, target, loss.device)

    def update(self, key: str, value: Any, n: Any = 1) -> None:
        """Add `value`, the mean over `n` samples: a number or a tensor with one element."""
        if self.batch.share.is_padding:
            return
        if self.writer is not None:
            self.writer.add_scalar(key, value)
        if key not in self._averages:
            known = ', '.join(self._keys) or 'no keys'
            raise KeyError(f'no metric {key!r} here: this tracker was made for {known}')
        self._add(key, self._owners[key], value, n)

    def _add(self, name: str, owner: str, value: Any, n: Any) -> None:
        """Keep a value of one batch until somebody asks; several, when it is a vector or a dict."""
        if isinstance(value, torch.Tensor) and value.dim() == 0:
            average = self._averages.get(name)
            if average is not None:
                average.pending.append((value.detach() if value.requires_grad else value, n))
                if len(average.pending) >= self.FOLD_AFTER:
                    self._fold()
                return
        for each, number in numbers(name, value, self.class_names).items():
            if each not in self._averages:
                self._claim(each, owner)
                self._averages[each] = _Average()
            self._averages[each].pending.append((number, n))

    def avg(self, key: str) -> float:
        """Mean of `key` since the last reset; nan when it was never updated."""
        self._fold()
        return _mean(*dist.sums(self._averages[key].sums[:2]))

    def result(self) -> dict[str, float]:
        """Mean of every key since the last reset, and the value of every stateful metric."""
        means = {key: _mean(*sums[:2]) for key, sums in self._sums().items()}
        for name, metric in self._stateful.items():
            for each, value in numbers(name, metric.compute(), self.class_names).items():
                self._claim(each, self._owners[name])
                means[each] = float(value)
        return means

    def by_class(self, result: dict[str, float]) -> dict[str, dict[str, float]]:
        """The metrics in a result that have a value for each class, as {name: {class: value}}."""
        found = {}
        for name in (*self._functions, *self._stateful):
            keys = {each: f'{name}_{each}' for each in self.class_names or ()}
            if keys and result.keys() >= set(keys.values()):
                found[name] = {each: result[key] for each, key in keys.items()}
        return found

    def recent(self) -> dict[str, float]:
        """Mean of every key updated since the last call of `recent`."""
        recent = {key: sums[2:] for key, sums in self._sums().items()}
        for average in self._averages.values():
            average.sums[2:] = 0.0, 0
        return {key: _mean(*sums) for key, sums in recent.items() if sums[1]}

    def _sums(self) -> dict[str, list[float]]:
        """[total, count, recent total, recent count] of each key, over all processes."""
        self._fold()
        averages = [self._averages.setdefault(key, _Average()) for key in self._shared]
        numbers_of = [number for average in averages for number in average.sums]
        *found, n_others = dist.sums([*numbers_of, len(self._averages) - len(averages)])
        if n_others:
            # One that had no sample yet has not seen which parts a vector or a dict has.
            keys = (key for keys in dist.gather(list(self._averages)) for key in keys)
            self._shared = list(dict.fromkeys(keys))
            return self._sums()
        found = iter(found)
        return {key: [next(found) for _ in range(4)] for key in self._shared}

    def state_dict(self) -> dict:
        return {
            'averages': self._sums(),
            'stateful': {name: metric.state_dict() for name, metric in self._stateful.items()},
        }

    def load_state_dict(self, state: dict) -> None:
        """Take over the sums of the keys and metrics that both have."""
        self.reset()
        for name, metric in self._stateful.items():
            metric.load_state_dict(state.get('stateful', {}).get(name, {}))
        if dist.is_main():  # the sums are those of all processes
            for key, sums in state.get('averages', {}).items():
                self._averages.setdefault(key, _Average()).sums = list(sums)

    def _fold(self) -> None:
        """Read the pending values, in one transfer for each type and place, into the sums."""
        averages = self._averages.values()
        given = [each for average in averages for pair in average.pending for each in pair]
        alike = {}
        for place, each in enumerate(given):
            if isinstance(each, torch.Tensor):
                alike.setdefault((each.dtype, each.device), []).append(place)
        for places in alike.values():
            tensors = [given[place] for place in places]
            values = torch.stack([each.reshape(()) if each.dim() else each for each in tensors])
            for place, value in zip(places, values.tolist()):
                given[place] = value
        read = map(float, given)
        for average in averages:
            average.add([(next(read), next(read)) for _ in average.pending], self.skip_non_finite)

    @property
    def _data(self):
        """Old style: the sums as a pandas table with the columns total, counts, average."""
        import pandas

        self._fold()
        rows = {
            key: (*average.sums[:2], _mean(*average.sums[:2]))
            for key, average in self._averages.items()
        }
        return pandas.DataFrame.from_dict(
            rows, orient='index', columns=['total', 'counts', 'average']
        )


class _Average:
    """A weighted sum since the reset, another since it was last taken, and values not yet read."""

    def __init__(self):
        self.pending = []
        self.sums = [0.0, 0, 0.0, 0]  # total and count of both

    def add(self, weighted: list[tuple[float, float]], skip_non_finite: bool) -> None:
        for value, n in weighted:
            # The mean over nothing is nan, and counts for nothing.
            if n and (math.isfinite(value) or not skip_non_finite):
                more = (value * n, n) * 2
                self.sums = [total + each for total, each in zip(self.sums, more)]
        self.pending.clear()


class _Stateful:
    """A metric of torchmetrics (or a collection or wrapper of them), over all processes."""

    def __init__(self, name: str, metric: Any):
        if not hasattr(metric, 'named_modules'):
            raise ConfigError(
                f'metrics: {name} has compute() but is no torchmetrics.Metric: nothing could save '
                'its state inside an epoch. Make it one, or a function (output, target) -> mean'
            )
        self.name, self.metric = name, copy.deepcopy(metric)
        self._device, self._n_soft = None, 0
        self._wants_classes = any(
            type(part).__module__.startswith('torchmetrics.classification')
            for part in self._parts().values()
        )
        for part in self._parts().values():
            part.dist_sync_fn = dist.gather_tensors

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
            target = self._as_classes(target)
            if is_first:
                self._refuse_soft_targets()
        self.metric.update(output, target)
        if is_first and device.type != 'cpu':
            for part in self._parts().values():  # looking at the arguments waits for the device
                part.validate_args = False

    def _as_classes(self, target: torch.Tensor) -> torch.Tensor:
        """Binary targets are floats for the loss; torchmetrics wants whole numbers."""
        classes = target.long()
        self._n_soft += (classes != target).sum()
        return classes

    def _refuse_soft_targets(self) -> None:
        """In the first batch and at the end: in each one it would wait for the device."""
        if self._n_soft:
            raise ConfigError(
                f'metrics: {self.name} wants classes, and the targets hold numbers between them: '
                'leave it out, or write a function (output, target) in model/metric.py'
            )

    def compute(self) -> Any:
        self._refuse_soft_targets()
        return self.metric.compute()

    def state_dict(self) -> dict:
        """The state that it would have in a single process; that of each when it cannot tell."""
        parts, state = self._parts(), {}
        if dist.n_processes() > 1 and any(map(_cannot_be_merged, parts.values())):
            for path, part in parts.items():
                state |= _named(path, part.metric_state)
            return {OF_EACH: dist.gather(map_tensors(torch.Tensor.cpu, state))}
        for path, part in parts.items():
            with part.sync_context(dist_sync_fn=dist.gather_tensors):
                merged = dict(part.metric_state)
            for name, value in merged.items():
                # What was a list of tensors has become their concatenation.
                was_list = isinstance(getattr(part, name), list)
                merged[name] = [value] if was_list and not isinstance(value, list) else value
            state |= _named(path, merged)
        return state

    def load_state_dict(self, state: dict) -> None:
        self._device = None
        if OF_EACH in state:
            if len(state[OF_EACH]) != dist.n_processes():
                raise ConfigError(
                    f'{self.name} can only go on in as many processes as it was measured in, '
                    f'{len(state[OF_EACH])}'
                )
            state = state[OF_EACH][dist.rank()]
        elif not dist.is_main():
            return
        # A copy: the next reset would empty the lists in it.
        self.metric.load_state_dict(copy.deepcopy(state), strict=False)


def _cannot_be_merged(part: Any) -> bool:
    """Whether torchmetrics has no rule how one state comes of several (Pearson's correlation)."""
    return any(
        how is None and not isinstance(getattr(part, name), list)
        for name, how in part._reductions.items()
    )


def _named(path: str, state: dict) -> dict:
    return {f'{path}.{name}' if path else name: value for name, value in state.items()}


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
        value = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        value = torch.empty(0)
    if value.numel() == 1:
        return {name: value.detach().reshape(())}
    if value.dim() != 1 or not len(value):
        raise ConfigError(
            f'metrics: {name} gives neither a number nor a list or dict of numbers; for a picture '
            'say "trainer": {"pictures": ["confusion_matrix"]}'
        )
    of = class_names if class_names and len(class_names) == len(value) else range(len(value))
    return {f'{name}_{each}': part for each, part in zip(of, value.detach().unbind())}


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
