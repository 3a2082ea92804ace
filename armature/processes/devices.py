"""Which devices this process trains on: what `-d` or n_gpu asks for, and what the machine has."""

import logging
import os

import torch

from armature.errors import ConfigError
from armature.processes import dist

_requested = []  # what -d named
_prepared = []  # the device that prepare_device chose last


def available_devices() -> list[str]:
    """What `-d` can name on this machine."""
    devices = [str(index) for index in range(torch.cuda.device_count())]
    return devices + ['mps'] * torch.backends.mps.is_available() + ['cpu']


def select_devices(request: str) -> None:
    """Apply `-d`: 'cpu', 'mps', or CUDA indices such as '0' or '0,1'; before anything touches CUDA.

    Several CUDA indices, or 'cpu,cpu', mean as many processes. Raises ConfigError when a device is
    not there, with those that are.
    """
    names = [name.strip().removeprefix('cuda:') for name in request.split(',')]
    there = available_devices()
    on_cuda, on_cpu = all(name.isdigit() for name in names), set(names) == {'cpu'}
    is_set = len(set(names)) == len(names) and (len(names) == 1 or on_cuda)
    if not set(names) <= set(there) or not (is_set or on_cpu):
        raise ConfigError(
            f'-d {request}: expected CUDA indices such as 0 or 0,1, or cpu, or mps; '
            f'this machine has {", ".join(there)}'
        )
    n_local = dist.n_local()
    one_for_all = len(names) == 1 and (on_cpu or n_local == 1)
    if dist.is_started() and len(names) != n_local and not one_for_all:
        raise ConfigError(
            f'-d {request} names {len(names)} devices, and {n_local} processes are started on this '
            'machine: name one for each, or leave -d out'
        )
    if dist.is_started() or len(names) == 1:  # else the processes that are to be started choose
        given = os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',')
        visible = [index for index in given if index] or there
        chosen = [visible[int(name)] for name in names] if on_cuda else []
        os.environ['CUDA_VISIBLE_DEVICES'] = ','.join(chosen)
    _requested[:] = names


def n_processes_wanted(n_gpu: int) -> int:
    """How many processes `-d`, or else n_gpu, asks for; n_gpu may name more than there are."""
    return len(_requested) or max(1, min(n_gpu, torch.cuda.device_count()))


def is_on_cpu(n_gpu: int) -> bool:
    """Whether `-d`, or else n_gpu = 0, asks for the CPU."""
    return 'cpu' in _requested if _requested else n_gpu == 0


def prepare_device(n_gpu_use: int) -> tuple[torch.device, list[int]]:
    """The device to train on, and the CUDA indices for DataParallel when several are asked for.

    CUDA, then MPS, then the CPU; `-d` and n_gpu_use = 0 (the CPU) decide otherwise. Where several
    processes train, each has one.
    """
    n_gpu = 0 if is_on_cpu(n_gpu_use) else torch.cuda.device_count()
    n_wanted = 1 if dist.is_joined() else len(_requested) or n_gpu_use
    if n_wanted > max(n_gpu, 1):
        logging.getLogger('device').warning(
            f'n_gpu is {n_wanted}, but this machine has {n_gpu}: going on with what is there'
        )
    if n_gpu > 0:
        device = torch.device('cuda', dist.local_rank())
    else:
        use_mps = not is_on_cpu(n_gpu_use) and not dist.is_joined()
        use_mps = use_mps and torch.backends.mps.is_available()
        device = torch.device('mps' if use_mps else 'cpu')
    _prepared[:] = [device]
    return device, [] if dist.is_joined() else list(range(min(n_wanted, n_gpu)))


def prepared_device() -> torch.device:
    """The device that was chosen for the model, for data that is kept beside it."""
    return _prepared[0] if _prepared else prepare_device(1)[0]
