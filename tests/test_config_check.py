"""Checking: what would change a result is an error before any work, all of it in one report."""

import copy
import json

import pytest

import train
from armature.config.check import check
from armature.config.keys import TOP, TRAINER
from armature.config.read import Document, parse
from armature.config.spelling import is_slip
from armature.errors import ConfigError
from parse_config import ROOT
from tests import fuzz_config
from tools.print_config import describe

DEFAULT = json.loads((ROOT / 'config.json').read_text())


def changed(**values) -> dict:
    """The default config with values changed by path: trainer__epochs=3; ... removes."""
    config = copy.deepcopy(DEFAULT)
    for path, value in values.items():
        *sections, key = path.split('__')
        node = config
        for section in sections:
            node = node.setdefault(section, {})
        if value is ...:
            del node[key]
        else:
            node[key] = value
    return config


def report(config: dict) -> str:
    try:
        check(Document(config), train.BUILDS)
    except ConfigError as error:
        return str(error)
    return ''


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        # keys
        (
            {'trainer__earlystopp': 3},
            "trainer.earlystopp: unknown key (did you mean 'early_stop'?)",
        ),
        ({'lr_schedular': {}}, "lr_schedular: unknown key (did you mean 'lr_scheduler'?)"),
        ({'optimizer__arg': {}}, "optimizer.arg: unknown key (did you mean 'args'?)"),
        ({'trainer__epochs': ...}, 'trainer.epochs: is missing'),
        ({'name': ...}, 'name: is missing'),
        ({'arch': ...}, 'arch: is missing'),
        ({'loss': ...}, 'loss: is missing'),
        ({'optimizer__type': ...}, 'optimizer.type: is missing'),
        # types and ranges
        ({'trainer__epochs': 0}, 'trainer.epochs: expected a whole number of at least 1, got 0'),
        ({'trainer__epochs': True}, 'trainer.epochs: expected a whole number, got true'),
        ({'trainer__epochs': 2.0}, 'trainer.epochs: expected a whole number, got 2.0'),
        ({'trainer__tensorboard': 'yes'}, 'trainer.tensorboard: expected true or false, got "yes"'),
        ({'trainer__verbosity': 3}, 'trainer.verbosity: expected 0 or 1 or 2, got 3'),
        ({'trainer__on_nan': 'ignore'}, 'trainer.on_nan: expected "stop" or "skip", got "ignore"'),
        ({'trainer__max_grad_norm': 0}, 'trainer.max_grad_norm: expected a number above 0, got 0'),
        ({'optimizer': 3}, 'optimizer: expected an object {...}, got 3'),
        ({'trainer': []}, 'trainer: expected an object {...}, got []'),
        ({'metrics': 'accuracy'}, 'metrics: expected a list [...], got "accuracy"'),
        ({'metrics': [3]}, 'metrics: expected a string or an object {...} as item 0'),
        ({'n_gpu': -1}, 'n_gpu: expected a whole number of at least 0, got -1'),
        ({'name': '../x'}, 'name: expected a folder name'),
        ({'name': 'a/b'}, 'name: expected a folder name'),
        ({'name': ''}, 'name: expected a folder name'),
        # classes and their arguments
        (
            {'arch__type': 'MnistModl'},
            'arch.type: no model is called "MnistModl" (did you mean \'MnistModel\'?)',
        ),
        ({'arch__type': 'BaseModel'}, 'is abstract'),
        ({'arch__args': {'n': 1}}, "arch.args.n: MnistModel has no 'n'"),
        (
            {'optimizer__args': {'learning_rate': 1}},
            "optimizer.args.learning_rate: Adam has no 'learning_rate' (did you mean 'lr'?)",
        ),
        ({'optimizer__args': {'lr': 'abc'}}, 'optimizer.args.lr: expected a number, got "abc"'),
        ({'optimizer__args': {'params': []}}, 'optimizer.args.params: is given by the code'),
        (
            {'optimizer__type': 'Adan'},
            'optimizer.type: no optimizer is called "Adan" (did you mean \'Adam\'?)',
        ),
        (
            {'data_loader__args__batch_size': ...},
            'data_loader.args.batch_size: is missing: DigitsDataLoader needs it',
        ),
        (
            {'data_loader__args__shuffle': 1},
            'data_loader.args.shuffle: expected true or false, got 1',
        ),
        ({'lr_scheduler__args': {}}, 'lr_scheduler.args.step_size: is missing: StepLR needs it'),
        (
            {'lr_scheduler__args': {'step_size': 0}},
            'lr_scheduler.args.step_size: expected a whole number of at least 1, got 0',
        ),
        (
            {'lr_scheduler__interval': 'batch'},
            'lr_scheduler.interval: expected "epoch" or "step", got "batch"',
        ),
        (
            {'lr_scheduler': {'type': 'MultiStepLR', 'args': {'milestones': ['2']}}},
            'lr_scheduler.args.milestones: expected a whole number as item 0, got ["2"]',
        ),
        (
            {'lr_scheduler': {'type': 'MultiStepLR', 'args': {'milestones': [2], 'gamma': None}}},
            'lr_scheduler.args.gamma: expected a number, got null',
        ),
        (
            {
                'lr_scheduler': {
                    'type': 'SequentialLR',
                    'args': {'milestones': [4, 2], 'schedulers': []},
                }
            },
            'lr_scheduler.args.milestones: expected numbers that rise, got [4, 2]',
        ),
        (
            {
                'lr_scheduler': {
                    'type': 'OneCycleLR',
                    'args': {'max_lr': 0.1, 'epochs': 3, 'steps_per_epoch': 1},
                }
            },
            'lr_scheduler.args.total_steps: is 3 epochs, but the run has 60',
        ),
        ({'loss': []}, 'loss: is an empty list: name at least one loss'),
        (
            {'loss': {'type': 'nll_loss', 'weight': 0.5}},
            'loss.weight: multiplies a term of several: write "loss": [{...}], or leave it out',
        ),
        (
            {'data_loader__args__augment': [{'type': 'RandomCrop', 'arg': {'size': 9}}]},
            "data_loader.args.augment.0.arg: unknown key (did you mean 'args'?)",
        ),
        ({'trainer__save_dir': ''}, 'trainer.save_dir: expected a path that is not empty, got ""'),
        ({'loss': 'nl_loss'}, 'loss: no loss is called "nl_loss" (did you mean \'nll_loss\'?)'),
        (
            {'loss': {'type': 'CrossEntropyLoss', 'args': {'smoothing': 1}}},
            "CrossEntropyLoss has no 'smoothing' (did you mean 'label_smoothing'?)",
        ),
        (
            {'metrics': [{'type': 'top_k_acc', 'args': {'kk': 1}}]},
            "metrics.0.args.kk: top_k_acc has no 'kk' (did you mean 'k'?)",
        ),
        ({'metrics': [{'typ': 'accuracy'}]}, "metrics.0.typ: unknown key (did you mean 'type'?)"),
        ({'metrics': [{'args': {}}]}, 'metrics.0.type: is missing'),
        (
            {
                'lr_scheduler': {
                    'type': 'ChainedScheduler',
                    'args': {'schedulers': [{'type': 'StepLR', 'args': {'step': 1}}]},
                }
            },
            "args.schedulers.0.args.step: StepLR has no 'step' (did you mean 'step_size'?)",
        ),
        (
            {
                'lr_scheduler': {
                    'type': 'ChainedScheduler',
                    'args': {'schedulers': [{'type': 'StepLR', 'args': {'step_size': 0}}]},
                }
            },
            'args.schedulers.0.args.step_size: expected a whole number of at least 1, got 0',
        ),
        # several keys together
        (
            {'trainer__monitor': 'min val_los'},
            "no epoch reports 'val_los' (did you mean 'val_loss'?)",
        ),
        ({'trainer__compile': 'fastest'}, 'trainer.compile: expected true or false or "blocks"'),
        ({'batch': {'data': 'image'}}, 'batch.target: is missing'),
        (
            {'init_from': {'file': 'x.pth', 'ignor': []}},
            "init_from.ignor: unknown key (did you mean 'ignore'?)",
        ),
        (
            {
                'data_loader__args__data_dir': '$NOT_SET_ANYWHERE/x',
                'data_loader__type': 'MnistDataLoader',
            },
            'data_loader.args.data_dir: "$NOT_SET_ANYWHERE/x": the environment has no $NOT_SET',
        ),
        (
            {'data_loader__args__augment': [{'type': 'RandomHorizontalFlp'}]},
            'data_loader.args.augment.0.type: no data loader or part of one is called '
            '"RandomHorizontalFlp" (did you mean \'RandomHorizontalFlip\'?)',
        ),
        (
            {'data_loader__args__collate_fn': 'PadCollate'},
            'data_loader.args.collate_fn: expected an object {"type": ...} of a class whose '
            'instances can be called, got "PadCollate"',
        ),
        (
            {'data_loader__args__batch_transform': 'Normalize'},
            'args.batch_transform: expected an object {"type": ...} of a class whose instances',
        ),
        (
            {'data_loader__args__worker_init_fn': {'args': {}}},
            'args.worker_init_fn.type: expected the name of a data loader or part of one, got null',
        ),
        (
            {'data_loader__args__augment': ['RandomHorizontalFlip']},
            'can be called as item 0 or null, got ["RandomHorizontalFlip"]',
        ),
        (
            {'data_loader__args__augment': [{'type': 'Foo'}]},
            'args.augment.0.type: no data loader or part of one is called "Foo"',
        ),
        (
            {'data_loader__args__augment': [{'type': 'RandomCrop', 'size': 3}]},
            "args.augment.0.size: unknown key (did you mean 'args'?)",
        ),
        (
            {'data_loader__args__collate_fn': {'type': 'SequentialSampler'}},
            'args.collate_fn: what SequentialSampler makes cannot be called: give the class',
        ),
        (
            {'data_loader__args__collate_fn': {'type': 'model.metric.accuracy'}},
            "args.collate_fn: model.metric.accuracy is called here, and needs 'output': where",
        ),
        (
            {
                'lr_scheduler': {
                    'type': 'ChainedScheduler',
                    'args': {'schedulers': [{'type': 'ConstantLRR'}]},
                }
            },
            'no scheduler or part of one is called "ConstantLRR" (did you mean',
        ),
        ({'loss': 'gaussian_nll_loss'}, 'no loss is called "gaussian_nll_loss" (did you mean'),
        ({'name': 'a\ud800'}, 'expected a folder name'),
        ({'trainer__type': ['Trainer']}, 'trainer.type: expected a string'),
        ({'trainer__monitor': 'maximal loss'}, "expected 'min <metric>', 'max <metric>' or 'off'"),
        ({'trainer__monitor': 'min'}, "expected 'min <metric>', 'max <metric>' or 'off'"),
        (
            {'lr_scheduler': {'type': 'ReduceLROnPlateau', 'args': {'mode': 'max'}}},
            'lr_scheduler.args.mode: is "max", but trainer.monitor is "min val_loss"',
        ),
        (
            {
                'lr_scheduler': {'type': 'OneCycleLR', 'args': {'max_lr': 1, 'total_steps': 30}},
                'trainer__epochs': 40,
            },
            'lr_scheduler.args.total_steps: is 30 epochs, but the run has 40',
        ),
    ],
)
def test_one_mistake_is_one_line(change, expected):
    found = report(changed(**change))
    assert expected in found and '\n' not in found


