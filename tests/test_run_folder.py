"""Laws of a run's folder: who may train in it, which run is the newest, what run.json and
metrics.csv say, and that logging never stops a training."""

import argparse
import copy
import csv
import errno
import json
import logging
import os
import time
import types
from datetime import UTC, datetime, timedelta

import pytest
import torch

from armature import run_files
from armature.checkpoint.files import load, newest_run, save
from armature.errors import ConfigError, UserError
from armature.run import record as record_writer
from armature.run.folder import RunPlace, claim
from armature.run.record import RunRecord
from armature.run.stop import Stopped
from armature.run_files import read_table, values_of
from parse_config import ConfigParser
from tests.conftest import going_on
from trainer import Trainer


def record(run):
    return json.loads((run / 'run.json').read_text())


# Which run


@pytest.mark.parametrize('zones', [('KST-9', 'UTC0'), ('UTC0', 'PST8'), ('PST8', 'KST-9')])
def test_the_newest_run_is_the_one_begun_last_whatever_the_time_zone(tmp_path, monkeypatch, zones):
    for zone in zones:
        monkeypatch.setenv('TZ', zone)
        time.tzset()
        last = claim(tmp_path, None)
    assert newest_run(tmp_path) == last
    monkeypatch.undo()
    time.tzset()


def test_the_newest_run_is_the_one_begun_last_although_the_clock_was_put_back(tmp_path):
    first, second = claim(tmp_path, 'zebra'), claim(tmp_path, 'ant')
    ahead = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    (second / 'run.json').write_text(json.dumps({'begun': ahead}))
    third = claim(tmp_path, 'mole')
    assert newest_run(tmp_path) == third and record(third)['begun'] > ahead
    os.utime(first)  # files that are touched later change nothing
    assert newest_run(tmp_path) == third


def test_a_run_of_the_first_version_is_older_than_one_begun_today(tmp_path):
    (tmp_path / '20260101_000000').mkdir()
    mine = claim(tmp_path, 'mine')
    assert newest_run(tmp_path) == mine


def folder_of(save_dir, before, resume=None):
    """Where a run trains that goes on in the folder `before` from the checkpoint `resume`."""
    config = ConfigParser({'name': 'x', 'trainer': {'save_dir': str(save_dir)}}, resume)
    place = RunPlace(config, lambda log_dir: None)
    place.before = before
    return place.folders[0]


def test_a_run_that_goes_on_elsewhere_says_so(tmp_path, caplog):
    run = claim(tmp_path / 'models/x', 'one')
    (run / 'config.json').write_text('{}')
    assert folder_of(tmp_path, run) == run and not caplog.records
    other = folder_of(tmp_path / 'others', run)
    assert other != run and f'{run} is no run in' in caplog.text and str(other) in caplog.text
    assert (run / 'config.json').read_text() == '{}'


def test_a_run_that_goes_back_goes_on_elsewhere(tmp_path, caplog):
    run = claim(tmp_path / 'models/x', 'one')
    (run / 'config.json').write_text('{}')
    first, last = run / 'checkpoint-epoch1.pth', run / 'checkpoint-last.pth'
    save({'state_dict': {}, 'epoch': 1}, first)
    save({'state_dict': {}, 'epoch': 2}, last)
    assert folder_of(tmp_path, run, last) == run and not caplog.records
    other = folder_of(tmp_path, run, first)
    assert other.parent == run.parent and other != run
    assert f'{first} is not the newest of its run: the run goes on in {other}' in caplog.text
    # torchrun starts a job again that has gone on in the new folder from there.
    assert folder_of(tmp_path, other, first) == other


@pytest.mark.parametrize('way', ['link', 'real/../real', 'real'])
def test_a_start_goes_on_in_the_folder_of_its_run_wherever_save_dir_leads(tmp_path, caplog, way):
    run = claim(tmp_path / 'real/models/x', 'one')
    (tmp_path / 'link').symlink_to('real')
    (run / 'config.json').write_text('{}')
    (run / '.lock').write_text('agent')
    settings = {'name': 'x', 'trainer': {'save_dir': str(tmp_path / way), 'verbosity': 1}}
    last = run / 'checkpoint-last.pth'
    save({'state_dict': {}, 'config': settings, 'made_by': {'agents': ['agent']}}, last)
    for start in (
        lambda place: place.choose(argparse.Namespace(resume_or_start=True, config='c.json')),
        lambda place: place.go_on_after_restart(['agent']),
    ):
        others = {**settings['trainer'], 'verbosity': 2, 'keep_last': None}
        config = ConfigParser({**settings, 'n_gpu': 0, 'trainer': others})
        start(config.place)
        assert config.save_dir.samefile(run) and config.resume.samefile(last)
    assert list(run.parent.iterdir()) == [run] and not caplog.records


