"""What passes from a loader to a training step: batches, how many samples they hold, their parts.

The contract:

- Iterating a loader gives the contents of whole batches, as torch's loaders do. A content is a
  tensor, or lists, tuples, dicts, named tuples and dataclasses of contents; anything else in it
  stays as it is, and moves to the device by its own `.to` where it has one.
- `batches()` of our loaders gives the same contents, each in a `Batch`: with what the loader knows
  because it made it. `armature.data.order.first_pass(loader)` does so for any loader.
- `BaseTrainer.batches(epoch)` (and `armature.data.order.one_pass`, without steps) gives the
  contents, and sets `.batch` of each stepper and tracker to the Batch that is due. So nobody takes
  the length of some tensor for the number of samples.
- `Stepper.micro_batches(content)` takes a batch apart. When each leaf has a row for each sample,
  the content is cut, and padding stays that of the whole batch. Else the loader collates the
  samples of each part anew, where it can; else it is an error.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import PackedSequence

from armature.errors import ConfigError, DataError


class Share(NamedTuple):
    """What a process has of the batch that all of them are at."""

    weight: float = 1.0  # of the loss over it in the mean over processes; 1 when all have the same
    is_padding: bool = False  # samples of another process, to keep in step with it
    largest: int = 0  # samples of the process that has most


WHOLE = Share()
CPU = torch.device('cpu')


@dataclass(slots=True)
class Batch:
    """A batch and what is known of it. n_samples and indices are those of this process's share."""

    content: Any
    n_samples: int = 0  # 0: nobody knows
    indices: torch.Tensor | None = None  # (n_samples,) which samples of the dataset
    share: Share = WHOLE
    collate: Callable[[slice], Any] | None = None  # the content of some of the samples, made anew
    lists_are_parts: bool = False  # a list in it never holds one entry for each sample
    n_now: int = 0  # samples of the micro-batch that goes through the model; 0: the whole batch


NO_BATCH = Batch(None)  # before the first one, and where a loop does not say


class CannotCut(ValueError):
    """A part of a batch that does not say where one sample ends; the text names it."""


def cut(content: Any, n_samples: int, rows: slice, lists_are_parts: bool = False) -> Any:
    """The samples `rows` of a batch's content; CannotCut unless every leaf has a row for each.

    lists_are_parts: as torch's default_collate makes them. Else a list inside the batch that has
    as many entries as there are samples is one of samples.
    """

    def part(entry: Any) -> Any:
        if hasattr(entry, '__array__'):  # a tensor or an array
            is_strided = getattr(entry, 'layout', torch.strided) is torch.strided
            if not is_strided or getattr(entry, 'is_nested', False):
                raise CannotCut(f'a nested or sparse {type(entry).__name__}')
            if not entry.ndim or len(entry) != n_samples:
                raise CannotCut(f'{type(entry).__name__} of shape {tuple(entry.shape)}')
            return entry[rows]
        if not is_structure(entry):
            raise CannotCut(f'{type(entry).__name__} {str(entry)[:40]!r}')
        is_list = isinstance(entry, (list, tuple)) and not hasattr(entry, '_fields')
        may_be_samples = is_list and len(entry) == n_samples and entry is not content
        try:
            parts = rebuilt(entry, part)
        except CannotCut:
            if may_be_samples:
                return entry[rows]
            raise
        if may_be_samples and not lists_are_parts:
            # [images of 3 channels] of 3 samples: cutting either way would fit
            raise CannotCut(f'{type(entry).__name__} of {len(entry)} that may be its samples')
        return parts

    return part(content)


def is_structure(content: Any) -> bool:
    """Whether it is made of contents, rather than one of its own (such as a PackedSequence)."""
    # Of its class: dicts whose entries are attributes may raise another error.
    if isinstance(content, type) or callable(getattr(type(content), 'to', None)):
        return False
    return isinstance(content, (list, tuple, Mapping)) or is_dataclass(content)


def rebuilt(content: Any, function: Callable[[Any], Any]) -> Any:
    """A structure of the same type, with `function` applied to each of its entries."""
    is_row, is_mapping = isinstance(content, (list, tuple)), isinstance(content, Mapping)
    if is_row:
        entries = content
    elif is_mapping:
        entries = [content[name] for name in content]  # `values` may be the name of one
    else:
        entries = [getattr(content, field.name) for field in fields(content)]
    values = [function(each) for each in entries]
    try:
        if is_row:
            return type(content)(*values) if hasattr(content, '_fields') else type(content)(values)
        made = copy.copy(content)
        if is_mapping:
            for name, value in zip(content, values):
                made[name] = value
        else:
            for field, value in zip(fields(content), values):
                object.__setattr__(made, field.name, value)  # of a frozen dataclass as well
        return made
    except TypeError as error:
        raise DataError(
            f'a batch holds a {type(content).__name__}, which cannot be made anew with other '
            'entries: give the class a method to(device), or take a dict or a dataclass'
        ) from error


def map_leaves(function: Callable[[Any], Any], content: Any) -> Any:
    """The same structure with `function` applied to everything in it that is no structure."""
    if is_structure(content):
        return rebuilt(content, lambda entry: map_leaves(function, entry))
    return function(content)


def leaves(content: Any) -> list[Any]:
    """All that is in it and is no structure."""
    found = []
    map_leaves(found.append, content)
    return found


