"""Which samples are for training and which for validation: a matter of each sample's own key.

The same ones for every seed: a run that is resumed with another seed must not train on what it was
validated on. A sample's key (its name, where the dataset tells names, or its index) is hashed, and
those with the smallest hashes are validated on; a run that goes on with other data keeps the bounds
between the hashes, so that a sample that comes or goes moves no other one. A share of samples that
have no names takes the smallest hash of each few samples in turn, which needs no memory of before:
samples that are appended move nobody.
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
    version = before.get('version', VERSION)
    state = {'version': version, 'settings': settings}
    if (
        version == VERSION
        and isinstance(validation_split, float)
        and not n_folds
        and (names is classes is groups is None)
    ):
        is_valid = _one_of_each_few(n_samples, validation_split)
    elif version == VERSION:
        samples = _hashed(n_samples, names, classes, groups)
        bounds = before.get('bounds', {}) if before.get('settings') == settings else {}
        is_valid, state['bounds'] = _within_bounds(samples, n_valid, n_folds, fold, bounds)
    else:
        make = _of_old_template if version == 0 and classes is groups is n_folds is None else _first
        is_valid = torch.zeros(n_samples, dtype=torch.bool)
        is_valid[make(n_samples, n_valid, n_folds, fold, classes, groups)] = True
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


class _Hashed(NamedTuple):
    """What is put into one of the parts as a whole: samples, or groups of them."""

    hashes: np.ndarray  # (n,) from 0 to LARGEST
    sizes: np.ndarray | None  # (n,) samples in each group; None: one
    classes: np.ndarray | None  # (n,) which class, as a place in `labels`
    labels: list[str]
    of_sample: np.ndarray | None  # (n_samples,) which group a sample is in


def _hashed(n_samples: int, names: Any, classes: Any, groups: Any) -> _Hashed:
    labels, which = [''], None
    if classes is not None:
        found, which, counts = numbered(np.asarray(classes))
        labels = [str(each) for each in found.tolist()]
        if counts.max() == 1:
            raise ConfigError(
                'this split cannot be made: stratify keeps the shares of classes, and no class has '
                'two samples'
            )
    if groups is None:
        hashes = _of_indices(n_samples) if names is None else _of_names(names)
        return _Hashed(hashes, None, which, labels, None)
    found, of_sample, sizes = np.unique(
        np.asarray(groups).astype(str), return_inverse=True, return_counts=True
    )
    if which is not None:  # a group counts to the class that most of its samples have
        table = np.zeros((len(found), len(labels)), dtype=np.int64)
        np.add.at(table, (of_sample, which), 1)
        which = table.argmax(1)
    return _Hashed(_of_names(found.tolist()), sizes, which, labels, of_sample)


def _of_indices(n_samples: int) -> np.ndarray:
    """splitmix64 of each index: 10^7 in half a second. Source: https://prng.di.unimi.it."""
    with np.errstate(over='ignore'):
        mixed = np.arange(1, n_samples + 1, dtype=np.uint64)
        mixed *= np.uint64(0x9E3779B97F4A7C15)
        mixed += np.uint64(SPLIT_KEY)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed ^= mixed >> np.uint64(shift)
            mixed *= np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(1)).view(np.int64)


def _of_names(names: Sequence[str]) -> np.ndarray:
    return np.fromiter((key(SPLIT_KEY, name) for name in names), dtype=np.int64, count=len(names))


def _one_of_each_few(n_samples: int, share: float) -> torch.Tensor:
    """(n_samples,) whether it is for validation: as many of the first m as int(m * share)."""
    which = (np.arange(n_samples + 1) * share).astype(np.int64)  # the few that each belongs to
    hashes, n_valid = _of_indices(n_samples), int(which[-1])
    starts = np.searchsorted(which[:-1], np.arange(which[-2] + 1))
    smallest = np.minimum.reduceat(hashes, starts)
    is_valid = (hashes == smallest[which[:-1]]) & (which[:-1] < n_valid)
    return torch.from_numpy(is_valid)