@pytest.mark.parametrize(
    'edited',
    [
        {'begun': '2026-01-01T00:00:00'},
        {'begun': '9999-12-31T23:59:59.999999+00:00'},
        {'begun': '0001-01-01T00:00:00+14:00'},
        {'begun': 7},
        {'seconds': 'long'},
        {'seconds': [1]},
        {'seconds': 10**400},
        {'trackers': 'x', 'state': [], 'version': {}},
        {'last': 'x', 'best': 7, 'data': []},
    ],
)
def test_a_run_begins_and_goes_on_whatever_run_json_holds(tmp_path, edited):
    run = claim(tmp_path, 'one')
    (run / 'run.json').write_text(json.dumps(record(run) | edited))
    (run / 'metrics.csv').write_text('epoch,loss\n1,0.5')
    assert newest_run(tmp_path) == run and read_table(run / 'metrics.csv') == []
    folder = RunRecord(run)
    with folder.training():
        folder.begin({'name': 'x'})
        folder.note_saved(1, 2, None)
    assert record(run)['state'] == 'finished' and record(run)['seconds'] >= 0
    assert claim(tmp_path, None) == newest_run(tmp_path) != run


# Who may train there


def test_a_second_training_in_the_same_folder_is_refused(tmp_path):
    with RunRecord(tmp_path).training():
        pid = os.fork()
        if pid == 0:
            try:
                with RunRecord(tmp_path).training():
                    os._exit(0)
            except UserError as error:
                os._exit(7 if 'by another process' in str(error) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    with RunRecord(tmp_path).training():
        pass


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_not_another_training(tmp_path, monkeypatch, caplog, number):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(run_files.fcntl, 'lockf', no_locks)
    with RunRecord(tmp_path).training():
        pass
    assert len(caplog.records) == 1 and os.strerror(number) in caplog.text


def test_windows_locks_by_msvcrt(tmp_path, monkeypatch):
    locked = []

    def locking(descriptor, mode, n_bytes):
        if locked:
            raise OSError(errno.EACCES, 'Permission denied')
        locked.append((mode, n_bytes))

    monkeypatch.setattr(run_files, 'fcntl', None)
    stand_in = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
    monkeypatch.setattr(run_files, 'msvcrt', stand_in, raising=False)
    with (
        RunRecord(tmp_path).training(),
        pytest.raises(UserError, match='Permission denied'),
        RunRecord(tmp_path).training(),
    ):
        pass
    assert locked == [(2, 1)]


# What is written


def test_run_json_says_what_became_of_the_run(tmp_path):
    run, said, seconds = claim(tmp_path, 'one'), [], 0
    begun = record(run)['begun']
    for error, state in ((None, 'finished'), (Stopped(), 'stopped'), (KeyError(), 'failed')):
        try:
            folder = RunRecord(run)
            with folder.training():
                folder.begin({'name': 'x'}, command=['train.py'], resumed_from=None)
                said.append(record(run)['state'])
                folder.note(best={'epoch': 1})
                if error:
                    raise error
        except (Stopped, KeyError):
            pass
        assert record(run)['state'] == state and record(run)['best'] == {'epoch': 1}
        assert record(run)['seconds'] > seconds  # of all starts together
        seconds = record(run)['seconds']
    assert said == ['running'] * 3 and record(run)['begun'] == begun
    assert record(run)['command'] == ['train.py'] and record(run)['ended'] > begun
    assert json.loads((run / 'config.json').read_text()) == {'name': 'x'}


def test_a_training_of_ones_own_keeps_the_moment_when_the_run_was_begun(tmp_path):
    run = claim(tmp_path, 'one')
    begun = record(run)['begun']
    RunRecord(run).note(last={'epoch': 1})
    now = {'begun': begun, 'state': 'running', 'last': {'epoch': 1}}
    assert record(run) == now | {'version': 1}


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_rows_are_appended_and_new_columns_take_their_place(tmp_path):
    folder = RunRecord(tmp_path)
    folder.add_row({'epoch': 1, 'loss': 0.1 + 0.2})
    folder.add_row({'epoch': 2, 'loss': float('nan')})
    folder.add_row({'epoch': 3, 'loss': 0.5, 'lr': 1e-9})
    folder.add_row({'epoch': 4, 'lr': 2.0})
    assert rows_of(tmp_path / 'metrics.csv') == [
        {'epoch': '1', 'loss': '0.30000000000000004', 'lr': ''},
        {'epoch': '2', 'loss': 'nan', 'lr': ''},
        {'epoch': '3', 'loss': '0.5', 'lr': '1e-09'},
        {'epoch': '4', 'loss': '', 'lr': '2.0'},
    ]
    kept = read_table(tmp_path / 'metrics.csv', last_epoch=3)
    assert kept[0] == {'epoch': 1, 'loss': 0.1 + 0.2} and len(kept) == 3


def test_a_resumed_run_has_the_rows_of_its_line_only(tmp_path):
    folder = RunRecord(tmp_path)
    for epoch in range(1, 6):
        folder.add_row({'epoch': epoch, 'loss': 1.0})
    again = RunRecord(tmp_path)
    kept = read_table(tmp_path / 'metrics.csv', last_epoch=2)
    again.rows = {row['epoch']: row for row in kept}
    again.begin({})
    again.add_row({'epoch': 3, 'loss': 9.0, 'lr': 0.1})
    assert [row['epoch'] for row in rows_of(tmp_path / 'metrics.csv')] == ['1', '2', '3']


@pytest.mark.parametrize(
    'saved_as',
    [
        lambda text: text.replace(',', ';').encode(),
        lambda text: text.encode('utf-16'),
        lambda text: text.replace('1,', '1.0,').encode(),
        lambda text: text.partition('\n')[2].encode(),
        lambda text: text.splitlines()[1].encode(),
        lambda text: (text + '3,"' + 'x' * 200_000).encode(),
        lambda text: (text + '3,0.1,0.5\n').encode(),
    ],
)
def test_rows_that_are_not_understood_are_kept_beside(tmp_path, caplog, saved_as):
    table = tmp_path / 'metrics.csv'
    content = saved_as('epoch,loss\n1,0.5\n2,0.25\n')
    for name in ('metrics.csv.old', 'metrics.csv.old.old'):
        table.write_bytes(content)
        RunRecord(tmp_path).begin({})
        assert (tmp_path / name).read_bytes() == content and name in caplog.text
        assert not table.exists()
    RunRecord(tmp_path).begin({})
    assert len(list(tmp_path.glob('*.old'))) == 2


def test_a_run_goes_on_whatever_its_table_holds(experiment, capsys):
    trainer = experiment.trainer(epochs=1)
    trainer.train()
    table = trainer.checkpoint_dir / 'metrics.csv'
    table.write_text(table.read_text() + '"' + 'x' * 200_000 + '\n')
    resumed = going_on(experiment, trainer, epochs=2)
    resumed.train()
    assert [row['epoch'] for row in read_table(table)] == [2]
    assert 'kept as metrics.csv.old' in capsys.readouterr().out


def test_an_epoch_of_a_long_run_costs_what_one_of_a_short_run_does(tmp_path):
    folder = RunRecord(tmp_path)

    def n_written(epoch):
        before = (tmp_path / 'metrics.csv').stat()
        folder.add_row({'epoch': epoch, 'loss': 0.5})
        after = (tmp_path / 'metrics.csv').stat()
        assert before.st_ino == after.st_ino  # appended to, not written anew
        return after.st_size - before.st_size

    folder.rows = {epoch: {'epoch': epoch, 'loss': 0.5} for epoch in range(1, 20_001)}
    folder.begin({})
    assert n_written(20_001) == len('20001,0.5\n')


# Places that cannot be written


def test_a_table_that_cannot_be_written_is_one_warning(tmp_path, caplog):
    folder = RunRecord(tmp_path)
    (tmp_path / 'metrics.csv').mkdir()
    for epoch in (1, 2, 3):
        folder.add_row({'epoch': epoch})
    folder.note(best={'epoch': 1})
    assert len(caplog.records) == 1 and caplog.records[0].levelno == logging.WARNING
    assert 'the training goes on' in caplog.text and record(tmp_path)['best'] == {'epoch': 1}


@pytest.mark.parametrize('failing', ['write_text', 'open'])
def test_a_full_disk_at_the_beginning_is_one_clear_error(tmp_path, monkeypatch, failing):
    run = claim(tmp_path, 'one')
    (run / 'config.json').write_text('{"name": "before"}')

    def is_full(*_, **__):
        raise OSError(errno.ENOSPC, 'No space left on device')

    owner = record_writer.Path if failing == 'write_text' else record_writer
    monkeypatch.setattr(owner, failing, is_full, raising=False)
    folder = RunRecord(run)
    folder.rows = {1: {'epoch': 1}}
    refused = pytest.raises(UserError, match='one cannot be written: No space left on device')
    with refused, folder.training():
        folder.begin({'name': 'x'})
    monkeypatch.undo()
    assert (run / 'config.json').read_text() == '{"name": "before"}'
    assert not list(run.glob('.*.tmp'))


def test_a_run_folder_that_cannot_be_made_names_the_key(tmp_path):
    (tmp_path / 'models').write_text('')
    with pytest.raises(ConfigError, match='is there|save_dir'):
        claim(tmp_path / 'models' / 'x', None)


def test_a_file_that_somebody_reads_is_replaced_when_it_is_let_go(tmp_path, monkeypatch):
    """As Windows refuses it meanwhile."""
    from armature.checkpoint import files

    real, refused = os.replace, []

    def replace(source, target):
        if len(refused) < 3:
            refused.append(target)
            raise PermissionError(errno.EACCES, 'The process cannot access the file')
        real(source, target)

    monkeypatch.setattr(os, 'replace', replace)
    record_writer.write_json({'a': 1}, tmp_path / 'a.json')
    assert len(refused) == 3 and json.loads((tmp_path / 'a.json').read_text()) == {'a': 1}
    refused.clear()
    monkeypatch.setattr(files, 'REPLACE_TRIES', 0)
    with pytest.raises(PermissionError):
        record_writer.write_json({'a': 2}, tmp_path / 'a.json')
    assert json.loads((tmp_path / 'a.json').read_text()) == {'a': 1}


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs named pipes')
def test_a_link_stays_one_and_nothing_takes_the_place_of_a_pipe(tmp_path):
    (tmp_path / 'there').write_text('old')
    (tmp_path / 'link').symlink_to('there')
    record_writer.write_text(tmp_path / 'link', 'new')
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'there').read_text() == 'new'
    os.mkfifo(tmp_path / 'pipe')
    reading = os.open(tmp_path / 'pipe', os.O_RDONLY | os.O_NONBLOCK)
    record_writer.write_text(tmp_path / 'pipe', 'new')
    assert os.read(reading, 10) == b'new' and (tmp_path / 'pipe').is_fifo()
    os.close(reading)


