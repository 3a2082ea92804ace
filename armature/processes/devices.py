"""Which devices this process trains on: what `-d` or `n_gpu` asks for, and what the machine has."""

import logging
import os

import torch

from armature.errors import ConfigError
from armature.processes import dist

_requested = []  # what -d named


def available_devices() -> list[str]:
    """What `-d` can name on this machine."""
    devices = [str(index) for index in range(torch.cuda.device_count())]
    return devices + ['mps'] * torch.backends.mps.is_available() + ['cpu']


def select_devices(request: str) -> None:
    """Apply `-d`: 'cpu', 'mps', or CUDA indices such as '0' or '0,1'. To be called before anything touches CUDA.

    Several CUDA indices, or 'cpu,cpu', mean as many processes. Raises ConfigError when a device is not there; the message names those
    that are.
    """
    global _requested
    names = [name.strip().removeprefix('cuda:') for name in request.split(',')]
    there = available_devices()
    on_cuda, on_cpu = all(name.isdigit() for name in names), set(names) == {'cpu'}
    is_set = len(set(names)) == len(names) and (len(names) == 1 or on_cuda)
    if not set(names) <= set(there) or not (is_set or on_cpu):
        raise ConfigError(
            f'-d {request}: expected CUDA indices such as 0 or 0,1, or cpu, or mps; '
            f'this machine has {", ".join(there)}'
        )
    if (
        dist.is_started()
        and len(names) not in (1, dist.n_local())
        or dist.n_local() > len(names) == 1
        and not on_cpu
    ):
        raise ConfigError(
            f'-d {request} names {len(names)} devices, and {dist.n_local()} processes are started on this machine: name one '
            'for each, or leave -d out'
        )
    if dist.is_started() or len(names) == 1:  # else the processes that are to be started choose
        visible = [
            index for index in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if index
        ] or there
        os.environ['CUDA_VISIBLE_DEVICES'] = (
            ','.join(visible[int(name)] for name in names) if on_cuda else ''
        )
    _requested = names


def n_processes_wanted(n_gpu: int) -> int:
    """How many processes `-d`, or else n_gpu of the config, asks for; a machine with fewer GPUs trains the same with those it has."""
    return len(_requested) or max(1, min(n_gpu, torch.cuda.device_count()))


def is_on_cpu(n_gpu: int) -> bool:
    """Whether `-d`, or else n_gpu = 0, asks for the CPU."""
    return n_gpu == 0 or 'cpu' in _requested


def prepare_device(n_gpu_use: int) -> tuple[torch.device, list[int]]:
    """The device to train on and the CUDA indices for DataParallel (several only when `-d` or n_gpu_use asks for several).

    CUDA, then MPS, then the CPU; `-d` and n_gpu_use = 0 (the CPU) decide otherwise. Where several processes train, each has one.
    """
    if is_on_cpu(n_gpu_use):
        return torch.device('cpu'), []
    if dist.is_joined():
        return torch.device(
            'cuda', dist.local_rank()
        ) if torch.cuda.is_available() else torch.device('cpu'), []
    n_gpu = torch.cuda.device_count()
    n_wanted = len(_requested) or n_gpu_use
    if n_wanted > max(n_gpu, 1):
        logging.getLogger('device').warning(
            f'n_gpu is {n_wanted}, but this machine has {n_gpu}: going on with what is there'
        )
    if n_gpu > 0:
        return torch.device('cuda:0'), list(range(min(n_wanted, n_gpu)))
    return torch.device('mps' if torch.backends.mps.is_available() else 'cpu'), []
