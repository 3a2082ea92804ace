"""Randomness by key: every random number of a run is a function of the seed and of what it is drawn
for.

A key is a stable 63-bit hash of its parts, such as (seed, 'order', epoch) or (seed, 'sample',
epoch, index), so nothing about the order of an epoch has to be saved, and it does not matter which
worker draws a sample's augmentation.
"""

import hashlib
import os
import random
from contextlib import contextmanager

import numpy as np
import torch

from armature.batch import CPU

AT_START = torch.initial_seed()  # torch's own choice, another in each process


def key(*parts: int | str) -> int:
    """A number in [0, 2**63) that depends on all parts, the same in every process and version
    (unlike `hash`).
    """
    digest = hashlib.blake2b('/'.join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'little') >> 1


def seed_torch(number: int, device: torch.device | None = None) -> None:
    """Start torch's generators (the CPU's and that of `device`) at `number`: 2 microseconds.

    Torch.manual_seed takes 100.
    """
    torch.default_generator.manual_seed(number)
    if device is not None and device.type != 'cpu':
        with torch.accelerator.device_index(device.index):
            torch.get_device_module(device).manual_seed(number)


def be_deterministic() -> None:
    """Let torch take only operations that give the same bits each time; before it uses a GPU."""
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # else cuBLAS shares it anyhow
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


def seed_everything(number: int) -> None:
    """Start every global generator of this process at `number`: torch's on all devices, Python's,
    numpy's.
    """
    torch.manual_seed(number)
    seed_sample(number)


def seed_sample(number: int, device: torch.device | None = None) -> None:
    """Start the generators that a dataset (on `device`) may draw from; 10 microseconds."""
    seed_torch(number, device)
    random.seed(number)
    np.random.seed(number % 2**32)


def rng_state(device: torch.device) -> dict:
    """The states of the global generators, those of the kind of `device` too, as plain data."""
    state = {
        'torch': torch.get_rng_state(),
        'python': random.getstate(),
        'numpy': np.random.get_state(legacy=False),
    }
    if device.type != 'cpu':
        module = torch.get_device_module(device)
        state[device.type] = [module.get_rng_state(i) for i in range(module.device_count())]
    return state


def draws_so_far(device: torch.device) -> tuple:
    """Where the generators stand that a dataset or a model may draw from, those of `device` too.

    Something that has run is random when these differ from before.
    """
    states = [torch.get_rng_state()]
    if device.type != 'cpu':
        states.append(torch.get_device_module(device).get_rng_state(device))
    _, numbers, *place = np.random.get_state()
    of_torch = [state.cpu().numpy().tobytes() for state in states]
    return of_torch, random.getstate(), numbers.tobytes(), place


def set_rng_state(state: dict, device: torch.device) -> None:
    """Put back what `rng_state` returned; of GPUs, what it holds of the kind of `device`."""
    torch.set_rng_state(state['torch'])
    version, internal, gauss_next = state['python']
    random.setstate((version, tuple(internal), gauss_next))
    inner = state['numpy']['state']
    inner = {**inner, 'key': np.asarray(inner['key'], dtype=np.uint32)}
    np.random.set_state({**state['numpy'], 'state': inner})
    states = state.get(device.type, [])
    # Of MPS there was one without a list.
    for index, each in enumerate(states if isinstance(states, list) else [states]):
        module = torch.get_device_module(device)
        if index < module.device_count():
            module.set_rng_state(each, index)


@contextmanager
def own_randomness(number: int):
    """Inside, the CPU generators start at `number`; outside, nobody notices."""
    before = rng_state(CPU)
    try:
        seed_sample(number)
        yield
    finally:
        set_rng_state(before, CPU)
