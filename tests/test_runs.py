"""tools.runs: real run folders are written, and what a person types is asked of them."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from armature.run.record import RunRecord
from tests.conftest import ROOT
from tools import run_curves, run_records, run_reproduce
from tools.run_statistics import estimate
from tools.runs import main

NOW = datetime.now(UTC)


def write_run(
    save_dir, run, name='points', lr=0.1, seed=1, values=(0.5, 0.4), days=0, config=None, **record
):
    """A run folder as training leaves it. values: val_loss of each epoch."""
    folder = save_dir / 'models' / name / run
    folder.mkdir(parents=True)
    config = config or {
        'name': name,
        'seed': seed,
        'optimizer': {'type': 'SGD', 'args': {'lr': lr}},
        'trainer': {'epochs': len(values), 'save_dir': str(save_dir), 'monitor': 'min val_loss'},
    }
    rows = [
        {'epoch': epoch, 'step': 5 * epoch, 'seconds': 0.1, 'lr': lr, 'val_loss': value}
        for epoch, value in enumerate(values, 1)
    ]
    if rows:
        lines = [','.join(rows[0]), *(','.join(map(repr, row.values())) for row in rows)]
        (folder / 'metrics.csv').write_text('\n'.join(lines) + '\n')
    (folder / 'config.json').write_text(json.dumps(config))
    record = {
        'version': 1,
        'name': name,
        'run': run,
        'state': 'finished',
        'begun': (NOW - timedelta(days=days)).isoformat(),
        'seconds': 61.0,
        'git': {'commit': 'a' * 40, 'changes': None, 'left_out': []},
        'versions': {'python': '3.11.2', 'torch': '2.14'},
        'hardware': {'device': 'cpu', 'threads': 1},
        'seed': seed,
        'data': {'n_samples': 52},
        'monitor': 'min val_loss',
    } | record
    (folder / 'run.json').write_text(json.dumps(record))
    (folder / 'checkpoint-last.pth').write_bytes(bytes(1000))
    return folder


@pytest.fixture
def runs(tmp_path, capsys):
    """Asks tools.runs of the runs in tmp_path; returns what it says on stdout."""

    def ask(*arguments):
        main([*map(str, arguments), '--save-dir', str(tmp_path)])
        return capsys.readouterr().out

    return ask


@pytest.fixture
def refused(runs, capsys):
    """The one line on stderr with which tools.runs leaves, with exit code 2."""

    def ask(*arguments):
        with pytest.raises(SystemExit) as left:
            runs(*arguments)
        said = capsys.readouterr().err
        assert left.value.code == 2 and said.count('\n') == 1 and 'Traceback' not in said
        return said

    return ask


# The list


def test_the_list_shows_newest_first_and_only_the_settings_that_differ(tmp_path, runs):
    write_run(tmp_path, 'older', lr=0.01, days=1)
    write_run(tmp_path, 'newer', lr=0.1, values=(0.5, 0.25))
    header, *lines = runs().splitlines()
    assert header.split()[2:] == ['state', 'epoch', 'best', 'val_loss', 'test', 'time', 'lr']
    assert [line.split() for line in lines] == [
        ['points', 'newer', 'finished', '2', '0.25', '0:01:01', '0.1'],
        ['points', 'older', 'finished', '2', '0.4', '0:01:01', '0.01'],
    ]


def test_the_list_can_be_chosen_and_sorted(tmp_path, runs, refused):
    for index, lr in enumerate((0.1, 0.01, 0.001)):
        write_run(tmp_path, f'r{index}', lr=lr, values=(0.5 - 0.1 * index,), days=10 * index)
    write_run(tmp_path, 'other', name='lines', values=(0.9,), days=50)

    def shown(*arguments):
        return [line.split()[1] for line in runs(*arguments).splitlines()[1:]]

    assert shown('--sort', 'best') == ['r2', 'r1', 'r0', 'other']
    assert shown('--sort', 'lr') == ['r2', 'r1', 'r0', 'other']
    assert shown('--last', 2) == ['r0', 'r1']
    assert shown('--best', 1) == ['r2']
    assert shown('--since', '15d') == ['r0', 'r1'] and shown('--since', '15d', '--best', 1) == [
        'r1'
    ]
    assert shown('--name', 'lin*') == ['other']
    assert shown('--where', 'optimizer.args.lr=0.01') == shown('--where', 'lr=1e-2') == ['r1']
    assert 'optimizer.args.lr is 0.001, 0.01, 0.1' in refused('--where', 'lr=7')
    assert "did you mean 'lr'" in refused('--where', 'lrr=7')
    assert "did you mean 'points'" in refused('--name', 'point')
    assert 'no run was begun since' in refused('--since', '2999-01-01')


def test_csv_holds_every_value_at_full_precision(tmp_path, runs):
    write_run(tmp_path, 'a', values=(1 / 3,))
    header, line = runs('--csv').splitlines()
    assert dict(zip(header.split(','), line.split(',')))['best'] == repr(1 / 3)


def test_what_a_terminal_has_no_room_for_is_named(tmp_path, runs, monkeypatch):
    for index in range(2):
        write_run(tmp_path, f'r{index}', lr=index, seed=index)
    monkeypatch.setenv('COLUMNS', '58')
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    assert 'Not shown for want of room: seed, lr' in runs()


def test_odd_records_are_listed_all_the_same(tmp_path, runs):
    (write_run(tmp_path, 'damaged') / 'run.json').write_text('{"version": 1, "na')
    old = write_run(tmp_path, 'old', values=())  # as the old template leaves it
    (old / 'run.json').unlink()
    (old / 'checkpoint-epoch12.pth').touch()
    (write_run(tmp_path, 'bare', values=()) / 'config.json').unlink()
    write_run(tmp_path, '오늘 밤', name='숫자 실험')
    write_run(tmp_path, 'gone', state='running')
    write_run(tmp_path, 'nan', values=(math.nan,))
    with RunRecord(write_run(tmp_path, 'busy', state='running')).training():
        said = runs()
    state = {re.split('  +', line)[1]: line for line in said.splitlines()[1:-1]}
    assert len(said.splitlines()) == 1 + 7 + 1
    assert 'killed' in state['gone'] and 'running' in state['busy']
    assert '12' in state['old'] and '0.4' in state['damaged']
    # Korean letters are two columns wide, and the next column stands straight all the same
    assert said.splitlines()[0].index('state') == state['오늘 밤'].index('finished') + 3 + 4
    assert 'Without a whole record: 2' in said
    assert 'run.json is damaged' in runs('show', 'damaged')


def test_values_of_another_kind_are_passed_over(tmp_path, runs, refused):
    odd = {'epoch': 1, 'values': [1]}
    folder = write_run(tmp_path, 'odd', best=odd, last=odd, seconds=math.inf)
    (folder / 'test.json').write_text('{"values": [1]}')
    write_run(tmp_path, 'other')
    row = next(line for line in runs().splitlines() if ' odd ' in line)
    assert re.split('  +', row) == ['points', 'odd', 'finished', '2', '0.4']
    assert 'val_loss' in runs('show', 'odd') and 'nothing differs' in runs('diff', 'odd', 'other')
    write_run(tmp_path, 'git', git={'commit': 5, 'changes': [], 'left_out': 3})
    assert 'names no commit' in refused('reproduce', 'git')


def test_a_folder_that_was_renamed_is_found_under_its_new_name(tmp_path, runs):
    write_run(tmp_path, 'old').rename(tmp_path / 'models' / 'points' / 'the best')
    (tmp_path / 'models' / 'points').rename(tmp_path / 'models' / 'first try')
    assert 'first try  the best' in runs() == runs('--name', 'first*')
    assert 'val_loss' in runs('show', 'first try/the best')


def test_runs_that_monitor_different_values_are_not_ranked_together(tmp_path, runs, refused):
    write_run(tmp_path, 'loss')
    best = {'epoch': 1, 'values': {'val_accuracy': 0.1}}
    write_run(tmp_path, 'accuracy', name='others', monitor='max val_accuracy', best=best)
    assert 'monitor max val_accuracy, min val_loss, which do not comp' in refused('--best', 1)
    assert '0.4' in runs('--best', 1, '--name', 'points')
    write_run(tmp_path, 'again', monitor='max val_accuracy', best=best)
    assert 'Nothing to remove' in runs('clean', '--keep', 1)


def test_no_runs_is_one_line(refused):
    assert 'train.py -c config.json' in refused()


def test_a_thousand_runs_are_listed_within_a_second_and_without_torch(tmp_path):
    first = write_run(tmp_path, 'r0', values=(0.1,) * 30)
    best = {'epoch': 1, 'values': {'val_loss': 0.1}}
    record = json.loads((first / 'run.json').read_text()) | {'best': best, 'last': best}
    (first / 'run.json').write_text(json.dumps(record))
    (first / 'checkpoint-last.pth').unlink()
    for index in range(1, 1000):
        shutil.copytree(first, first.with_name(f'r{index}'))
    command = [sys.executable, '-X', 'importtime', '-m', 'tools.runs', '--save-dir', str(tmp_path)]
    before_s = os.times().children_user
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == 1001
    assert os.times().children_user - before_s < 1  # seconds of the processor: others use it too
    imported = {line.rpartition('|')[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {'torch', 'numpy', 'pandas', 'matplotlib', 'scipy', 'optuna'}


@pytest.mark.parametrize(
    ('condition', 'found'),
    [
        ('flag=1', ['number', 'whole']),
        ('flag=true', ['true']),
        ('lr_scheduler=null', ['number', 'true']),
        ('widths=[1.0, [2, 3]]', ['whole']),
        ('note=숫자 = 5 %', ['number']),
    ],
)
def test_a_condition_means_the_value_and_no_other_that_python_takes_for_it(
    tmp_path, runs, condition, found
):
    step = {'type': 'StepLR', 'args': {'step_size': 3}}
    write_run(tmp_path, 'true', config={'flag': True, 'lr_scheduler': None})
    write_run(tmp_path, 'number', config={'flag': 1, 'note': '숫자 = 5 %'})
    write_run(tmp_path, 'whole', config={'flag': 1.0, 'lr_scheduler': step, 'widths': [1, [2, 3]]})
    said = runs('--where', condition, '--sort', 'run').splitlines()[1:]
    assert [line.split()[1] for line in said] == found
    if condition.startswith('lr_sch'):
        said = runs('table', '--by', 'lr_scheduler', '--metric', 'val_loss').splitlines()
        assert sorted(line.split()[0] for line in said[1:3]) == ['null', '{"args":']


def test_a_setting_that_is_called_like_a_column_has_one_of_its_own(tmp_path, runs):
    for seed, name in enumerate(('resnet18', 'line 1\nline 2')):
        config = {'arch': {'args': {'name': name}}, 'seed': seed, 'data': {'seed': seed}}
        best = {'epoch': 1, 'values': {'loss': seed}}
        config |= {'loss': f'l{seed}', 'state': seed}
        write_run(tmp_path, name[:4], config=config, monitor='min loss', best=best)
    said = runs('--sort', 'name').splitlines()
    assert said[0].split()[-5:] == ['args.name', 'seed', 'data.seed', 'loss', 'config.state']
    assert len(said) == 3 and all(line.startswith('points ') for line in said[1:])
    assert 'time,arch.args.name,seed,data.seed,loss,config.state' in runs('--csv')
    header, first, *_ = runs('table', '--by', 'loss').splitlines()
    assert header.split()[:3] == ['config.loss', 'n', 'loss'] and first.split()[:3] == [
        '"l0"',
        '1',
        '0',
    ]


def test_names_are_found_as_they_are_typed(tmp_path, runs):
    apart = unicodedata.normalize('NFD', '숫자')  # as a Mac leaves it
    write_run(tmp_path, apart, name=apart)
    write_run(tmp_path, 'x', name='exp[1]')
    assert 'exp[1]' in runs('--name', 'exp[1]') and 'exp[1]' not in runs('--name', '숫*')
    for text in ('숫자', '숫자/숫자'):
        assert 'val_loss' in runs('show', text)


def test_only_what_has_a_value_is_among_the_best(tmp_path, runs, refused):
    write_run(tmp_path, 'off', monitor='off')
    assert 'none of these runs has a value' in refused('--best', 1)
    write_run(tmp_path, 'on')
    assert len(runs('--best', 3).splitlines()) == 2


# Single runs


def test_a_run_is_found_by_its_path_or_its_name(tmp_path, runs, refused):
    folder = write_run(tmp_path, 'mine')
    write_run(tmp_path, 'twice')
    write_run(tmp_path, 'twice', name='lines')
    for text in ('mine', 'points/mine', folder):
        assert runs('show', text).startswith(str(folder))
    assert 'lines/twice, points/twice' in refused('show', 'twice')
    assert "did you mean 'mine'" in refused('show', 'mime')


def test_diff_shows_what_differs_and_nothing_that_is_equal(tmp_path, runs):
    one = write_run(tmp_path, 'one', lr=0.1)
    patch = 'diff --git a/train.py b/train.py\n-one\n+two\n'
    other = write_run(tmp_path, 'other', lr=0.01, values=(0.5, 0.3), versions={'torch': '2.15'})
    (one / 'changes.patch').write_text(patch)
    shutil.copy(one / 'changes.patch', other)
    said = runs('diff', 'one', 'other')
    titles = [line for line in said.splitlines() if not line.startswith(' ')]
    assert titles == ['points/one -> points/other', 'config:', 'versions:', 'results:']
    assert 'optimizer.args.lr: 0.1 -> 0.01' in said and 'val_loss: 0.4 -> 0.3' in said
    (other / 'changes.patch').write_text(patch + '+three\n')
    assert 'uncommitted train.py: 3 lines -> 4 lines' in runs('diff', 'one', 'other')
    assert 'nothing differs' in runs('diff', 'one', 'one')
    for index, flag in enumerate((True, 1)):
        best = {'epoch': 1, 'values': {'val_auc': math.nan}}
        write_run(tmp_path, f'nan{index}', config={'flag': flag}, best=best)
    assert runs('diff', 'nan0', 'nan1').splitlines()[1:] == ['config:', '    flag: true -> 1']


def test_clean_keeps_the_best_and_whoever_trains(tmp_path, runs):
    folders = [write_run(tmp_path, f'r{index}', values=(index,)) for index in range(4)]
    failed = write_run(tmp_path, 'failed', values=(), state='failed')
    (failed / 'checkpoint-last.pth').unlink()
    write_run(tmp_path, 'saved', values=(), state='killed')  # in the middle of its first epoch
    write_run(tmp_path, 'elsewhere', values=(8,), state='running')  # its lock is not seen here
    killed = write_run(tmp_path, 'killed', values=(8,), state='running')
    for path in killed.iterdir():
        os.utime(path, (0, 0))
    (folders[0].parent / 'a link').symlink_to(folders[1])
    unjudged = write_run(tmp_path, 'unjudged', monitor='off')
    with RunRecord(write_run(tmp_path, 'busy', values=(9,))).training():
        before = sorted(tmp_path.rglob('*'))
        said = runs('clean', '--keep', 2)
        assert sorted(tmp_path.rglob('*')) == before and '--yes does it' in said
        assert 'r2' in said and 'r3' in said and 'busy' not in said and 'r1' not in said
        runs('clean', '--keep', 2, '--yes')
        left = {path.parent.name for path in tmp_path.rglob('checkpoint-last.pth')}
    assert left == {'r0', 'r1', 'unjudged', 'busy', 'saved', 'elsewhere'} and unjudged.is_dir()
    assert (folders[3] / 'metrics.csv').is_file() and 'r3' in runs()
    runs('clean', '--keep', 2, '--whole', '--yes')
    assert [folder.exists() for folder in folders] == [True, True, False, False]
    assert not failed.exists()


def test_what_cannot_be_removed_is_said_and_not_counted(tmp_path, runs, monkeypatch, capsys):
    for index in range(2):
        write_run(tmp_path, f'r{index}', values=(index,))

    def refuse(path, missing_ok=False):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr(Path, 'unlink', refuse)
    with pytest.raises(SystemExit) as left:
        runs('clean', '--keep', 1, '--yes')
    said = capsys.readouterr()
    assert left.value.code == 2 and 'checkpoint-last.pth cannot be removed: Perm' in said.err
    assert said.out == '' and said.err.count('\n') == 1


# Several runs


def test_the_interval_is_that_of_student():
    # By hand: mean 2, standard deviation 1, t = 4.302653 for two degrees of freedom
    made = estimate([1.0, 2.0, 3.0])
    assert made.mean == 2 and made.margin == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert estimate([5.0]) == (5.0, None, 1)


def test_table_gives_a_mean_an_interval_and_paired_differences(tmp_path, runs):
    for lr, values in ((0.1, (0.5, 0.7, 0.6)), (0.01, (0.3, 0.5, 0.41))):
        for seed, value in enumerate(values):
            write_run(tmp_path, f'{lr}-{seed}', lr=lr, seed=seed, values=(value,))
    write_run(tmp_path, 'again', lr=0.1, seed=0, values=(0.5,))  # is no new evidence
    write_run(tmp_path, 'alone', lr=1, seed=0, values=(0.9,))
    said = runs('table', '--by', 'lr').splitlines()
    assert [line.split()[0] for line in said[1:4]] == ['0.01', '0.1', '1']
    assert said[2].split()[1:] == ['3', '0.6', '±', '0.25', '0.1967', '±', '0.014']
    assert said[3].count('one seed: no interval') == 2
    assert any(line.startswith('1 runs are left out') for line in said)


def test_what_counts_is_finished_finite_and_said(tmp_path, runs, refused):
    """Two seeds of each rate; beside them a repeat that was killed, and one that diverged."""
    for seed in range(2):
        write_run(tmp_path, f'a{seed}', lr=0.1, seed=seed, values=(0.1 + seed,), days=1)
        write_run(tmp_path, f'b{seed}', lr=0.2, seed=seed, values=(0.3 + seed,))
    write_run(tmp_path, 'again', lr=0.1, seed=0, values=(0.9,), state='killed')
    write_run(tmp_path, 'inf', lr=0.2, seed=5, values=(math.inf,))
    said = runs('table', '--by', 'lr')
    assert '2  0.6 ±' in said and '2  0.8 ±' in said and '2 runs are left out' in said
    assert 'Not finished' not in said and 'states' not in said
    git = {'commit': 'b' * 40, 'changes': None, 'left_out': []}
    other = {'state': 'stopped', 'git': git, 'data': {'fingerprint': {'number of samples': 9}}}
    write_run(tmp_path, 'short', lr=0.1, seed=2, values=(0.1,), **other)
    for words in (('table', '--by', 'lr'), ('compare', 'a0', 'inf')):
        said = runs(*words)
        assert 'counted with what they reached: points/short (stopped)\n' in said
        assert 'code: 2 states of it' in said and 'data: 2 states of it' in said
    # A run with other code under the same settings is no other config
    assert 'no two configs' in refused('compare', 'a0', 'short')


def test_the_first_is_the_best_of_what_test_py_found_too(tmp_path, runs):
    for lr, accuracy in ((0.1, 0.2), (0.2, 0.9)):
        folder = write_run(tmp_path, f'r{lr}', lr=lr, monitor='max val_accuracy')
        (folder / 'test.json').write_text(json.dumps({'values': {'accuracy': accuracy}}))
    said = runs('table', '--by', 'lr', '--metric', 'test.accuracy').splitlines()
    assert [line.split()[0] for line in said[1:3]] == ['0.2', '0.1']


def test_two_configs_are_compared_over_the_same_seeds(tmp_path, runs, refused):
    for seed in range(3):
        write_run(tmp_path, f'a{seed}', lr=0.1, seed=seed, values=(seed + 0.1,))
        write_run(tmp_path, f'b{seed}', lr=0.2, seed=seed, values=(seed + 0.2 + seed * 1e-3,))
    write_run(tmp_path, 'c', lr=0.3, seed=2, values=(2.0,))
    write_run(tmp_path, 'd', lr=0.4, seed=9, values=(2.0,))
    said = runs('compare', 'a0', 'b2')
    # The seeds differ by far more than the configs: only pairs can tell
    assert 'paired over 3 seeds: 0.101 ± 0.0025' in said and 'the second is higher' in said
    assert 'One seed in common' in runs('compare', 'a0', 'c')
    assert 'no seed in common' in refused('compare', 'a0', 'd')


def test_plot_draws_a_line_a_run_and_a_band_for_seeds(tmp_path, runs, refused):
    for seed in range(3):
        write_run(tmp_path, f'a{seed}', seed=seed, values=(0.5, 0.4 + seed))
    write_run(tmp_path, '$b_', name='숫자', lr=0.2, values=(0.5, 0.3))
    file = tmp_path / 'new' / 'curves.png'
    assert 'curves.png is drawn' in runs('plot', '-o', file)
    assert file.read_bytes().startswith(b'\x89PNG')
    runs('plot', 'a0', '$b_', '-o', tmp_path / 'two.svg')
    drawn = (tmp_path / 'two.svg').read_text()
    assert 'best: 0.3 in epoch 2' in drawn or '<path' in drawn
    assert 'epoch, lr, seconds, step, val_loss' in refused('plot', '--metric', 'f1', '-o', file)
    assert "(did you mean 'val_loss'?)" in refused('plot', '--metric', 'val_los', '-o', file)
    assert 'cannot be written' in refused('plot', '-o', tmp_path / 'x.nonsense')
    assert 'names no picture' in refused('plot', '-o', tmp_path)
    assert not list(tmp_path.rglob('.unfinished*'))


def test_picture_marks_no_best_where_nobody_says_what_is_better(tmp_path, runs, monkeypatch):
    figures, nan = [], math.nan
    monkeypatch.setattr(run_curves, 'save', lambda figure, file: figures.append(figure.axes[0]))
    for seed, values in enumerate(((0.9, 0.5, nan), (0.7, 0.6, 0.1), (0.8, nan, nan))):
        write_run(tmp_path, f'a{seed}', seed=seed, values=values)
    runs('plot')
    mean, best = figures[-1].lines
    # One has a value of the second epoch less: no mean of the others is drawn there
    assert list(mean.get_xdata()) == [1] and mean.get_ydata() == pytest.approx([0.8])
    assert list(best.get_xdata()) == [1] and '0.8 in epoch 1' in best.get_label()
    runs('plot', '--metric', 'step')
    assert not any('best' in line.get_label() for line in figures[-1].lines)
    assert mean.get_marker() == '.'
    write_run(tmp_path, 'again', seed=0, values=(0.4, 0.3, 0.2))
    write_run(tmp_path, 'off', monitor='off', values=())
    assert '2 runs are left out' in runs('plot')
    runs('plot', 'a0', 'again')
    labels = [line.get_label() for line in figures[-1].lines]
    assert labels[:2] == ['points/a0', 'points/again']


def test_legend_of_many_runs_leaves_the_curves_free(tmp_path, runs, monkeypatch):
    figures = []
    monkeypatch.setattr(run_curves, 'save', lambda figure, file: figures.append(figure))
    for index in range(42):
        write_run(tmp_path, '긴 이름' * 20 + str(index), lr=index)
    assert '2 of the lines are grey' in runs('plot')
    (legend,) = figures[0].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert len(set(names)) == 41 and max(map(len, names)) < 70
    looks = {(line.get_color(), line.get_linestyle()) for line in figures[0].axes[0].lines[:40]}
    assert len(looks) == 40 and figures[0].get_figheight() > 12


def test_null_is_the_same_as_nothing_where_it_stands_for_the_default(tmp_path, runs, refused):
    write_run(tmp_path, 'a', config={'seed': 1, 'lr_scheduler': None})
    write_run(tmp_path, 'b', config={'seed': 2})
    write_run(tmp_path, 'c', config={'seed': 2, 'arch': {'args': {'size': None}}})
    assert 'no two configs' in refused('compare', 'a', 'b')
    assert 'One seed in common' in runs('compare', 'a', 'c')


def test_a_wrong_name_of_a_value_says_which_there_are(tmp_path, runs, refused):
    (write_run(tmp_path, 'a') / 'test.json').write_text('{"values": {"accuracy": 0.5}}')
    for metric, near in (('val_los', 'val_loss'), ('test.acuracy', 'test.accuracy')):
        said = refused('table', '--by', 'lr', '--metric', metric)
        assert f"(did you mean '{near}'?)" in said and 'there are test.accuracy, val_loss' in said
    assert "(did you mean 'best'?)" in refused('--sort', 'bset')


# Once more


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A git repository whose train.py writes a run of three epochs within milliseconds."""
    folder = tmp_path / 'project'
    folder.mkdir()
    (folder / 'train.py').write_text(TRAIN)
    (folder / 'factor.py').write_text('FACTOR = 1\n')
    git(folder, 'init', '-q')
    git(folder, 'add', '.')
    git(folder, '-c', 'user.name=me', '-c', 'user.email=me@here', 'commit', '-qm', 'first')
    for module in (run_reproduce, run_records):
        monkeypatch.setattr(module, 'PROJECT', folder)
    return folder


