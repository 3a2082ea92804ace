"""The command line, as a user types it: python train.py -c ..."""

import argparse
import json
import multiprocessing
import os
import sys
import types

import pytest
import torch

from armature.errors import ConfigError
from armature.run.folder import claim
from parse_config import ROOT, ConfigParser, CustomArgs
from tests.conftest import run_script
from tests.first_version.resume import unpack_run


def start(*arguments, cwd=ROOT):
    return run_script('train.py', *arguments, cwd=cwd, check=False)


def runs():
    return set((ROOT / 'saved').rglob('*'))


BAD = """{
    "name": "bad",                                  // six mistakes
    "arch": {"type": "MnistModl"},
    "data_loader": {
        "type": "DigitsDataLoader",
        "args": {"batch_size": "64", "shuffle": true, "validation_split": 0.1}
    },
    "optimizer": {
        "type": "Adam",
        "args": {"learning_rate": 0.001}
    },
    "loss": "nl_loss",
    "metrics": ["accuracy"],
    "trainer": {
        "epochs": 2,
        "monitor": "min val_los",
        "earlystopp": 3,
    }
}
"""


def test_six_planted_errors_give_six_lines_and_no_folder(tmp_path):
    (tmp_path / 'bad.json').write_text(BAD)
    before = runs()
    done = start('-c', 'bad.json', cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ''
    assert [line.partition(': ')[0] for line in done.stderr.splitlines()] == [
        f'bad.json:{n}' for n in (3, 6, 10, 12, 16, 17)
    ]
    assert (
        "bad.json:10: optimizer.args.learning_rate: Adam has no 'learning_rate' (did you mean "
        "'lr'?)" in done.stderr
    )
    assert done.stderr.count('did you mean') == 5
    assert runs() == before and os.listdir(tmp_path) == ['bad.json']


def test_print_config_shows_where_each_value_comes_from(tmp_path):
    (tmp_path / 'mine.json').write_text(
        json.dumps({'base': str(ROOT / 'config.json'), 'name': 'mine'}, indent=1)
    )
    before = runs()
    done = start(
        '-c',
        'mine.json',
        '--print-config',
        '--set',
        'trainer.epochs=7',
        '--lr',
        '0.5',
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    lines = {
        line.split('//')[0].strip().rstrip(',').strip(): line.split('//')[-1].strip()
        for line in done.stdout.splitlines()
    }
    assert lines['"name": "mine"'] == 'mine.json:3'
    assert lines['"epochs": 7'] == '--set'
    assert lines['"lr": 0.5'].startswith('--l')
    assert lines['"eps": 1e-08'] == 'default of Adam'
    assert lines['"on_nan": "stop"'] == 'default'
    assert lines['"loss": "nll_loss"'].startswith(f'{ROOT}/config.json:')
    assert runs() == before


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['-c', 'nope.json'], 'nope.json: cannot be read: No such file'),
        (['-c', 'confg.json'], "No such file or directory (did you mean 'config.json'?)"),
        ([], 'which config?'),
        (['-r', 'nope.pth'], 'nope.pth'),
        (['-c', 'config.json', '--set', 'trainer.epoch=3'], "did you mean 'trainer.epochs'?"),
        (['-c', 'config.json', '--set', 'epochs=3'], "did you mean 'trainer.epochs'?"),
    ],
)
def test_a_command_that_cannot_be_meant_is_one_line(arguments, expected, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as leaving:
        parsed(arguments)
    said = capsys.readouterr().err
    assert leaving.value.code == 2 and expected in said and said.count('\n') == 1


def parsed(arguments, options=()):
    parser = argparse.ArgumentParser()
    for flags in (('-c', '--config'), ('-r', '--resume'), ('-d', '--device')):
        parser.add_argument(*flags)
    before, sys.argv = sys.argv, ['train.py', *arguments]
    try:
        return ConfigParser.from_args(parser, options)
    finally:
        sys.argv = before


class Holder:
    """What an old project calls its data loader: its script asks it for loaders."""

    def __init__(self, size):
        self.size = size


def test_script_that_says_not_what_it_builds_may_build_what_it_likes(tmp_path):
    old = {
        'name': 'old',
        'data_loader': {'type': 'Holder', 'args': {'size': 3}},
        'trainer': {'epochs': 1},
    }
    (tmp_path / 'old.json').write_text(json.dumps(old))
    module = types.ModuleType('holders')
    module.Holder, Holder.__module__ = Holder, 'holders'
    config = parsed(['-c', str(tmp_path / 'old.json')])
    assert config.init_obj('data_loader', module).size == 3
    with pytest.raises(ConfigError, match='no data loader is called'):
        ConfigParser(config.config).init_obj('data_loader', module)


def test_run_id_names_the_folder_of_a_run_and_is_refused_where_it_is_there(tmp_path):
    arguments = ['-c', str(ROOT / 'config.json'), '--set', f'trainer.save_dir={tmp_path}']
    config = parsed([*arguments, '--run-id', '007'])  # of a parser that does not know the flag
    assert config.save_dir == tmp_path / 'models' / 'Digits_LeNet' / '007'
    with pytest.raises(ConfigError, match='is there'):
        assert parsed([*arguments, '--run-id', '007']).save_dir


def test_run_goes_on_in_its_own_folder_unless_another_is_named(tmp_path):
    run = unpack_run('plain', tmp_path)
    arguments = ['-r', str(run), '--set', f'trainer.save_dir={tmp_path}']
    assert parsed([*arguments, '--run-id', run.name]).save_dir == run
    assert parsed(arguments).save_dir == run
    assert parsed([*arguments, '--run-id', 'other']).save_dir == run.with_name('other')


def test_a_config_may_come_through_a_pipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reading, writing = os.pipe()
    base = str(ROOT / 'config.json')
    os.write(writing, json.dumps({'base': base, 'name': 'piped'}).encode())
    os.close(writing)
    assert parsed(['-c', f'/dev/fd/{reading}'])['name'] == 'piped'
    os.close(reading)


def test_an_empty_pipe_is_one_line(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        parsed(['-c', '/dev/null'])
    assert 'empty (only one process can read a pipe' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parsed(['-c', '/dev/fd/999'])
    assert 'No such file or directory (only one process can' in capsys.readouterr().err


def test_two_configs_are_refused(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        parsed(['-c', 'config.json', '--config=configs/mnist.json'])
    said = capsys.readouterr().err
    assert '-c is given 2 times: name one config' in said
    for again in (['-cconfigs/mnist.json'], ['--conf', 'configs/mnist.json']):
        with pytest.raises(SystemExit):
            parsed(['-c', 'config.json', *again])
        assert '-c is given 2 times: name one config' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parsed(['-r', 'one', '-r', 'other'])
    assert '-r is given 2 times: name one checkpoint' in capsys.readouterr().err


def test_one_set_takes_several_assignments(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = parsed(
        ['-c', 'config.json', '--set', 'trainer.epochs=2', 'seed=5', '--set', 'n_gpu=0']
    )
    assert (config['trainer']['epochs'], config['seed'], config['n_gpu']) == (2, 5, 0)


def test_a_number_for_a_text_says_how_to_quote(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        parsed(['-c', 'config.json', '--set', 'name=2024'])
    said = capsys.readouterr().err
    assert said.endswith('name: expected a string, got 2024 (as text: --set \'name="2024"\')\n')
    assert parsed(['-c', 'config.json', '--set', 'name="2024"']).name == '2024'


def test_home_and_variables_are_filled_in(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    for save_dir in ('~/runs', '$HOME/runs', '${HOME}/runs'):
        config = ConfigParser({'name': 'x', 'trainer': {'save_dir': save_dir}})
        assert config.save_dir.is_relative_to(tmp_path / 'runs')
        assert config.as_read['trainer']['save_dir'] == save_dir  # another machine has another home
    with pytest.raises(ConfigError, match=r'"\$NOT_SET/x": the environment has no \$NOT_SET'):
        _ = ConfigParser({'name': 'x', 'trainer': {'save_dir': '$NOT_SET/x'}}).save_dir
    monkeypatch.setenv('EMPTY', '')
    for save_dir in ('$EMPTY/runs', '~nobody-of-that-name/runs'):
        with pytest.raises(ConfigError, match='the environment has no'):
            _ = ConfigParser({'name': 'x', 'trainer': {'save_dir': save_dir}}).save_dir


def test_options_change_the_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [
        CustomArgs(['--lr', '--learning_rate'], float, 'optimizer;args;lr'),
        CustomArgs(['--bs'], int, ('data_loader', 'args', 'batch_size')),
    ]
    config = parsed(
        ['-c', str(ROOT / 'config.json'), '--learning_rate', '0.25', '--bs', '8'], options
    )
    assert (
        config['optimizer']['args']['lr'] == 0.25
        and config['data_loader']['args']['batch_size'] == 8
    )
    assert os.path.samefile(os.getcwd(), ROOT)
    last = ['-c', 'config.json', '--set', 'optimizer.args.lr=0.1', '--lr', '0.5']
    assert parsed(last, options)['optimizer']['args']['lr'] == 0.1  # --set has the last word


def test_a_number_that_no_config_may_hold_is_refused_as_an_option_too(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = [CustomArgs(['--bs'], int, 'data_loader;args;batch_size')]
    for number in ('9' * 23, '9' * 500):
        with pytest.raises(SystemExit):
            parsed(['-c', 'config.json', '--bs', number], options)
        assert 'is not a number that a config may hold' in capsys.readouterr().err


def test_an_option_for_a_section_that_is_not_there_is_an_error(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        parsed(
            ['-c', 'config.json', '--gan', '1'],
            [CustomArgs(['--gan'], float, 'optimizer_g;args;lr')],
        )
    assert (
        "--gan: optimizer_g.args.lr: the config has no section 'optimizer_g'"
        in capsys.readouterr().err
    )


def test_a_nan_on_the_command_line_is_refused(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        parsed(
            ['-c', 'config.json', '--lr', 'nan'], [CustomArgs(['--lr'], float, 'optimizer;args;lr')]
        )
    assert '--lr: optimizer.args.lr' in capsys.readouterr().err


def test_the_config_is_found_from_the_project_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        parsed(['-c', 'config.json'])['name']
        == json.loads((ROOT / 'config.json').read_text())['name']
    )


def test_building_a_config_touches_no_disk():
    before = runs()
    config = ConfigParser({'name': 'untouched', 'trainer': {'save_dir': 'saved/'}})
    assert (
        config.name == 'untouched'
        and config['name'] == 'untouched'
        and 'trainer' in config
        and config.get('x', 3) == 3
    )
    assert runs() == before


def test_the_run_folder_is_claimed_when_asked_for(tmp_path):
    config = ConfigParser(
        {'name': 'run', 'trainer': {'save_dir': str(tmp_path)}},
        modification={'trainer;epochs': 4, 'seed': None},
    )
    assert (
        config.save_dir.parent == tmp_path / 'models' / 'run'
        and config.log_dir == tmp_path / 'log' / 'run' / config.run_id
    )
    assert (
        json.loads((config.save_dir / 'config.json').read_text())
        == config.config
        == {'name': 'run', 'trainer': {'save_dir': str(tmp_path), 'epochs': 4}}
    )
    assert config.save_dir is config.save_dir and config.log_dir.is_dir()


@pytest.mark.parametrize(
    'name',
    ['../x', 'a/b', '', '.hidden', 'a\0', 'a\\b', None, 3, 'x' * 300, 'x\n']
    + ['C:', 'D:x', 'CON', 'nul.txt', 'com1', 'a:b', 'a.', 'a ', 'a?'],  # Windows refuses them
)
def test_names_that_leave_the_folder_are_refused(name):
    with pytest.raises(ConfigError):
        ConfigParser({'name': name})
    if name is not None:
        with pytest.raises(ConfigError):
            ConfigParser({'name': 'x'}, run_id=name)


def claim_after(barrier, folder):
    barrier.wait()
    claim(folder, None)


def test_simultaneous_starts_get_different_folders(tmp_path):
    context = multiprocessing.get_context('fork')
    barrier = context.Barrier(64)
    starts = [
        context.Process(target=claim_after, args=(barrier, tmp_path / 'models' / 'run'))
        for _ in range(64)
    ]
    for each in starts:
        each.start()
    for each in starts:
        each.join()
    assert len(os.listdir(tmp_path / 'models' / 'run')) == 64


def test_the_parser_call_of_early_2019_still_works(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, 'argv', ['train.py', '-c', 'config.json'])
    parser = argparse.ArgumentParser()
    parser.add_argument('-c', '--config')
    assert (
        ConfigParser(parser)['name']
        == ConfigParser(json.loads((ROOT / 'config.json').read_text())).name
    )


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path):
    (tmp_path / 'file').write_text('')
    for settings in (
        {'save_dir': str(tmp_path / 'file')},
        {'save_dir': '/proc/nowhere'},
        {'save_dir': str(tmp_path / ('x' * 300))},
    ):
        with pytest.raises(ConfigError, match='cannot be made'):
            _ = ConfigParser({'name': 'run', 'trainer': settings}).save_dir
    first, second = (
        ConfigParser({'name': 'run', 'trainer': {'save_dir': str(tmp_path)}}, run_id='mine')
        for _ in range(2)
    )
    assert first.save_dir.name == 'mine'
    with pytest.raises(ConfigError, match='mine is there'):
        _ = second.save_dir


@pytest.mark.parametrize('text', ['x' * 5000, 'é.json', '', '.'])
def test_strange_file_names_are_one_line(text, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        parsed(['-c', text])
    assert capsys.readouterr().err.count('\n') == 1


def test_an_option_for_a_section_of_the_wrong_kind_is_an_error(tmp_path, capsys):
    (tmp_path / 'x.json').write_text('{"name": "x", "optimizer": 3}')
    with pytest.raises(SystemExit):
        parsed(
            ['-c', str(tmp_path / 'x.json'), '--lr', '1'],
            [CustomArgs(['--lr'], float, 'optimizer;args;lr')],
        )
    assert '--lr: optimizer.args.lr' in capsys.readouterr().err


def test_arguments_may_be_parsed_already():
    arguments = argparse.Namespace(config=str(ROOT / 'config.json'), resume=None, device=None)
    named = types.SimpleNamespace(**vars(arguments))
    for given in (arguments, named):
        assert ConfigParser.from_args(given)['name'] == 'Digits_LeNet'


def test_code_may_give_further_arguments_by_place():
    config = ConfigParser(
        {
            'name': 'x',
            'optimizer': {'type': 'SGD', 'args': {}},
            'lr_scheduler': {'type': 'LambdaLR', 'args': {}},
            'trainer': {'epochs': 1},
        }
    )
    weights = [torch.nn.Parameter(torch.zeros(2))]
    optimizer = config.init_obj('optimizer', torch.optim, weights, 0.5)
    scheduler = config.init_obj('lr_scheduler', torch.optim.lr_scheduler, optimizer, lambda n: 0.1)
    assert optimizer.param_groups[0]['lr'] == pytest.approx(0.05) and scheduler.base_lrs == [0.5]


def test_word_is_no_switch_and_infinity_is_a_number():
    class Own(torch.nn.Module):
        def __init__(self, flag=True, bound=1.0):
            super().__init__()
            self.flag, self.bound = flag, bound

    module = types.ModuleType('mine')
    Own.__module__, module.Own = 'mine', Own
    build = {'name': 'x', 'arch': {'type': 'Own', 'args': {'flag': 'no'}}, 'trainer': {}}
    with pytest.raises(ConfigError, match='arch.args.flag: expected true or false'):
        ConfigParser(build).init_obj('arch', module)
    build['arch']['args'] = {'bound': float('inf')}
    assert ConfigParser(build).init_obj('arch', module).bound == float('inf')
