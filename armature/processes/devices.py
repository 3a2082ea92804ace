"""Which devices this process trains on: what `-d` or n_gpu asks for, and what the machine has.

torch.accelerator says which kind of GPU there is: CUDA (also ROCm), MPS, XPU or another.
"""

import logging
import os

import torch

from armature.batch import CPU
from armature.errors import ConfigError
from armature.processes import dist

_requested = []  # the devices that -d named
_prepared = []  # the device that prepare_device chose last


def devices_by_name() -> dict[str, torch.device]:
    """What `-d` can name on this machine: '0', 'cuda:0' and 'cuda' are its first GPU."""
    gpus = _gpus()
    numbered = {str(gpu.index): gpu for gpu in gpus} | {str(gpu): gpu for gpu in gpus}
    return numbered | {gpu.type: gpu for gpu in gpus[:1]} | {'cpu': CPU}


def _gpus():
    # Counting does not start CUDA, which would no longer look at CUDA_VISIBLE_DEVICES then.
    kind = torch.accelerator.current_accelerator()
    return [torch.device(kind.type, index) for index in range(torch.accelerator.device_count())]


def select_devices(request: str) -> None:
    """Apply `-d`: 'cpu', or GPUs such as '0', '0,1', 'mps', 'xpu:1'; before anything touches CUDA.

    Several GPUs, or 'cpu,cpu', mean as many processes. Raises ConfigError when a device is not
    there, with those that are.
    """
    there = devices_by_name()
    chosen = [there.get(name.strip()) for name in request.split(',')]
    distinct = set(chosen)
    on_cpu = distinct == {CPU}
    if not on_cpu and ({CPU, None} & distinct or len(distinct) < len(chosen)):
        raise ConfigError(
            f'-d {request}: expected GPUs such as 0 or 0,1, each once, or cpu; '
            f'this machine has {", ".join(there)}'
        )
    # Other CUDA devices are hidden, as the old template does: code of one's own says 'cuda:0'. But
    # where processes are still to be started, these choose.
    if chosen[0].type in ('cpu', 'cuda') and (dist.is_started() or len(chosen) == 1):
        given = os.environ.get('CUDA_VISIBLE_DEVICES')
        visible = given.split(',') if given else list(there)  # which begin with '0', '1'
        mine = [] if on_cpu else [visible[gpu.index] for gpu in chosen]
        os.environ['CUDA_VISIBLE_DEVICES'] = ','.join(mine)
        chosen = [torch.device('cuda', place) for place in range(len(mine))] or chosen
    _requested[:] = chosen


def n_processes_wanted(n_gpu: int) -> int:
    """How many processes `-d`, or else n_gpu, asks for; n_gpu may name more than there are."""
    return len(_requested) or max(1, min(n_gpu, torch.accelerator.device_count()))


def prepare_device(n_gpu_use: int) -> tuple[torch.device, list[int]]:
    """The device to train on, and the indices for DataParallel when several are asked for.

    A GPU where there is one; `-d` and n_gpu_use = 0 (the CPU) decide otherwise. Where several
    processes train, each has one.
    """
    on_cpu = CPU in _requested if _requested else n_gpu_use == 0
    gpus, n_wanted = [] if on_cpu else _gpus(), len(_requested) or n_gpu_use
    if dist.is_started():  # gloo, and nothing else, connects Macs, and knows no tensors of MPS
        gpus, n_wanted = [gpu for gpu in gpus if gpu.type != 'mps'], 1
    if n_wanted > max(len(gpus), 1):
        logging.getLogger('device').warning(
            f'n_gpu is {n_wanted}, but this machine has {len(gpus)}: going on with what is there'
        )
    mine = (_requested or gpus) if gpus else [CPU]
    if gpus and len(mine) < dist.n_local():
        raise ConfigError(
            f'{dist.n_local()} processes are started on this machine, with {len(mine)} GPUs for '
            'them: start as many processes as GPUs, or name others by -d, such as -d cpu'
        )
    device = mine[dist.local_rank() % len(mine)]
    if device.index:  # else it is the current one anyway
        torch.accelerator.set_device_index(device.index)
    _prepared[:] = [device]
    return device, [] if dist.is_started() else list(range(min(n_wanted, len(gpus))))


def prepared_device() -> torch.device:
    """The device that was chosen for the model, for data that is kept beside it."""
    return _prepared[0] if _prepared else prepare_device(1)[0]


def device_name(device: torch.device) -> str:
    """Its maker's name for it, where that is known."""
    name_of = getattr(torch.get_device_module(device), 'get_device_name', None)
    return name_of(device) if name_of else device.type