def _within_bounds(
    samples: _Hashed, n_valid: int, n_folds: int | None, fold: int, bounds: dict
) -> tuple[torch.Tensor, dict[str, list[int]]]:
    """((n_samples,) whether it is for validation, the bounds that say so for each class).

    For validation are those whose hash is above the first bound and not above the second.
    bounds: of the same split before the data changed; only new classes get others.
    """
    hashes, sizes, labels = samples.hashes, samples.sizes, samples.labels
    if samples.classes is None:
        members = [slice(None)]
    else:
        counts = np.bincount(samples.classes, minlength=len(labels))
        members = np.split(by_class(samples.classes), np.cumsum(counts)[:-1])
    n_in = [len(hashes[each]) if sizes is None else int(sizes[each].sum()) for each in members]
    if n_folds is None:
        ends = [(0, n) for n in _shares(n_valid, n_in)]
    else:
        ends = [(fold * n / n_folds, (fold + 1) * n / n_folds) for n in n_in]
    is_valid, now = np.zeros(len(hashes), dtype=bool), {}
    for label, those, (low, high) in zip(labels, members, ends):
        its_sizes = None if sizes is None else sizes[those]
        now[label] = bounds.get(label) or [
            _bound(hashes[those], its_sizes, low),
            _bound(hashes[those], its_sizes, high),
        ]
        is_valid[those] = (hashes[those] > now[label][0]) & (hashes[those] <= now[label][1])
    if samples.of_sample is not None:
        is_valid = is_valid[samples.of_sample]
    return torch.from_numpy(is_valid), now


def _shares(n_valid: int, n_in: list[int]) -> list[int]:
    """`n_valid` shared out by the sizes of classes, each of which keeps some for training."""
    exact = np.array(n_in) * n_valid / sum(n_in)
    shares = np.minimum(np.floor(exact), np.array(n_in) - 1).astype(int)
    for place in np.argsort(shares - exact, kind='stable'):  # those that rounding hurt most
        if shares.sum() < n_valid and shares[place] + 1 < n_in[place]:
            shares[place] += 1
    return shares.tolist()


def _bound(hashes: np.ndarray, sizes: np.ndarray | None, n_samples: float) -> int:
    """The largest hash among those that come first and hold `n_samples` together, or nearly so."""
    if sizes is None:
        n_below = int(np.ceil(n_samples - 0.5))
        ordered = np.partition(hashes, n_below - 1) if n_below else hashes
    else:
        order = np.argsort(hashes)
        ordered, middles = hashes[order], np.cumsum(sizes[order]) - sizes[order] / 2
        n_below = int(np.searchsorted(middles, n_samples))
    if n_below == len(hashes):
        return LARGEST
    return int(ordered[n_below - 1]) if n_below else -1


# The splits of runs that began before


def _of_old_template(n_samples: int, n_valid: int, *_: Any) -> Sequence[int]:
    order = np.arange(n_samples)
    np.random.RandomState(0).shuffle(order)
    return order[:n_valid].tolist()


def _first(n_samples, n_valid, n_folds, fold, classes, groups) -> Sequence[int]:
    """The validation part as the first version chose it."""
    from sklearn import model_selection as sk

    everybody, seed = range(n_samples), SPLIT_KEY % 2**32
    if n_folds is None and groups is None:
        if classes is None:
            generator = torch.Generator().manual_seed(SPLIT_KEY)
            return torch.randperm(n_samples, generator=generator)[:n_valid].tolist()
        return sk.train_test_split(
            everybody, test_size=n_valid, stratify=classes, random_state=seed
        )[1]
    if n_folds is None and classes is None:
        folds = sk.GroupShuffleSplit(1, test_size=n_valid / n_samples, random_state=seed)
        return next(folds.split(everybody, groups=groups))[1].tolist()
    n_folds = n_folds or max(2, round(n_samples / n_valid))
    if groups is None:
        kind = sk.KFold if classes is None else sk.StratifiedKFold
    else:
        kind = sk.GroupKFold if classes is None else sk.StratifiedGroupKFold
    shuffled = {} if kind is sk.GroupKFold else {'shuffle': True, 'random_state': seed}
    return list(kind(n_folds, **shuffled).split(everybody, classes, groups))[fold][1].tolist()
