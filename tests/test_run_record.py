"""Laws of reading what a run leaves behind: whatever is there, the record says what the run is."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from armature import run_files
from armature.run.folder import claim
from armature.run.record import RunRecord, code_of, rates_of
from armature.run_files import read_table
from tests.conftest import ROOT
from tools.run_files import find_runs, read_config, read_record, read_test
from trainer import Trainer

ROWS = [
    {'epoch': 1, 'step': 5, 'seconds': 0.5, 'lr/a': 0.1, 'loss': 2.0, 'val_loss': 1.0},
    {'epoch': 2, 'step': 10, 'seconds': 0.5, 'lr/a': 0.1, 'loss': 1.0, 'val_loss': float('nan')},
    {'epoch': 3, 'step': 15, 'seconds': 0.5, 'lr/a': 0.1, 'loss': 0.5, 'val_loss': 1.5},
]
CONFIG = {'name': 'points', 'trainer': {'monitor': 'min val_loss'}}


@pytest.fixture
def run(tmp_path):
    """A run that is trained no more, as a process that was killed leaves it."""
    run = claim(tmp_path / 'models/points', 'one')
    folder = RunRecord(run)
    folder.begin(CONFIG, command=['train.py'], data={'class_names': ['a', 'b']})
    for row in ROWS:
        folder.add_row(row)
    folder.note_saved(3, 15, [1, 5])
    return run


def test_record_is_whole_and_says_so(run):
    found = read_record(run)
    assert found == json.loads((run / 'run.json').read_text()) | found and found['note'] == ''
    assert (found['name'], found['run'], found['classes']) == ('points', 'one', ['a', 'b'])
    assert found['best']['values'] == {'loss': 2.0, 'val_loss': 1.0}
    assert read_config(run) == CONFIG and read_test(run) is None
    assert find_runs(run.parents[2]) == [run]


def test_run_whose_process_is_gone_is_killed(run):
    assert read_record(run)['state'] == 'killed'
    with RunRecord(run).training():
        assert read_record(run)['state'] == 'running'
        # Another process asks the kernel, and needs no torch for it.
        script = (
            'import sys; from tools.run_files import read_record; '
            f'print(read_record({str(run)!r})["state"], "torch" in sys.modules)'
        )
        command = [sys.executable, '-c', script]
        asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert asked.stdout.split() == ['running', 'False']
        assert read_record(run)['state'] == 'running'
    (run / '.lock').unlink()
    assert read_record(run)['state'] == 'killed'


def test_run_is_killed_from_the_moment_when_its_process_is(run):
    pid = os.fork()
    if pid == 0:
        with RunRecord(run).training():
            time.sleep(60)
    try:
        give_up = time.monotonic() + 30
        while read_record(run)['state'] != 'running' and time.monotonic() < give_up:
            time.sleep(0.01)
        assert read_record(run)['state'] == 'running'
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert read_record(run)['state'] == 'killed'


def test_a_look_at_a_run_that_is_trained_here_does_not_let_go_of_it(run):
    with RunRecord(run).training():
        read_record(run)
        pid = os.fork()
        if pid == 0:
            run_files.locked_here.clear()
            os._exit(7 if run_files.is_trained(run) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


@pytest.mark.parametrize('content', ['', '{', '[1]', 'null', '\0', '{"version": 1}', None])
def test_damaged_record_is_filled_from_what_is_there(run, content):
    if content is None:
        (run / 'run.json').unlink()
    else:
        (run / 'run.json').write_text(content)
    found = read_record(run)
    assert found['name'] == 'points' and found['monitor'] == 'min val_loss'
    assert found['best']['epoch'] == 1 and found['last']['values']['loss'] == 0.5
    assert found['last']['step'] == 15 and found['state'] == 'unknown'
    assert ('run.json' in found['note']) == (content != '{"version": 1}')


def test_record_of_another_version_or_of_other_kinds_is_named(run):
    said = json.loads((run / 'run.json').read_text()) | {'version': 2, 'command': 'x', 'git': 7}
    (run / 'run.json').write_text(json.dumps(said))
    found = read_record(run)
    assert 'version 2' in found['note']
    assert found['command'] is None and found['git'] == {} and found['best']['epoch'] == 1


def test_a_line_that_is_being_written_is_not_read(tmp_path):
    (tmp_path / 'metrics.csv').write_text('epoch,loss\n1,0.25\n2,0.1')  # of 0.125
    assert read_table(tmp_path / 'metrics.csv') == [{'epoch': 1, 'loss': 0.25}]


def test_a_last_line_without_its_end_counts_where_the_record_says_the_same(run):
    table = run / 'metrics.csv'
    text = table.read_text()
    table.write_text(text.rstrip('\n'))  # as many an editor saves it
    assert read_table(table)[-1] == ROWS[-1] and run_files.is_table(table)
    for cut in range(2, 9):
        table.write_text(text[:-cut])
        assert read_table(table)[-1]['epoch'] == 2


def test_a_byte_order_mark_is_no_part_of_a_name(run):
    table = run / 'metrics.csv'
    table.write_bytes(b'\xef\xbb\xbf' + table.read_bytes())
    assert [row['epoch'] for row in read_table(table)] == [1, 2, 3]


def test_nothing_about_a_folder_raises(tmp_path):
    assert read_record(tmp_path / 'none')['note'] and find_runs(tmp_path) == []
    (tmp_path / 'metrics.csv').write_bytes(b'epoch,\xff\n1,2,3\n"' + b'x' * 200_000 + b'\n')
    (tmp_path / 'config.json').mkdir()
    assert 'metrics.csv' in read_record(tmp_path)['note'] and read_config(tmp_path) == {}


def test_rates_have_the_names_of_their_groups():
    class Two:
        param_groups = [{'lr': 0.1, 'name': 'head'}, {'lr': 0.2}]

    class One:
        param_groups = Two.param_groups[:1]

    assert rates_of(Two) == {'lr/head': 0.1, 'lr/1': 0.2} and rates_of(One) == {'lr': 0.1}
    assert rates_of(None) == {}


def test_optimizer_that_chooses_its_rate_itself_trains(experiment):
    class Own(torch.optim.SGD):  # as Adafactor, whose lr is None
        def __init__(self, parameters, lr):
            super().__init__(parameters, lr)
            del self.param_groups[0]['lr']

        def step(self, closure=None):
            self.param_groups[0]['lr'] = 0.01
            super().step(closure)
            del self.param_groups[0]['lr']

    class Plain(Trainer):
        def _log_step(self, bar):
            pass

    trainer = experiment.trainer(
        epochs=1, optimizer=Own, scheduler=None, interval='epoch', trainer_class=Plain
    )
    trainer.train()
    assert rates_of(trainer.optimizer) == {} and trainer.step == 6


# Which code


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a commit, below the top of its repository."""
    for key in ('GIT_CONFIG_GLOBAL', 'GIT_CONFIG_SYSTEM'):
        monkeypatch.setenv(key, os.devnull)
    project = tmp_path / 'repository' / 'project'
    (project / 'data').mkdir(parents=True)
    (project / 'a.py').write_bytes(b'one\r\ntwo\r\n')
    (project / 'gone.py').write_text('gone\n')
    (project / 'table.csv').write_text('1,2\n')
    (project / '.gitignore').write_text('ignored.py\n')
    git(project.parent, 'init', '-q')
    git(project.parent, 'add', '.')
    git(project.parent, '-c', 'user.name=x', '-c', 'user.email=x@y', 'commit', '-qm', 'x')
    return project


