"""A model's weights under their own names: what wrappers and LoRA put around them is left out."""

import itertools
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from armature.errors import CheckpointError
from armature.processes import dist

LORA = ('lora_A', 'lora_B', 'lora_scale')  # what a weight NAME that it has adapted has as NAME.part


def bare(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile."""
    if hasattr(model, '_orig_mod'):
        return bare(model._orig_mod)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return bare(model.module)
    return model


def own_names(module: nn.Module, prefix: str = '') -> dict[str, str]:
    """What LoRA (armature/step/lora.py) has put into `module`: {torch's name for it: ours}."""
    names, is_parametrized = {}, parametrize.is_parametrized(module)
    for weight, parts in module.parametrizations.items() if is_parametrized else ():
        if hasattr(parts[0], 'lora_scale'):
            theirs, ours = f'{prefix}parametrizations.{weight}.', f'{prefix}{weight}'
            names[f'{theirs}original'] = ours
            names |= {f'{theirs}0.{part}': f'{ours}.{part}' for part in LORA}
    return names


def named_parameters(model: nn.Module, with_lora: bool = True) -> dict[str, nn.Parameter]:
    """The parameters by the names that they have in a state dict; or those of the model alone."""
    model, ours = bare(model), {}
    for name, module in model.named_modules():
        ours |= own_names(module, f'{name}.' if name else '')
    return {
        ours.get(name, name): each
        for name, each in model.named_parameters()
        if with_lora or not ours.get(name, '').endswith(LORA)
    }


def sizeless(model: nn.Module | None) -> list[str]:
    """Names of the weights of lazy layers, which have no size before their first forward pass."""
    if model is None:
        return []
    weights = itertools.chain(model.named_parameters(), model.named_buffers())
    return [name for name, each in weights if is_lazy(each)]


def adapted(
    weight: torch.Tensor, lora_A: torch.Tensor, lora_B: torch.Tensor, lora_scale: torch.Tensor
) -> torch.Tensor:
    """A weight with LoRA; one with more than two dimensions counts as (rows, all others)."""
    return weight + (lora_B @ lora_A).view_as(weight) * lora_scale


def merged(weights: dict) -> dict:
    """The weights of the model alone: those that LoRA has adapted are added up."""
    own = dict(weights)
    for name, weight in weights.items():
        if f'{name}.lora_scale' in weights:
            own[name] = adapted(weight, *(own.pop(f'{name}.{part}') for part in LORA))
    return own


def load_weights(model: nn.Module, weights: dict, source: object) -> None:
    """Load all of `weights`; a CheckpointError lists what does not fit."""
    model = bare(model)
    mine = model.state_dict()
    if report := misfits(mine, weights):
        raise CheckpointError(
            f'{source} does not fit {type(model).__name__}: {report}. '
            'Was it made with another "arch" or "trainer.lora"?'
        )
    model.load_state_dict(
        {name: dist.sharded_like(value, mine[name]) for name, value in weights.items()}
    )


def misfits(mine: dict, weights: dict) -> str:
    """Why `weights` cannot be those of a model whose state dict is `mine`; empty when they can."""
    problems = {
        'missing': [name for name in mine if name not in weights],
        'not in the model': [name for name in weights if name not in mine],
        'of another shape': [
            f'{name} {_shape(weights[name])} -> {_shape(value)}'
            for name, value in mine.items()
            if name in weights
            and not is_lazy(value)  # which takes the shape that it is given
            and _shape(weights[name]) != _shape(value)
        ],
    }
    return '; '.join(f'{kind}: {shortened(names)}' for kind, names in problems.items() if names)


def _shape(value: object) -> list[int] | None:
    return list(value.shape) if isinstance(value, torch.Tensor) else None  # of a model's own


def shortened(names: Iterable[str]) -> str:
    """The first eight names."""
    names = list(names)
    return ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '')


def tested_weights(state: dict) -> dict:
    """The weights of a checkpoint that were validated and are to be used.

    They have an entry of their own where they are not the live ones: averaged weights. The first
    version kept those among the parts.
    """
    if state.get('format') == 1:
        average = state.get('parts', {}).get('weight_average') or {}
        return average['model'] if average.get('n_averaged') else state['state_dict']
    return merged(state.get('tested') or state['state_dict'])


def load_tested(model: nn.Module, criterion: object, state: dict, source: object) -> None:
    """Load what a checkpoint holds for testing.

    That is the model's weights as they were validated, and those that the loss has itself.
    """
    load_weights(model, tested_weights(state), source)
    if isinstance(criterion, nn.Module):
        criterion.to(next(model.parameters()).device).load_state_dict(
            state.get('parts', {}).get('criterion', {}), strict=False
        )


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """The names like `pattern`: `*` is any text, `|` separates alternatives."""
    patterns = [each.strip() for each in pattern.split('|')]
    return [name for name in names if any(fnmatchcase(name, each) for each in patterns)]
