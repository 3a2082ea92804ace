"""Laws of what a person sees: it fits, is aligned, one line an epoch, and nothing is raised."""

import fcntl
import math
import os
import pty
import re
import struct
import sys
import termios

import pytest
import torch

from armature.run import console
from armature.run.console import results, shown, shown_time, table
from armature.run_files import read_table
from base import BaseTrainer
from tests import warm
from tests.conftest import ROOT

ROW = re.compile(r'^ *\d+/\d+ ')


def lines_of(capsys):
    return capsys.readouterr().out.splitlines()


def reporting(values):
    class Reports(BaseTrainer):
        def _train_epoch(self, epoch):
            return values[epoch - 1]

    return lambda *arguments: Reports(*arguments[:6])


@pytest.fixture(autouse=True)
def columns(monkeypatch):
    """That of a line, whatever terminal the tests are started in."""
    monkeypatch.setenv('COLUMNS', str(console.WIDTH))


def run(experiment, capsys, values, **settings):
    settings = {'monitor': 'off', 'epochs': len(values), **settings}
    experiment.trainer(trainer_class=reporting(values), **settings).train()
    return lines_of(capsys)


def test_run_is_a_header_one_aligned_line_an_epoch_and_an_end(experiment, capsys):
    trainer = experiment.trainer(epochs=3, ema_decay=0.5)
    trainer.train()
    lines = lines_of(capsys)
    assert lines[:4] == [
        f'points, {trainer.checkpoint_dir.name}, cpu',
        'PointModel: 74 parameters, all train',
        '3 epochs of 6 steps, lr 0.01',
        'Best: lowest val_loss',
    ]
    assert 'Validated and tested: the moving average' in lines[4]
    rows = [line for line in lines if ROW.match(line)]
    (header,) = [line for line in lines if line.startswith('epoch')]
    assert len(rows) == 3 and {len(row.removesuffix(' *')) for row in rows} == {len(header)}
    names = ['epoch', 'loss', 'accuracy', 'val_loss', 'val_accuracy', 'lr', 'time']
    assert header.split() == names
    assert rows[0].endswith(' *') and f'{trainer.history[0]["val_loss"]:#.4g}' in rows[0].split()
    text = '\n'.join(lines)
    best = min(trainer.history, key=lambda log: log['val_loss'])
    assert f'Best: epoch {best["epoch"]}, ' in text and 'model_best.pth' in text
    assert 'Training ends: all 3 epochs are done (after 0' in text
    assert lines[-2:] == [
        f'Measure it:      python test.py -r {trainer.checkpoint_dir}',
        f'To train longer: python train.py -r {trainer.checkpoint_dir} --set trainer.epochs=13',
    ]


def test_parameters_that_are_frozen_do_not_count_as_trained(experiment, capsys):
    experiment.trainer(epochs=1, freeze=['hidden.*']).train()
    assert 'PointModel: 74 parameters, 34 train' in lines_of(capsys)


def test_header_is_repeated_only_when_the_columns_change(experiment, capsys):
    values = [{'loss': 1.0}, {'loss': 0.5}, {'loss': 0.5, 'more': 2}, {'loss': 0.1, 'more': 3}]
    lines = run(experiment, capsys, values)
    kinds = [
        'header' if line.startswith('epoch') else 'row'
        for line in lines
        if ROW.match(line) or line.startswith('epoch')
    ]
    assert kinds == ['header', 'row', 'row', 'header', 'row', 'row']


@pytest.mark.parametrize('verbosity', [0, 1])
def test_info_log_has_everything_whatever_is_shown(experiment, capsys, verbosity):
    trainer = experiment.trainer(epochs=1, verbosity=verbosity)
    trainer.train()
    lines = lines_of(capsys)
    text = (trainer.config.log_dir / 'info.log').read_text()
    shown = [line for line in lines if 'waiting for data' not in line]  # that is wrong
    assert (shown == []) == (verbosity == 0)
    assert 'PointModel: 74 parameters' in text and '(hidden): Linear' in text
    assert str(trainer.history[0]['val_loss']) in text and 'val_accuracy  ' in text


