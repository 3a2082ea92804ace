"""Adopting projects of the old template: each of a small gallery trains, resumes and tests; what its user wrote stays."""
import json
import re
import shutil

import pytest

from armature.checkpoint import files as checkpoint
from armature.compare import first_difference
from armature.errors import UserError
from tests.conftest import ROOT, run_script
from tests.test_project_git import commit_all
from tools import project_old, project_update
from tools.project_adopt import BRANCH, REPORT, adopt_project
from tools.project_git import git

GALLERY = ROOT / 'tests/old_style'
# Trains, then goes on from the first epoch, in one process: importing torch twice would be most of the time.
TWICE = """
import runpy, sys
from pathlib import Path
sys.path.insert(0, '.')
for arguments in (['-c', 'config.json'], ['-r', None]):
    first = sorted(Path('saved').rglob('checkpoint-epoch1.pth'))
    sys.argv = ['train.py'] + [each or str(first[0]) for each in arguments]
    if first:
        first[0].with_name('checkpoint-epoch2.pth').rename('uninterrupted.pth')
    runpy.run_path('train.py', run_name='__main__')
"""


@pytest.fixture
def old_project(tmp_path):
    """Puts a project of the gallery together, under git."""
    def make(core, name, change=lambda folder: None):
        folder = tmp_path / name
        shutil.copytree(GALLERY / core, folder, ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copytree(GALLERY / name, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns('__pycache__'))
        change(folder)
        git(folder, 'init', '-q', '-b', 'main')
        commit_all(folder)
        return folder
    return make


def replace_in(path, *pairs):
    def change(folder):
        text = (folder / path).read_text()
        for before, after in pairs:
            assert before in text
            text = text.replace(before, after)
        (folder / path).write_text(text)
    return change


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*')
            if path.is_file() and '.git' not in path.parts}


def test_classification_of_2020_trains_resumes_and_tests(old_project):
    folder = old_project('core_2020', 'digits_2020')
    before = files(folder)
    adopt_project(folder)
    replaced = ('base', 'logger', 'utils', 'parse_config.py')
    assert all(files(folder)[path] == before[path] for path in before if path.split('/')[0] not in replaced)
    run_script('train.py', '-c', 'config.json', '--lr', '0.02', '--width', '6', script_folder=folder, cwd=folder.parent)
    first = next(folder.rglob('checkpoint-epoch1.pth'))
    uninterrupted = checkpoint.load(first.with_name('checkpoint-last.pth'))
    assert uninterrupted['config']['arch']['args']['width'] == 6
    assert 'Resume training from epoch 2' in run_script('train.py', '-r', first, script_folder=folder).stdout
    resumed = checkpoint.load(first.with_name('checkpoint-last.pth'))
    assert first_difference(resumed['state_dict'], uninterrupted['state_dict']) == ''
    assert "'accuracy'" in run_script('test.py', '-r', first.with_name('model_best.pth'), script_folder=folder).stdout


@pytest.mark.parametrize('core, name', [('core_2020', 'gan_2019'), ('core_2019', 'sequence_2019'), ('core_2018', 'plain_2018')])
def test_project_of_the_gallery_trains_and_resumes(old_project, core, name):
    folder = old_project(core, name)
    adopt_project(folder)
    run_script('-c', TWICE, cwd=folder)
    resumed = max(folder.rglob('checkpoint-epoch2.pth'), key=lambda path: path.stat().st_mtime)
    if name != 'gan_2019':  # which restores no random state, in its own way of resuming
        assert first_difference(checkpoint.load(resumed)['state_dict'], checkpoint.load(folder / 'uninterrupted.pth')['state_dict']) == ''
    assert checkpoint.load(resumed)['epoch'] == 2
    assert git(folder, 'status', '--porcelain', 'base', 'utils', 'logger', 'parse_config.py').stdout == ''


