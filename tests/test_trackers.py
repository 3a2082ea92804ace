"""Trackers are told what a run logs, each value once, and never stop or slow a training."""

import json
import logging
import sqlite3
import sys
import time

import numpy as np
import pytest

import train
from armature.config.check import check
from armature.config.read import Document
from armature.errors import ConfigError
from armature.processes import dist
from armature.run import trackers
from armature.run.record import read_json
from logger import TensorboardWriter
from tests.conftest import ROOT, going_on
from tools.run_files import read_record
from trainer import Trainer


class Memo:
    """A project's own tracker: it keeps what it is told."""

    runs = []

    def begin(self, run):
        self.begun, self.logged, self.ended = run, [], None
        self.runs.append(self)

    def log(self, values, step):
        self.logged.append((step, values))

    def end(self, run):
        self.ended = run


@pytest.fixture(autouse=True)
def memos(monkeypatch):
    monkeypatch.setattr(Memo, 'runs', [])
    monkeypatch.setitem(trackers.TRACKERS, 'memo', Memo)
    return Memo.runs


def values_of(memo, tag):
    return {step: values[tag] for step, values in memo.logged if tag in values}


def warnings_in(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if 'trackers' in line]


def test_tensorboard_is_whole_before_trackers_are_waited_for(tmp_path, monkeypatch):
    waiting = trackers.Trackers(['memo'], None, tmp_path)
    writer = TensorboardWriter(tmp_path, logging.getLogger(), True, trackers=waiting)
    closed, summary = [], writer.writer
    monkeypatch.setattr(summary, 'close', lambda: closed.append('TensorBoard'))
    monkeypatch.setattr(waiting, 'close', lambda: closed.append('trackers'))
    writer.close()
    assert closed == ['TensorBoard', 'trackers']


def test_tracker_is_told_of_scalars_figures_config_and_record(experiment, memos):
    trainer = experiment.trainer(
        epochs=2, trackers=['memo'], pictures=['confusion_matrix'], log_step=2
    )
    trainer.train()
    (memo,) = memos
    assert memo.begun['config'] == trainer.config.config
    assert memo.begun['state'] == 'running' and memo.begun['seed'] == 3
    assert memo.begun['id'] == read_record(trainer.checkpoint_dir)['trackers']['id']
    assert list(values_of(memo, 'loss/train')) == [2, 4, 6, 8, 10, 12]
    history = {6 * epoch['epoch']: epoch for epoch in trainer.history}
    assert values_of(memo, 'accuracy/valid') == {
        step: epoch['val_accuracy'] for step, epoch in history.items()
    }
    best = min(trainer.history, key=lambda epoch: epoch['val_loss'])
    assert list(values_of(memo, 'best/val_loss').values())[-1] == best['val_loss']
    picture = values_of(memo, 'confusion_matrix/valid')[12]
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and picture.std() > 0
    assert [step for step, _ in memo.logged] == sorted({step for step, _ in memo.logged})
    assert (memo.ended['state'], memo.ended['best']['epoch']) == ('finished', best['epoch'])


def test_two_trackers_of_one_type_are_both_told(experiment, memos):
    experiment.trainer(epochs=1, trackers=['memo', {'type': 'memo'}], log_step=2).train()
    one, other = memos
    assert values_of(one, 'loss/train') == values_of(other, 'loss/train') != {}


def test_resumed_run_keeps_its_id_and_sends_no_step_twice(experiment, memos):
    settings = {'epochs': 3, 'trackers': ['memo'], 'log_step': 1}
    whole = experiment.trainer(**settings)
    whole.train()
    cut = experiment.trainer(trainer_class=DiesAt11, save_every_steps=4, **settings)
    with pytest.raises(RuntimeError, match='killed'):
        cut.train()
    resumed = going_on(experiment, cut, **settings)
    assert resumed.step == 8
    resumed.train()
    one, first, second = memos
    assert first.begun['id'] == second.begun['id'] != one.begun['id']
    assert max(step for step, _ in first.logged) == 11
    assert min(step for step, _ in second.logged) == 12
    sent = values_of(first, 'loss/train') | values_of(second, 'loss/train')
    assert sent == values_of(one, 'loss/train')


