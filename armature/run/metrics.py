"""MetricTracker: averages by name, weighted by samples, gathered without waiting for the device."""

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from armature.batch import length, map_tensors
from armature.errors import ConfigError
from armature.processes import dist
from armature.step.loss_share import count_of, is_sum

OF_EACH = 'of each process'


class MetricTracker:
    """Weighted averages of the keys given at construction.

    `update` only keeps the value (a tensor stays where it is); values are read when somebody asks: `recent`, `avg`, `result`.
    Sums are taken in float64 in the order of the updates, so they do not depend on when they are read.

    writer: old style; each update is written to it at once, under the key.
    metrics: what `measure` computes: functions (output, target) -> mean over the samples, and objects with update, compute and
    reset (torchmetrics), which are copied and give one value over all batches. Each has a `__name__`.
    share: what dist.in_step says of the batch; one that is another process's is left out. Averages are over all processes, so all have
    to ask for them.
    skip_non_finite: leave out values that are nan or infinite, with their samples.
    loss: the loss that `measure` is given values of. A sum over samples is brought to their mean; a mean
    is weighted by what it divides by (its samples, or weights of classes); its `terms`, where it has
    any, are averaged too.
    """

    FOLD_AFTER = (
        1000  # values of a key kept before they are read anyway, to bound the memory they hold
    )

    def __init__(
        self,
        *keys: str,
        writer: Any = None,
        metrics: Iterable[Callable] = (),
        skip_non_finite: bool = False,
        loss: Any = None,
    ):
        self.writer = writer
        self.skip_non_finite = skip_non_finite
        self._functions = {
            metric.__name__: metric for metric in metrics if not hasattr(metric, 'compute')
        }
        self._stateful = {
            metric.__name__: copy.deepcopy(metric)
            for metric in metrics
            if hasattr(metric, 'compute')
        }
        for metric in self._stateful.values():
            metric.persistent(True)  # torchmetrics keeps its sums out of state_dict unless told to
            metric.dist_sync_fn = dist.gather_tensors
        self.share = dist.WHOLE
        self.loss_is_sum = loss is not None and is_sum(loss)
        self._count = length if loss is None else count_of(loss)
        self._loss = loss if hasattr(loss, 'terms') else None
        self._keys = [*keys, *(self._loss.names if self._loss else ()), *self._functions]
        self.reset()

    def reset(self) -> None:
        self._averages = {key: _Average() for key in self._keys}
        for metric in self._stateful.values():
            metric.reset()

    def measure(self, loss: torch.Tensor, output: Any, target: Any) -> None:
        """Update 'loss' and every one of `metrics` with a batch."""
        if self.share.is_borrowed:
            return
        n_samples = length(target)
        output = map_tensors(torch.Tensor.detach, output)
        losses = {'loss': loss} | (self._loss.terms if self._loss is not None else {})
        for name, value in losses.items():
            self.update(name, value / n_samples if self.loss_is_sum else value, self._count(target))
        for name, metric in self._functions.items():
            self.update(name, metric(output, target), n_samples)
        for metric in self._stateful.values():
            metric.to(output.device).update(output, target)

    def update(self, key: str, value: Any, n: Any = 1) -> None:
        """Add `value`, the mean over `n` samples: a number, a numpy scalar or a tensor with one element."""
        if self.share.is_borrowed:
            return
        if self.writer is not None:
            self.writer.add_scalar(key, value)
        if key not in self._averages:
            raise KeyError(
                f'no metric {key!r} here: this tracker was made for {", ".join(self._keys) or "no keys"}'
            )
        pending = self._averages[key].pending
        pending.append((value.detach() if isinstance(value, torch.Tensor) else value, n))
        if len(pending) >= self.FOLD_AFTER:
            self._fold()

    def avg(self, key: str) -> float:
        """Mean of `key` since the last reset; nan when it was never updated."""
        self._fold()
        return _mean(*dist.sums(self._averages[key].sums()[:2]))

    def result(self) -> dict[str, float]:
        """Mean of every key since the last reset, and the value of every stateful metric."""
        means = {key: _mean(*sums[:2]) for key, sums in self._sums().items()}
        for name, metric in self._stateful.items():
            means |= _numbers(name, metric.compute())
        return means

    def recent(self) -> dict[str, float]:
        """Mean of every key updated since the last call of `recent`."""
        recent = {key: sums[2:] for key, sums in self._sums().items()}
        for average in self._averages.values():
            average.recent_total, average.recent_count = 0.0, 0
        return {key: _mean(*sums) for key, sums in recent.items() if sums[1]}

    def _sums(self) -> dict[str, list[float]]:
        """[total, count, recent total, recent count] of each key, over all processes."""
        self._fold()
        flat = iter(
            dist.sums([number for average in self._averages.values() for number in average.sums()])
        )
        return {key: [next(flat) for _ in range(4)] for key in self._averages}

    def state_dict(self) -> dict:
        return {
            'averages': self._sums(),
            'stateful': {name: _state_of_all(metric) for name, metric in self._stateful.items()},
        }

    def load_state_dict(self, state: dict) -> None:
        """Take over the sums of the keys that both have."""
        self.reset()
        for name, metric in self._stateful.items():
            saved = copy.deepcopy(
                state['stateful'].get(name, {})
            )  # the next reset would empty the lists in it
            if OF_EACH in saved:
                if len(saved[OF_EACH]) != dist.n_processes():
                    raise ConfigError(
                        f'{name} can only go on in as many processes as it was measured in, {len(saved[OF_EACH])}'
                    )
                metric.load_state_dict(saved[OF_EACH][dist.rank()], strict=False)
            elif dist.is_main():
                metric.load_state_dict(saved, strict=False)
        for key in (
            self._averages.keys() & state['averages'].keys() if dist.is_main() else ()
        ):  # the sums are of all processes
            self._averages[key].load(state['averages'][key])

    def _fold(self) -> None:
        """Read the pending values in one transfer and add them to the sums."""
        given = [
            each for average in self._averages.values() for pair in average.pending for each in pair
        ]
        tensors = [
            each if each.dim() == 0 else each.reshape(())
            for each in given
            if isinstance(each, torch.Tensor)
        ]
        if (
            len({each.dtype for each in tensors}) > 1
        ):  # a bf16 loss must not round the number of its samples
            tensors = [
                each.to(torch.float32 if each.device.type == 'mps' else torch.float64)
                for each in tensors
            ]
        on_host = iter(torch.stack(tensors).tolist() if tensors else ())
        numbers = iter(
            [next(on_host) if isinstance(each, torch.Tensor) else float(each) for each in given]
        )
        for average in self._averages.values():
            read = [(next(numbers), next(numbers)) for _ in average.pending]
            average.add(
                [pair for pair in read if math.isfinite(pair[0])] if self.skip_non_finite else read
            )

    @property
    def _data(self):
        """Old style: the sums as a pandas table with the columns total, counts, average."""
        import pandas

        self._fold()
        rows = {
            key: (average.total, average.count, _mean(average.total, average.count))
            for key, average in self._averages.items()
        }
        return pandas.DataFrame.from_dict(
            rows, orient='index', columns=['total', 'counts', 'average']
        )


