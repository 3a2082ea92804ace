"""A JSON Schema of this project's configs: python -m tools.schema > config.schema.json

With "$schema": "config.schema.json" in a config an editor completes and checks `type` and `args`.
"""

import argparse
import json
import re
import typing
from collections.abc import Callable
from typing import Annotated, Any

import torch

from armature.config.build import AUTO_LENGTHS, Kind, find, kind_of, names
from armature.config.keys import GROUP, SECTION, TOP, Key
from armature.config.values import LISTS, PLAIN, hint_of, options, parameters
from armature.errors import ConfigError
from tools.print_config import json_default
from tools.sweep_keys import ALL

TYPES = ('boolean', 'integer', 'number', 'string', 'null', 'object', 'array')  # as in PLAIN
FILE_ONLY = {
    'base': Key(
        str | list,
        'config file or files to start from, relative to this one',
        None,
    ),
    '$schema': Key(str, 'JSON Schema for your editor, see tools/schema.py', None),
}
# What the template's train.py passes itself; a config that gives it too is refused.
FROM_CODE = {
    'optimizer': ('params',),
    'lr_scheduler': ('optimizer',),
    'loss': ('input', 'output', 'target'),
    'metrics': ('output', 'target'),
}


def schema() -> dict:
    """The schema as plain data."""
    whole = section_of(ALL | FILE_ONLY)
    for name, key in TOP.items():
        if isinstance(key.hint, dict) and 'type' in key.hint and name != 'trainer':
            found = entry_of(name, key.hint) | {'description': key.description}
            whole['properties'][name] = found if key.default is ... else or_null(found)
    terms = {'type': 'array', 'items': name_or_entry('loss', TOP['loss'].members)}
    whole['properties']['loss'] = {'anyOf': [*name_or_entry('loss')['anyOf'], terms]}
    metrics = {'type': 'array', 'items': name_or_entry('metrics', TOP['metrics'].members)}
    whole['properties']['metrics'] = or_null(metrics)
    return {
        '$schema': 'https://json-schema.org/draft/2020-12/schema',
        'title': 'A config of this project',
        **whole,
        'if': {'required': ['base']},
        'else': {'required': ['name', 'trainer']},
    }


def section_of(table: dict[str, Key]) -> dict:
    """A section with these keys, and any other that is not one letter away from one of them."""
    properties = {}
    for name, key in table.items():
        found = section_of(key.hint) if isinstance(key.hint, dict) else of_hint(key.hint)
        found = {**found, 'description': key.description}
        properties[name] = found if key.default is ... else or_null(found, default=key.default)
    known, misses = '|'.join(map(re.escape, table)), '|'.join(map(near_miss, table))
    pattern = f'^(?!(?:{known})$)(?:{misses})$'
    return {
        'type': 'object',
        'properties': properties,
        'propertyNames': {'not': {'pattern': pattern}},
    }


def near_miss(key: str) -> str:
    """A regular expression for `key` with a letter left out, added or changed; `_` may be absent.

    A digit or a `_word` after a key is no miss but a second one of its kind: arch2, optimizer_d.
    """
    letters = ['[_-]?' if letter == '_' else re.escape(letter) for letter in key]
    misses = [''.join(letters), ''.join(letters) + '[^0-9_-]']
    for index, letter in enumerate(letters):
        before, after = ''.join(letters[:index]), ''.join(letters[index + 1 :])
        misses += [f'{before}.?{after}', f'{before}.{letter}{after}']
    return '|'.join(misses)


def or_null(schema: dict, **more: Any) -> dict:
    """What has a default may be null, which stands for it."""
    return {'anyOf': [schema, {'type': 'null'}], **more}


def of_hint(hint: Any) -> dict:
    """What an annotation says; {} where it says nothing that we know."""
    choices = options(hint)
    if choices[0] is not hint:
        found = [of_hint(each) for each in choices]
        return {} if {} in found else {'anyOf': found}
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is Annotated:
        return of_hint(parts[0]) | {limit.name: limit.bound for limit in parts[1:]}
    if kind is typing.Literal:
        return {'enum': list(parts)}
    if kind is torch.Tensor:
        return of_hint(list[float])
    for name, (kinds, *_) in zip(TYPES, PLAIN):
        if kind in kinds:
            items = of_hint(parts[0]) if kind in LISTS and len({*parts} - {...}) == 1 else {}
            return {'type': name} | ({'items': items} if items else {})
    return {}


def entry_of(section: str, table: dict[str, Key] = SECTION) -> dict:
    """{"type", "args"}: which types there are, and for each what its args may be.

    In a group of an optimizer, which has no "args", they stand beside its type.
    """
    kind = kind_of(section)
    cases = [
        {
            'if': {'properties': {'type': {'const': name}}, 'required': ['type']},
            'then': {'properties': {'args': args} if 'args' in table else args['properties']},
        }
        for name in names(kind)
        if (found := found_or_none(name, kind)) and (args := arguments_of(found, section))
    ]
    found = section_of(table)
    dotted = {'type': 'string', 'pattern': r'^[A-Za-z]\w*(\.\w+)+$'}
    found['properties']['type'] = {'anyOf': [{'enum': names(kind)}, dotted]}
    if 'groups' in table:
        groups = {'type': 'array', 'items': entry_of(section, GROUP)}
        found['properties']['groups'] = or_null(groups, description=table['groups'].description)
    return {**found, 'allOf': cases}


def found_or_none(name: str, kind: Kind) -> Callable | None:
    try:
        return find(name, kind)
    except ConfigError:  # it is abstract
        return None


def name_or_entry(section: str, table: dict[str, Key] = SECTION) -> dict:
    entry = entry_of(section, table)
    return {'anyOf': [entry['properties']['type'], {**entry, 'required': ['type']}]}


def arguments_of(found: Callable, section: str) -> dict:
    named, is_open = parameters(found)
    properties = {}
    for name, parameter in named.items():
        if name in FROM_CODE.get(section, ()):
            continue
        described = of_hint(hint_of(parameter))
        if described and parameter.default is None:
            described = or_null(described)
        if described and section == 'lr_scheduler' and name in AUTO_LENGTHS:
            described = {'anyOf': [described, {'const': 'auto'}]}
        if (default := json_default(parameter)) is not NotImplemented:
            described['default'] = default
        properties[name] = described
    return {'type': 'object', 'properties': properties, 'additionalProperties': is_open}


if __name__ == '__main__':
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print(json.dumps(schema(), indent=1))
