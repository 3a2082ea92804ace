"""The only place that judges a whole config, against the key table and what it names."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from armature.config.build import (
    AUTO_LENGTHS,
    KINDS,
    OWN,
    Given,
    Kind,
    Reader,
    find,
    is_projects_own,
    kind_of,
    with_lengths,
)
from armature.config.keys import (
    GROUP,
    INIT_FROM,
    METRIC,
    SECTION,
    TERM,
    TOP,
    Key,
    expanded,
    is_slip,
    judge_keys,
)
from armature.config.read import Document, Problem, did_you_mean, entries, lookup, show
from armature.errors import ConfigError

ANY_LENGTH = 10**6  # stands for "auto" until the data has told
NO_VALUES = ('ConfusionMatrix', 'ROC', 'PrecisionRecallCurve')  # metrics that are tables or curves


def has_no_value(metric: str) -> bool:
    return metric.endswith(NO_VALUES) and not metric.endswith('AUROC')  # the area under one


def check(document: Document, builds: dict[str, ModuleType] | None = None) -> list[str]:
    """Raise a ConfigError with every problem of a config, one a line; return notes on what is odd.

    builds: the sections that the script builds as train.py does, each with the module where it
    looks their classes up. A script that does not say has each judged when it is built.
    """
    problems = list(_problems(document, builds))
    document.refuse(problems)
    return [document.line(problem) for problem in problems]


def _problems(document: Document, builds: dict | None) -> Iterator[Problem]:
    config, is_strict, builds = document.values, builds is not None, builds or {}
    yield from judge_keys(config, table_of(builds), (), is_strict)
    trainer = _dict(config, 'trainer')
    tables = {
        ('init_from',): INIT_FROM,
        ('sweep', 'sampler'): SECTION,
        ('sweep', 'pruner'): SECTION,
    }
    for path, table in tables.items() if is_strict else ():  # where a name alone may stand, too
        if isinstance(section := lookup(config, path), dict):
            yield from judge_keys(section, table, path)
    try:
        expanded(str(trainer.get('save_dir')))
    except ConfigError as error:
        yield Problem(('trainer', 'save_dir'), str(error))
    for name, module in builds.items():
        section = config.get(name)
        if name == 'trainer':
            yield from _entry(document, ('trainer', 'type'), trainer.get('type'), module)
            for index, entry in entries(trainer.get('trackers')):
                path, kind = ('trainer', 'trackers', index), KINDS['trackers']
                yield from _entry(document, path, entry, None, SECTION, kind)
        elif name in ('loss', 'metrics') and isinstance(section, list):
            keys = TERM if name == 'loss' else METRIC
            for index, entry in enumerate(section):
                yield from _entry(document, (name, index), entry, module, keys)
        elif name != 'metrics':
            keys = SECTION if name == 'loss' else None
            yield from _entry(document, (name,), section, module, keys)
    yield from _monitor(config, trainer, builds)
    if 'lr_scheduler' in builds:
        groups = _dict(config, 'optimizer').get('groups')
        yield from _schedule(_dict(config, 'lr_scheduler'), trainer, groups)


def table_of(builds: dict) -> dict[str, Key]:
    """The key table, less the sections that the script does not build."""
    sections = [name for name in TOP if kind_of(name) is not OWN and name != 'trainer']
    unjudged = {name: Key(Any, '', None) for name in sections if name not in builds}
    return dict.fromkeys(builds, Key(SECTION, '', None)) | TOP | unjudged


def _dict(config: dict, name: str) -> dict:
    """A section, empty when it is missing or of the wrong kind, which the key table says."""
    return config[name] if isinstance(config.get(name), dict) else {}


# What the sections name


def _entry(
    document: Document,
    path: tuple,
    entry: Any,
    module: ModuleType | None,
    keys: dict | None = None,
    kind: Kind | None = None,
) -> Iterator[Problem]:
    """One thing to build: a name, or {"type", "args"} whose keys the table `keys` judges here."""
    is_section = isinstance(entry, dict)
    if is_section and keys is not None:
        yield from judge_keys(entry, keys, path)
    name, args = (entry.get('type'), entry.get('args')) if is_section else (entry, None)
    if not isinstance(name, str) or not isinstance(args or {}, dict):
        return  # the key table has said so
    if path[0] == 'lr_scheduler':
        entry = with_lengths(entry, ANY_LENGTH)
    reader, kind = Reader(module, document), kind or kind_of(path[0], module)
    given = Given((None,) if kind.given else (), is_all=kind is not KINDS['trainer'])
    call = reader.call(entry, kind, path, given)
    is_library = call and not is_projects_own(call.func)
    if is_library and path[0] == 'metrics' and has_no_value(name):
        yield Problem(path, f'{name} is no single value: see trainer.pictures')
        return
    for index, group in entries(entry.get('groups')) if call and path == ('optimizer',) else ():
        here = (*path, 'groups', index)
        if isinstance(group, dict):
            known = {key: value for key, value in group.items() if key in GROUP}
            yield from judge_keys(known, GROUP, here)
            own = group.get('type')  # without it, what is missing stands in the optimizer's args
            options = {key: value for key, value in group.items() if key not in GROUP}
            judged = {'type': own or name, 'args': options}
            reader.call(judged, kind, here, Given((None,), is_all=bool(own)))
    yield from reader.problems


# What only several keys together can tell


def _names(config: dict) -> Iterator[str]:
    """The name of each value that an epoch reports."""
    yield 'loss'
    for section in ('metrics', 'loss'):
        for entry in config[section] if isinstance(config.get(section), list) else ():
            entry = entry if isinstance(entry, dict) else {'type': entry}
            if isinstance(name := entry.get('name') or entry.get('type'), str):
                yield name if entry.get('name') else name.rpartition('.')[2]


def _monitor(config: dict, trainer: dict, builds: dict) -> Iterator[Problem]:
    rule, path = trainer.get('monitor'), ('trainer', 'monitor')
    if not isinstance(rule, str) or rule == 'off':
        return
    mode, _, metric = rule.partition(' ')
    metric = metric.strip()
    names = list(_names(config))
    known = [*names, *(f'val_{name}' for name in names)]
    if mode not in ('min', 'max') or not metric:
        yield Problem(path, f"expected 'min <metric>', 'max <metric>' or 'off', got {show(rule)}")
    elif 'metrics' not in builds:
        return
    elif metric not in known:
        is_misspelt = any(is_slip(metric.removeprefix('val_'), name) for name in names)
        text = f'no epoch reports {metric!r}{did_you_mean(metric, known)}'
        text += '' if is_misspelt else ', unless your own trainer does'
        yield Problem(path, f'{text}: there are {", ".join(known)}', is_note=not is_misspelt)
    elif metric.startswith('val_') and _lacks_validation(config, builds):
        text = f'{metric!r} needs validation data, and data_loader.args.validation_split is 0'
        yield Problem(path, f'{text}: set it, or say "{mode} {metric[4:]}"')


def _lacks_validation(config: dict, builds: dict) -> bool:
    """Whether the config says that nothing is split off, and names no other validation data."""
    section = _dict(config, 'data_loader')
    args = _dict(section, 'args')
    is_split = args.get('validation_split', True) or args.get('n_folds')
    if is_split or 'valid_data_loader' not in builds or config.get('valid_data_loader'):
        return False
    try:
        loader = find(section.get('type'), KINDS['data_loader'], builds.get('data_loader'))
    except ConfigError:
        return False
    # One with its own way may know of data that the config does not name.
    return 'split_validation' not in vars(loader)


def _schedule(section: dict, trainer: dict, groups: Any) -> Iterator[Problem]:
    path, name, args = ('lr_scheduler',), section.get('type'), _dict(section, 'args')
    interval = section.get('interval') or 'epoch'
    if name == 'ReduceLROnPlateau':
        rule, mode = trainer.get('monitor') or 'off', args.get('mode', 'min')
        if interval == 'step':
            text = 'ReduceLROnPlateau waits for the value of an epoch: expected "epoch"'
            yield Problem((*path, 'interval'), text)
        if rule == 'off':
            text = "ReduceLROnPlateau needs a trainer.monitor, such as 'min val_loss'"
            yield Problem((*path, 'type'), text)
        elif str(rule).partition(' ')[0] in {'min', 'max'} - {mode}:
            text = f'is {show(mode)}, but trainer.monitor is {show(rule)}'
            yield Problem((*path, 'args', 'mode'), text)
    has_own = any('lr' in group for _, group in entries(groups) if isinstance(group, dict))
    if has_own and isinstance(args.get('max_lr'), (int, float)):
        text = f'{name} gives every group this lr, also where optimizer.groups says another: a '
        text += 'list has one for each group, those with a type last'
        yield Problem((*path, 'args', 'max_lr'), text, is_note=True)
    epochs, batches = trainer.get('epochs'), trainer.get('len_epoch') if interval == 'step' else 1
    if not isinstance(epochs, int) or not isinstance(batches, int):
        return  # only the data can tell how many steps there will be
    n_steps = epochs * batches
    for key in AUTO_LENGTHS:
        length, has_to_fit = args.get(key), key == 'total_steps'
        if isinstance(length, int) and (length > n_steps or has_to_fit and length < n_steps):
            text = f'is {length} {interval}s, but the run has {n_steps} ("auto" is its length)'
            # With fewer epochs than a period a schedule is cut short, which may be meant.
            yield Problem((*path, 'args', key), text, interval == 'epoch' and not has_to_fit)