def test_why_it_ended_and_how_to_go_on(experiment, capsys):
    values = [{'loss': 1.0}, {'loss': 2.0}, {'loss': 3.0}]
    lines = run(experiment, capsys, values, monitor='min loss', early_stop=1)
    assert any('Training ends: loss has not improved for 1 epochs' in line for line in lines)
    assert lines[-1].endswith('--set trainer.early_stop=2')
    assert 'Best: epoch 1, loss 1.000' in lines
    experiment.trainer(epochs=3, max_steps=4).train()
    lines = lines_of(capsys)
    assert any(line.startswith('Stopped by trainer.max_steps (4) in epoch 1') for line in lines)
    assert lines[-1].endswith('--set trainer.max_steps=8')


def test_paths_are_shown_as_one_types_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert console.shown_path(tmp_path / 'saved/x') == os.path.join('saved', 'x')
    assert console.shown_path(tmp_path.parent) == str(tmp_path.parent)


def test_log_of_an_old_trainer_may_hold_anything(experiment, capsys):
    import numpy as np

    odd = {'loss': 1.0, 'confusion': np.eye(2), 'note': 'ö' * 90, 'none': None, 'nan': math.nan}
    lines = run(experiment, capsys, [odd])
    assert 'confusion: [[1. 0.]' in lines and 'none: None' in lines
    assert 'nan' in next(line for line in lines if ROW.match(line))


def test_end_shows_a_switch_that_was_reported_before_the_resume(experiment, capsys):
    values = [{'loss': 1.0, 'is_warm': torch.tensor(True)}, {'loss': 2.0}]
    settings = {'monitor': 'min loss', 'trainer_class': reporting(values)}
    first = experiment.trainer(epochs=1, **settings)
    first.train()
    experiment.trainer(first.checkpoint_dir / 'model_best.pth', epochs=2, **settings).train()
    assert lines_of(capsys).count('Best: epoch 1, loss 1.000, is_warm True') == 2


def test_forty_values_of_long_names_are_shown_in_part_and_kept_in_whole(experiment, capsys):
    names = [f'{number:02}_{"x" * 16}' for number in range(40)]
    odd = [math.nan, math.inf, -math.inf, 1e-300, -123456.789, 7]
    values = {name: odd[number % len(odd)] for number, name in enumerate(names)}
    lines = run(experiment, capsys, [values | {'loss': 1.0}] * 2, monitor=f'min {names[9]}')
    rows = [line for line in lines if ROW.match(line)]
    (header,) = [line for line in lines if line.startswith('epoch')]
    assert {len(row.removesuffix(' *')) for row in rows} == {len(header)} and len(
        header
    ) <= console.WIDTH - 2
    assert header.split() == ['epoch', *names[:3], names[9], 'loss', 'lr', 'time']
    (table_file,) = experiment.folder.rglob('metrics.csv')
    kept = read_table(table_file)[1]
    assert [str(kept[name]) for name in names] == [str(values[name]) for name in names]


@pytest.mark.parametrize('width', [3, 20, 40, 80, 120, 2000])
@pytest.mark.parametrize('n_values', [1, 4, 12])
def test_table_fits_and_is_aligned(width, n_values):
    names = [f'metric_{"x" * (index * 7)}' for index in range(n_values)]
    values = [math.nan, -1.2345e-9, 12345678, math.inf, -math.inf, 0.0, 1.5] * 2
    trained = {'loss': '0.5', **{name: shown(value) for name, value in zip(names, values)}}
    columns = {'epoch': '1000000/1000000', **trained}
    columns |= {f'val_{name}': value for name, value in trained.items()}
    columns |= {'lr': '2.00e-03', 'time': '1.2s'}
    first = ('epoch', 'loss', 'val_loss', 'lr', 'time')
    header, row = table([columns], first, width)
    assert len(header) == len(row) <= width
    assert [columns[name] for name in header.split()] == row.split()
    if width >= 80:
        assert set(first) <= set(header.split())
    if width == 2000:
        assert header.split() == list(columns)


