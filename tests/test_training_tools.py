"""Rehearsals, the learning rate search, the profile, pictures, examples with loops of their own."""

import hashlib
import inspect
import json
import math
import re
import sys

import pytest
import torch
from torch import nn

import train
from armature.checkpoint import files as checkpoint
from armature.compare import first_difference
from armature.config.read import read_config
from armature.errors import ConfigError, UserError
from armature.run.plots import Pictures, save_pictures
from base import BaseDataLoader
from data_loader.datasets import digits
from examples.gan.trainer import GanTrainer
from parse_config import ROOT, ConfigParser
from tests.conftest import run_script
from tests.test_resume import everything
from tools import check_resume
from tools.find_lr import drawn, find_lr, steepest
from tools.overfit import overfit
from tools.profile_steps import profile
from tools.run_files import read_test
from tools.smoke import load_script, smoke
from trainer import Trainer
from utils import write_json


def config_of(name='config.json', **trainer):
    values = read_config(ROOT / name, name).values
    values['n_gpu'] = 0
    values['trainer'] |= trainer
    return values


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_training_step_stays_on_one_screen_and_in_the_designs_shape():
    lines = inspect.getsource(Trainer._train_epoch).splitlines()
    assert len(lines) < 24
    words = [
        'for batch in self.batches(epoch)',
        'self.stepper.micro_batches(batch)',
        'self.stepper.autocast()',
        'self.model(data)',
        'self.criterion(output, target)',
        'self.stepper.backward(loss)',
        'self.stepper.step()',
    ]
    text, places = '\n'.join(lines), []
    for word in words:
        places.append(text.index(word))
    assert places == sorted(places)


# Rehearsals


def test_smoke_runs_through_everything_and_leaves_nothing(tmp_path, capsys):
    before = set((ROOT / 'saved').rglob('*'))
    smoke(train.build, config_of(ema_decay=0.5, epochs=40, max_minutes=1e-6))
    out = capsys.readouterr().out
    assert all(
        word in out for word in ('trained, validated and saved', 'resumed', 'tested', 'went well')
    )
    assert before == set((ROOT / 'saved').rglob('*'))


def test_smoke_fails_where_the_long_run_would():
    config = config_of()
    config['metrics'] = ['top_k_acc']
    config['trainer']['monitor'] = 'min val_lose'
    with pytest.raises(ConfigError, match='val_lose'):
        smoke(train.build, config)


def test_test_script_that_does_not_fit_an_own_trainer_is_said(capsys):
    smoke(train.build, config_of('examples/gan/config.json', microbatch_size=40))
    out = capsys.readouterr().out
    assert 'NOT tested: test.py raised' in out and 'went well' in out


def test_run_is_stopped_for_check_resume_without_another_length(tmp_path):
    """A schedule would be another one, or refused, if the config said other lengths."""
    config = config_of(save_dir=str(tmp_path), len_epoch=10, epochs=5)
    one_cycle = {'type': 'OneCycleLR', 'args': {'total_steps': 50, 'max_lr': 0.1}}
    config['lr_scheduler'] = one_cycle | {'interval': 'step'}
    write_json(config, tmp_path / 'config.json')
    run = check_resume.train(tmp_path, 6, '-c', tmp_path / 'config.json', '-d', 'cpu')
    state = checkpoint.load(run / checkpoint.LAST)
    assert (state['epoch'], state['step']) == (1, 6) and state['config'] == config
    assert state['parts']['lr_scheduler']['total_steps'] == 50


def test_overfit_tells_a_model_that_learns_from_one_that_cannot(capsys, monkeypatch):
    assert overfit(train.build, config_of(), 1)
    broken = config_of()
    broken['optimizer']['args']['lr'] = 1e-9
    assert not overfit(train.build, broken, 1)
    assert 'NOT near zero' in capsys.readouterr().out
    monkeypatch.setattr(sys.modules[overfit.__module__], 'N_STEPS', 8)
    broken['data_loader']['args'] |= {'batch_size': 700, 'validation_split': 0.0}
    overfit(train.build, broken, 10**6)
    assert 'in 6 steps' in capsys.readouterr().out  # two passes over the three batches there are


def test_flags_of_the_command_line_reach_the_tools():
    done = run_script('train.py', '-c', 'config.json', '-d', 'cpu', '--smoke')
    assert 'went well' in done.stdout


# Tools


def test_steepest_fall_is_found():
    rates = [10.0 ** (power / 10) for power in range(-40, 0)]
    losses = [2 - 1 / (1 + math.exp(-3 * (math.log10(rate) + 2))) for rate in rates]
    assert 0.3 < steepest(rates, losses) / 1e-2 < 3


