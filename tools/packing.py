"""Writes a run's weights as one safetensors file: what armature/checkpoint/packed.py reads."""

import json
from pathlib import Path

import torch

from armature.checkpoint.packed import KEY, digest, safetensors
from armature.checkpoint.weights import tested_weights
from armature.errors import CheckpointError


def write(state: dict, path: Path) -> None:
    """state: a checkpoint, of which the tested weights go into `path`."""
    tested = tested_weights(state)
    if others := [name for name, each in tested.items() if not isinstance(each, torch.Tensor)]:
        raise CheckpointError(
            f'{others[0]} of the model is no tensor: keep it as a buffer, to pack it'
        )
    weights = {
        # Tensors that share memory, or show a part of it, would be refused.
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in tested.items()
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
    path.write_bytes(safetensors().save(weights, {KEY: text}))