class DiesAt11(Trainer):
    def end_step(self):
        super().end_step()
        if self.step == 11:
            raise RuntimeError('killed')


class Broken(Memo):
    """Fails in one of its three methods."""

    def __init__(self, fails='', raises=OSError):
        self.fails, self.raises = fails, raises

    def begin(self, run):
        super().begin(run)
        self.fail_in('begin')

    def log(self, values, step):
        super().log(values, step)
        self.fail_in('log')

    def end(self, run):
        super().end(run)
        self.fail_in('end')

    def fail_in(self, method):
        if self.fails == method:
            raise self.raises(f'no network in {method}')


@pytest.mark.parametrize(
    'fails, raises', [('begin', OSError), ('begin', SystemExit), ('log', OSError), ('end', OSError)]
)
def test_failing_tracker_is_one_warning(experiment, memos, monkeypatch, capsys, fails, raises):
    monkeypatch.setitem(trackers.TRACKERS, 'memo', lambda: Broken(fails, raises))
    trainer = experiment.trainer(epochs=2, trackers=['memo'], log_step=1)
    trainer.train()
    assert trainer.epochs_done == 2
    (warning,) = warnings_in(capsys)
    assert warning.startswith('trainer.trackers: memo ')
    assert f'{raises.__name__}: no network in {fails}' in warning
    assert memos[0].ended is None if fails == 'begin' else memos[0].ended['state'] == 'finished'


def test_tracker_that_is_not_installed_is_one_warning(experiment, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'trackio', None)  # as if it were not
    trainer = experiment.trainer(epochs=1, trackers=[{'type': 'trackio', 'args': {}}])
    trainer.train()
    (warning,) = warnings_in(capsys)
    assert warning == (
        'trainer.trackers: trackio is off: ModuleNotFoundError: import of trackio halted; None in '
        'sys.modules (see requirements-trackers.txt)'
    )


def test_slow_tracker_slows_nothing_drops_and_says_so(experiment, memos, monkeypatch, capsys):
    class Slow(Memo):
        def log(self, values, step):
            time.sleep(0.2)
            super().log(values, step)

    monkeypatch.setitem(trackers.TRACKERS, 'memo', Slow)
    monkeypatch.setattr(trackers, 'MAX_WAITING', 2)
    monkeypatch.setattr(trackers, 'MAX_END_S', 0.1)
    trainer = experiment.trainer(epochs=3, trackers=['memo'], log_step=1)
    begun = time.monotonic()
    trainer.train()
    assert time.monotonic() - begun < 0.2 * trainer.step
    (warning,) = warnings_in(capsys)
    assert 'they are too slow: values are left out, first of step' in warning
    assert len(memos[0].logged) < trainer.step


def test_only_the_main_process_tells_trackers(experiment, memos, monkeypatch):
    monkeypatch.setattr(dist, 'is_main', lambda: False)
    trainer = experiment.trainer(epochs=1, trackers=['memo'])
    assert not trainer.writer._trackers


@pytest.mark.parametrize(
    'entry, message',
    [
        ('wandbb', 'trainer.trackers.0: no tracker is called "wandbb" (did you mean \'wandb\'?)'),
        ({'type': 'os.system'}, 'is not in this project'),
        ({'typ': 'wandb'}, "trainer.trackers.0.typ: unknown key (did you mean 'type'?)"),
    ],
)
def test_config_names_trackers_only(entry, message):
    config = read_json(ROOT / 'config.json')
    config['trainer']['trackers'] = [entry]
    with pytest.raises(ConfigError) as error:
        check(Document(config), train.BUILDS)
    assert message in str(error.value)


