"""A JSON Schema of this project's configs: python -m tools.schema > config.schema.json

With "$schema": "config.schema.json" in a config an editor completes and checks `type` and `args`.
"""

import copy
import json
import re

from armature.config import build as config_types
from armature.config.keys import (
    FILE_ONLY,
    METRIC,
    OBJECT,
    SECTION,
    TERM,
    TOP,
    argument_schema,
    near_miss,
    parameters,
)
from tools.print_config import json_default

# What the template's train.py passes itself; a config that gives it too is refused.
FROM_CODE = {
    'optimizer': ('params',),
    'lr_scheduler': ('optimizer',),
    'loss': ('input', 'output', 'target'),
    'metrics': ('output', 'target'),
}


def schema() -> dict:
    """The schema as plain data."""
    properties = copy.deepcopy({**TOP, **FILE_ONLY})
    for section in (
        'arch',
        'data_loader',
        'valid_data_loader',
        'test_data_loader',
        'optimizer',
        'lr_scheduler',
    ):
        properties[section] |= entry_schema(section, properties[section]['properties'])
    terms = {'type': 'array', 'items': _entry_or_name('loss', TERM)}
    properties['loss'] = {
        'anyOf': [*_entry_or_name('loss')['anyOf'], terms],
        'description': TOP['loss']['description'],
    }
    properties['metrics']['items'] = _entry_or_name('metrics', METRIC)
    properties['trainer'] |= closed(_or_null(properties['trainer']['properties']))
    properties = _or_null(properties)
    return {
        '$schema': 'https://json-schema.org/draft/2020-12/schema',
        'title': 'A config of this project',
        'type': 'object',
        **closed(properties),
        'if': {'required': ['base']},
        'else': {'required': ['name', 'trainer']},
    }


def _or_null(properties: dict) -> dict:
    """What has a default may be null, which stands for it."""
    return {
        key: {'anyOf': [value, {'type': 'null'}]} if 'default' in value else value
        for key, value in properties.items()
    }


def closed(properties: dict) -> dict:
    """These properties, and any other key that is not one letter away from one of them."""
    misses = '|'.join(near_miss(key)[1:-1] for key in properties)
    known = '|'.join(re.escape(key) for key in properties)
    return {
        'properties': properties,
        'propertyNames': {'not': {'pattern': f'^(?!(?:{known})$)(?:{misses})$'}},
    }


def entry_schema(section: str, properties: dict) -> dict:
    """{"type", "args"}: which types there are, and for each what its args may be."""
    kind = config_types.kind_of(section)
    module = config_types.import_project_module(kind.module) if kind.module else None
    known = config_types.names(kind, module)
    cases = [
        {
            'if': {'properties': {'type': {'const': name}}, 'required': ['type']},
            'then': {
                'properties': {'args': _arguments(config_types.find(name, kind, module), section)}
            },
        }
        for name in known
        if _is_concrete(name, kind, module)
    ]
    name_schema = {
        'anyOf': [{'enum': known}, {'type': 'string', 'pattern': r'^[A-Za-z]\w*(\.\w+)+$'}]
    }
    return {**OBJECT, **closed({**properties, 'type': name_schema}), 'allOf': cases}


def _is_concrete(name: str, kind: config_types.Kind, module) -> bool:
    try:
        return config_types.find(name, kind, module) is not None
    except config_types.ConfigError:
        return False


def _entry_or_name(section: str, keys: dict = SECTION) -> dict:
    entry = entry_schema(section, copy.deepcopy(keys))
    return {'anyOf': [entry['properties']['type'], {**entry, 'required': ['type']}]}


def _arguments(found, section: str) -> dict:
    named, is_open = parameters(found)
    properties = {}
    for key, parameter in named.items():
        if key in FROM_CODE.get(section, ()):
            continue
        properties[key] = copy.deepcopy(argument_schema(parameter))
        if section == 'lr_scheduler' and key in config_types.AUTO_LENGTHS and properties[key]:
            properties[key] = {'anyOf': [properties[key], {'enum': ['auto']}]}
        if (default := json_default(parameter)) is not NotImplemented:
            properties[key]['default'] = default
    return {**OBJECT, 'properties': properties, 'additionalProperties': is_open}


if __name__ == '__main__':
    print(json.dumps(schema(), indent=1))
