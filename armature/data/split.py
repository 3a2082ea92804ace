"""Which samples are for training and which for validation: a matter of each sample's own key.

The same ones for every seed: a run that is resumed with another seed must not train on what it was
validated on. A sample's key (its group, its name where the dataset tells names, or its index) is
hashed, and those with the smallest hashes are validated on. A run that goes on with other data
keeps the bounds between the hashes, so that a sample that comes or goes moves no other one. A share
of samples that have no names takes the smallest hash of each few samples in turn, which needs no
memory of before: samples that are appended move nobody.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from armature.errors import ConfigError
from armature.seed import key

VERSION = 2  # 0: of the old template; 1: of our first version
SPLIT_KEY = key('validation split')
LARGEST = 2**63 - 1


class Split(NamedTuple):
    """Training and validation indices, each sorted, and what a checkpoint keeps of the split."""

    train: torch.Tensor
    valid: torch.Tensor
    state: dict | None


def split_indices(
    n_samples: int,
    validation_split: float,
    *,
    n_folds: int | None = None,
    fold: int = 0,
    classes: Sequence | None = None,
    groups: Sequence | None = None,
    names: Sequence[str] | None = None,
    before: dict | None = None,
) -> Split:
    """The validation part is empty without a split.

    validation_split: share (a float) or number (an int) of samples. n_folds, fold: fold number
    `fold` of `n_folds` instead. classes: keep their shares the same in both parts. groups: samples
    of one group stay in one part. names: of the samples. before: `state` of the run that goes on.
    """
    everybody = torch.arange(n_samples)
    if fold and n_folds is None:
        raise ConfigError(f'fold is {fold}, and nothing says of how many: give n_folds, too')
    if n_folds is None and validation_split == 0:
        return Split(everybody, everybody[:0], None)
    n_valid = _n_valid(n_samples, validation_split, n_folds, fold)
    settings = {
        'validation_split': validation_split,
        'n_folds': n_folds,
        'fold': fold,
        'stratify': classes is not None,
        'groups': groups is not None,
    }
    before = before or {}
    version = before.get('version', VERSION)
    state = {'version': version, 'settings': settings}
    is_plain = classes is groups is n_folds is None
    is_valid = np.zeros(n_samples, dtype=bool)
    if version != VERSION:
        if not is_plain:
            raise ConfigError(
                'this run was begun by an earlier version, whose split by classes, groups or folds '
                'is not made any more: start a new run from its weights ("init_from")'
            )
        is_valid[_former_order(n_samples, version)[:n_valid]] = True
    elif is_plain and names is None and isinstance(validation_split, float):
        is_valid = _one_of_each_few(n_samples, validation_split)
    else:
        hashes, members = _hashed(n_samples, names, classes, groups)
        sizes = [len(hashes[each]) for each in members.values()]
        if n_folds is None:
            ends = [(0, end) for end in _shared_out(n_valid, sizes)]
        else:
            ends = [(fold * n // n_folds, (fold + 1) * n // n_folds) for n in sizes]
        known = before.get('bounds', {}) if before.get('settings') == settings else {}
        bounds = state['bounds'] = {}
        for (label, indices), its_ends in zip(members.items(), ends):
            its_hashes = hashes[indices]
            ordered = np.sort(its_hashes)
            low, high = known.get(label) or [_bound(ordered, end) for end in its_ends]
            is_valid[indices] = (its_hashes > low) & (its_hashes <= high)
            bounds[label] = [low, high]
    train, valid = everybody[~is_valid], everybody[is_valid]
    if not len(train) or not len(valid):
        raise ConfigError(
            f'the split puts {len(train)} samples into the training part and {len(valid)} into the '
            'validation part: both need some'
        )
    return Split(train, valid, state)


def refuse_split(loader: Any, section: str) -> None:
    """A ConfigError when `loader`, built of `section`, splits off samples that nobody asks for."""
    if getattr(loader, 'valid_sampler', None) is not None:
        raise ConfigError(
            f'{section} splits off {len(loader.valid_sampler)} of its samples, which nobody would '
            'use here: leave out its validation_split and n_folds'
        )


def _n_valid(n_samples: int, validation_split: float, n_folds: int | None, fold: int) -> int:
    """How many samples are to be validated on."""
    if n_folds is not None:
        if validation_split:
            raise ConfigError('validation_split and n_folds both say what to validate on: give one')
        if not (2 <= n_folds <= n_samples and 0 <= fold < n_folds):
            raise ConfigError(
                f'fold is {fold} and n_folds {n_folds}: expected at least 2 folds, at most one a '
                f'sample ({n_samples}), and a fold from 0 to n_folds - 1'
            )
        return n_samples // n_folds
    is_number = isinstance(validation_split, int)
    n_valid = validation_split if is_number else int(n_samples * validation_split)
    if not 0 < n_valid < n_samples:
        raise ConfigError(
            f'validation_split is {validation_split}, which puts {n_valid} of {n_samples} samples '
            'into the validation part: expected a share between 0 and 1, or a number of samples, '
            'that leaves both parts some'
        )
    return n_valid


def _hashed(
    n_samples: int,
    names: Sequence[str] | None,
    classes: Sequence | None,
    groups: Sequence | None,
) -> tuple[np.ndarray, dict[str, slice | np.ndarray]]:
    """((n_samples,) hash of each sample's key, the samples of each class; '' without classes)."""
    if groups is not None:
        names = np.asarray(groups).astype(str).tolist()
    if names is None:
        hashes = _of_indices(n_samples)
    else:
        hashes = np.array([key(SPLIT_KEY, name) for name in names])
    if classes is None:
        return hashes, {'': slice(None)}
    labels, which = np.unique(np.ravel(classes), return_inverse=True)
    if len(labels) == len(which):
        raise ConfigError(
            'this split cannot be made: stratify keeps the shares of classes, and no class has two '
            'samples'
        )
    if groups is not None:  # a group counts to the class that most of its samples have
        found, of_sample = np.unique(hashes, return_inverse=True)
        table = np.zeros((len(found), len(labels)), dtype=np.int64)
        np.add.at(table, (of_sample, which), 1)
        which = table.argmax(1)[of_sample]
    ends = np.cumsum(np.bincount(which, minlength=len(labels)))
    which = which.astype(np.min_scalar_type(len(labels)))  # few bits are sorted in linear time
    by_class = np.split(np.argsort(which, kind='stable'), ends[:-1])
    return hashes, dict(zip(map(str, labels.tolist()), by_class))


def _of_indices(n_samples: int) -> np.ndarray:
    # Draw number i of a fixed stream is as good as a hash of i, and 10^7 take no time.
    draws = np.random.PCG64(SPLIT_KEY).random_raw(n_samples) >> np.uint64(1)
    return draws.view(np.int64)


def _one_of_each_few(n_samples: int, share: float) -> np.ndarray:
    """(n_samples,) whether it is for validation: as many of the first m as int(m * share)."""
    which = (np.arange(n_samples + 1) * share).astype(np.int64)  # the few that each belongs to
    which, n_valid = which[:-1], which[-1]
    hashes = _of_indices(n_samples)
    smallest = np.minimum.reduceat(hashes, np.searchsorted(which, np.arange(which[-1] + 1)))
    return (hashes == smallest[which]) & (which < n_valid)


def _shared_out(n_valid: int, sizes: list[int]) -> list[int]:
    """How many of each class are validated on: `n_valid` in all; each keeps some for training."""
    shares = np.diff(np.rint(np.cumsum(sizes) * (n_valid / sum(sizes))), prepend=0)
    return [max(0, min(int(share), size - 1)) for share, size in zip(shares, sizes)]


def _bound(ordered: np.ndarray, end: int) -> int:
    """What the first `end` hashes do not exceed, and the others do; as near as groups allow."""
    if end in (0, len(ordered)):
        return LARGEST if end else -1
    bound = int(ordered[end - 1])
    first, last = np.searchsorted(ordered, [bound, bound + 1])
    return bound if last - end <= end - first else bound - 1


def _former_order(n_samples: int, version: int) -> np.ndarray:
    """The order whose first samples an earlier version validated on."""
    if version == 0:
        return np.random.RandomState(0).permutation(n_samples)
    return torch.randperm(n_samples, generator=torch.Generator().manual_seed(SPLIT_KEY)).numpy()