def test_find_lr_suggests_a_rate_that_trains_and_draws_its_curve(tmp_path):
    rate = find_lr(train.build, config_of(), 60, tmp_path)
    assert 1e-4 < rate < 0.1
    assert (tmp_path / 'Digits_LeNet.png').read_bytes()[:4] == b'\x89PNG'
    with pytest.raises(UserError, match='never fell'):
        find_lr(lambda config: deaf(train.build(config)), config_of(), 30, tmp_path)
    with pytest.raises(UserError, match='--steps 1: too few'):
        find_lr(train.build, config_of(), 1, tmp_path)
    still = config_of()
    still['optimizer']['args']['lr'] = 0
    with pytest.raises(UserError, match='lr of the first group is 0'):
        find_lr(train.build, still, 30, tmp_path)


def test_picture_of_the_learning_rates_marks_the_suggestion_and_the_lowest_loss():
    rates = [10.0 ** (power / 10) for power in range(-40, 5)]
    losses = [2 - 1 / (1 + 100 ** -(2 + math.log10(rate))) for rate in rates[:-5]]
    (axes,) = drawn('Digits', rates, losses, rates[20]).axes
    assert axes.get_title().startswith('Digits: ')
    assert (axes.get_xlabel(), axes.get_ylabel()) == ('learning rate', 'loss')
    assert axes.get_xscale() == 'log'
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend[:3] == ['loss of each step', 'smoothed', 'falls most steeply: 0.01']
    assert re.fullmatch(r'lowest, 1\.\d+, at 0\.79', legend[3])


def deaf(trainer):
    trainer.stepper.optimizer.step = lambda *_: None
    trainer.stepper.scaler.step = lambda *_: None
    return trainer


