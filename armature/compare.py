"""Where two nested states differ, bit for bit."""

from typing import Any

import torch


def first_difference(one: Any, other: Any, where: str = '') -> str:
    """The name of the first place where two nests of dicts, lists and tensors differ, such as
    'optimizer.state.0.step'; or ''.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            place = f'{where}.{key}' if where else str(key)
            different = (
                first_difference(one[key], other[key], place)
                if key in one and key in other
                else place
            )
            if different:
                return different
        return ''
    if (
        isinstance(one, (list, tuple))
        and isinstance(other, (list, tuple))
        and len(one) == len(other)
    ):
        pairs = enumerate(zip(one, other))
        return next(
            filter(None, (first_difference(*pair, f'{where}.{index}') for index, pair in pairs)), ''
        )
    equal = (
        torch.equal(one, other)
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
        else one == other
    )
    return '' if equal else where or 'everything'
