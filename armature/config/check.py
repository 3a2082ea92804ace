"""The only place that judges a whole config, against the key table and what it names."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from armature.config.build import (
    AUTO_LENGTHS,
    KINDS,
    OWN,
    EntryReader,
    Kind,
    kind_of,
    name_of,
    type_of,
)
from armature.config.keys import GROUP, SECTION, TOP, Key, paths_of, unfit
from armature.config.read import Document, Problem, entries, lookup, show, show_path
from armature.config.spelling import did_you_mean, is_slip

# Of these keys the old template has the meaning that we have: no project has others of the name.
OF_OLD_TEMPLATE = {'n_gpu', 'save_dir', 'save_period', 'monitor', 'early_stop'}
ANY_LENGTH = 10**6  # stands for "auto" until the data has told


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
    for path, entry, kind in _named(config, builds):
        if isinstance(type_of(entry), str):
            yield from _entry(document, path, entry, kind)
    if 'loss' in builds:
        yield from _loss(config.get('loss'))
    if 'metrics' in builds:
        yield from _monitor(config)
    if 'lr_scheduler' in builds:
        yield from _schedule(config)


def table_of(builds: dict) -> dict[str, Key]:
    """The key table, less the sections that the script does not build."""
    others = TOP.keys() - builds.keys() - {'trainer'}
    unjudged = {name: Key(Any, '', None) for name in others if kind_of(name) != OWN}
    return dict.fromkeys(builds, Key(SECTION, '', None)) | TOP | unjudged


# The keys


def judge_keys(
    section: Any, table: dict, path: tuple = (), is_strict: bool = True
) -> Iterator[Problem]:
    """What is wrong with the keys of a section, or of each in a list, and with their values.

    is_strict: a slip of a key of the table is a mistake; else the code may have a key of that name.
    """
    for index, entry in enumerate(section) if isinstance(section, list) else ():
        yield from judge_keys(entry, table, (*path, index), is_strict)
    if not isinstance(section, dict):
        return  # a name alone
    unknown = [name for name in section if name not in table]
    slips = {name: key for name in unknown for key in table if is_strict and is_slip(name, key)}
    for name, key in slips.items():
        yield Problem((*path, name), f'unknown key (did you mean {key!r}?)')
    others = [name for name in unknown if name not in slips]
    if others:
        shown = [show_path((name,)) + _elsewhere(name, table) for name in others]
        text = f'no key of ours, so it is for your own code to read: {", ".join(shown)}'
        yield Problem(path, text, is_note=True)
    for name, key in table.items():
        here, value, is_section = (*path, name), section.get(name), isinstance(key.hint, dict)
        if value is None and key.default is not ...:
            continue
        if name not in section:
            if name not in slips.values():
                yield Problem(here, f'is missing ({key.description})')
        elif expected := unfit(value, key):
            # The script of an old project may read a key of its own that has this name.
            is_own = not (is_strict or key.default is ... or name in OF_OLD_TEMPLATE)
            text = f'expected {expected}, got {show(value)}'
            yield Problem(here, text + ', so it is for your own code' * is_own, is_own)
        elif members := key.hint if is_section else is_strict and key.members:
            yield from judge_keys(value, members, here, is_strict)


def _elsewhere(name: str, table: dict) -> str:
    """Says where a key of ours belongs that stands in another section."""
    places = [show_path(path[:-1]) or 'the top level' for path in paths_of(TOP) if path[-1] == name]
    return f' (its place is {places[0]})' if len(places) == 1 else did_you_mean(name, table)


# What the sections name


def _named(config: dict, builds: dict) -> Iterator[tuple[tuple, Any, Kind]]:
    """(path, entry, kind) of each name, or {"type", "args"}, of a thing to build."""
    for name, module in builds.items():
        path, kind = (name,), kind_of(name, module)
        if name == 'trainer':
            yield (name, 'type'), lookup(config, (name, 'type')), kind
            path, kind = (name, 'trackers'), KINDS['trackers']
        section = lookup(config, path)
        if isinstance(section, list):
            for index, entry in enumerate(section):
                yield (*path, index), entry, kind
        else:
            yield path, section, kind


def _entry(document: Document, path: tuple, entry: Any, kind: Kind) -> Iterator[Problem]:
    reader, given = EntryReader(document, ANY_LENGTH), (None,) if kind.given else ()
    call = reader.call(entry, kind, path, given, is_all=path != ('trainer', 'type'))
    groups = lookup(entry, ('groups',)) if call and path == ('optimizer',) else ()
    for index, group in entries(groups):
        here = (*path, 'groups', index)
        if isinstance(group, dict):
            options = {key: value for key, value in group.items() if key not in GROUP}
            yield from judge_keys({key: group[key] for key in group if key in GROUP}, GROUP, here)
            own = group.get('type')  # without it, what is missing stands in the optimizer's args
            judged = {'type': own or type_of(entry), 'args': options}
            reader.call(judged, kind, here, given, is_all=bool(own))
    yield from reader.problems


# What only several keys together can tell


def _loss(section: Any) -> Iterator[Problem]:
    if section == []:
        yield Problem(('loss',), 'is an empty list: name at least one loss')
    if lookup(section, ('weight',)) is not None:
        text = 'multiplies a term of several: write "loss": [{...}], or leave it out'
        yield Problem(('loss', 'weight'), text)


def _monitor(config: dict) -> Iterator[Problem]:
    metric = str(lookup(config, ('trainer', 'monitor'))).partition(' ')[2].strip()
    reported = [*entries(config.get('metrics')), *entries(config.get('loss'))]
    names = ['loss', *(name_of(entry) for index, entry in reported if isinstance(index, int))]
    names += [f'val_{name}' for name in names]
    if metric and metric not in names:
        metric_name = metric.removeprefix('val_')
        is_misspelt = any(  # rmse is no slip of mse
            is_slip(metric_name, name) and not metric_name.endswith(name) for name in names
        )
        text = f'no epoch reports {metric!r}{did_you_mean(metric, names)}'
        text += '' if is_misspelt else ', unless your own trainer does'
        text += f': there are {", ".join(names)}'
        yield Problem(('trainer', 'monitor'), text, is_note=not is_misspelt)


def _schedule(config: dict) -> Iterator[Problem]:
    # A section that is none is empty here: the key table has said so.
    section, trainer = (dict(entries(config.get(name))) for name in ('lr_scheduler', 'trainer'))
    name, path = section.get('type'), ('lr_scheduler', 'args')
    args = dict(entries(section.get('args')))
    direction, mode = str(trainer.get('monitor')).partition(' ')[0], args.get('mode', 'min')
    if name == 'ReduceLROnPlateau' and direction in ('min', 'max') and direction != mode:
        text = f'is {show(mode)}, but trainer.monitor is {show(trainer["monitor"])}'
        yield Problem((*path, 'mode'), text)
    groups = entries(lookup(config, ('optimizer', 'groups')))
    has_own = any('lr' in dict(entries(group)) for _, group in groups)
    if has_own and isinstance(args.get('max_lr'), (int, float)):
        text = f'{name} gives every group this lr, also where optimizer.groups says another: a '
        text += 'list has one for each group, those with a type last'
        yield Problem((*path, 'max_lr'), text, is_note=True)
    both = args.get('epochs'), args.get('steps_per_epoch')  # of OneCycleLR
    if all(isinstance(each, int) for each in both):
        args.setdefault('total_steps', both[0] * both[1])
    unit = section.get('interval') or 'epoch'
    epochs, batches = trainer.get('epochs'), trainer.get('len_epoch') if unit == 'step' else 1
    if not isinstance(epochs, int) or not isinstance(batches, int):
        return  # only the data can tell how many steps there will be
    n_steps = n_whole = epochs * batches
    if unit == 'step' and isinstance(trainer.get('max_steps'), int):
        n_steps = min(n_steps, trainer['max_steps'])
    for key in AUTO_LENGTHS:
        length, has_to_fit = args.get(key), key == 'total_steps' and args.get(key) != n_whole
        if isinstance(length, int) and (length > n_steps or has_to_fit and length < n_steps):
            text = f'is {length} {unit}s, but the run has {n_steps} ("auto" is its length)'
            # A schedule that is cut short may be meant, as in a short trial.
            yield Problem((*path, key), text, not has_to_fit)