def test_users_additions_are_carried_over_and_named(old_project):
    folder = old_project('core_2020', 'digits_2020')
    adopt_project(folder)
    report = (folder / REPORT).read_text()
    for place, text in (('base/base_trainer.py', '    # keeps the disk from filling up\n    def _delete_checkpoint(self, epoch):'),
                        ('base/base_trainer.py', 'import os\n'), ('logger/visualization.py', 'def save_results'),
                        ('parse_config.py', 'def initialize_list'), ('armature/run/metrics.py', 'def contains'),
                        ('utils/util.py', "LABELS = ('none', 'some', 'many')\n"),
                        ('utils/util.py', '# every script of ours calls this first\ndef fix_seeds(seed):\n    """Same numbers\n')):
        assert text in (folder / place).read_text()
    for name in ('_delete_checkpoint', 'save_results', 'initialize_list', 'contains', 'LABELS', 'fix_seeds'):
        assert re.search(rf'`\S+` line \d+: `\S*{name}` is in', report)
    trainer = (folder / 'trainer/trainer.py').read_text().splitlines()
    found = dict(re.findall(r'`trainer/trainer.py` line (\d+): (.*)', report))
    assert {trainer[int(line) - 1].strip() for line in found} == {
        'self.logger.debug(\'epoch {} at {}: loss {:.4f}\'.format(epoch, self._progress(batch_idx), loss.item()))',
        'if batch_idx == self.len_epoch:', "self.writer.add_image('input', make_grid(data.cpu(), nrow=8, normalize=True))",
        "tracker.update('loss', loss.item())", 'tracker.update(met.__name__, met(output, target))'}


def test_way_back_is_one_command_and_nothing_is_lost(old_project):
    folder = old_project('core_2019', 'sequence_2019')
    before = files(folder)
    assert adopt_project(folder, dry_run=True).count('Replaced') == 1 and files(folder) == before
    adopt_project(folder)
    assert git(folder, 'branch', '--show-current').stdout.strip() == BRANCH
    with pytest.raises(UserError, match='has this template already'):
        adopt_project(folder)
    git(folder, 'checkout', 'main')
    assert files(folder) == before


@pytest.mark.parametrize('path, before, after, kept', [
    ('base/base_trainer.py', 'best = False\n', 'best = self.patch_the_plan(epoch)\n', 'BaseTrainer.train: patch_the_plan'),
    ('base/base_data_loader.py', 'num_workers, coll', 'num_workers, drop_tail=False, coll', 'BaseDataLoader.__init__: drop_tail'),
    ('parse_config.py', "config['name']\n        if", "config['name'] + self.config['group']\n        if", 'ConfigParser.__init__: group'),
    ('logger/visualization.py', 'self.step, self.mode = 0', 'self.color = self.step, self.mode = 0', 'TensorboardWriter.__init__: color'),
])
def test_file_that_is_more_than_a_copy_is_kept(old_project, path, before, after, kept):
    folder = old_project('core_2020', 'digits_2020', replace_in(path, (before, after)))
    mine = (folder / path).read_text()
    adopt_project(folder)
    assert kept in (folder / REPORT).read_text()
    now = (folder / path).read_text().replace(', purge_step=None', '')
    assert set(mine.splitlines()) <= set(now.splitlines())
    assert path in json.loads((folder / '.template.json').read_text())['left_alone']


def test_kept_files_work_with_the_new_ones(old_project):
    """The whole old core, changed in each of its files, under the new rest: the mixture trains and resumes."""
    def change(folder):
        replace_in('parse_config.py', ("config['name']\n        if", "config['name'] + self.config.get('colour', '')\n        if"),
                   ('    def get(self, name, default=None):\n        return self.config.get(name, default)\n\n', ''))(folder)
        replace_in('base/base_data_loader.py', ('self.shuffle = shuffle\n', 'self.shuffle, self.colour = shuffle, 1\n'))(folder)
        replace_in('logger/visualization.py', ("self.step, self.mode = 0, ''", "self.step, self.mode, self.colour = 0, '', 1"))(folder)
    folder = old_project('core_2020', 'digits_2020', change)
    adopt_project(folder)
    assert '`parse_config.py` got the methods get, __contains__' in (folder / REPORT).read_text()
    run_script('-c', TWICE.replace("sorted(Path('saved')", "sorted(Path('saved/models')"), cwd=folder)


