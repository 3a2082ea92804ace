"""Where two nested states differ, bit for bit."""

from collections.abc import Iterator
from typing import Any

import torch

ABSENT = object()  # the value of an entry that only the other one has


def differences(one: Any, other: Any, where: str = '') -> Iterator[tuple[str, Any, Any]]:
    """(place, value, other value) wherever two nests of dicts, lists and tensors differ.

    A place is written such as 'optimizer.state.0.step'.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        inner = [(key, one.get(key, ABSENT), other.get(key, ABSENT)) for key in {**one, **other}]
    elif (
        isinstance(one, (list, tuple))
        and isinstance(other, (list, tuple))
        and len(one) == len(other)
    ):
        inner = [(index, *pair) for index, pair in enumerate(zip(one, other))]
    else:
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            are_equal = torch.equal(one, other)
        else:
            are_equal = one == other
        if not are_equal:
            yield where or 'everything', one, other
        return
    for name, *pair in inner:
        yield from differences(*pair, f'{where}.{name}' if where else str(name))


def first_difference(one: Any, other: Any) -> str:
    """The first place where two nests differ, or ''."""
    return next((place for place, *_ in differences(one, other)), '')
