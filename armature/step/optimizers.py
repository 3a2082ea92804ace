"""Optimizers: several that are one to the run, those that evaluate the loss, clipping by value."""

import inspect
import logging
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch.optim import Optimizer

from armature.config.read import lookup
from armature.errors import ConfigError
from armature.processes import dist
from armature.step.parameters import TypedGroup


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
        super().__init__([group for each in optimizers for group in each.param_groups], defaults)
        for each in optimizers:
            self.state |= each.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """For torch's constructor; a group that comes later has no optimizer."""
        if len(self.param_groups) == sum(len(each.param_groups) for each in self.optimizers):
            raise ConfigError('the optimizer is several: name all groups in optimizer.groups')
        super().add_param_group(param_group)

    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for each in self.optimizers:
            each.state = self.state  # one that all work on, each with its own parameters
            each.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load all groups, and give each optimizer those that are its own."""
        super().load_state_dict(state_dict)
        groups = iter(self.param_groups)
        for each in self.optimizers:
            own = list(islice(groups, len(each.param_groups)))
            each.__setstate__({'state': self.state, 'param_groups': own})


def optimizer_of(section: Any, make: Callable, args: tuple, kwargs: dict) -> Optimizer:
    """The optimizer that a section of a config describes: several, where groups have a type.

    make: ConfigParser's. args, kwargs: what the script gives, first what parameter_groups gave.
    """
    given, path = args[0] if args else kwargs.get('params'), ('optimizer',)
    groups = given if isinstance(given, list) else []
    typed = [each for each in groups if isinstance(each, TypedGroup)]
    rest = [each for each in groups if not isinstance(each, TypedGroup)]
    has_groups = typed or any(isinstance(each, dict) for each in rest)
    if lookup(section, ('groups',)) and not has_groups:
        raise ConfigError(
            'optimizer.groups: this script gives its optimizer no groups: let it give '
            'parameter_groups(config, model, criterion) of armature/step/parameters.py'
        )
    if not typed:
        return make(path, args, kwargs)
    others = {name: value for name, value in kwargs.items() if name != 'params'}
    made = [make(path, (rest, *args[1:]), others)] if rest else []
    for index, entry, own in typed:
        made.append(make((*path, 'groups', index), (own,), {}, entry=entry))
    return SeveralOptimizers(made)


def needs_closure(optimizer: Any) -> bool:
    """Whether its step evaluates the loss, several times (LBFGS)."""
    closure = inspect.signature(optimizer.step).parameters.get('closure')
    return closure is not None and closure.default is closure.empty


def refuse_combinations(optimizer: Any, model: Any, changes_gradients: bool) -> None:
    """A ConfigError, or a warning, for what an optimizer cannot be combined with.

    changes_gradients: they are clipped or scaled before the step.
    """
    if needs_closure(optimizer) and (changes_gradients or dist.n_processes() > 1):
        raise ConfigError(
            f'{type(optimizer).__name__} evaluates the loss several times a step: it cannot be '
            'combined with trainer.max_grad_norm, trainer.max_grad_value, trainer.precision '
            '"fp16" or several processes'
        )
    has_muon = any(isinstance(each, torch.optim.Muon) for each in owners(optimizer))
    if has_muon and dist.is_sharded(model):
        logging.getLogger('trainer').warning(
            'Muon adds up the parts of a matrix in bf16 (distributed.strategy "fsdp"): the '
            'number of processes does change the result, single numbers of a step by up to 4 %'
        )


def owners(optimizer: Any) -> list:
    """For each group of an optimizer, the one that steps it."""
    inner = optimizer.optimizers if isinstance(optimizer, SeveralOptimizers) else [optimizer]
    return [each for each in inner for _ in getattr(each, 'param_groups', [])]


def clip_values(parameters: list[torch.nn.Parameter], bound: float) -> None:
    """Bring each gradient between -bound and bound; of complex ones, both parts."""
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.is_sparse:
            parameter.grad = gradient.coalesce()
            gradient = parameter.grad.values()
        if gradient.is_complex():
            gradient = torch.view_as_real(gradient)
        gradient.clamp_(-bound, bound)
