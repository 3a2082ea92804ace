"""The JSON Schema accepts what the checker accepts, and rejects the planted errors."""

import copy
import json

import pytest

from armature.config.read import parse
from parse_config import ROOT
from tools.schema import schema

jsonschema = pytest.importorskip('jsonschema')
DEFAULT = json.loads((ROOT / 'config.json').read_text())


@pytest.fixture(scope='module')
def validator():
    described = json.loads(json.dumps(schema()))
    jsonschema.Draft202012Validator.check_schema(described)
    return jsonschema.Draft202012Validator(described)


def shipped():
    return [
        ROOT / 'config.json',
        *sorted(ROOT.glob('configs/*.json')),
        *sorted(ROOT.glob('examples/*/*.json')),
    ]


@pytest.mark.parametrize('path', shipped(), ids=lambda path: str(path.relative_to(ROOT)))
def test_shipped_configs_are_valid(validator, path):
    assert [
        error.message for error in validator.iter_errors(parse(path.read_text(), path.name).values)
    ] == []


@pytest.mark.parametrize(
    'more',
    [
        {'my_section': {'x': 1}},
        {'base': 'other.json', 'lr_scheduler': None},
        {'$schema': 'config.schema.json'},
        {'loss': {'type': 'CrossEntropyLoss', 'args': {'label_smoothing': 0.1}}},
        {'metrics': ['MulticlassAccuracy']},
        {'loss': ['nll_loss', {'type': 'MultiMarginLoss', 'weight': 0.1, 'name': 'margin'}]},
        {
            'lr_scheduler': {
                'type': 'OneCycleLR',
                'args': {'max_lr': 0.1, 'total_steps': 'auto'},
                'interval': 'step',
                'warmup_steps': 5,
            }
        },
        {
            'optimizer': {
                'type': 'SGD',
                'args': {},
                'groups': [
                    {'match': '*.bias', 'weight_decay': 0},
                    {'match': '*', 'ndim': 2, 'type': 'Muon', 'lr': 0.02},
                ],
            }
        },
        {'init_from': {'file': 'x.pth', 'ignore': ['fc.*']}},
        {'arch': {'type': 'examples.gan.model.Generator', 'args': {'anything': 1}}},
    ],
)
def test_other_good_configs_are_valid(validator, more):
    assert [error.message for error in validator.iter_errors(DEFAULT | more)] == []


@pytest.mark.parametrize(
    ('path', 'value'),
    [
        (('trainer', 'earlystopp'), 3),
        (('trainer', 'epochs'), 'ten'),
        (('trainer', 'epochs'), 0),
        (('lr_schedular',), {}),
        (('name',), 'a/b'),
        (('arch', 'type'), 'MnistModl'),
        (('arch', 'args', 'n'), 1),
        (('optimizer', 'args', 'learning_rate'), 1),
        (('optimizer', 'args', 'lr'), 'x'),
        (('data_loader', 'args', 'batch_size'), '64'),
        (('loss',), 'nl_loss'),
        (('metrics',), ['acuracy']),
        (('lr_scheduler', 'interval'), 'batch'),
        (('optimizer', 'groups'), [{'match': 1}]),
        (('optimizer', 'groups'), [{'match': '*', 'type': 'Muo'}]),
        (('optimizer', 'groups'), [{'match': '*', 'type': 'Muon', 'lr': 'x'}]),
    ],
)
def test_planted_errors_are_rejected(validator, path, value):
    config = copy.deepcopy(DEFAULT)
    node = config
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    errors = list(validator.iter_errors(config))
    assert errors and len(errors) < 3
