"""The only place that judges a whole config, against the key table and what it names."""

import inspect
import warnings
from collections.abc import Iterator
from types import ModuleType

import torch

from armature.config.build import (
    KINDS,
    build_callable,
    find,
    judge,
    kind_of,
    prepare,
    with_lengths,
)
from armature.config.keys import (
    METRIC,
    OBJECT,
    SECTION,
    TERM,
    TOP,
    expanded,
    is_near_miss,
    judge_keys,
    parameters,
)
from armature.config.read import Document, Problem, did_you_mean, entries, show
from armature.errors import ConfigError

# What a script may read by itself in a way of its own, unless it says that it builds it.
SECTIONS = ('arch', 'data_loader', 'valid_data_loader', 'test_data_loader')
SECTIONS += ('optimizer', 'loss', 'metrics', 'lr_scheduler')
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
    yield from judge_keys(config, table_of(builds), (), {'name', 'trainer', *builds}, is_strict)
    for name in builds.keys() & config.keys() - {'trainer'}:
        section, several = config[name], {'loss': TERM, 'metrics': METRIC}.get(name)
        if several and isinstance(section, list):
            for index, entry in enumerate(section):
                yield from _entry(document, (name, index), entry, builds[name], several)
        elif name != 'metrics':
            yield from _entry(document, (name,), section, builds[name])
    optimizer, trainer = _dict(config, 'optimizer'), _dict(config, 'trainer')
    if 'optimizer' in builds:
        yield from _groups(optimizer, builds['optimizer'], config)
    if 'trainer' in builds and isinstance(trainer.get('type'), str):
        path = ('trainer', 'type')
        yield from judge(
            trainer['type'], KINDS['trainer'], path, builds['trainer'], config, is_complete=False
        )
    for index, entry in entries(trainer.get('trackers') if 'trainer' in builds else None):
        yield from judge(entry, KINDS['trackers'], ('trainer', 'trackers', index), None, config)
    try:
        expanded(str(trainer.get('save_dir')))
    except ConfigError as error:
        yield Problem(('trainer', 'save_dir'), str(error))
    yield from _monitor(config, trainer, builds)
    if 'lr_scheduler' in builds:
        yield from _schedule(_dict(config, 'lr_scheduler'), trainer)


def table_of(builds: dict) -> dict:
    """The key table, less the sections that the script does not build."""
    unjudged = {name: {'default': None} for name in SECTIONS if name not in builds}
    own = {**OBJECT, 'properties': SECTION, 'default': None}
    return dict.fromkeys(builds, own) | TOP | unjudged


def _dict(config: dict, name: str) -> dict:
    """A section, empty when it is missing or of the wrong kind, which the key table says."""
    return config[name] if isinstance(config.get(name), dict) else {}


# What the sections name


def _entry(
    document: Document, path: tuple, entry, module: ModuleType, keys: dict | None = None
) -> Iterator[Problem]:
    """One thing to build: a name, or {"type", "args"}."""
    if path == ('lr_scheduler',):
        entry = with_lengths(entry, ANY_LENGTH)
    is_section = isinstance(entry, dict)
    if is_section and path[0] in ('loss', 'metrics'):
        yield from judge_keys(entry, keys or SECTION, path)
    if not isinstance(entry.get('type') if is_section else entry, str):
        return  # the key table has said so
    if is_section and not isinstance(entry.get('args') or {}, dict):
        return
    found = list(judge(entry, kind_of(path[0], module), path, module, document.values))
    yield from found
    if all(problem.is_note for problem in found):
        yield from _refusal(document, path, entry, module)


def _refusal(document: Document, path: tuple, entry, module: ModuleType) -> Iterator[Problem]:
    """Build what torch provides, for a model of one number, so that its own checks are made."""
    section, config = path[0], document.values
    if section not in ('loss', 'metrics', 'optimizer', 'lr_scheduler'):
        return
    name, args = (entry['type'], entry.get('args')) if isinstance(entry, dict) else (entry, {})
    found = find(name, KINDS[section], module)
    if not inspect.isclass(found) or not found.__module__.startswith(('torch.', 'torchmetrics.')):
        return
    if section == 'metrics' and has_no_value(name):
        yield Problem(path, f'{name} is no single value: see trainer.pictures')
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            if section in ('loss', 'metrics'):
                build_callable(entry, path, module, Document({'arch': config.get('arch')}))
            elif section == 'optimizer':
                _optimizer(entry)
            else:
                _try_scheduler(entry, config)
    except Exception as error:  # whatever it raises, it says that these values will not do
        text = ' '.join(str(error).split()) or type(error).__name__
        text = text.partition(' refuses: ')[2] or text
        here = (*path, 'args', *(args if len(args or ()) == 1 else ()))
        yield Problem(here, f'{found.__name__} refuses: {text}')


def _optimizer(section) -> torch.optim.Optimizer:
    parameter = torch.nn.Parameter(torch.zeros(1, 1))
    return prepare(section, 'optimizer', torch.optim, ([parameter],), {}, Document({}))()