def git(folder, *arguments):
    return subprocess.run(['git', '-C', folder, *arguments], check=True, capture_output=True).stdout


def test_patch_makes_the_code_of_a_run_from_its_commit(project, tmp_path):
    assert code_of(project, project / 'saved')[0]['changes'] is None
    (project / 'a.py').write_bytes(b'one\r\nother\r\n\xff')
    (project / 'gone.py').unlink()
    (project / 'new').mkdir()
    (project / 'new/__init__.py').write_text('')
    (project / 'new/ö :x.py').write_text('no newline')
    for name in ('ignored.py', 'data/a.json', 'saved/models/x/config.json'):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text('{}')
    (project / 'table.csv').write_text('1,3\n')
    (project / 'big.json').write_text('[' + '1, ' * 2**19 + '1]')
    (project / 'staged.py').write_text('staged')
    git(project, 'add', '--force', 'staged.py', 'a.py', 'ignored.py')
    before = git(project, 'status', '--porcelain')
    code, patch = code_of(project, project / 'saved')
    assert git(project, 'status', '--porcelain') == before  # the user's index is as it was
    assert code['changes'] == 'changes.patch' and code['left_out'] == ['big.json', 'table.csv']
    assert code['commit'] == git(project, 'rev-parse', 'HEAD').decode().strip()
    (tmp_path / 'changes.patch').write_bytes(patch)
    git(project, 'stash', '-qu')
    git(project.parent, 'apply', '--directory=project', tmp_path / 'changes.patch')
    assert (project / 'a.py').read_bytes() == b'one\r\nother\r\n\xff'
    assert not (project / 'gone.py').exists() and (project / 'new/__init__.py').exists()
    assert (project / 'new/ö :x.py').read_text() == 'no newline'
    assert (project / 'staged.py').read_text() == 'staged' and (project / 'ignored.py').exists()
    assert (project / 'table.csv').read_text() == '1,2\n'


@pytest.mark.parametrize('around', ['.', '..'])
def test_runs_kept_around_the_code_do_not_hide_it(project, around):
    saved = (project / around).resolve()
    for name in ('log/x/info.txt', 'models/x/config.json', 'new.py'):
        (saved / name).parent.mkdir(parents=True, exist_ok=True)
        (saved / name).write_text('{}')
    (project / 'a.py').write_bytes(b'another\n')
    code, patch = code_of(project, saved)
    assert code['changes'] and b'another' in patch and b'x/' not in patch


def test_patch_is_bounded(project):
    for number in range(3):
        (project / f'{number}.py').write_text(f'{number} = 1\n' * 60_000)
    code, patch = code_of(project, project / 'saved')
    assert code['left_out'] == ['0.py', '1.py', '2.py'] and patch == b'' and not code['changes']


def test_a_folder_outside_a_repository_has_no_code_to_name(tmp_path, monkeypatch):
    monkeypatch.setenv('GIT_DIR', str(ROOT / '.git'))  # as a hook has it: another repository's
    assert code_of(tmp_path, tmp_path) == ({}, b'')
    monkeypatch.setenv('PATH', '')
    assert code_of(ROOT, ROOT) == ({}, b'')