@pytest.mark.parametrize(
    'change',
    [
        {},
        {
            'my_section': {'anything': [1, {'type': 3}]},
            'arch_g': {'type': 'Generator'},
            'optimizer_d': 3,
            'vocabulary': None,
        },
        {'trainer__early_stop': 0, 'n_gpu': 0, 'seed': 0},
        {'trainer__monitor': 'off', 'data_loader__args__validation_split': 0},
        {'trainer__monitor': 'max accuracy', 'data_loader__args__validation_split': 0.0},
        {'loss': 'CrossEntropyLoss', 'metrics': []},
        {'loss': {'type': 'CrossEntropyLoss', 'args': {'weight': [1, 2, 3]}}},
        {'arch': {'type': 'resnet18', 'args': {'num_classes': 10}}},
        {
            'metrics': [{'type': 'MulticlassAccuracy', 'args': {'num_classes': 10}}],
            'trainer__monitor': 'max val_MulticlassAccuracy',
        },
        {
            'lr_scheduler': {
                'type': 'OneCycleLR',
                'args': {'max_lr': 0.1, 'total_steps': 400},
                'interval': 'step',
            },
            'trainer__epochs': 40,
            'trainer__len_epoch': 10,
        },
        {'lr_scheduler': {'type': 'ReduceLROnPlateau', 'args': {'patience': 2}}},
        {'arch__type': 'model.model.MnistModel'},
    ],
)
def test_a_good_config_passes(change):
    assert report(changed(**change)) == ''


