"""Every example is checked, trains and can be tested; the table in examples/README.md has all."""

import re
import runpy
import sys

import pytest

import train
from armature.checkpoint import files as checkpoint
from armature.config.check import check
from armature.config.read import read_config
from armature.errors import ConfigError
from parse_config import ConfigParser
from tests.conftest import ROOT
from tools.smoke import load_script

EXAMPLES = sorted(path.parent.name for path in ROOT.glob('examples/*/config.json'))


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def few_steps(name: str, folder, file='config.json', **trainer) -> dict:
    """The example's config, checked as the command line does, for a run of a few steps."""
    document = read_config(ROOT / 'examples' / name / file, name)
    check(document, train.BUILDS)  # raises where it is wrong
    document.values['n_gpu'] = 0
    document.values['trainer'] |= {'save_dir': str(folder), **trainer}
    return document.values


@pytest.mark.parametrize(
    'name, file',
    [
        *((name, 'config.json') for name in EXAMPLES),
        ('char_model', 'muon.json'),
        ('detection', 'faster_rcnn.json'),
    ],
)
def test_example_trains_and_can_be_tested(name, file, tmp_path, capsys):
    config = few_steps(name, tmp_path, file, epochs=1, max_steps=8)
    train.build(ConfigParser(config)).train()
    (last,) = tmp_path.rglob('checkpoint-last.pth')
    if name != 'gan':  # nothing to measure it by
        load_script(ROOT / 'test.py').main(ConfigParser(config, resume=last), n_batches=1)
        assert 'loss' in capsys.readouterr().out


def test_a_trained_language_model_writes(tmp_path, monkeypatch, capsys):
    train.build(ConfigParser(few_steps('char_model', tmp_path, epochs=1, max_steps=8))).train()
    capsys.readouterr()
    (last,) = tmp_path.rglob('checkpoint-last.pth')
    monkeypatch.setattr(sys, 'argv', ['write', str(last.parent)])
    runpy.run_module('examples.char_model.write', run_name='__main__')
    assert len(capsys.readouterr().out) == len('The data ') + 300 + 1


def test_losses_that_a_detector_computes_itself_fall(tmp_path):
    config = few_steps('detection', tmp_path, 'faster_rcnn.json', epochs=2, len_epoch=12)
    trainer = train.build(ConfigParser(config))
    trainer.train()
    first, second = trainer.history
    parts = [name for name in first if name.startswith('loss_')]
    assert len(parts) == 4 and second['loss'] == pytest.approx(sum(second[each] for each in parts))
    assert second['loss'] < 0.8 * first['loss'] and second['val_overlap'] > first['val_overlap']
    assert len((ROOT / 'examples/detection/trainer.py').read_text().splitlines()) < 40


def test_a_config_without_test_data_says_what_to_write(tmp_path):
    config = few_steps('own_dataset', tmp_path, epochs=1, max_steps=1)
    del config['test_data_loader']
    train.build(ConfigParser(config)).train()
    (last,) = tmp_path.rglob('checkpoint-last.pth')
    with pytest.raises(ConfigError, match='write a "test_data_loader"'):
        load_script(ROOT / 'test.py').main(ConfigParser(config, resume=last))


def test_a_loader_without_arguments_is_told_what_it_needs_for_a_test(tmp_path):
    config = few_steps('regression', tmp_path) | {'data_loader': {'type': 'DigitsDataLoader'}}
    config.pop('test_data_loader', None)
    with pytest.raises(ConfigError, match='batch_size: is missing'):
        load_script(ROOT / 'test.py').main(ConfigParser(config, resume='any'))


def test_regression_recovers_the_line(tmp_path):
    train.build(ConfigParser(few_steps('regression', tmp_path))).train()
    (best,) = tmp_path.rglob('model_best.pth')
    line = checkpoint.load(best)['state_dict']
    assert line['line.weight'].item() == pytest.approx(0.7, abs=0.01)
    assert line['line.bias'].item() == pytest.approx(0.3, abs=0.01)


def test_every_example_stands_in_the_table():
    table = (ROOT / 'examples' / 'README.md').read_text(encoding='utf-8')
    commands = re.findall(r'^\| `python train.py -c examples/(\w+)/config.json` \|', table, re.M)
    assert sorted(commands) == EXAMPLES
