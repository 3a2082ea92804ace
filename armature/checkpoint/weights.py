"""A model's weights under their own names: what wrappers put in front of them is left out."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from armature.errors import CheckpointError
from armature.processes import dist


def bare(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if hasattr(model, '_orig_mod'):
            model = model._orig_mod
        elif isinstance(model, wrappers):
            model = model.module
        else:
            return model


def load_weights(model: nn.Module, weights: dict, source: object) -> None:
    """Load all of `weights`; a CheckpointError lists what does not fit."""
    mine = bare(model).state_dict()
    if report := misfits(mine, weights):
        raise CheckpointError(
            f'{source} does not fit {type(bare(model)).__name__}: {report}. '
            'Was it made with another "arch"?'
        )
    bare(model).load_state_dict(
        {name: dist.sharded_like(value, mine[name]) for name, value in weights.items()}
    )


def misfits(mine: dict, weights: dict) -> str:
    """Why `weights` cannot be those of a model whose state dict is `mine`; empty when they can."""
    problems = {
        'missing': [name for name in mine if name not in weights],
        'not in the model': [name for name in weights if name not in mine],
        'of another shape': [
            f'{name} {list(weights[name].shape)} -> {list(value.shape)}'
            for name, value in mine.items()
            if name in weights and hasattr(value, 'shape') and weights[name].shape != value.shape
        ],
    }
    return '; '.join(f'{kind}: {shortened(names)}' for kind, names in problems.items() if names)


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
        average = (state.get('parts') or {}).get('weight_average') or {}
        return average['model'] if average.get('n_averaged') else state['state_dict']
    return state.get('tested') or state['state_dict']


def load_tested(model: nn.Module, criterion: object, state: dict, source: object) -> None:
    """Load what a checkpoint holds for testing.

    That is the model's weights as they were validated, and those that the loss has itself.
    """
    load_weights(model, tested_weights(state), source)
    if isinstance(criterion, nn.Module):
        criterion.to(next(model.parameters()).device).load_state_dict(
            (state.get('parts') or {}).get('criterion', {}), strict=False
        )


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """The names like `pattern`: `*` is any text, `|` separates alternatives."""
    patterns = [each.strip() for each in pattern.split('|')]
    return [name for name in names if any(fnmatchcase(name, each) for each in patterns)]
