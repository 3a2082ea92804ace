"""The keys of a config's "sweep" section, and the key table with them."""

from typing import Annotated

from armature.config.keys import COUNT, COUNT_FROM_0, ENTRY, FOLDER_NAME, SECTION, TOP, Key
from armature.config.values import Limit

SWEEP = {
    'params': Key(
        dict,
        '{"optimizer.args.lr": {"low": 1e-5, "high": 0.1, "log": true}}: ranges, or lists of '
        'values',
        {},
    ),
    'name': Key(FOLDER_NAME, 'name of the runs; <name>_sweep when not given', None),
    'grid': Key(bool, 'try all combinations of the lists', False),
    'n_trials': Key(COUNT, 'how many settings are tried; with a grid: all', None),
    'sampler': Key(ENTRY, 'optuna.samplers', 'TPESampler', SECTION),
    'pruner': Key(ENTRY, 'optuna.pruners: ends trials that do badly', 'NopPruner', SECTION),
    'seeds': Key(
        list[COUNT_FROM_0], 'each trial runs once with each, and counts by the mean', None
    ),
    'folds': Key(
        Annotated[int, Limit('minimum', 2)],
        'cross-validation: each trial runs once on each of so many folds',
        None,
    ),
    'parallel': Key(
        COUNT, 'trials that may run at a time; the search for one knows none of these', 4
    ),
}

ALL = TOP | {'sweep': TOP['sweep']._replace(hint=SWEEP)}
