"""Reading: JSON with comments, base files, --set, and the place of every value."""

import json

import pytest

from armature.config.command import set_value
from armature.config.read import Document, merge, parse, read_config
from armature.errors import ConfigError


def read(tmp_path, **files):
    for name, text in files.items():
        (tmp_path / f'{name}.json').write_text(text if isinstance(text, str) else json.dumps(text))
    return read_config(tmp_path / 'a.json', 'a.json')


def message(function, *args) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*args)
    return str(caught.value)


def test_reads_what_json_reads():
    text = json.dumps({'a': [1, -2.5e3, 'é\n"\\/', True, None, {}], 'b': {'c': []}}, indent=2)
    assert parse(text, 'x').values == json.loads(text)


def test_comments_and_trailing_commas_are_accepted():
    assert parse(
        '{ // one\n "a": [1, /* two\n three */ 2,], "b": "// no /* comment */", }', 'x'
    ).values == {
        'a': [1, 2],
        'b': '// no /* comment */',
    }


def test_every_value_knows_its_line():
    document = parse('{\n "a": {\n\n  "b": [1,\n 2]}\n}', 'x.json')
    assert [
        document.origin(path)
        for path in [('a',), ('a', 'b'), ('a', 'b', 0), ('a', 'b', 1), ('a', 'missing')]
    ] == [
        'x.json:2',
        'x.json:4',
        'x.json:4',
        'x.json:5',
        'x.json:2',
    ]


def test_a_value_is_told_from_a_key_and_from_what_a_text_holds():
    text = '{"a: [1":\n"b\\": 2" , "[" :\n["{x: y}",\n{}], "":\n{ "e"\n:\n-1.5e3 } }'
    document = parse(text, 'x')
    assert document.values == {'a: [1': 'b": 2', '[': ['{x: y}', {}], '': {'e': -1500.0}}
    assert list(document.origins.items()) == [
        ((), 'x:1'),
        (('a: [1',), 'x:2'),
        (('[',), 'x:3'),
        (('[', 0), 'x:3'),
        (('[', 1), 'x:4'),
        (('',), 'x:5'),
        (('', 'e'), 'x:7'),
    ]


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('{\n "a": 1,\n "a": 2}', 'x:3: a: given twice, first at x:2'),
        ('{"a": NaN}', 'x:1: a: NaN is too large, or no number'),
        ('{\n"a": [1, -Infinity]}', 'x:2: a.1: -Infinity is too large, or no number'),
        ('{"a": 1e999}', 'x:1: a: 1e999 is too large'),
        (f'{{"a": {"9" * 5000}}}', 'x:1: a: 99999999999999999999 is too large'),
        ('{"a": 1\n"b": 2}', 'x:2: Expecting \',\' delimiter, found "b"'),
        ('{"a": True}', 'x:1: Expecting value, found True (did you mean true?)'),
        ("{'a': 1}", "found ' (strings stand in double quotes)"),
        ('{"a": "open\n}', 'does the string end on its line?'),
        ('{"a": 1} {', 'x:1: Extra data, found {'),
        ('', 'x:1: Expecting value, found the end of the file'),
        ('{"a": "\\q"}', 'x:1: Invalid \\escape'),
        ('{"a": 01}', "x:1: Expecting ',' delimiter, found 1"),
        ('\0', 'x:1: Expecting value'),
        ('/* never closed', 'x:1: Expecting value'),
        ('[' * 70 + ']' * 70, 'nested deeper than 64 levels'),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text, expected):
    assert expected in message(parse, text, 'x')


@pytest.mark.parametrize('number', [2**63 - 1, 1 - 2**63])
def test_a_whole_number_of_64_bits_is_read_and_the_next_is_refused(number):
    assert parse(f'{{"a": {number}}}', 'x').values == {'a': number}
    beyond = number + (1 if number > 0 else -1)
    assert 'is too large' in message(parse, f'{{"a": {beyond}}}', 'x')


def test_all_bad_values_are_reported_at_once():
    assert message(parse, '{"a": NaN,\n"b": 1, "b": 2,\n"c": 1e999}', 'x').count('\n') == 2


def test_files_that_are_no_configs_are_refused(tmp_path):
    (tmp_path / 'latin.json').write_bytes(b'{"name":\n "\xe9"}')
    (tmp_path / 'list.json').write_text('[1]')
    (tmp_path / 'bom.json').write_bytes('\ufeff{"name": "x"}'.encode())
    assert 'latin.json:2: not UTF-8' in message(read_config, tmp_path / 'latin.json', 'latin.json')
    assert 'expected an object' in message(read_config, tmp_path / 'list.json', 'list.json')
    assert 'Is a directory' in message(read_config, tmp_path, 'folder')
    assert read_config(tmp_path / 'bom.json', 'bom.json').values == {'name': 'x'}


def test_base_merges_sections_and_keeps_their_origin(tmp_path):
    document = read(
        tmp_path,
        a={'base': ['b.json', 'sub.json'], 'x': {'p': 1}},
        b='{"x": {"p": 0,\n"q": 0}}',
        sub='{"x":\n{"r": [1]}}',
    )
    assert document.values == {'x': {'p': 1, 'q': 0, 'r': [1]}}
    assert [document.origin(('x', key)) for key in 'pqr'] == ['a.json:1', 'b.json:2', 'sub.json:2']


def test_a_section_with_another_type_does_not_inherit_args(tmp_path):
    b = {'optimizer': {'type': 'Adam', 'args': {'amsgrad': True}}}
    assert read(
        tmp_path, a={'base': 'b.json', 'optimizer': {'type': 'SGD', 'args': {'lr': 1}}}, b=b
    ).values == {'optimizer': {'type': 'SGD', 'args': {'lr': 1}}}
    assert read(
        tmp_path, a={'base': 'b.json', 'optimizer': {'type': 'Adam', 'args': {'lr': 1}}}, b=b
    ).values == {'optimizer': {'type': 'Adam', 'args': {'amsgrad': True, 'lr': 1}}}


