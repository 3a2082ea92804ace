"""Which samples are for training and which for validation: the same ones for every seed.

A run that is resumed with another seed must not train on what it was validated on.
"""

from collections.abc import Sequence

import torch

from armature.errors import ConfigError
from armature.seed import key

SPLIT_KEY = key('validation split')


def split_indices(
    n_samples: int,
    validation_split: float,
    *,
    n_folds: int | None = None,
    fold: int = 0,
    classes: Sequence | None = None,
    groups: Sequence | None = None,
) -> tuple[list[int], list[int]]:
    """(training, validation) indices, each sorted; the validation part is empty without a split.

    validation_split: share (a float) or number (an int) of samples. n_folds, fold: fold number `fold` of `n_folds` instead.
    classes: keep their shares the same in both parts. groups: samples of one group stay in one part.
    """
    if n_folds is None and validation_split == 0:
        return list(range(n_samples)), []
    if n_folds is not None:
        if validation_split:
            raise ConfigError('validation_split and n_folds both say what to validate on: give one')
        if not (2 <= n_folds <= n_samples and 0 <= fold < n_folds):
            raise ConfigError(
                f'fold is {fold} and n_folds {n_folds}: expected at least 2 folds, at most one a sample ({n_samples}), '
                'and a fold from 0 to n_folds - 1'
            )
        n_valid = n_samples // n_folds
    else:
        n_valid = (
            validation_split
            if isinstance(validation_split, int)
            else int(n_samples * validation_split)
        )
        if not 0 < n_valid < n_samples:
            raise ConfigError(
                f'validation_split is {validation_split}, which puts {n_valid} of {n_samples} samples into the '
                'validation part: expected a share between 0 and 1, or a number of samples, that leaves both parts some'
            )
    if n_folds is None and classes is None and groups is None:
        order = torch.randperm(
            n_samples, generator=torch.Generator().manual_seed(SPLIT_KEY)
        ).tolist()
        train, valid = order[n_valid:], order[:n_valid]
    else:
        try:
            train, valid = _splitter(n_samples, n_valid, n_folds, fold, classes, groups)
        except ValueError as error:
            raise ConfigError(f'this split cannot be made: {error}') from error
    if not len(train) or not len(valid):
        raise ConfigError(
            f'the split puts {len(train)} samples into the training part and {len(valid)} into the validation part: '
            'both need some'
        )
    return sorted(map(int, train)), sorted(map(int, valid))


def _splitter(
    n_samples, n_valid, n_folds, fold, classes, groups
) -> tuple[Sequence[int], Sequence[int]]:
    from sklearn import model_selection as sk

    random = {'random_state': SPLIT_KEY % 2**32}
    if n_folds is None and groups is None:
        return sk.train_test_split(range(n_samples), test_size=n_valid, stratify=classes, **random)
    if n_folds is None and classes is None:
        return next(
            sk.GroupShuffleSplit(1, test_size=n_valid / n_samples, **random).split(
                range(n_samples), groups=groups
            )
        )
    shuffled = {'shuffle': True, **random}
    n_folds = n_folds or max(2, round(n_samples / n_valid))
    if groups is None:
        folds = (
            sk.KFold(n_folds, **shuffled)
            if classes is None
            else sk.StratifiedKFold(n_folds, **shuffled)
        )
    else:
        folds = (
            sk.GroupKFold(n_folds)
            if classes is None
            else sk.StratifiedGroupKFold(n_folds, **shuffled)
        )
    return list(folds.split(range(n_samples), classes, groups))[fold]
