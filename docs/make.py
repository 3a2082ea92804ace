"""Writes the pages and pictures that are made from the code: python -m docs.make

tests/test_docs.py fails where one of them is not what this would write.
"""

import json
from pathlib import Path

from armature.config.keys import Key
from docs import drawing, errors
from tools.schema import of_hint
from tools.sweep_keys import ALL

DOCS = Path(__file__).resolve().parent

# docs/keys.md

KEYS = """# Every key of a config

What each section does is in [config.md](config.md), [training.md](training.md) and
[data.md](data.md). `python train.py -c config.json --print-config` shows what yours says, defaults
included. A key of your own needs no entry here; one of the template's is one line in
`armature/config/keys.py`.

| key | value | default | meaning |
|---|---|---|---|
"""
NOUNS = {
    'string': 'text',
    'integer': 'whole number',
    'number': 'number',
    'boolean': 'true, false',
    'object': 'section',
    'array': 'list',
    'null': 'null',
}


def keys_page() -> str:
    return KEYS + '\n'.join(key_rows('', ALL)) + '\n'


def key_rows(section: str, table: dict[str, Key]) -> list[str]:
    rows, below = [], []
    for name, key in table.items():
        if name in ('type', 'args') and section != 'trainer.':  # what every section has
            continue
        default = 'required' if key.default is ... else as_json(key.default)
        schema = {'type': 'object'} if isinstance(key.hint, dict) else of_hint(key.hint)
        value, meaning = in_words(schema), key.description.replace('|', '\\|')
        default = default.replace('`null`', '')
        rows.append(f'| `{section}{name}` | {value} | {default} | {meaning} |')
        if isinstance(key.hint, dict):
            below += key_rows(f'{section}{name}.', key.hint)
    return rows + below


def in_words(schema: dict) -> str:
    if 'anyOf' in schema:
        return ' or '.join(map(in_words, schema['anyOf']))
    if 'enum' in schema:
        return ' or '.join(map(as_json, schema['enum']))
    if schema.get('type') == 'array' and schema.get('items', {}).get('type') == 'string':
        return 'list of texts'
    bounds = (('minimum', 'at least'), ('exclusiveMinimum', 'above'), ('maximum', 'at most'))
    limits = [f'{words} {schema[bound]}' for bound, words in bounds if bound in schema]
    return ', '.join([NOUNS[schema['type']], *limits])


def as_json(value) -> str:
    return f'`{json.dumps(value)}`'


def pages() -> dict[str, str]:
    """{name in docs/: content}"""
    return {'errors.md': errors.page(), 'keys.md': keys_page(), 'pictures/rooms.svg': drawing.svg()}


if __name__ == '__main__':
    for name, content in pages().items():
        (DOCS / name).write_text(content, encoding='utf-8')