def resumed_once(experiment, entry):
    """A run of two epochs that was stopped after the first one, and its folder."""
    settings = {'trackers': [entry], 'log_step': 2, 'pictures': ['confusion_matrix']}
    half = experiment.trainer(epochs=1, **settings)
    half.train()
    whole = going_on(experiment, half, epochs=2, **settings)
    whole.train()
    return whole


@pytest.mark.filterwarnings('default')
def test_wandb_offline_keeps_a_run(experiment, tmp_path, monkeypatch, capsys):
    pytest.importorskip('wandb', reason='needs wandb (requirements-trackers.txt)')
    args = {'mode': 'offline', 'dir': str(tmp_path)}
    trainer = resumed_once(experiment, {'type': 'wandb', 'args': args})
    run_id = read_record(trainer.checkpoint_dir)['trackers']['id']
    files = sorted(tmp_path.glob(f'wandb/offline-run-*-{run_id}/run-{run_id}.wandb'))
    assert len(files) == 2  # `wandb sync` joins them by their id
    for file in files:  # steps 2, 4, 6 and then 8, 10, 12; its own process writes them
        deadline = time.monotonic() + 60
        while (content := file.read_bytes()).count(b'samples_per_second/train') < 3:
            assert time.monotonic() < deadline, content
            time.sleep(0.1)
        assert b'confusion_matrix/valid' in content and b'media/images' in content
        assert b'StepLR' in content and b'hardware' in content  # config and record
    assert warnings_in(capsys) == []


@pytest.mark.filterwarnings('default')
def test_wandb_without_a_key_asks_for_none_on_the_terminal(
    experiment, tmp_path, monkeypatch, capsys
):
    pytest.importorskip('wandb', reason='needs wandb (requirements-trackers.txt)')
    monkeypatch.setenv('HOME', str(tmp_path))  # where a key would be kept
    monkeypatch.delenv('WANDB_API_KEY', raising=False)
    trainer = experiment.trainer(epochs=1, trackers=['wandb'])
    trainer.train()
    (warning,) = warnings_in(capsys)
    assert warning.startswith('trainer.trackers: wandb is off: RuntimeError: type `wandb login`')
    assert not trainer.writer._trackers._thread.is_alive()


@pytest.mark.filterwarnings('default')
def test_trackio_keeps_a_run(experiment, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TRACKIO_DIR', str(tmp_path / 'trackio'))  # read when it is imported
    pytest.importorskip('trackio', reason='needs trackio (requirements-trackers.txt)')
    trainer = resumed_once(experiment, {'type': 'trackio', 'args': {'project': 'mine'}})
    assert warnings_in(capsys) == []
    with sqlite3.connect(tmp_path / 'trackio/mine.db') as base:
        rows = base.execute('SELECT run_name, step, metrics FROM metrics').fetchall()
    steps = [step for name, step, values in rows if 'loss/train' in json.loads(values)]
    assert steps == [2, 4, 6, 8, 10, 12]
    assert {name for name, *_ in rows} == {trainer.checkpoint_dir.name}


def test_tracker_of_the_docs_works(experiment, tmp_path, monkeypatch, capsys):
    text = (ROOT / 'docs/watch.md').read_text(encoding='utf-8')
    (block,) = [each for each in text.split('```python\n')[1:] if 'class MyTracker' in each]
    exec(block.partition('```')[0], made := {})
    monkeypatch.setitem(trackers.TRACKERS, 'mine', made['MyTracker'])
    entry = {'type': 'mine', 'args': {'file': str(tmp_path / 'values.txt')}}
    experiment.trainer(epochs=1, trackers=[entry], log_step=2).train()
    lines = (tmp_path / 'values.txt').read_text().splitlines()
    assert [line.split()[0] for line in lines] == ['2', '4', '6']
    assert "'loss/train': " in lines[0] and "'best/val_loss': " in lines[-1]
    assert warnings_in(capsys) == []