def test_a_null_section_is_an_absent_one():
    assert report(changed(lr_scheduler=None, valid_data_loader=None)) == ''


def test_a_config_of_the_old_template_passes():
    old = changed(
        seed=..., data_loader__type='MnistDataLoader', data_loader__args__data_dir='data/'
    )
    assert report(old) == ''
    old['trainer']['tensorboardX'] = old['trainer'].pop('tensorboard')
    assert report(old) == ''


def test_what_is_legal_but_odd_is_noted():
    config = changed(
        lr_scheduler={'type': 'CosineAnnealingLR', 'args': {'T_max': 5000}}, trainer__zebra=3
    )
    notes = '\n'.join(check(Document(config), train.BUILDS))
    assert 'lr_scheduler.args.T_max: is 5000 epochs, but the run has 60' in notes
    assert 'trainer: no key of ours, so it is for your own code to read: zebra' in notes


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (
            {'trainer__monitor': 'max f1'},
            "trainer.monitor: no epoch reports 'f1', unless your own trainer does",
        ),
        (
            {
                'metrics': [{'type': 'accuracy', 'name': 'k1'}],
                'trainer__monitor': 'max val_f1',
            },
            "trainer.monitor: no epoch reports 'val_f1' (did you mean 'val_k1'?), unless",
        ),
        (
            {'metrics': [{'type': 'accuracy', 'name': 'iou'}], 'trainer__monitor': 'max val_miou'},
            "trainer.monitor: no epoch reports 'val_miou' (did you mean 'val_iou'?), unless",
        ),
        (
            {
                'metrics': [{'type': 'accuracy', 'name': 'recall_20'}],
                'trainer__monitor': 'max val_recall_10',
            },
            "trainer.monitor: no epoch reports 'val_recall_10' (did you mean 'val_recall_20'?), un",
        ),
        (
            {
                'lr_scheduler': {
                    'type': 'CosineAnnealingLR',
                    'args': {'T_max': 500},
                    'interval': 'step',
                },
                'trainer__epochs': 40,
                'trainer__len_epoch': 10,
            },
            'lr_scheduler.args.T_max: is 500 steps, but the run has 400',
        ),
        ({'vocabulary': 3}, 'the config: no key of ours, so it is for your own code to read: voca'),
        ({'early_stop': 3}, 'early_stop (its place is trainer)'),
        ({'distributed': {'seed': 3}}, 'seed (its place is the top level)'),
        (
            {'distributed': {'write_in_background': True}},
            'distributed: no key of ours, so it is for your own code to read: write_in_background',
        ),
        (
            {'init_from': {'file': 'x.pth', 'zebra': 1}},
            'init_from: no key of ours, so it is for your own code to read: zebra',
        ),
        (
            {'trainer__trackers': [{'type': 'wandb', 'zebra': 1}]},
            'trainer.trackers.0: no key of ours, so it is for your own code to read: zebra',
        ),
    ],
)
def test_what_only_code_of_the_project_can_know_is_a_note(change, expected):
    assert expected in '\n'.join(check(Document(changed(**change)), train.BUILDS))