def map_tensors(function: Callable[[torch.Tensor], Any], content: Any) -> Any:
    """The same structure with `function` applied to each tensor."""
    if isinstance(content, torch.Tensor):
        return function(content)
    if is_structure(content):
        return rebuilt(content, lambda entry: map_tensors(function, entry))
    return content


def takes_pinned(device: torch.device) -> bool:
    """Whether nobody has to wait for a copy to `device` from pinned memory.

    Not so on MPS, which would read such memory when it may belong to another.
    """
    return device.type not in ('cpu', 'mps')


def to_device(content: Any, device: torch.device) -> Any:
    """The content, which a loader made on the CPU, on `device`."""
    if device.type == 'cpu':
        return content

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, (torch.Tensor, PackedSequence)):
            return leaf.to(device, non_blocking=takes_pinned(device))
        return leaf.to(device) if callable(getattr(leaf, 'to', None)) else leaf

    return map_leaves(moved, content)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on `device`; nobody waits for the copy where that can be."""
    return to_device(tensor.pin_memory() if takes_pinned(device) else tensor, device)


def length(content: Any) -> int:
    """The rows of the first tensor that has some: for a content that no loader of ours made."""
    tensors = [each for each in leaves(content) if isinstance(each, torch.Tensor)]
    rows = (each.size(0) if each.dim() else 1 for each in tensors)
    return next(filter(None, rows), 0)


class PairOf:
    """Makes (data, target) of a batch, as the config's "batch" names them.

    names: {"data": a name or a list of names, "target": the same} of what the dataset gives as a
    dict. None: a batch is a pair already; with `pairs_only`, anything else is an error.
    """

    def __init__(self, names: dict | None, pairs_only: bool = True):
        if names and not (names.get('data') and names.get('target')):
            raise ConfigError(f'batch is {names}: expected the names of "data" and of "target"')
        self.names, self.pairs_only = names, pairs_only

    def __call__(self, batch: Batch) -> Batch:
        batch.content = self.of(batch.content)
        if batch.collate is not None:
            collate = batch.collate
            batch.collate = lambda rows: self.of(collate(rows))
        return batch

    def of(self, content: Any) -> Any:
        if not (self.names or self.pairs_only):
            return content
        if content is None:
            raise DataError(
                'the collate_fn gives None for a batch: let it return one, and leave samples that '
                'do not count out of the dataset'
            )
        if not self.names:
            if not (isinstance(content, (list, tuple)) and len(content) == 2):
                raise DataError(_no_pair(content))
            return content
        if not isinstance(content, Mapping):
            raise DataError(
                f'batch names parts of a dict, and the dataset gives {described(content)}: leave '
                '"batch" out of the config, or let the dataset return a dict'
            )
        return self._named('data', content), self._named('target', content)

    def _named(self, part: str, content: Mapping) -> Any:
        names = self.names[part]
        wanted = [names] if isinstance(names, str) else names
        if any(name not in content for name in wanted):
            raise DataError(
                f'batch.{part} is {names!r}, and the dataset gives {described(content)}'
            )
        named = {name: content[name] for name in wanted}
        return named[names] if isinstance(names, str) else named


def _no_pair(content: Any) -> str:
    if isinstance(content, Mapping):
        first, *others = [*map(str, content), 'TARGET']
        names = f'"batch": {{"data": "{first}", "target": "{others[0]}"}}'
        return (
            f'the dataset gives {described(content)}: say in the config which of them is what, '
            f'such as {names}'
        )
    return (
        f'the dataset gives {described(content)}: expected a pair (data, target). Let it return '
        'two parts (each may be a tuple or a dict), or a dict whose parts the config names in '
        '"batch"'
    )


def described(content: Any) -> str:
    """What a batch consists of, in a few words."""
    if isinstance(content, Mapping):
        return f'a dict with {", ".join(map(repr, content))}'
    if isinstance(content, (list, tuple)):
        return f'{len(content)} parts ({", ".join(type(each).__name__ for each in content[:5])})'
    if isinstance(content, torch.Tensor):
        return f'one {type(content).__name__} {tuple(content.shape)}'
    return f'one {type(content).__name__}'


def call_by_name(model: torch.nn.Module, parts: dict | None) -> None:
    """Where the config's "batch" has several names of data, let `model(data)` call
    forward(image=..., depth=...).

    Nothing changes where forward has other arguments and takes one: then the dict is that one.
    """
    names = (parts or {}).get('data')
    if not isinstance(names, list):
        return

    def by_name(module: Any, inputs: tuple, keywords: dict) -> tuple | None:
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            return (), {**inputs[0], **keywords}
        return None

    if takes(model.forward, **dict.fromkeys(names)):
        model.register_forward_pre_hook(by_name, with_kwargs=True)
    elif not takes(model.forward, None):
        raise ConfigError(
            f'batch.data is {names}, and {type(model).__name__}.forward takes '
            f'{argument_names(model.forward)}: give its arguments these names, or let it take one '
            'dict'
        )


def takes(function: Callable, *values: Any, **named: Any) -> bool:
    """Whether it can be called with these; the forward of a traced module does not tell."""
    try:
        inspect.signature(function).bind(*values, **named)
    except TypeError:
        return False
    except ValueError:
        pass
    return True


def argument_names(function: Callable) -> str:
    """The names of what it takes, for a message."""
    return ', '.join(inspect.signature(function).parameters)