def test_results_are_a_line_each_and_a_table_of_the_classes():
    by_class = {'recall': {'cat': 1.0, 'a long-haired dog': 0.25}, 'f1': {'cat': 0.5}}
    by_class['f1'] |= {'a long-haired dog': math.nan}
    values = {'loss': 0.5, 'recall_cat': 1.0, 'recall_a long-haired dog': 0.25, 'accuracy': 0.9}
    assert results(values, by_class) == [
        'loss        0.5000',
        'accuracy    0.9000',
        '',
        '            class     recall         f1',
        '              cat      1.000     0.5000',
        'a long-haired dog     0.2500        nan',
    ]
    assert results({'loss': 1.0}, {}) == ['loss     1.000']
    of_classes = results({}, {'bias': {'cat': -1.2345e-05, 'dog': 1.0}})[1:]
    assert len({len(line) for line in of_classes}) == 1


def test_numbers_have_four_significant_digits():
    numbers = [1.76182, 0.391, 123.456, 12345.6, 1234.5, 0.00001234567, 0.0, 7, math.nan, -math.inf]
    assert [shown(number) for number in numbers] == (
        ['1.762', '0.3910', '123.5', '1.235e+04', '1234', '1.235e-05', '0.000', '7', 'nan', '-inf']
    )
    assert [shown_time(s) for s in (0.04, 99, 600, 7200)] == ['0.0 s', '99.0 s', '10 min', '2.0 h']


def on_terminal(folder, columns, term='xterm'):
    """What a terminal of so many columns is sent during two epochs of the default run."""
    main, ours = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
    environment = {**os.environ, 'TERM': term, 'OMP_NUM_THREADS': '1'}
    environment.pop('COLUMNS', None)  # it would count instead of the terminal's size
    settings = [f'trainer.save_dir={folder}', 'trainer.epochs=2', 'trainer.log_step=2']
    process = warm.start(
        [sys.executable, 'train.py', '-c', 'config.json', '-d', 'cpu', '--set', *settings],
        cwd=ROOT,
        env=environment,
        terminal=ours,
    )
    os.close(ours)
    sent = b''
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        sent += part
    os.close(main)
    assert process.wait(60) == 0
    return sent.decode()


def on_screen(sent):
    """What stays of it on the screen, without what was drawn over."""
    return [line.split('\r')[-1] for line in sent.replace('\r\n', '\n').split('\n')]


def test_terminal_shows_a_bar_that_fits_and_is_gone_before_each_line(tmp_path):
    n_bars, is_bar = 0, re.compile(r'/41 \|')
    for line in on_terminal(tmp_path, 80).replace('\r\n', '\n').split('\n'):
        drawn = line.split('\r')  # each over the one before
        n_bars += sum(map(bool, map(is_bar.search, drawn)))
        assert all(len(part) < 80 for part in drawn if is_bar.search(part))
        for before, after in zip(drawn, drawn[1:]):
            if is_bar.search(before) and not is_bar.search(after):
                assert not after.strip() and len(after) >= len(before)
        assert not is_bar.search(drawn[-1])  # what stays on the screen
    assert n_bars > 4


def test_narrow_terminal_shows_what_fits(tmp_path):
    lines = on_screen(on_terminal(tmp_path, 40).partition('Training ends')[0])
    header, *rows = [line for line in lines if line.startswith(('epoch', '1/2', '2/2', ' '))]
    assert header.split() == ['epoch', 'loss', 'val_loss', 'lr'] and len(rows) == 2
    assert all(len(line) <= 40 for line in [header, *rows])
    assert not any('\x1b[A' in line for line in lines)


def test_bar_is_not_drawn_where_it_cannot_be_cleared(tmp_path):
    assert '\r' not in on_terminal(tmp_path, 80, term='dumb').replace('\r\n', '\n')
