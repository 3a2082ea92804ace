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


def seed_torch(number: int, device: torch.device = CPU) -> None:
    """Start torch's generators (the CPU's and that of `device`) at `number`: 2 microseconds.

    Torch.manual_seed takes 100.
    """
    torch.default_generator.manual_seed(number)
    if device.type != 'cpu':
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


def seed_sample(number: int, device: torch.device = CPU) -> None:
    """Start the generators that a dataset (on `device`) may draw from; 10 microseconds."""
    seed_torch(number, device)
    random.seed(number)
    np.random.seed(number % 2**32)


def rng_state(device: torch.device | str) -> dict:
    """The states of the global generators, those of the kind of `device` too, as plain data.

    Something that has run is random when these differ from before.
    """
    device = torch.device(device)  # trainers of old projects have texts
    numpy = np.random.get_state(legacy=False)
    numpy['state']['key'] = numpy['state']['key'].tolist()
    state = {'torch': torch.get_rng_state(), 'python': random.getstate(), 'numpy': numpy}
    if device.type != 'cpu':
        module = torch.get_device_module(device)
        state[device.type] = [module.get_rng_state(i) for i in range(module.device_count())]
    return state


def set_rng_state(state: dict, device: torch.device | str) -> None:
    """Put back what `rng_state` returned; of GPUs, what it holds of the kind of `device`."""
    device = torch.device(device)
    torch.set_rng_state(state['torch'])
    random.setstate(state['python'])
    np.random.set_state(state['numpy'])
    if device.type != 'cpu':
        module = torch.get_device_module(device)
        for index, saved in enumerate(state.get(device.type, [])[: module.device_count()]):
            module.set_rng_state(saved, index)


@contextmanager
def own_randomness(number: int):
    """Inside, the CPU generators start at `number`; outside, nobody notices."""
    before = rng_state(CPU)
    try:
        seed_sample(number)
        yield
    finally:
        set_rng_state(before, CPU)