def test_profile_says_where_the_time_went_and_writes_a_trace(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    trace = profile(train.build, config_of(), 4)
    out = capsys.readouterr().out
    assert all(word in out for word in ('data', 'forward', 'backward', 'optimizer', 'GFLOP'))
    names = {event.get('name') for event in json.loads(trace.read_text())['traceEvents']}
    assert {'forward', 'backward', 'optimizer', 'data'} <= names


# Pictures


class Named:
    class_names = ['ant', 'bee', 'hedgehog', 'owl']


def test_pictures_show_what_torchmetrics_computes(tmp_path):
    pictures = Pictures(['confusion_matrix', 'roc', 'pr'], Named.class_names)
    assert Pictures([]).draw() == pictures.draw() == {}
    output, target = torch.randn(50, 4), torch.randint(4, (50,))
    pictures.update(output[:20], target[:20])
    pictures.update(output[20:], target[20:])
    matrix = pictures._metrics['confusion_matrix'].compute()
    assert all(
        matrix[row, column] == ((target == row) & (output.argmax(1) == column)).sum()
        for row in range(4)
        for column in range(4)
    )
    drawn = pictures.draw()
    for figure in drawn.values():
        (axes,) = figure.axes
        assert axes.get_title() and axes.get_xlabel() and axes.get_ylabel()
        texts = axes.get_yticklabels() + (axes.get_legend().texts if axes.get_legend() else [])
        assert any('hedgehog' in text.get_text() for text in texts)
    assert [text.get_text() for text in drawn['confusion_matrix'].axes[0].texts] == [
        str(int(count)) for count in matrix.flatten() if count
    ]
    files = save_pictures(drawn, tmp_path)
    assert len(files) == 3 and all(file.read_bytes()[:4] == b'\x89PNG' for file in files)
    with pytest.raises(ConfigError, match='outputs'):
        pictures.update(torch.randn(3, 2, 2), target)


def test_pictures_reach_tensorboard(experiment):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = experiment.trainer(epochs=1, tensorboard=True, pictures=['confusion_matrix'])
    trainer.train()
    events = EventAccumulator(str(trainer.config.log_dir))
    events.Reload()
    assert events.Tags()['images'] == ['confusion_matrix/valid']


# Examples


def gan(folder, n_steps=None, resume=None):
    config = config_of(
        'examples/gan/config.json',
        save_dir=str(folder),
        epochs=2,
        len_epoch=3,
        save_period=9,
        microbatch_size=40,
        max_steps=n_steps,
        tensorboard=False,
    )
    trainer = train.build(ConfigParser(config, resume))
    trainer.train()
    return trainer


def test_gan_resumes_exactly_and_trains_both_models(tmp_path):
    whole = gan(tmp_path)
    assert type(whole) is GanTrainer and len(inspect.getsource(GanTrainer).splitlines()) < 60
    assert {'discriminator', 'optimizer_d', 'stepper_d'} <= set(everything(whole)['parts'])
    for n_steps in (2, 3, 5):
        part = gan(tmp_path, n_steps)
        resumed = gan(tmp_path, resume=part.checkpoint_dir / 'checkpoint-last.pth')
        assert first_difference(everything(resumed), everything(whole)) == ''


def test_gan_equals_the_hand_written_loop(tmp_path):
    """One epoch of two steps: the same batches and noise give the same weights, bit for bit."""
    from armature.seed import key, seed_torch

    config = config_of(
        'examples/gan/config.json', save_dir=str(tmp_path), epochs=1, len_epoch=2, tensorboard=False
    )
    trainer = train.build(ConfigParser(config))
    batches = []
    original = trainer.batches
    trainer.batches = lambda epoch: (
        batches.append([part.clone() for part in batch]) or batch for batch in original(epoch)
    )
    trainer.train()

    other = train.build(ConfigParser(config))
    generator, discriminator, loss_of = (
        other.model.train(),
        other.discriminator.train(),
        nn.BCEWithLogitsLoss(),
    )
    for step, (images, _) in enumerate(batches, 1):
        seed_torch(key(other.seed, 'step', 0) + step)
        discriminator.zero_grad()
        with torch.no_grad():
            fakes = generator(torch.randn(len(images), 32))
        real, fake = discriminator(images), discriminator(fakes)
        (
            (loss_of(real, torch.ones_like(real)) + loss_of(fake, torch.zeros_like(fake))) / 2
        ).backward()
        other.optimizer_d.step()
        generator.zero_grad()
        score = discriminator(generator(torch.randn(len(images), 32)))
        loss_of(score, torch.ones_like(score)).backward()
        other.optimizer.step()
    assert first_difference(dict(generator.state_dict()), dict(trainer.model.state_dict())) == ''
    assert (
        first_difference(dict(discriminator.state_dict()), dict(trainer.discriminator.state_dict()))
        == ''
    )


CONVOLUTIONS = {f'conv{n}.{part}' for n in (1, 2) for part in ('weight', 'bias')}


@pytest.mark.parametrize(
    'file, kept',
    [('fine_tune.json', CONVOLUTIONS), ('lora.json', CONVOLUTIONS | {'fc1.weight', 'fc1.bias'})],
)
def test_transfer_starts_from_the_other_model_and_keeps_a_part(tmp_path, file, kept):
    first = train.build(
        ConfigParser(config_of('examples/transfer/config.json', save_dir=str(tmp_path), epochs=1))
    )
    first.train()
    config = config_of(f'examples/transfer/{file}', save_dir=str(tmp_path), epochs=2)
    config['init_from']['file'] = str(first.checkpoint_dir / 'model_best.pth')
    second = train.build(ConfigParser(config))
    second.train()
    one, two = first.model.state_dict(), second.model.state_dict()
    assert {name for name in one if torch.equal(one[name], two[name])} == kept
    plain = torch.load(second.checkpoint_dir / 'weights.pth', weights_only=True)
    assert plain.keys() == one.keys()
    adapted = {name for name in kept if not torch.equal(plain[name], two[name])}
    assert adapted == ({'conv2.weight', 'fc1.weight'} if file == 'lora.json' else set())


def test_trainer_type_has_to_name_a_trainer():
    with pytest.raises(ConfigError, match='no trainer is called "GanTrainr"'):
        ConfigParser({'name': 'x', 'trainer': {'type': 'GanTrainr'}}).trainer_class(
            train.module_trainer
        )


class Few(BaseDataLoader):
    def __init__(self, batch_size, training=True):
        super().__init__(digits(training), batch_size)


class Untold(BaseDataLoader):
    def __init__(self, batch_size):
        super().__init__(digits(True), batch_size)


def handing_on(batch_size, training=True, **options):
    return torch.utils.data.DataLoader(digits(training), batch_size, **options)


def test_loader_of_ones_own_is_tested_with_what_it_takes_or_refused(monkeypatch):
    script = load_script(ROOT / 'test.py')

    def loader(kind):
        monkeypatch.setattr(kind, '__module__', script.module_data.__name__)
        monkeypatch.setattr(script.module_data, kind.__name__, kind, raising=False)
        section = {'type': kind.__name__, 'args': {'batch_size': 8}}
        values = {'name': 'x', 'trainer': {'epochs': 1}, 'data_loader': section}
        return script.test_data(ConfigParser(values))

    assert len(loader(Few).dataset) == len(loader(handing_on).dataset) == len(digits(False))
    with pytest.raises(ConfigError, match='what to test on.*Untold'):
        loader(Untold)


@pytest.mark.parametrize('section', ['data_loader', 'valid_data_loader', 'test_data_loader'])
@pytest.mark.parametrize('split', [{'validation_split': 0.1}, {'n_folds': 5}], ids=str)
def test_split_whose_part_nobody_asks_for_is_refused(section, split):
    values = {'name': 'x', 'trainer': {'epochs': 1}}
    for each in ('data_loader', 'valid_data_loader', 'test_data_loader'):
        args = {'batch_size': 8, **(split if each == section else {})}
        values[each] = {'type': 'DigitsDataLoader', 'args': args}
    build = load_script(ROOT / 'test.py').test_data if 'test' in section else train.build_data
    with pytest.raises(ConfigError, match=f'^{section} splits off .* of its samples'):
        build(ConfigParser(values))


def test_average_is_what_test_py_measures(tmp_path):
    run = (
        'train.py',
        '-c',
        'config.json',
        '-d',
        'cpu',
        '--set',
        f'trainer.save_dir={tmp_path}',
        '--set',
        'trainer.epochs=2',
        '--set',
        'trainer.ema_decay=0.9',
        '--set',
        'trainer.tensorboard=false',
        '--set',
        'trainer.pictures=["roc"]',
    )
    run_script(*run)
    (folder,) = (tmp_path / 'models' / 'Digits_LeNet').iterdir()
    said = run_script('test.py', '-r', folder).stdout
    assert (folder / 'roc.png').is_file() and 'model_best.pth (of epoch' in said
    state = checkpoint.load(folder / 'model_best.pth')
    from data_loader.data_loaders import DigitsDataLoader
    from model.metric import accuracy
    from model.model import MnistModel

    model = MnistModel()
    model.load_state_dict(state['tested'])
    with torch.no_grad():
        images, target = DigitsDataLoader(500, shuffle=False, training=False).dataset.tensors
        expected = accuracy(model.eval()(images), target).item()
    found = read_test(folder)
    assert found['values']['accuracy'] == pytest.approx(expected)
    assert f'{expected:#.4g}' in next(line for line in said.splitlines() if 'accuracy' in line)
    digest = hashlib.sha256((folder / 'model_best.pth').read_bytes()).hexdigest()
    assert found['checkpoint'] == {
        'file': 'model_best.pth',
        'sha256': digest,
        'epoch': state['epoch'],
    }
    assert found['n_samples'] == len(images) and found['command'][1:] == ['-r', str(folder)]
    # The same weights lie there alone, for whoever has only torch.
    plain = torch.load(folder / 'weights.pth', weights_only=True)
    assert first_difference(plain, state['tested']) == ''
    model.load_state_dict(plain)


WITH_ODD_METRIC = """
import os, runpy, sys
import torch
import model.metric

def odd(output, target):  # torch says that it is not deterministic, on the CPU too
    return output.clone().put_(torch.zeros(2, dtype=torch.long), torch.ones(2)).mean()

model.metric.odd = odd
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name='__main__')
finally:
    print(torch.are_deterministic_algorithms_enabled(), os.environ.get('CUBLAS_WORKSPACE_CONFIG'))
"""


def test_deterministic_refuses_what_torch_cannot_repeat(tmp_path):
    (tmp_path / 'odd.py').write_text(WITH_ODD_METRIC)
    config = json.loads((ROOT / 'config.json').read_text())
    config |= {'name': 'odd', 'metrics': ['odd']}
    config['trainer'] |= {'epochs': 1, 'len_epoch': 1, 'save_dir': str(tmp_path)}

    def ran(*words, **trainer):
        config['trainer'] |= trainer
        (tmp_path / 'config.json').write_text(json.dumps(config))
        words = [*words, '-c', tmp_path / 'config.json', '-d', 'cpu']
        return run_script(
            'odd.py', *words, script_folder=tmp_path, check=False, PYTHONPATH=str(ROOT)
        )

    free = ran('train.py', '--run-id', 'free')
    assert free.returncode == 0 and free.stdout.endswith('False None\n'), free.stderr
    for words in (['train.py'], ['test.py', '-r', tmp_path / 'models/odd/free']):
        strict = ran(*words, deterministic=True)
        assert strict.returncode == 1 and strict.stdout.endswith('True :4096:8\n'), strict.stdout
        assert 'deterministic' in strict.stderr