def _try_scheduler(section: dict, config: dict) -> None:
    try:
        optimizer = _optimizer(config['optimizer'])
    except Exception:  # has its own line in the report, or is the project's own
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], momentum=0.9)
    module = torch.optim.lr_scheduler
    scheduler = prepare(section, 'lr_scheduler', module, (optimizer,), {}, Document({}))()
    if not isinstance(scheduler, module.ReduceLROnPlateau):
        scheduler.step()  # a period of zero shows only here


def _groups(section: dict, module: ModuleType, config: dict) -> Iterator[Problem]:
    """What a group of parameters says beside its pattern has to be an argument of the optimizer."""
    for index, group in entries(section.get('groups')):
        path = ('optimizer', 'groups', index)
        if not isinstance(group, dict):
            continue  # the key table has said so
        if not isinstance(group.get('match'), str):
            text = 'expected a pattern of parameter names, such as "*.bias|*norm*"'
            yield Problem((*path, 'match'), text)
        args = {key: value for key, value in group.items() if key != 'match'}
        entry = {'type': section.get('type'), 'args': args}
        for problem in judge(entry, KINDS['optimizer'], path, module, config, is_complete=False):
            if problem.path[-1] in args:  # what is wrong with the type is said once
                yield problem._replace(path=(*path, problem.path[-1]))


# What only several keys together can tell


def _names(config: dict) -> Iterator[str]:
    """The name of each value that an epoch reports."""
    yield 'loss'
    for section in ('metrics', 'loss'):
        for entry in config[section] if isinstance(config.get(section), list) else ():
            entry = entry if isinstance(entry, dict) else {'type': entry}
            name = entry.get('name') or entry.get('type')
            if isinstance(name, str):
                yield name if entry.get('name') else name.rpartition('.')[2]


def _monitor(config: dict, trainer: dict, builds: dict) -> Iterator[Problem]:
    rule, path = trainer.get('monitor'), ('trainer', 'monitor')
    if not isinstance(rule, str) or rule == 'off':
        return
    mode, _, metric = rule.partition(' ')
    metric = metric.strip()
    if mode not in ('min', 'max') or not metric:
        yield Problem(path, f"expected 'min <metric>', 'max <metric>' or 'off', got {show(rule)}")
    elif 'metrics' in builds:
        names = list(_names(config))
        known = [*names, *(f'val_{name}' for name in names)]
        # f1 is no misspelt k1: a short name is next to any other.
        near = [name for name in known if len(name.removeprefix('val_')) > 3]
        if metric not in known and any(is_near_miss(metric, name) for name in near):
            text = f'no epoch reports {metric!r}{did_you_mean(metric, known)}'
            yield Problem(path, f'{text}: there are {", ".join(known)}')
        elif metric not in known:
            text = f'{metric!r} is no metric of this config{did_you_mean(metric, known)}'
            yield Problem(path, f'{text}: your own trainer has to report it', is_note=True)
        elif metric.startswith('val_') and _has_no_validation(config, builds):
            text = f'{metric!r} needs validation data, and data_loader.args.validation_split is 0'
            yield Problem(path, f'{text}: set it, or say "{mode} {metric[4:]}"')


def _has_no_validation(config: dict, builds: dict) -> bool:
    """Whether the script takes validation data from the config or a split, and there is neither."""
    if 'valid_data_loader' not in builds or config.get('valid_data_loader'):
        return False
    section = _dict(config, 'data_loader')
    args = _dict(section, 'args')
    if args.get('validation_split') or args.get('n_folds'):
        return False
    try:
        loader = find(section.get('type'), KINDS['data_loader'], builds.get('data_loader'))
    except ConfigError:
        return False
    if 'split_validation' in vars(loader):  # it may know of data that the config does not name
        return False
    parameter = parameters(loader)[0].get('validation_split')
    return 'validation_split' in args or parameter is not None and parameter.default in (0, None)


def _schedule(section: dict, trainer: dict) -> Iterator[Problem]:
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
        return
    if interval == 'epoch' and name == 'CyclicLR':
        text = f'{name} counts steps, and is stepped once an epoch: say "interval": "step"'
        yield Problem((*path, 'interval'), text, is_note=True)
    epochs, batches = trainer.get('epochs'), trainer.get('len_epoch') if interval == 'step' else 1
    if not isinstance(epochs, int) or not isinstance(batches, int):
        return  # only the data can tell how many steps there will be
    n_steps, unit = epochs * batches, f'{interval}s'
    for key in ('T_max', 'total_steps', 'total_iters'):
        length, here = args.get(key), (*path, 'args', key)
        if not isinstance(length, int):
            continue
        if length > n_steps:
            is_note = interval == 'epoch' and key != 'total_steps'
            hint = ' (for steps, say "interval": "step")' if is_note else ''
            text = f'{length} {unit} are not reached: the run has {n_steps}{hint}'
            yield Problem(here, text, is_note)
        elif key == 'total_steps' and length < n_steps:
            yield Problem(here, f'{name} ends after {length} {unit}, and the run has {n_steps}')