# With a trainer


def test_a_stop_that_saved_nothing_does_not_say_that_it_did(experiment, capsys):
    class Own(Trainer):
        def _resume_checkpoint(self, resume_path):
            """Reads files of its own kind, so that checkpoint-last.pth is not written for it."""

    experiment.trainer(trainer_class=Own, max_steps=3).train()
    said = capsys.readouterr().out
    assert 'This moment is not saved' in said and ' -r ' not in said
    experiment.trainer(max_steps=3).train()
    said = capsys.readouterr().out
    assert 'Stopped by' in said and 'not saved' not in said and ' -r ' in said


def test_a_table_that_cannot_be_written_stops_neither_training_nor_checkpoints(experiment, capsys):
    trainer = experiment.trainer(epochs=2)
    (trainer.checkpoint_dir / 'metrics.csv').mkdir()
    trainer._record.begin = lambda *_, **__: None  # as if it went away after the beginning
    trainer.train()
    assert load(trainer.checkpoint_dir / 'checkpoint-last.pth')['epoch'] == 2
    assert capsys.readouterr().out.count('cannot be written') == 1


def test_the_record_follows_the_training(experiment):
    trainer = experiment.trainer(epochs=2)
    trainer.train()
    said, first, last = record(trainer.checkpoint_dir), *trainer.history
    assert said['state'] == 'finished' and said['reason'] is None
    assert said['last'] == {'epoch': 2, 'step': 12, 'values': values_of(last)}
    best = min(first, last, key=lambda log: log['val_loss'])
    name = 'model_best.pth'
    assert said['best'] == {'epoch': best['epoch'], 'file': name, 'values': values_of(best)}
    assert (
        said['seconds'] > 0 and said['monitor'] == 'min val_loss' and said['seed'] == trainer.seed
    )
    assert said['versions']['torch'] == torch.__version__ and 'numpy' in said['versions']
    assert said['hardware']['device'] == 'cpu' and said['hardware']['n_cpus'] >= 1
    data = load(trainer.checkpoint_dir / name)['data']
    assert said['data'] == json.loads(json.dumps(data))
    table = read_table(trainer.checkpoint_dir / 'metrics.csv')
    assert list(table[0])[:5] == ['epoch', 'step', 'seconds', 'lr', 'loss']
    assert [row['step'] for row in table] == [6, 12] and table[0]['lr'] == 0.01
    resumed = experiment.trainer(trainer.checkpoint_dir / 'checkpoint-epoch1.pth', epochs=2)
    resumed.train()
    assert resumed.history == trainer.history
    again = read_table(resumed.checkpoint_dir / 'metrics.csv')
    assert again[0] == table[0] and again[1] | {'seconds': 0} == table[1] | {'seconds': 0}
    assert record(resumed.checkpoint_dir)['resumed_from'].endswith('checkpoint-epoch1.pth')


def test_copies_of_a_config_train_in_folders_of_their_own(tmp_path):
    config = ConfigParser({'name': 'x', 'trainer': {'save_dir': str(tmp_path)}})
    copies = config.copy(), copy.copy(config)
    for number, each in enumerate(copies):
        each.run_id = f'fold{number}'
    folders = [each.save_dir for each in (*copies, config)]
    assert [folder.name for folder in folders[:2]] == ['fold0', 'fold1']
    assert len(set(folders)) == 3
