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

from armature.data.order import by_class, numbered
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
    state = {'version': before.get('version', VERSION), 'settings': settings}
    is_plain = names is classes is groups is n_folds is None
    if state['version'] == VERSION and is_plain and isinstance(validation_split, float):
        is_valid = _one_of_each_few(n_samples, validation_split)
    elif state['version'] == VERSION:
        bounds = before.get('bounds', {}) if before.get('settings') == settings else {}
        hashes, labels, members = _hashed(n_samples, names, classes, groups)
        state['bounds'] = {}
        is_valid = np.zeros(n_samples, dtype=bool)
        ends = _ends(n_valid, n_folds, fold, [len(hashes[each]) for each in members])
        for label, its_members, its_ends in zip(labels, members, ends):
            its_hashes = hashes[its_members]
            low, high = bounds.get(label) or _bounds(np.sort(its_hashes), its_ends)
            is_valid[its_members] = (its_hashes > low) & (its_hashes <= high)
            state['bounds'][label] = [low, high]
    elif state['version'] == 0 and classes is groups is n_folds is None:
        is_valid = _of_old_template(n_samples, n_valid)
    else:
        is_valid = _of_first_version(n_samples, n_valid, n_folds, fold, classes, groups)
    train, valid = everybody[~is_valid], everybody[is_valid]
    if not len(train) or not len(valid):
        raise ConfigError(
            f'the split puts {len(train)} samples into the training part and {len(valid)} into the '
            'validation part: both need some'
        )
    return Split(train, valid, state)


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


def _hashed(n_samples: int, names: Any, classes: Any, groups: Any) -> tuple[Any, list, list]:
    """((n_samples,) hash of each sample's key, the classes, which samples each of them has)."""
    if groups is not None:
        found, of_sample = np.unique(np.asarray(groups).astype(str), return_inverse=True)
        hashes = _of_names(found.tolist())[of_sample]
    else:
        hashes = _of_indices(n_samples) if names is None else _of_names(names)
    if classes is None:
        return hashes, [''], [slice(None)]
    labels, which, counts = numbered(np.asarray(classes))
    if counts.max() == 1:
        raise ConfigError(
            'this split cannot be made: stratify keeps the shares of classes, and no class has two '
            'samples'
        )
    if groups is not None:  # a group counts to the class that most of its samples have
        table = np.zeros((len(found), len(labels)), dtype=np.int64)
        np.add.at(table, (of_sample, which), 1)
        which = table.argmax(1)[of_sample]
    counts = np.bincount(which, minlength=len(labels))
    members = np.split(by_class(which), np.cumsum(counts)[:-1])
    return hashes, [str(each) for each in labels.tolist()], members


def _of_indices(n_samples: int) -> np.ndarray:
    # Draw number i of a fixed stream is as good as a hash of i, and 10^7 take no time.
    draws = np.random.PCG64(SPLIT_KEY).random_raw(n_samples) >> np.uint64(1)
    return draws.view(np.int64)


def _of_names(names: Sequence[str]) -> np.ndarray:
    return np.fromiter((key(SPLIT_KEY, name) for name in names), dtype=np.int64, count=len(names))


def _one_of_each_few(n_samples: int, share: float) -> np.ndarray:
    """(n_samples,) whether it is for validation: as many of the first m as int(m * share)."""
    which = (np.arange(n_samples + 1) * share).astype(np.int64)  # the few that each belongs to
    which, n_valid = which[:-1], which[-1]
    hashes = _of_indices(n_samples)
    smallest = np.minimum.reduceat(hashes, np.searchsorted(which, np.arange(which[-1] + 1)))
    return (hashes == smallest[which]) & (which < n_valid)


def _ends(n_valid: int, n_folds: int | None, fold: int, n_in: list[int]) -> list[tuple[int, int]]:
    """For each class, as large as `n_in`, where its validation part begins and ends by hash."""
    if n_folds is not None:
        return [(fold * n // n_folds, (fold + 1) * n // n_folds) for n in n_in]
    # Shared out by size, so that the sum is right; each class keeps some for training.
    shares = np.diff(np.rint(np.cumsum(n_in) * (n_valid / sum(n_in))), prepend=0)
    return [(0, max(0, min(int(share), n - 1))) for share, n in zip(shares, n_in)]


def _bounds(ordered: np.ndarray, ends: tuple[int, int]) -> list[int]:
    """The hashes that those before each end do not exceed; as near as groups allow."""
    bounds = []
    for end in ends:
        if end in (0, len(ordered)):
            bounds.append(LARGEST if end else -1)
            continue
        bound = int(ordered[end - 1])
        first, last = (np.searchsorted(ordered, bound, side) for side in ('left', 'right'))
        bounds.append(bound if last - end <= end - first else bound - 1)
    return bounds


# The splits of runs that began before


def _mask(n_samples: int, valid: Any) -> torch.Tensor:
    is_valid = torch.zeros(n_samples, dtype=torch.bool)
    is_valid[valid] = True
    return is_valid


def _of_old_template(n_samples: int, n_valid: int) -> torch.Tensor:
    order = np.arange(n_samples)
    np.random.RandomState(0).shuffle(order)
    return _mask(n_samples, order[:n_valid])


def _of_first_version(n_samples, n_valid, n_folds, fold, classes, groups) -> torch.Tensor:
    if classes is groups is n_folds is None:
        generator = torch.Generator().manual_seed(SPLIT_KEY)
        return _mask(n_samples, torch.randperm(n_samples, generator=generator)[:n_valid])
    from sklearn import model_selection as sk

    mixed = {'random_state': SPLIT_KEY % 2**32}
    if n_folds is None and groups is None:
        splits = sk.StratifiedShuffleSplit(1, test_size=n_valid, **mixed)
    elif n_folds is None and classes is None:
        splits = sk.GroupShuffleSplit(1, test_size=n_valid / n_samples, **mixed)
    else:
        n_folds, mixed['shuffle'] = n_folds or max(2, round(n_samples / n_valid)), True
        if groups is None:
            splits = (sk.KFold if classes is None else sk.StratifiedKFold)(n_folds, **mixed)
        elif classes is None:
            splits = sk.GroupKFold(n_folds)
        else:
            splits = sk.StratifiedGroupKFold(n_folds, **mixed)
    return _mask(n_samples, list(splits.split(range(n_samples), classes, groups))[fold][1])