def _mean(total: float, count: float) -> float:
    return total / count if count else math.nan


def _state_of_all(metric: Any) -> dict:
    """The state that a torchmetrics metric would have in a single process; that of each when it cannot tell (Pearson's correlation)."""
    if dist.n_processes() > 1 and any(
        how is None and not isinstance(getattr(metric, name), list)
        for name, how in metric._reductions.items()
    ):
        return {OF_EACH: dist.gather(map_tensors(torch.Tensor.cpu, metric.state_dict()))}
    with metric.sync_context(dist_sync_fn=dist.gather_tensors):
        state = metric.state_dict()
    # what was a list of tensors has become their concatenation
    return {
        name: [value]
        if isinstance(getattr(metric, name, None), list) and not isinstance(value, list)
        else value
        for name, value in state.items()
    }


def _numbers(name: str, value: Any) -> dict[str, float]:
    """A stateful metric's value by name; a vector (a number for each class) has an entry for each."""
    if isinstance(value, torch.Tensor) and value.dim() == 1:
        return {f'{name}_{index}': each for index, each in enumerate(value.tolist())}
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return {name: float(value)}
    if isinstance(value, (int, float)):
        return {name: float(value)}
    raise ConfigError(
        f'metrics: {name} gives neither a number nor a list of numbers; for a picture say '
        '"trainer": {"pictures": ["confusion_matrix"]}'
    )


class _Average:
    """A weighted sum since the reset, another since it was last taken, and the values that nobody has read yet."""

    def __init__(self):
        self.pending = []
        self.total = self.recent_total = 0.0
        self.count = self.recent_count = 0

    def add(self, weighted: list[tuple[float, float]]) -> None:
        total, count, recent_total = self.total, self.count, self.recent_total
        for value, n in weighted:
            if n:  # the mean over nothing is nan, and counts for nothing
                total += value * n
                recent_total += value * n
                count += n
        self.recent_count += count - self.count
        self.total, self.count, self.recent_total = total, count, recent_total
        self.pending.clear()

    def sums(self) -> list[float]:
        return [self.total, self.count, self.recent_total, self.recent_count]

    def load(self, sums: list[float]) -> None:
        self.total, self.count, self.recent_total, self.recent_count = sums
