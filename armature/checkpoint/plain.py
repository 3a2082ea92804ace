"""What may stand in a checkpoint: tensors, dicts, lists, tuples, sets, strings and numbers."""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armature.errors import CheckpointError

MAX_DEPTH = 100
LEAVES = {bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.Size}
ROWS = {list, tuple, set}


def mapped(value: Any, convert: Callable[[Any, str], Any], where: str = '', depth: int = 0) -> Any:
    """A copy of nested dicts and ROWS, with convert(value, place) instead of each value.

    What comes out of `convert` is gone into in its turn. A place is written such as
    'optimizer.state.0.step'. All dicts but a Counter become plain ones.
    """
    if depth > MAX_DEPTH:
        raise CheckpointError(f'{where[:60]}... is nested too deeply, or contains itself')

    def inner(each, name):
        return mapped(each, convert, f'{where}.{name}'.lstrip('.'), depth + 1)

    value = convert(value, where)
    if isinstance(value, dict):
        plain = {inner(key, 'key'): inner(each, key) for key, each in value.items()}
        return Counter(plain) if type(value) is Counter else plain
    if type(value) in ROWS:
        if {*map(type, value)} <= {int, float}:  # as the states of generators are, by the thousand
            return type(value)(value)
        return type(value)([inner(each, index) for index, each in enumerate(value)])
    return value


def to_plain(value: Any) -> Any:
    """A copy of `value` in what may stand in a checkpoint.

    numpy's numbers and arrays become numbers and tensors, a Path a string, an OrderedDict a dict. A
    tensor that shows a part of a bigger one leaves the rest behind. A CheckpointError names what is
    none of these.
    """
    return mapped(value, _plain)


def _plain(value, where):
    if isinstance(value, np.generic):
        value = value.item()
    elif isinstance(value, np.ndarray):
        with suppress(TypeError, ValueError):  # of something else than our numbers
            value = torch.from_numpy(value.copy())
    elif isinstance(value, Path):
        value = str(value)
    kind = type(value)
    if kind in (torch.Tensor, torch.nn.Parameter):
        value = value.detach()
        if value.layout == torch.sparse_coo:
            return value
        if value.layout == torch.strided:
            is_whole = value.nbytes == value.untyped_storage().nbytes()
            return value if is_whole else value.clone()
    if isinstance(value, dict) or kind in LEAVES | ROWS:
        return value
    raise CheckpointError(
        f'the state cannot be saved: {where or "it"} is a {kind.__module__}.{kind.__qualname__}; '
        'keep numbers, strings, tensors, lists or dicts there'
    )
