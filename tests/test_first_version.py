"""Runs that the first version began go on with today's code, to the numbers it reached itself.

The data and how it was made: tests/first_version/make.py.
"""

import json
import runpy
import shutil
import sys

import pytest
import torch
from sklearn import model_selection as sk

from armature.data.split import SPLIT_KEY, Split
from armature.errors import ConfigError
from tests.conftest import ROOT, run_script
from tests.first_version.resume import (
    HERE,
    loss_said_in,
    resumed,
    unpack_project,
    unpack_run,
)

EXPECTED = json.loads((HERE / 'expected.json').read_text())
RUNS = [name for name in EXPECTED if name not in ('project', 'sharded')]

# Another machine adds floats in another order. A lost momentum, average, schedule, position or
# split moves these numbers by more than a thousandth.
CLOSE = 1e-4


# By classes, groups and folds: scikit-learn made these splits, and the frame does not any more.
REFUSED = {
    'tabular': sk.StratifiedShuffleSplit(1, test_size=240, random_state=SPLIT_KEY % 2**32),
    'groups': sk.GroupShuffleSplit(1, test_size=0.2, random_state=SPLIT_KEY % 2**32),
    'plateau': sk.KFold(5, random_state=SPLIT_KEY % 2**32, shuffle=True),
}


@pytest.mark.parametrize('name', REFUSED)
def test_run_whose_split_is_not_made_any_more_is_refused_in_one_line(tmp_path, name):
    with pytest.raises(ConfigError, match='start a new run from its weights'):
        resumed(unpack_run(name, tmp_path))


@pytest.mark.parametrize('name', RUNS)
def test_run_of_the_first_version_reaches_its_numbers(tmp_path, name, monkeypatch):
    if name in REFUSED:  # all else of such a run is read as it was

        def split(n_samples, *_, classes, groups, fold, **__):
            parts = list(REFUSED[name].split(range(n_samples), classes, groups))
            train, valid = (torch.as_tensor(sorted(part)) for part in parts[fold])
            return Split(train, valid, {'version': 1})

        monkeypatch.setattr('base.base_data_loader.split_indices', split)
    reached, expected = resumed(unpack_run(name, tmp_path)), EXPECTED[name]
    assert_epochs_agree(reached['epochs'], expected['epochs'])
    assert reached['history'] == pytest.approx(expected['history'], rel=CLOSE)
    assert reached['best'] == pytest.approx(expected['best'], rel=CLOSE)
    assert reached['weights'] == pytest.approx(expected['weights'], rel=CLOSE)
    assert reached['valid_rows'] == expected['valid_rows']


def test_sharded_run_is_refused_and_the_way_out_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        resumed(unpack_run('sharded', tmp_path))
    assert left.value.code == 2
    assert '"distributed.checkpoint": "whole"' in capsys.readouterr().err


def test_checkpoint_that_only_its_sidecar_knows_to_be_damaged_is_refused(tmp_path, capsys):
    checkpoint = unpack_run('tabular', tmp_path) / 'checkpoint-last.pth'
    content = checkpoint.read_bytes()
    assert content.count(b'ZZZZ'), 'torch fills up the space before its records with this letter'
    checkpoint.write_bytes(content.replace(b'ZZZZ', b'ZZZA', 1))
    with pytest.raises(SystemExit) as left:
        resumed(checkpoint.parent)
    assert left.value.code == 2
    assert str(checkpoint.parent) in capsys.readouterr().err


def test_weights_that_the_first_version_averaged_are_the_ones_tested(
    tmp_path, monkeypatch, capsys, caplog
):
    run = unpack_run('ema', tmp_path)
    monkeypatch.setattr(sys, 'argv', ['test.py', '-r', str(run), '-d', 'cpu'])
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / 'test.py'), run_name='__main__')
    said = capsys.readouterr().out + caplog.text
    assert loss_said_in(said) == pytest.approx(EXPECTED['ema']['test_loss'], rel=1e-3)


def test_project_of_the_first_version_resumes_with_its_own_code(tmp_path):
    run = unpack_project(tmp_path / 'project')
    (tmp_path / 'code').mkdir()
    resume = shutil.copy(HERE / 'resume.py', tmp_path / 'code')
    reached = run_script(resume, run, cwd=tmp_path, PYTHONPATH=str(tmp_path / 'project'))
    reached = json.loads(reached.stdout.splitlines()[-1])
    assert reached['code'] == str(tmp_path / 'project' / 'train.py')
    assert_epochs_agree(reached['epochs'], EXPECTED['project']['epochs'])
    assert reached['epochs'][-1]['done'] == 100, 'by its own method and its own file in base/'


def assert_epochs_agree(reached: list[dict], expected: list[dict]) -> None:
    for mine, first in zip(reached, expected, strict=True):
        assert mine.pop('lr') == pytest.approx(first.pop('lr'), rel=1e-9)
        assert mine == pytest.approx(first, rel=CLOSE)
