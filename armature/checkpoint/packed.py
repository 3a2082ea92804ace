"""A run's weights as one safetensors file, with what else is needed to use it: what is published.

No pickle is in it, and other programs read its tensors. The rest is JSON in the file's metadata.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from armature.errors import ConfigError

FILE = 'weights.safetensors'
KEY = 'armature'


def read(path: Path) -> dict:
    """The same as a checkpoint; of another program's weights, what a plain state dict is.

    Raises ValueError, or an error of safetensors, for what is damaged.
    """
    with safetensors().safe_open(path, 'pt') as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        rest = json.loads((file.metadata() or {}).get(KEY, 'null'))
    if rest is None:
        return {'state_dict': weights}
    if not isinstance(rest, dict) or rest.pop('digest', None) != digest(weights):
        raise ValueError('it is damaged: its content is not what was written')
    return {**rest, 'state_dict': weights}


def digest(weights: dict[str, torch.Tensor]) -> str:
    hashed = hashlib.sha256()
    for name in sorted(weights):
        hashed.update(f'{name} {weights[name].dtype} {tuple(weights[name].shape)}'.encode())
        hashed.update(weights[name].flatten().view(torch.uint8).numpy())
    return hashed.hexdigest()


def safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ConfigError(
            'safetensors is not installed: pip install -r requirements-export.txt'
        ) from error
    return safetensors.torch
