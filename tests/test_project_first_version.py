"""Updating a project of the first version: its edits come along into the rooms of today."""

import json
import shutil

import pytest

from tests.conftest import ROOT, run_script
from tests.first_version.resume import HERE, unpack_project
from tests.test_project_git import commit_all
from tools.project_first_version import RENAMED
from tools.project_git import git
from tools.project_take_over import ASIDE
from tools.project_update import settle_conflicts, update_project

EXPECTED = json.loads((HERE / 'expected.json').read_text())['project']


def test_files_that_are_elsewhere_now_are_there():
    """Who moves a file of the frame has to say so in the table too, and two cannot go to one."""
    assert len(set(RENAMED.values())) == len(RENAMED)
    assert [new for new in RENAMED.values() if not (ROOT / new).is_file()] == [
        f'{ASIDE}/old_style.py'
    ]


def test_edited_project_of_the_first_version_is_brought_over_and_goes_on_with_its_run(tmp_path):
    folder = tmp_path / 'project'
    run = unpack_project(folder)
    (folder / 'model/tail.py').write_text(
        'from base import checkpoint\nfrom utils import dist, seed\n'
        'from data_loader.datasets import ImageFolder, Mine\nfrom data_loader.tables import Table\n'
    )
    with (folder / 'data_loader/data_loaders.py').open('a') as file:
        file.write('\n\nclass MyTable(CsvDataLoader):\n    pass\n')
    with (folder / 'data_loader/datasets.py').open('a') as file:
        file.write('\n\nclass Mine(ImageFolder):\n    pass\n')
    commit_all(folder)

    summary, is_complete = update_project(folder)
    assert is_complete and 'CONFLICTS' not in summary and 'GONE' not in summary
    assert not [path for path in RENAMED if (folder / path).exists()]
    assert '(5, 1)' in (folder / 'armature/step/average.py').read_text()
    assert 'def share_done' in (folder / 'base/base_trainer.py').read_text()
    assert 'in_percent' in (folder / 'base/mine.py').read_text()
    assert 'class Small(' in (folder / 'model/model.py').read_text()
    assert 'class CsvDataLoader(' in (folder / 'examples/tabular/data.py').read_text()
    assert (folder / 'model/tail.py').read_text() == (
        'from armature.checkpoint import files as checkpoint\n'
        'from armature.processes import dist\nfrom armature import seed\n'
        'from armature.data.image_folder import ImageFolder\n'
        'from data_loader.datasets import Mine\n'
        'from examples.tabular.table import Table\n'
    )
    commit_all(folder)
    assert 'is up to date' in update_project(folder)[0]

    (tmp_path / 'code').mkdir()
    script = shutil.copy(HERE / 'resume.py', tmp_path / 'code')
    reached = json.loads(
        run_script(script, run, cwd=tmp_path, PYTHONPATH=str(folder)).stdout.splitlines()[-1]
    )
    assert reached['code'] == str(folder / 'train.py')
    for mine, first in zip(reached['epochs'], EXPECTED['epochs'], strict=True):
        reported = ('epoch', 'loss', 'accuracy', 'done', 'val_loss')
        assert [mine[name] for name in reported] == pytest.approx(
            [first[name] for name in reported], rel=2e-2
        )
        assert mine['lr'] == first['lr']


def test_imports_of_what_is_gone_are_named(tmp_path):
    folder = tmp_path / 'project'
    unpack_project(folder)
    text = 'from utils.dist import gather, no_such_thing\nimport os\n'
    (folder / 'model/tail.py').write_text(text)
    commit_all(folder)
    summary, _ = update_project(folder, dry_run=True)
    assert 'GONE:\n    model/tail.py line 1: utils.dist.no_such_thing' in summary
    assert (folder / 'model/tail.py').read_text() == text
    assert git(folder, 'status', '--porcelain').stdout == ''


@pytest.mark.parametrize(
    'mine, base, theirs, expected',
    [
        (['a', 'mine'], ['a'], ['b'], ['b', 'mine']),  # added at the end of what has changed
        (['import a', 'import mine', 'import b'], ['import a', 'import b'], [], ['import mine']),
        (['mine', 'a'], ['a'], ['b'], None),
        (['mine', 'a'], ['a'], [], ['mine']),  # before what is gone
        (['a', 'mine', 'b'], ['a', 'b'], [], None),  # inside it
        (
            ['a', 'mine'],
            ['a', 'c'],
            ['a', 'b', 'c'],
            ['a', 'b', 'mine'],
        ),  # a line that is still there
        (['a', 'mine', 'c'], ['a', 'c'], ['b', 'a', 'd'], ['b', 'a', 'mine', 'd']),
        (['a', 'mine'], ['a', 'c'], ['c', 'c'], None),
        (['a'], ['a', 'c'], ['a', 'b', 'c'], None),
        (['changed'], ['a'], ['b'], None),
        (['mine'], [], ['b'], None),
        (['mine'], ['a'], ['b'], None),
    ],
)
def test_only_changes_with_one_clear_place_are_settled(mine, base, theirs, expected):
    marks = ('<<<<<<< yours', '||||||| before', '=======', '>>>>>>> now')
    text = [marks[0], *mine, marks[1], *base, marks[2], *theirs, marks[3]]
    settled, n_left = settle_conflicts('\n'.join([*text, 'end', '']).encode())
    if expected is None:
        assert n_left == 1 and settled.decode().splitlines() == [
            marks[0],
            *mine,
            marks[2],
            *theirs,
            marks[3],
            'end',
        ]
    else:
        assert n_left == 0 and settled.decode().splitlines() == [*expected, 'end']