def test_six_mistakes_are_six_lines_in_the_order_of_the_file():
    text = json.dumps(
        changed(
            name='a/b',
            arch__type='MnistModl',
            optimizer__args={'learning_rate': 1},
            trainer__earlystopp=3,
            trainer__monitor='min los',
            data_loader__args__batch_size='64',
        ),
        indent=4,
    )
    document = parse(text, 'config.json')
    with pytest.raises(ConfigError) as caught:
        check(document, train.BUILDS)
    lines = str(caught.value).splitlines()
    numbers = [int(line.split(':')[1]) for line in lines]
    assert len(lines) == 6 and numbers == sorted(numbers)
    assert all(
        text.splitlines()[number - 1].count(line.split(': ')[1].split('.')[-1])
        for number, line in zip(numbers, lines)
    )


def test_classes_with_kwargs_are_checked_as_far_as_they_can_be():
    assert report(changed(arch={'type': 'resnet18', 'args': {'zero_init_residual': True}})) == ''
    assert 'refuses' not in report(changed(arch={'type': 'resnet18', 'args': {'anything': True}}))


def test_no_key_of_the_table_is_a_near_miss_of_another():
    for table in (TOP, TRAINER):
        pairs = [(a, b) for a in table for b in table if is_slip(a, b)]
        assert [pair for pair in pairs if 'tensorboardX' not in pair] == []