def test_null_is_none_and_delete_removes_what_is_inherited(tmp_path):
    b = {'x': {'p': 1, 'q': 2}, 'y': {'z': 1}}
    a = {'base': 'b.json', 'x': {'p': None, 'q': {'delete': True}}, 'y': {'delete': True}}
    assert read(tmp_path, a=a, b=b).values == {'x': {'p': None}}
    text = message(lambda: read(tmp_path, a={'base': 'b.json', 'yy': {'delete': True}}, b=b))
    assert text.startswith('a.json:1: yy: nothing here to delete')
    assert merge(Document({}), Document({'p': None})).values == {'p': None}


def test_a_loop_of_bases_is_shown(tmp_path):
    text = message(
        lambda: read(tmp_path, a='{"base":\n"b.json"}', b={'base': 'c.json'}, c={'base': 'a.json'})
    )
    assert text == 'c.json:1: base: a.json -> b.json -> c.json -> a.json is a loop'


def test_a_base_whose_name_is_too_long_is_one_line(tmp_path):
    text = message(lambda: read(tmp_path, a={'base': 'x' * 300}))
    assert 'no such config file' in text and text.count('\n') == 0


def test_many_bases_over_the_same_files_are_read_once(tmp_path):
    for i in range(25):
        (tmp_path / f'{i}.json').write_text(
            json.dumps({'base': [f'{i + 1}.json'] * 2 if i < 24 else [], 'x': i})
        )
    assert read_config(tmp_path / '0.json', '0.json').values == {'x': 0}


def test_a_missing_base_names_the_line(tmp_path):
    assert message(lambda: read(tmp_path, a='{\n"base": "nope.json"}')).startswith(
        'a.json:2: base: "nope.json": no such config file'
    )
    assert 'no such config file' in message(lambda: read(tmp_path, a={'base': {'x': 1}}))


CONFIG = {
    'optimizer': {'type': 'Adam', 'args': {'lr': 1}},
    'metrics': ['a', 'b'],
    'trainer': {'epochs': 1},
    'own': {'x': 1},
}


@pytest.mark.parametrize(
    ('assignment', 'path', 'value'),
    [
        ('optimizer.args.lr=3e-4', ('optimizer', 'args', 'lr'), 3e-4),
        ('optimizer.type=SGD', ('optimizer', 'type'), 'SGD'),
        ('metrics.0=c d', ('metrics', 0), 'c d'),
        ('metrics+=c', ('metrics', 2), 'c'),
        ('trainer.max_minutes=5', ('trainer', 'max_minutes'), 5),
        ('lr_scheduler.type=StepLR', ('lr_scheduler', 'type'), 'StepLR'),
        ('own.y+={"z": [true]}', ('own', 'y'), {'z': [True]}),
        ('optimizer.args.momentum=0.9', ('optimizer', 'args', 'momentum'), 0.9),
        ('own.x=a=b', ('own', 'x'), 'a=b'),
        ('own.x=', ('own', 'x'), ''),
        ('own.x="3"', ('own', 'x'), '3'),
    ],
)
def test_set_changes_one_value(assignment, path, value):
    document = Document(json.loads(json.dumps(CONFIG)))
    set_value(document, assignment)
    found = document.values
    for key in path:
        found = found[key]
    assert found == value and document.origin(path) == '--set'


def test_set_null_gives_none_and_delete_removes():
    document = Document(json.loads(json.dumps(CONFIG)))
    set_value(document, 'own.x=null')
    assert document.values['own'] == {'x': None}
    set_value(document, 'own.x={"delete": true}')
    set_value(document, 'metrics.0={"delete": true}')
    assert document.values['own'] == {} and document.values['metrics'] == ['b']


def test_a_key_without_its_section_is_pointed_at_it_and_the_hint_works():
    document = Document(json.loads(json.dumps(CONFIG)))
    for short, full in [('epochs=2', 'trainer.epochs'), ('lr=3', 'optimizer.args.lr')]:
        text = message(set_value, document, short)
        assert f'did you mean {full!r}?' in text
        set_value(document, f'{full}={short[-1]}')
    assert document.values['trainer']['epochs'] == 2


@pytest.mark.parametrize(
    ('assignment', 'expected'),
    [
        (
            'trainer.epoch=3',
            "--set: trainer.epoch: the config has no such key (did you mean 'trainer.epochs'?)",
        ),
        (
            'own.zzz=3',
            "--set: own.zzz: the config has no such key (to add it, write 'own.zzz+=...')",
        ),
        ('metrics.2=c', '--set: metrics.2: the config has no such key (did you mean'),
        ('metrics.x+=c', '--set: metrics.x: there is no section, but ['),
        ('own.x+=3', "--set: own.x: is there already: write '=' to change it"),
        ('own.x.y+=3', '--set: own.x.y: there is no section, but 1'),
        ('own.x', "expected 'section.key=value'"),
        ('=3', "expected 'section.key=value'"),
        ('own..x=3', "expected 'section.key=value'"),
        ('own.x=NaN', '--set own.x: the config: NaN is too large, or no number'),
        ('own.x=[1,', '--set own.x: Expecting value'),
        ('own.x=1e999', 'too large'),
    ],
)
def test_a_set_that_cannot_be_meant_is_refused(assignment, expected):
    assert expected in message(set_value, Document(json.loads(json.dumps(CONFIG))), assignment)
