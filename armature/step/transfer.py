"""What is taken over from another model, and what stays as it is: init_from, freeze."""

import functools
import logging
import math
from pathlib import Path
from types import SimpleNamespace

from torch import nn

from armature.checkpoint import files as checkpoint
from armature.checkpoint.weights import bare, matching, tested_weights
from armature.config.keys import expanded
from armature.errors import CheckpointError, ConfigError

NORMS = (nn.modules.batchnorm._NormBase,)


def init_weights(model: nn.Module, source: str | dict, logger: logging.Logger) -> None:
    """Take over weights from a checkpoint or a plain state dict, and report what came from there.

    source: the file, or {"file": ..., "ignore": [patterns]}; what an ignore pattern matches keeps
    its fresh values. Anything else that is missing, unexpected or of another shape is a
    CheckpointError.
    """
    source = {'file': source} if isinstance(source, str) else source
    weights = tested_weights(checkpoint.load(Path(expanded(source['file']))))
    mine = bare(model).state_dict()
    ignored = set()
    for pattern in source.get('ignore', []):
        matched = matching([*mine, *weights], pattern)
        if not matched:
            raise ConfigError(
                f'init_from.ignore: nothing in the model or in {source["file"]} is named like '
                f'{pattern!r}'
            )
        ignored |= set(matched)
    missing = [name for name in mine if name not in weights and name not in ignored]
    unexpected = [name for name in weights if name not in mine and name not in ignored]
    reshaped = [
        f'{name} {list(weights[name].shape)} -> {list(mine[name].shape)}'
        for name in mine
        if name in weights and name not in ignored and weights[name].shape != mine[name].shape
    ]
    report = ''.join(
        f'; {kind}: {", ".join(names[:8])}{f" and {len(names) - 8} more" if len(names) > 8 else ""}'
        for kind, names in (
            ('missing', missing),
            ('unexpected', unexpected),
            ('of another shape', reshaped),
        )
        if names
    )
    if report:
        raise CheckpointError(
            f'init_from {source["file"]} does not fit {type(bare(model)).__name__}{report}. Name '
            'what is to be left out: "init_from": {"file": ..., "ignore": ["fc.*"]}'
        )
    taken = {name: weights[name] for name in mine if name not in ignored}
    bare(model).load_state_dict(taken, strict=False)
    fresh = [name for name in mine if name in ignored]
    logger.info(
        f'{len(taken)} of {len(mine)} tensors are taken from {source["file"]}'
        + (f'; fresh: {", ".join(fresh[:8])}{" ..." if len(fresh) > 8 else ""}' if fresh else '')
    )


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
        named = dict(bare(model).named_parameters())
        names = set()
        for pattern in patterns or []:
            matched = matching(named, pattern)
            if not matched:
                raise ConfigError(
                    f'trainer.freeze: no parameter is named like {pattern!r}; there are '
                    f'{", ".join(list(named)[:8])}{" ..." if len(named) > 8 else ""}'
                )
            names |= set(matched)
        self.parameters = [named[name] for name in sorted(names) if named[name].requires_grad]
        self._norms = [
            module
            for name, module in bare(model).named_modules()
            if isinstance(module, NORMS)
            and any(f'{name}.{own}' in names for own, _ in module.named_parameters(recurse=False))
        ]

    @classmethod
    def from_settings(cls, model: nn.Module, settings: SimpleNamespace) -> 'Frozen':
        """What the trainer section freezes: trainer.freeze, until trainer.unfreeze_at."""
        return cls(model, settings.freeze, (settings.unfreeze_at or {}).get('epoch'))

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


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
