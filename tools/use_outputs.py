"""What a model's outputs say: classes by name with their probability, or numbers; without torch."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from armature.errors import DataError

# What an output (batch, ...) means, as the loss knows it: see tools/use_meaning.py.
CLASSES = 'classes'  # scores (batch, classes), of which one is right
LOGITS = 'logits'  # each number says yes above 0
PROBABILITIES = 'probabilities'  # each number is the probability of a yes
NUMBERS = 'numbers'


def by_task(output: Any) -> dict[str, Any]:
    """The outputs of a model by name: '' for its only one, numbers where it has a list of them."""
    tasks = {'': output}
    if isinstance(output, Mapping):
        tasks = dict(output)
    elif isinstance(output, (list, tuple)):
        tasks = {str(place): each for place, each in enumerate(output)}
    for name, each in tasks.items():
        if not hasattr(each, 'shape'):
            raise DataError(
                f'the output {name!r} of the model is a {type(each).__name__}: expected a tensor, '
                'or a dict or list of tensors'
            )
    return tasks


def check_rows(outputs: dict[str, Any], n_samples: int) -> None:
    """Refuse outputs that are not one row for each sample: which is whose, nobody knows."""
    for output in outputs.values():
        if output.shape[:1] != (n_samples,):
            raise DataError(
                f'the model gives {tuple(output.shape)} for a batch of {n_samples}: expected a row '
                'for each (squeeze() takes away the dimension of a batch of 1; write squeeze(1))'
            )


def answers(
    outputs: dict[str, np.ndarray],
    meanings: dict[str, str],
    class_names: list[str] | None = None,
    top: int = 1,
) -> list[dict[str, Any]]:
    """A row for each sample: prediction and probability (and those of the `top` classes), or value.

    outputs, meanings: by the name of the task, which stands before the columns when there is one.
    class_names: of the one task that has as many classes; of two, nobody knows which.
    """
    rows, named = [], []
    for task, output in outputs.items():
        n = output.shape[1] if output.ndim > 1 else 1
        is_named = meanings[task] != NUMBERS or len(outputs) == 1
        if is_named and class_names is not None and len(class_names) == _n(n, meanings[task]):
            named.append(task)
    for task, output in outputs.items():
        output = np.asarray(output, dtype=np.float64)
        output = output.reshape(-1, 1) if output.ndim == 1 else output  # (batch, numbers)
        if output.ndim != 2:
            raise DataError(
                f'the model gives {output.shape[1:]} numbers for each input, and a row holds a '
                'class or a few numbers: use load_run in a script of your own (docs/use.md)'
            )
        names = [str(number) for number in range(_n(output.shape[1], meanings[task]))]
        if named == [task]:
            names = list(class_names)
        with np.errstate(invalid='ignore'):
            found = _answers(output, meanings[task], names, top)
        prefix = f'{task}_' if task else ''
        found = [
            {f'{prefix}{name}': value for name, value in row.items()}
            if all(value == value for value in row.values())
            else {'error': 'the model gives nan, which is no number'}
            for row in found
        ]
        rows = [{**row, **more} for row, more in zip(rows, found)] if rows else found
    return rows


def _n(n: int, meaning: str) -> int:
    """How many classes n numbers tell of."""
    return 2 if n == 1 and meaning in (LOGITS, PROBABILITIES) else n


def _answers(output: np.ndarray, meaning: str, names: list[str], top: int) -> list[dict]:
    if meaning == LOGITS:
        output = 0.5 * (1 + np.tanh(output / 2))  # the sigmoid, without overflow
    if meaning == CLASSES:
        scores = np.exp(output - output.max(axis=1, keepdims=True))
        shares, order = scores / scores.sum(axis=1, keepdims=True), output
    elif meaning == NUMBERS and output.shape[1] == 1:
        return [{'value': value} for value in output[:, 0].tolist()]
    elif output.shape[1] > 1:  # several numbers, or a probability for each of several labels
        kind = 'value' if meaning == NUMBERS else 'probability'
        columns = [f'{kind}_{name}' for name in names]
        return [dict(zip(columns, row)) for row in output.tolist()]
    else:
        shares = order = np.concatenate([1 - output, output], axis=1)  # no, yes
    # As argmax does, the first of equal ones: metrics count that one.
    best = np.argsort(-order, axis=1, kind='stable')[:, : max(1, min(top, len(names)))]
    rows = []
    for places, row in zip(best.tolist(), shares.tolist()):
        found = {}
        for rank, place in enumerate(places, 1):
            number = f'_{rank}' if rank > 1 else ''
            found |= {f'prediction{number}': names[place], f'probability{number}': row[place]}
        rows.append(found)
    return rows


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """The row as JSON knows it: None for what is no number."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