def test_adopted_project_can_be_updated(old_project, monkeypatch):
    change = replace_in('base/base_data_loader.py', ('self.shuffle = shuffle\n', 'self.hue = shuffle\n'))
    folder = old_project('core_2018', 'plain_2018', change)
    adopt_project(folder)
    before = files(folder)
    assert 'is up to date' in project_update.update_project(folder)[0]
    assert files(folder) == before


def test_without_git_a_copy_is_adopted(old_project, monkeypatch):
    folder = old_project('core_2020', 'gan_2019')
    shutil.rmtree(folder / '.git')
    (folder / 'data').mkdir()
    (folder / 'data/big.bin').write_bytes(b'0')
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(folder.parent))
    before = files(folder)
    adopt_project(folder)
    copy = folder.with_name('gan_2019-adopted')
    assert files(folder) == before and (copy / REPORT).is_file() and (copy / 'data').is_symlink()
    with pytest.raises(UserError, match='exists'):
        adopt_project(folder)


@pytest.mark.parametrize('change, message', [
    (lambda folder: (folder / 'base/base_model.py').write_text('print "old"'), 'not Python of today'),
    (lambda folder: (folder / 'base/base_trainer.py').unlink(), 'as far as one can see'),
])
def test_project_that_cannot_be_adopted_is_left_as_it_was(old_project, change, message):
    folder = old_project('core_2020', 'gan_2019', change)
    before = files(folder)
    with pytest.raises(UserError, match=message):
        adopt_project(folder)
    assert files(folder) == before and git(folder, 'branch', '--show-current').stdout.strip() == 'main'


def test_names_that_moved_are_found_where_they_are_imported_from(old_project):
    def change(folder):
        (folder / 'utils/plots.py').write_text('from utils.util import MetricTracker, Path, chart\n'
                                               'from base.base_trainer import BaseTrainer\n')
        (folder / 'utils/star.py').write_text('from utils import *\n\nprint(np.zeros(1), fix_seeds)\n')
        (folder / 'utils/__init__.py').write_text('from .util import *\nfrom .plots import *\n')
    folder = old_project('core_2020', 'digits_2020', change)
    adopt_project(folder)
    assert '`utils/plots.py` line 1: `chart` is not in `utils/util.py`' in (folder / REPORT).read_text()
    replace_in('utils/plots.py', (', chart', ''))(folder)
    run_script('-c', 'import utils.plots; import utils.star', cwd=folder)


def test_modules_of_2018_are_found_at_their_old_places(old_project):
    def change(folder):
        for name in ('logger', 'visualization'):
            (folder / f'logger/{name}.py').rename(folder / f'utils/{name}.py')
        shutil.rmtree(folder / 'logger')
        (folder / 'utils/util.py').rename(folder / 'utils.py')
        (folder / 'plot.py').write_text('print "old"')
        with (folder / 'utils.py').open('a') as file:
            file.write("\nBIG = 1000\ntry:\n    import wandb\nexcept ImportError:\n    wandb = '\\d'\n")
        (folder / 'trainer/extra.py').write_text('from utils.visualization import WriterTensorboardX\nfrom utils.logger import Logger\n'
                                                 'from utils import BIG, ensure_dir, wandb\nfrom logger import Logger\n')
    folder = old_project('core_2018', 'plain_2018', change)
    adopt_project(folder)
    run_script('-c', 'import trainer.extra', cwd=folder)
    assert not (folder / 'utils.py').exists()


def test_habits_have_the_lines_they_are_on():
    source = ('x = np.float(1)\nfor i in range(3):\n    y = torch.load(p)\nm = nn.DataParallel(m)\n'
              'from collections import abc\nz = collections.Mapping\nloss = eval(config["loss"])\n'
              'ok = torch.load(p, weights_only=True)\nmean = total / len(self.data_loader)\n')
    assert [(line, remark.split()[0]) for line, remark in project_old.habits(source)] == [
        (1, 'np.float'), (3, 'torch.load'), (4, 'DataParallel'), (6, 'collections.Mapping'), (7, 'runs'), (9, 'an')]


