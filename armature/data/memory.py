"""A dataset read into memory once (data_loader.args.in_memory), where that can be."""

import re
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from armature.batch import CPU, WHOLE, leaves, map_tensors
from armature.compare import first_difference
from armature.data.identity import digest
from armature.data.reading import InMemory, Reader
from armature.data.workers import Workers
from armature.errors import ConfigError
from armature.seed import rng_state

CHUNK = 256  # samples read at a time
N_TWICE = 64  # of the first ones are read twice: a dataset may draw from generators of its own


class FixedReader(Reader):
    """Reads samples as they are; a ConfigError when one draws random numbers.

    Memory would hold those of one pass.
    """

    def samples(self, seed: None, number: int, indices: list[int]) -> list:
        before = rng_state(CPU)
        twice = indices[:N_TWICE] if indices[0] == 0 else []
        samples = super().samples(seed, number, indices + twice)
        samples, again = samples[: len(indices)], samples[len(indices) :]
        has_drawn = first_difference(before, rng_state(CPU))
        if has_drawn or digest(again) != digest(samples[: len(twice)]):
            raise ConfigError(
                f'in_memory would freeze the random transforms of {type(self.dataset).__name__}: '
                'give them as "augment", or leave in_memory out'
            )
        return samples


def read_into_memory(dataset: Dataset, options: dict) -> InMemory:
    """All samples of a dataset; options: of torch's loader, for the workers that read them."""
    n_samples, tensors = len(dataset), None
    workers = Workers(FixedReader(dataset), options | {'persistent_workers': False})
    chunks = torch.arange(n_samples).split(CHUNK)
    requests = ((None, 0, indices.tolist(), WHOLE) for indices in chunks)
    for *_, indices, content in workers.answers(requests):
        if tensors is None:
            refuse_other_than_tensors(content)
            n_bytes = sum(tensor.nbytes for tensor in leaves(content))
            refuse_what_does_not_fit(n_samples, n_bytes / len(indices))
            tensors = map_tensors(
                lambda tensor: tensor.new_empty((n_samples, *tensor.shape[1:])), content
            )
        for rows, values in zip(leaves(tensors), leaves(content)):
            if rows.shape[1:] != values.shape[1:]:
                shapes = f'{tuple(rows.shape[1:])} and {tuple(values.shape[1:])}'
                raise ConfigError(
                    f'in_memory needs samples of one shape, but there are {shapes}. Leave it out, '
                    'or bring them to one size'
                )
            rows[indices] = values
    return InMemory(tensors)


def refuse_other_than_tensors(content: Any) -> None:
    for leaf in leaves(content):
        if not isinstance(leaf, torch.Tensor):
            raise ConfigError(
                f'in_memory needs samples of tensors and numbers: there is {type(leaf).__name__} '
                f'{str(leaf)[:40]!r}'
            )


def refuse_what_does_not_fit(n_samples: int, sample_bytes: float) -> None:
    needed, free = n_samples * sample_bytes, free_bytes()
    if needed > free:
        raise ConfigError(
            f'in_memory: {n_samples:,} samples of {sample_bytes:,.0f} bytes are '
            f'{needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB of memory are free. Leave in_memory '
            'out, or make the samples smaller'
        )


def free_bytes(group: Path = Path('/sys/fs/cgroup')) -> float:
    """Memory that can still be had; infinite where the system does not say.

    group: says what a container may use, when it may not use all.
    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html
    """
    limits = [float('inf')]
    try:
        lines = Path('/proc/meminfo').read_text().splitlines()
        limits += [1024 * int(line.split()[1]) for line in lines if line.startswith('MemAvailable')]
        most, used = (int((group / f'memory.{each}').read_text()) for each in ('max', 'current'))
        # What is in use counts files that were read, which are given up for whoever needs memory.
        files = re.findall(r'active_file (\d+)', (group / 'memory.stat').read_text())
        limits.append(most - used + sum(map(int, files)))
    except (OSError, ValueError):
        pass
    return min(limits)
