"""SeveralOptimizers: optimizers that train different parameters are one to the run."""

import inspect
from collections import defaultdict
from itertools import islice
from typing import Any

import torch
from torch.optim import Optimizer

from armature.errors import ConfigError


class SeveralOptimizers(Optimizer):
    """Each of `optimizers` steps its own groups; these, and the state of each parameter, are here.

    Its state dict is an ordinary one: that of a single optimizer with all the groups.
    """

    def __init__(self, optimizers: list[Optimizer]):
        for each in optimizers:
            if needs_closure(each) or type(each).state_dict is not Optimizer.state_dict:
                raise ConfigError(
                    f'optimizer.groups: {type(each).__name__} cannot be one of several optimizers: '
                    'take another, that neither evaluates the loss nor has a state of its own kind'
                )
        self.optimizers = optimizers
        # A scheduler asks here whether there are betas or momentum to move: in all, or in none.
        shared = set.intersection(*(set(each.defaults) for each in optimizers))
        defaults = {key: optimizers[0].defaults[key] for key in shared}
        state = self._states()
        super().__init__(self._groups(), defaults)
        self.state = state

    def _groups(self):
        return [group for each in self.optimizers for group in each.param_groups]

    def _states(self):
        states = [each.state for each in self.optimizers]
        return defaultdict(dict, {key: own for state in states for key, own in state.items()})

    @property
    def state(self) -> dict[torch.Tensor, dict]:
        """The one state that all of them work on, each with its own parameters."""
        return self.optimizers[0].state

    @state.setter
    def state(self, state: dict) -> None:
        for each in self.optimizers:
            each.state = state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """For torch's constructor; a group that comes later has no optimizer."""
        if all(param_group is not group for group in self._groups()):
            raise ConfigError('the optimizer is several: name all groups in optimizer.groups')
        super().add_param_group(param_group)

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for each in self.optimizers:
            each.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give each optimizer the groups that are its own, with the state of their parameters."""
        groups, state = iter(state_dict['param_groups']), state_dict['state']
        for each in self.optimizers:
            own = list(islice(groups, len(each.param_groups)))
            numbers = [number for group in own for number in group['params']]
            own_state = {number: state[number] for number in numbers if number in state}
            each.load_state_dict({'state': own_state, 'param_groups': own})
        if next(groups, None) is not None:
            raise ValueError('it has more groups')
        self.param_groups, self.state = self._groups(), self._states()


def needs_closure(optimizer: Any) -> bool:
    """Whether its step evaluates the loss, several times (LBFGS)."""
    closure = inspect.signature(optimizer.step).parameters.get('closure')
    return closure is not None and closure.default is closure.empty


def owners(optimizer: Any) -> list:
    """For each group of an optimizer, the one that steps it."""
    inner = optimizer.optimizers if isinstance(optimizer, SeveralOptimizers) else [optimizer]
    return [each for each in inner for _ in getattr(each, 'param_groups', [])]
