"""Which parameters train, with which settings, and where they begin: groups, freeze, init_from."""

import functools
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from armature.checkpoint import files as checkpoint
from armature.checkpoint.weights import (
    bare,
    matching,
    misfits,
    named_parameters,
    shortened,
    tested_weights,
)
from armature.config.keys import GROUP, expanded
from armature.errors import CheckpointError, ConfigError
from armature.processes.dist import norms_of


def names_like(patterns: Iterable[str], names: Iterable[str], key: str) -> list[str]:
    """The names that patterns of the config match; a ConfigError when one matches none."""
    found = []
    for pattern in patterns:
        matched = matching(names, pattern)
        if not matched:
            raise ConfigError(
                f'{key}: nothing is named like {pattern!r}; there are {shortened(names) or "none"}'
            )
        found += matched
    return found


class TypedGroup(NamedTuple):
    """Parameters with an optimizer of their own; `ConfigParser.init_obj` makes it.

    index: its place in optimizer.groups. entry: its {"type", "args"}. params: (name, parameter).
    """

    index: int
    entry: dict
    params: list


def parameter_groups(config: Any, model: nn.Module, criterion: Any = None) -> list:
    """What to give the optimizer: (name, parameter) of what trains in model and loss.

    In the groups of `optimizer.groups`, if there are any. A group is {"match": "pattern|pattern",
    and what differs for it}; in a pattern `*` is any text, and "ndim" leaves out parameters of
    another number of dimensions. A parameter that several groups match gets the settings of all, of
    the later one first. A group with a "type" is a TypedGroup, whose settings begin anew. Those of
    the loss are named 'loss.' + name. What is frozen for good has no gradient (`config.wrap` sees
    to it), and is left out.
    """
    named = named_parameters(model)
    if isinstance(criterion, nn.Module):
        named |= {f'loss.{name}': each for name, each in criterion.named_parameters()}
    named = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    if not named:
        raise ConfigError(
            'there is nothing to train: the model has no parameters that are not frozen'
        )
    section = config.get('optimizer') or {}
    groups = section.get('groups') or []

    # Of each parameter: the index of the group with a type that it is in, and its settings
    settings = dict.fromkeys(named, (None, {}))
    for index, group in enumerate(groups):
        own = {key: value for key, value in group.items() if key not in GROUP}
        ndim, key = group.get('ndim'), f'optimizer.groups.{index}.match'
        fitting = [name for name, each in named.items() if ndim in (None, each.ndim)]
        key += '' if ndim is None else f' (ndim {ndim})'
        for name in names_like([group['match']], fitting, key):
            typed, before = settings[name]
            settings[name] = (index, own) if group.get('type') else (typed, before | own)
    # Parameters of the same settings are one group.
    found = {}
    for name, (typed, own) in settings.items():
        params = found.setdefault((typed, repr(sorted(own.items()))), (typed, own, []))[-1]
        params.append((name, named[name]))
    made = []
    for typed, own, params in found.values():
        if typed is None:
            key, kind = 'optimizer', section.get('type')
            made.append({'params': params, **own})
        else:
            key, kind = f'optimizer.groups.{typed}', groups[typed]['type']
            made.append(TypedGroup(typed, {'type': kind, 'args': own}, params))
        others = [name for name, each in params if each.ndim != 2]
        if kind == 'Muon' and others:
            raise ConfigError(
                f'{key}: Muon takes matrices only, not {shortened(others)}: name another in '
                'optimizer.type, and let a group of optimizer.groups say "ndim": 2 beside "type": '
                '"Muon"'
            )
    return made if groups else list(named.items())


class Frozen:
    """Parameters that do not train, for good or until an epoch.

    BatchNorm among them uses its running statistics. patterns: names of parameters, `*` is any
    text, `|` separates alternatives. Without any, nothing is frozen.
    until: the epoch with whose beginning they train.
    """

    def __init__(
        self, model: nn.Module, patterns: list[str] | None = None, until: int | None = None
    ):
        self.until = math.inf if until is None else until
        named = named_parameters(model, with_lora=False)
        matched = {named[name] for name in names_like(patterns or [], named, 'trainer.freeze')}
        self.parameters = [each for each in matched if each.requires_grad]
        self._norms = [
            norm
            for norm in norms_of(bare(model))
            if not matched.isdisjoint(norm.parameters(recurse=False))
        ]

    def apply(self, epoch: int) -> None:
        """Freeze or release what the epoch says; to be called before it begins."""
        is_frozen = epoch < self.until
        for parameter in self.parameters:
            parameter.requires_grad_(not is_frozen)
        for module in self._norms:
            vars(module).pop('train', None)
            if is_frozen:
                module.eval()
                # model.train() in a loop reaches each module by its train(): these stay so.
                module.train = functools.partial(_stay, module)


def _stay(module, mode=True):
    return module


def init_weights(model: nn.Module, source: str | dict, logger: logging.Logger) -> None:
    """Take over weights from a checkpoint or a plain state dict, and report what came from there.

    source: the file, or {"file": ..., "ignore": [patterns]}; what an ignore pattern matches keeps
    its fresh values. Anything else that is missing, unexpected or of another shape is a
    CheckpointError.
    """
    source = {'file': source} if isinstance(source, str) else source
    weights = tested_weights(checkpoint.load(Path(expanded(source['file']))))
    mine = bare(model).state_dict()
    ignored = set(names_like(source.get('ignore') or [], mine | weights, 'init_from.ignore'))
    wanted = {name: value for name, value in mine.items() if name not in ignored}
    taken = {name: value for name, value in weights.items() if name not in ignored}
    if report := misfits(wanted, taken):
        raise CheckpointError(
            f'init_from {source["file"]} does not fit {type(bare(model)).__name__}: {report}. Name '
            'what is to be left out: "init_from": {"file": ..., "ignore": ["fc.*"]}'
        )
    bare(model).load_state_dict(taken, strict=False)
    fresh = [name for name in mine if name in ignored]
    logger.info(
        f'{len(taken)} of {len(mine)} tensors are taken from {source["file"]}'
        + (f'; fresh: {shortened(fresh)}' if fresh else '')
    )
