"""Where two nested states differ, bit for bit."""

from collections.abc import Iterator
from typing import Any

import torch

ABSENT = object()  # the value of an entry that only the other one has


def differences(one: Any, other: Any, where: str = '') -> Iterator[tuple[str, Any, Any]]:
    """(place, value, other value) wherever two nests of dicts, lists and tensors differ.

    A place is written such as 'optimizer.state.0.step'.
    """
    are_lists = isinstance(one, list | tuple) and isinstance(other, list | tuple)
    if are_lists and len(one) == len(other):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            place = f'{where}.{key}' if where else str(key)
            yield from differences(one.get(key, ABSENT), other.get(key, ABSENT), place)
        return
    are_tensors = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    if not (torch.equal(one, other.to(one.device)) if are_tensors else one == other):
        yield where or 'everything', one, other


def first_difference(one: Any, other: Any) -> str:
    """The first place where two nests differ, or ''."""
    return next((place for place, *_ in differences(one, other)), '')
