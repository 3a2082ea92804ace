"""LoRA: matrices that stay as they are, each beside the product of two thin ones, which trains.

Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685 (of A, kaiming_uniform as nn.Linear has it)
"""

import math
from collections import Counter
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from armature.checkpoint.weights import adapted, own_names
from armature.errors import ConfigError
from armature.seed import key
from armature.step.parameters import names_like

# Recurrent layers keep a list of their weights beside; others are parts of a parametrization.
OTHERWISE = (nn.RNNBase, parametrize.ParametrizationList)


class Factors(nn.Module):
    """The parametrization of one weight: `adapted` by A (rank, columns) and B (rows, rank)."""

    def __init__(self, weight: torch.Tensor, rank: int, alpha: float, seed: int):
        super().__init__()
        n_rows, n_columns = weight.flatten(1).shape
        drawn, generator = torch.empty(rank, n_columns), torch.Generator().manual_seed(seed)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(drawn.to(weight))
        self.lora_B = nn.Parameter(weight.new_zeros(n_rows, rank))
        self.register_buffer('lora_scale', torch.tensor(alpha / rank, device=weight.device))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return adapted(weight, self.lora_A, self.lora_B, self.lora_scale)


def put_on(model: nn.Module, settings: SimpleNamespace) -> None:
    """Give the weights that `settings` (trainer.lora) match their factors, and freeze them.

    The outputs stay the same until those have trained. The state dict keeps the model's own names.
    """
    match, rank = settings.match, settings.rank
    alpha = settings.alpha or rank
    named = dict(model.named_parameters(remove_duplicate=False))
    n_uses = Counter(named.values())
    weights = {
        name: named[name]
        for name in names_like([match], named, 'trainer.lora.match')
        if not is_lazy(named[name]) and named[name].dim() > 1 and named[name].is_floating_point()
    }
    if not weights:
        raise ConfigError(
            f'trainer.lora.match: {match!r} names no matrix of floats: say which weights, such as '
            '"fc*"'
        )
    for name, weight in weights.items():
        place, _, own = name.rpartition('.')
        module = model.get_submodule(place)
        if n_uses[weight] > 1 or isinstance(module, OTHERWISE):
            raise ConfigError(
                f'trainer.lora.match: {name} cannot be adapted, since {type(module).__name__} uses '
                'it in a way of its own, or another layer shares it. Leave it out of the pattern'
            )
        seed = key(torch.initial_seed(), 'lora', name)
        weight.requires_grad_(False)
        parametrize.register_parametrization(module, own, Factors(weight, rank, alpha, seed))
    classes = {}
    for module in filter(own_names, model.modules()):
        module.register_state_dict_post_hook(_rename)
        module.register_load_state_dict_pre_hook(_rename_back)
        # torch makes a class for each module: blocks that are alike would be compiled one by one.
        kind = parametrize.type_before_parametrizations(module), *module.parametrizations
        module.__class__ = classes.setdefault(kind, type(module))


def _rename(module, state, prefix, _):
    for theirs, ours in own_names(module, prefix).items():
        state[ours] = state.pop(theirs)


def _rename_back(module, state, prefix, *_):
    for theirs, ours in own_names(module, prefix).items():
        if ours not in state:
            continue
        state[theirs] = state.pop(ours)
        if not ours.endswith('.lora_scale'):
            continue
        mine = module.get_buffer(theirs.removeprefix(prefix))
        if mine != state[theirs]:
            raise ConfigError(
                f'trainer.lora: alpha / rank is {mine:g}, and the checkpoint has factors that were '
                f'trained with {state[theirs]:g}. Keep alpha, or start a new run from the weights '
                'alone ("init_from")'
            )
