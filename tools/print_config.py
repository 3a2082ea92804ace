"""What --print-config shows: each value of a config, with the defaults, and where it comes from."""

import inspect
import json
import math
from collections.abc import Iterator
from types import ModuleType

from armature.config.build import find, kind_of
from armature.config.keys import TOP
from armature.config.read import Document, entries, lookup
from armature.config.values import parameters
from armature.errors import ConfigError


def describe(document: Document, builds: dict[str, ModuleType] | None = None) -> str:
    """The config with the defaults it relies on, each value with its origin; again a config."""
    lines = []

    def write(value, path: tuple, origin: str, tail: str) -> None:
        indent = '    ' * len(path)
        key = f'{json.dumps(path[-1])}: ' if path and isinstance(path[-1], str) else ''
        members = list(_with_defaults(value, path, document, builds or {}))
        is_plain_list = isinstance(value, list) and not any(
            isinstance(each, (dict, list)) for each in value
        )
        if not members or is_plain_list:
            text = f'{indent}{key}{json.dumps(value)}{tail}'
            lines.append(f'{text:<56}  // {origin}' if origin else text)
            return
        opening, closing = '{}' if isinstance(value, dict) else '[]'
        lines.append(f'{indent}{key}{opening}')
        for index, (name, inner, place) in enumerate(members):
            write(inner, (*path, name), place, ',' if index < len(members) - 1 else '')
        lines.append(f'{indent}{closing}{tail}')

    write(document.values, (), '', '')
    return '\n'.join(lines) + '\n'


def _with_defaults(value, path: tuple, document: Document, builds: dict) -> Iterator[tuple]:
    """(key, value, origin) for what a section holds, then for what it leaves to a default."""
    for key, inner in entries(value):
        yield key, inner, document.origin((*path, key))
    table = TOP
    for name in path:
        key = table.get(name) if isinstance(table, dict) else None
        table = key.hint if key else None
    for name, key in table.items() if isinstance(table, dict) else ():
        if key.default is not ... and isinstance(value, dict) and name not in value:
            yield name, key.default, 'default'
    is_group = path[:2] == ('optimizer', 'groups') and isinstance(value, dict) and value.get('type')
    if (path[-1:] != ('args',) and not is_group) or path[0] not in builds:
        return
    kind = kind_of(path[0], builds[path[0]])
    kind = kind.inside() if len(path) > 2 and not is_group else kind
    where = (*path, 'type') if is_group else (*path[:-1], 'type')
    try:
        found = find(lookup(document.values, where), kind)
    except ConfigError:
        return
    for key, parameter in parameters(found)[0].items():
        default = json_default(parameter)
        if key not in dict(entries(value)) and default is not NotImplemented:
            yield key, default, f'default of {found.__name__}'


def json_default(parameter: inspect.Parameter):
    """A parameter's default as a config would say it; NotImplemented when it cannot."""
    default = parameter.default
    if isinstance(default, tuple):
        default = list(default)
    items = default if isinstance(default, list) else [default]
    plain = (int, float, str, bool, type(None))
    is_plain = all(type(each) in plain for each in items)
    is_finite = all(math.isfinite(each) for each in items if type(each) is float)
    return default if is_plain and is_finite else NotImplemented