TRAIN = """
import json, pathlib, sys
from factor import FACTOR
config = json.loads(pathlib.Path(sys.argv[sys.argv.index('-c') + 1]).read_text())
run = pathlib.Path(config['trainer']['save_dir']) / 'models' / config['name'] / 'run'
run.mkdir(parents=True)
(run / 'config.json').write_text(json.dumps(config))
(run / 'run.json').write_text(json.dumps({'version': 1, 'versions': {'torch': '2.99'}}))
data = float((pathlib.Path(config['data']) / 'x').read_text())
rows = [f'{epoch},{FACTOR * data / epoch},{epoch}' for epoch in (1, 2, 3)]
(run / 'metrics.csv').write_text('epoch,val_loss,seconds\\n' + '\\n'.join(rows) + '\\n')
"""


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(['git', *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_is_reproduced_from_its_commit_and_its_changes(project, runs, tmp_path, capsys):
    (project / 'data').mkdir()
    (project / 'data' / 'x').write_text('0.7')
    (project / 'factor.py').write_text('FACTOR = 2\n')  # what the run was made with
    commit, patch = git(project, 'rev-parse', 'HEAD').strip(), git(project, 'diff')
    config = {
        'name': 'points',
        'data': 'data',
        'note': '가' * 300,
        'trainer': {'save_dir': str(tmp_path)},
    }
    folder = write_run(
        tmp_path,
        'mine',
        config=config,
        values=(),
        git={'commit': commit, 'changes': 'changes.patch', 'left_out': ['notes.ipynb']},
        versions={'python': '3.1', 'torch': '2.14', 'numpy': '1.0'},
    )
    (folder / 'changes.patch').write_text(patch)
    rows = [f'{epoch},{2 * 0.7 / epoch},9' for epoch in (1, 2)]  # the run was stopped
    (folder / 'metrics.csv').write_text('epoch,val_loss,seconds\n' + '\n'.join(rows) + '\n')
    (project / 'factor.py').write_text('FACTOR = 3\n')  # today

    said = runs('reproduce', 'mine')
    assert 'Equal bit for bit: 2 epochs, 2 columns' in said and 'notes.ipynb' in said
    assert 'pip install torch==2.14 numpy==1.0' in said and 'python was 3.1' in said
    assert git(project, 'worktree', 'list').count('\n') == 1

    (project / 'data' / 'x').write_text('0.8')
    with pytest.raises(SystemExit) as left:
        runs('reproduce', 'mine')
    assert left.value.code == 1
    assert 'Not equal: val_loss of epoch 1: 1.4 then, 1.6 now' in capsys.readouterr().out


def test_a_run_that_cannot_be_reproduced_says_why(project, refused, tmp_path):
    write_run(tmp_path, 'no-commit', git={})
    write_run(tmp_path, 'elsewhere')
    write_run(tmp_path, 'empty', values=())
    assert 'names no commit' in refused('reproduce', 'no-commit')
    assert 'git worktree add failed' in refused('reproduce', 'elsewhere')
    assert 'no finished epoch' in refused('reproduce', 'empty')
    write_run(tmp_path, 'foreign', config={'trainer': None})
    assert 'no whole config.json' in refused('reproduce', 'foreign')
