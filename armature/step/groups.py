"""Which parameters the optimizer gets, and in which groups with settings of their own."""

from typing import Any

from torch import nn

from armature.checkpoint.weights import bare, matching
from armature.errors import ConfigError


def parameter_groups(config: Any, model: nn.Module, criterion: Any = None) -> list:
    """What to give the optimizer: (name, parameter) of what trains in model and loss.

    In the groups of `optimizer.groups`, if there are any. A group is {"match": "pattern|pattern",
    and what differs for it}; in a pattern `*` is any text. A parameter that several groups match
    gets the settings of all, of the later one first. Those of the loss are named 'loss.' + name.
    What is frozen for good has no gradient (`config.wrap` sees to it), and is left out.
    """
    named = {
        name: parameter
        for name, parameter in bare(model).named_parameters()
        if parameter.requires_grad
    }
    if isinstance(criterion, nn.Module):
        named |= {
            f'loss.{name}': parameter
            for name, parameter in criterion.named_parameters()
            if parameter.requires_grad
        }
    if not named:
        raise ConfigError(
            'there is nothing to train: the model has no parameters that are not frozen'
        )
    groups = config['optimizer'].get('groups') if 'optimizer' in config else None
    if not groups:
        return list(named.items())

    settings = {name: {} for name in named}
    for index, group in enumerate(groups):
        own = {key: value for key, value in group.items() if key != 'match'}
        matched = matching(named, group['match'])
        if not matched:
            raise ConfigError(
                f'optimizer.groups.{index}.match: no trainable parameter is named like '
                f'{group["match"]!r}; there are '
                f'{", ".join(list(named)[:8])}{" ..." if len(named) > 8 else ""}'
            )
        for name in matched:
            settings[name] |= own
    found = []
    for name, own in settings.items():
        group = next((each for each in found if each[0] == own), None)
        if group is None:
            found.append(group := (own, []))
        group[1].append((name, named[name]))
    return [{'params': parameters, **own} for own, parameters in found]
