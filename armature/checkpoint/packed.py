"""A run's weights as one safetensors file, with what else is needed to use it: what is published.

No pickle is in it, and other programs read its tensors. The rest is JSON in the file's metadata.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from armature.checkpoint.weights import tested_weights
from armature.errors import CheckpointError, ConfigError

FILE = 'weights.safetensors'
KEY = 'armature'


def write(state: dict, path: Path) -> None:
    """state: a checkpoint, of which the tested weights go into `path`."""
    weights = {
        # Tensors that share memory, or show a part of it, would be refused.
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in tested_weights(state).items()
        if isinstance(value, torch.Tensor)
    }
    loader = (state.get('parts') or {}).get('data_loader')
    rest = {
        'arch': state.get('arch'),
        'epoch': state.get('epoch', 0),
        'config': state['config'],
        'data': {'class_names': (state.get('data') or {}).get('class_names')},
        'parts': {} if loader is None else {'data_loader': loader},
        'digest': digest(weights),
    }
    try:
        text = json.dumps(rest)
    except TypeError as error:
        raise CheckpointError(
            f'what this run keeps beside its weights is no JSON ({error}): it cannot be packed'
        ) from error
    # Its own save_file gives the file to its owner alone.
    path.write_bytes(_safetensors().save(weights, {KEY: text}))


def read(path: Path) -> dict:
    """The same as a checkpoint. Raises ValueError, or an error of safetensors, for any other."""
    with _safetensors().safe_open(path, 'pt') as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        rest = json.loads((file.metadata() or {}).get(KEY, 'null'))
    if not isinstance(rest, dict):
        raise ValueError('these weights were not packed by tools.export or tools.card')
    if rest.pop('digest', None) != digest(weights):
        raise ValueError('it is damaged: its content is not what was written')
    return {**rest, 'state_dict': weights}


def digest(weights: dict[str, torch.Tensor]) -> str:
    hashed = hashlib.sha256()
    for name in sorted(weights):
        hashed.update(f'{name} {weights[name].dtype} {tuple(weights[name].shape)}'.encode())
        hashed.update(weights[name].flatten().view(torch.uint8).numpy())
    return hashed.hexdigest()


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ConfigError(
            'safetensors is not installed: pip install -r requirements-export.txt'
        ) from error
    return safetensors.torch