# What real projects on the old template do, which a script that does not say what it builds may.
OLD_HABITS = [
    {'loss': {'type': 'weighted', 'weight': 2.0}},
    {'loss': 'scaled'},
    {'metrics': ['of_another_module']},
    {'crop': {'type': 'centre', 'args': 24}},
    {'init_from': {'path': 'x.pth'}},
    {'data_loader': {'batch_size': 3}},
    {'optimizer__args': {}, 'data_loader__args': {}},
    {'trainer__log_steps': 3, 'metric': 1},
    {'trainer__monitor': 'min val_los'},
]


@pytest.mark.parametrize('change', OLD_HABITS)
def test_a_script_that_does_not_say_what_it_builds_is_not_guessed_at(change):
    check(Document(changed(**change)))


@pytest.mark.parametrize('args', [None, 3, [1]])
def test_a_config_whose_arguments_are_no_object_is_printed(args):
    text = describe(Document({'arch': {'type': 'MnistModel', 'args': args}}), train.BUILDS)
    assert 'MnistModel' in text


def test_the_printed_config_is_the_same_config():
    groups = [{'match': 'fc*', 'ndim': 2, 'type': 'Muon', 'lr': 0.02}]
    config = {**DEFAULT, 'optimizer': {**DEFAULT['optimizer'], 'groups': groups}}
    document = parse(json.dumps(config, indent=4), 'config.json')
    text = describe(document, train.BUILDS)
    again = parse(text, 'printed').values
    (group,) = again['optimizer']['groups']
    assert group == {**group, **groups[0], 'momentum': 0.95}
    assert again['optimizer']['args']['lr'] == DEFAULT['optimizer']['args']['lr']
    assert (
        again['optimizer']['args']['betas'] == [0.9, 0.999]
        and '// default of Adam' in text
        and '// config.json:' in text
    )
    assert report({key: value for key, value in again.items() if value is not None}) == ''


def test_fuzzed_configs_leave_no_traceback():
    outcomes = fuzz_config.campaign(150)
    assert outcomes['refused'] + outcomes['accepted'] == 150 and outcomes['refused'] > 50
