"""Adopting projects of the old template: each of a small gallery goes on as it was, and better."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from armature.checkpoint import files as checkpoint
from armature.compare import first_difference
from armature.errors import UserError
from new_project import main
from tests import warm
from tests.conftest import ROOT, run_script
from tests.test_project_git import commit_all
from tools import project_git, project_old, project_prove, project_take_over, project_update
from tools.project import write_files
from tools.project_adopt import BRANCH, adopt_project
from tools.project_git import git
from tools.project_mend import mend, remarks
from tools.project_report import REPORT

GALLERY = ROOT / 'tests/old_style'
# Trains, goes on from the first epoch and tests, in one process: importing torch three times would
# be most of the time.
TWICE = """
import runpy, sys
from pathlib import Path
sys.path.insert(0, '.')
for script, arguments in (('train', ['-c', 'config.json']), ('train', ['-r', None]), ('test', ['-r', None])):
    first = sorted(Path('saved').rglob('checkpoint-epoch1.pth'))
    sys.argv = [script + '.py'] + [each or str(first[0]) for each in arguments]
    if first and not Path('uninterrupted.pth').exists():
        first[0].with_name('checkpoint-epoch2.pth').rename('uninterrupted.pth')
    if Path(script + '.py').exists():
        runpy.run_path(script + '.py', run_name='__main__')
"""


@pytest.fixture
def old_project(tmp_path):
    """Puts a project of the gallery together, under git."""

    def make(core, name, *changes):
        folder = tmp_path / name
        for source in (core, name):
            shutil.copytree(
                GALLERY / source,
                folder,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns('__pycache__'),
            )
        for change in changes:
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


def add_to(path, text):
    def change(folder):
        with (folder / path).open('a') as file:
            file.write(text)

    return change


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file() and '.git' not in path.parts
    }


def adopt(folder, **options):
    """Without the trial, which takes seconds."""
    return adopt_project(folder, is_tried=False, **options)[0]


def test_adoption_is_tried_before_and_after(old_project, capsys):
    """Also the whole command, and that nothing of the trial is left."""
    folder = old_project('core_2020', 'digits_2020')
    before = files(folder)
    with pytest.raises(SystemExit) as left:
        main(['--adopt', str(folder), '--dry-run'])
    said = capsys.readouterr().out
    assert left.value.code == 0 and files(folder) == before
    assert 'First training steps: good (before: utils/util.py:55: ValueError' in said
    assert '19 of 19 modules can be imported (before: 19 of 19)' in said


def test_what_worked_before_and_fails_after_is_said_first(old_project, monkeypatch):
    """A copy under whose name something else is asked for: nothing an adoption can know."""
    monkeypatch.setattr(sys, 'executable', warm.server().stand_in)  # tried in forked processes
    folder = old_project(
        'core_2020',
        'digits_2020',
        add_to(
            'trainer/__init__.py',
            'from base import BaseTrainer\nassert BaseTrainer.__bases__ == (object,)\n',
        ),
    )
    text, is_good = adopt_project(folder)
    assert not is_good and 'WORKED BEFORE AND DOES NOT NOW' in text
    report = (folder / REPORT).read_text().splitlines()
    assert report[2].startswith('WORKED BEFORE') and 'trainer' in report[3]
    assert 'AssertionError' in ''.join(report[:8])


def test_classification_of_2020_trains_resumes_and_tests(old_project):
    folder = old_project('core_2020', 'digits_2020')
    before = files(folder)
    adopt(folder)
    rooms = ('base', 'logger', 'utils', 'parse_config.py')
    now = files(folder)
    assert all(now[path] == before[path] for path in before if path.split('/')[0] not in rooms)
    assert git(folder, 'diff', '--diff-filter=D', '--name-only', 'main').stdout == ''
    arguments = ('--lr', '0.02', '--width', '6')
    run_script('train.py', '-c', 'config.json', *arguments, script_folder=folder, cwd=folder.parent)
    first = next(folder.rglob('checkpoint-epoch1.pth'))
    uninterrupted = checkpoint.load(first.with_name('checkpoint-last.pth'))
    assert uninterrupted['config']['arch']['args']['width'] == 6
    said = run_script('train.py', '-r', first, script_folder=folder).stdout
    assert 'Resume training from epoch 2' in said
    resumed = checkpoint.load(first.with_name('checkpoint-last.pth'))
    assert first_difference(resumed['state_dict'], uninterrupted['state_dict']) == ''
    best = first.with_name('model_best.pth')
    assert "'accuracy'" in run_script('test.py', '-r', best, script_folder=folder).stdout


@pytest.mark.parametrize(
    'core, name',
    [('core_2020', 'gan_2019'), ('core_2019', 'sequence_2019'), ('core_2018', 'plain_2018')],
)
def test_project_of_the_gallery_trains_and_resumes(old_project, core, name):
    folder = old_project(core, name)
    adopt(folder)
    run_script('-c', TWICE, cwd=folder)
    found = folder.rglob('checkpoint-epoch2.pth')
    resumed = checkpoint.load(max(found, key=lambda path: path.stat().st_mtime))
    if name != 'gan_2019':  # which restores no random state, in its own way of resuming
        uninterrupted = checkpoint.load(folder / 'uninterrupted.pth')
        assert first_difference(resumed['state_dict'], uninterrupted['state_dict']) == ''
    assert resumed['epoch'] == 2
    status = git(folder, 'status', '--porcelain', 'base', 'utils', 'logger', 'parse_config.py')
    assert status.stdout == ''


def test_habits_of_real_projects_all_at_once(old_project):
    """Each broke an adoption once. Together they train, resume and test."""
    changes = [
        # A function of theirs that means another `dist` than ours; `utils/util.py` by another name,
        # which the package passes on with a star; a module there that needs the model.
        replace_in(
            'utils/util.py', ('import json\n', 'import json\nimport torch.distributed as dist\n')
        ),
        add_to('utils/util.py', '\n\ndef is_first():\n    return not dist.is_initialized()\n'),
        lambda folder: (folder / 'utils/util.py').rename(folder / 'utils/utils.py'),
        lambda folder: (folder / 'utils/__init__.py').write_text(
            'from .utils import *\nfrom .count import n_weights\n'
        ),
        add_to(
            'utils/count.py',
            'from model.model import SmallNet\n\n\ndef n_weights():\n'
            '    return sum(each.numel() for each in SmallNet(2).parameters())\n',
        ),
        # A tracker with a column and an attribute more, that takes pairs.
        replace_in(
            'utils/utils.py',
            ("'average'])", "'average', 'newest'])\n        self.known = set(keys)"),
            (
                '        if self.writer is not None',
                '        if isinstance(value, tuple):\n            value, n = value\n'
                '        self._data.newest[key] = value\n        if self.writer is not None',
            ),
            ('return key in self._data.index', 'return key in self.known'),
        ),
        replace_in(
            'trainer/trainer.py',
            (
                'tracker.update(met.__name__, met(output, target))',
                'tracker.update(met.__name__, (met(output, target), len(target)))',
            ),
            (
                '        self.model.train()\n',
                '        self.model.train()\n        assert is_first() and n_weights()\n',
            ),
            (
                '        log = self.train_metrics.result()\n',
                "        assert self.train_metrics.contains('loss')\n"
                "        assert self.train_metrics._data.newest['loss'] > 0\n"
                '        log = self.train_metrics.result()\n'
                "        log['confusion'] = np.zeros((3, 3))\n",
            ),
            (
                'import MetricTracker, inf_loop',
                'import MetricTracker, inf_loop, is_first, n_weights',
            ),
            ('self.criterion(output, target)', 'self.criterion(output, target, epoch)'),
        ),
        # A class of the name of one of 2018; a loader's base that is kept, with a second class.
        add_to(
            'logger/logger.py',
            '\n\nclass Logger:\n    def __init__(self, path):\n        self.path = path\n',
        ),
        replace_in(
            'base/base_data_loader.py',
            ('self.shuffle = shuffle', 'self.hue = self.shuffle = shuffle'),
        ),
        add_to(
            'base/base_data_loader.py', '\n\nclass PairLoader(BaseDataLoader):\n    """two"""\n'
        ),
        replace_in(
            'data_loader/data_loaders.py',
            ('from base import BaseDataLoader', 'from base import BaseDataLoader, PairLoader'),
        ),
        # Parser and trainer kept whole, the config filled in by code, sections of their own.
        replace_in(
            'parse_config.py',
            ("config['name']\n        if", "config['name'] + config['tail']\n        if"),
        ),
        replace_in(
            'base/base_trainer.py',
            ('best = False\n', 'best = self.fold == 1\n'),
            ('        self.config = config\n', '        self.config, self.fold = config, 0\n'),
        ),
        add_to(
            'model/loss.py',
            '\n\ndef scaled(output, target, epoch=1):\n'
            '    return nll_loss(output, target) / epoch\n',
        ),
        replace_in(
            'config.json',
            (
                '"loss": "nll_loss"',
                '"loss": "scaled", "tail": "x", "crop": {"type": "centre", "args": 24}',
            ),
        ),
        replace_in(
            'train.py',
            (
                '    train_data = config',
                '    from logger.logger import Logger\n'
                "    config.config['notes'] = Logger('x')\n    train_data = config",
            ),
            ('default=None, type=str)\n\n', "default='0', type=str)\n\n"),
        ),
    ]
    folder = old_project('core_2020', 'digits_2020', *changes)
    adopt(folder)
    run_script('-c', TWICE, cwd=folder)
    resumed = checkpoint.load(max(folder.rglob('checkpoint-epoch2.pth')))
    assert resumed['epoch'] == 2 and resumed['config']['notes'] is None


def test_additions_stay_as_they_stand_and_copies_are_imported(old_project):
    folder = old_project('core_2020', 'digits_2020')
    before = (folder / 'utils/util.py').read_text()
    adopt(folder)
    now = (folder / 'utils/util.py').read_text()
    own = before[before.index('# every script') : before.index('class MetricTracker')]
    assert (
        own in now and "LABELS = ('none', 'some', 'many')\n" in now and 'def read_json' not in now
    )
    assert 'from armature.template.utils.util import ' in now
    trainer = (folder / 'base/base_trainer.py').read_text()
    assert 'class BaseTrainer(TemplateBaseTrainer):' in trainer and 'def train(' not in trainer
    assert (
        '    # keeps the disk from filling up\n    def _delete_checkpoint(self, epoch):' in trainer
    )
    report = (folder / REPORT).read_text()
    for name in ('_delete_checkpoint', 'save_results', 'initialize_list', 'MetricTracker'):
        assert f'{name}' in report[report.index('## Yours, with') :]
    manifest = json.loads((folder / '.template.json').read_text())
    assert manifest['moved']['base/base_trainer.py'] == 'armature/template/base/base_trainer.py'


def test_report_fits_a_screen_and_says_each_thing_once(old_project):
    folder = old_project('core_2020', 'digits_2020')
    adopt(folder)
    report = (folder / REPORT).read_text()
    first = report[: report.index('## ')]
    assert first.count('\n') <= 24 and '`python train.py -c config.json`' in first
    assert f'`git checkout main`; `git branch -D {BRANCH}`' in first
    bullets = [line.partition(': `')[0] for line in report.splitlines() if line.startswith('- ')]
    assert len(set(bullets)) == len(bullets)
    trainer = (folder / 'trainer/trainer.py').read_text().splitlines()
    line = next(each for each in report.splitlines() if 'waits for the device' in each)
    assert [int(each.split()[-1]) for each in line.split(', ')] == [
        number
        for number, text in enumerate(trainer, 1)
        if 'loss.item()' in text and 'debug' in text
    ]


def test_way_back_is_one_command_and_nothing_is_lost(old_project):
    folder = old_project('core_2019', 'sequence_2019')
    before = files(folder)
    assert 'Replaced' in adopt(folder, dry_run=True) and files(folder) == before
    adopt(folder)
    assert git(folder, 'branch', '--show-current').stdout.strip() == BRANCH
    with pytest.raises(UserError, match='has this template already(.|\n)*--update'):
        adopt(folder)
    git(folder, 'checkout', 'main')
    assert files(folder) == before
    with pytest.raises(UserError, match=f'adopted before, on the branch {BRANCH}(.|\n)*-D'):
        adopt(folder)


def test_two_projects_in_one_repository_are_adopted_one_by_one(old_project, tmp_path):
    one, other = (old_project('core_2020', 'gan_2019'), old_project('core_2018', 'plain_2018'))
    both = tmp_path / 'both'
    for folder in (one, other):
        shutil.rmtree(folder / '.git')
        folder.rename(both / folder.name) if both.exists() else shutil.move(
            folder, both / folder.name
        )
    (both / '.gitignore').write_text('*.xz\narmature/\n')  # ours are committed all the same
    git(both, 'init', '-q', '-b', 'main')
    commit_all(both)
    for folder in (both / one.name, both / other.name):
        adopt(folder)
        assert git(folder, 'branch', '--show-current').stdout.strip() == f'{BRANCH}-{folder.name}'
        known = git(folder, 'ls-files', '.').stdout.split()
        assert {'.template.tar.xz', 'armature/errors.py', REPORT} <= set(known)
        assert git(both, 'status', '--porcelain').stdout == ''


@pytest.mark.parametrize(
    'path, before, after, kept',
    [
        ('base/base_trainer.py', 'best = False\n', 'best = self.plan_of(epoch)\n', 'BaseTrainer.train: plan_of'),
        ('base/base_data_loader.py', 'num_workers, coll', 'num_workers, drop_tail=False, coll',
         'BaseDataLoader.__init__: drop_tail'),
        ('parse_config.py', "config['name']\n        if", "config['name'] + self.config['group']\n        if",
         'ConfigParser.__init__: group'),
        ('logger/visualization.py', 'self.step, self.mode = 0', 'self.color = self.step, self.mode = 0',
         'TensorboardWriter.__init__: color'),
    ],
)  # fmt: skip
def test_class_that_is_more_than_extended_is_kept(old_project, path, before, after, kept):
    folder = old_project('core_2020', 'digits_2020', replace_in(path, (before, after)))
    mine = (folder / path).read_text()
    adopt(folder)
    assert kept in (folder / REPORT).read_text()
    now = (folder / path).read_text().replace(', purge_step=None', '')
    helpers = ('_update_config', '_get_opt_name', '_set_by_path', '_get_by_path')
    assert all(
        line in now for line in mine.splitlines() if not any(each in line for each in helpers)
    )


def test_adopted_project_can_be_updated(old_project):
    change = replace_in(
        'base/base_data_loader.py', ('self.shuffle = shuffle\n', 'self.hue = shuffle\n')
    )
    folder = old_project('core_2018', 'plain_2018', change)
    adopt(folder)
    before = files(folder)
    assert 'is up to date' in project_update.update_project(folder)[0]
    assert files(folder) == before


def test_way_back_from_an_adoption_is_of_this_project(old_project, tmp_path):
    """Typed anywhere, and in a repository that keeps it in a folder with a space."""
    folder = tmp_path / 'all of it/my project'
    folder.parent.mkdir()
    old_project('core_2020', 'gan_2019').rename(folder)
    (folder / '.git').rename(folder.parent / '.git')
    commit_all(folder.parent)
    before = files(folder)
    said, _ = adopt_project(folder, is_tried=False)
    assert f"\n    cd '{folder}'\n" in said and files(folder) != before
    subprocess.run(said.rpartition('was: ')[2], shell=True, cwd=tmp_path, check=True)
    assert files(folder) == before


def test_without_git_a_copy_is_adopted(old_project, monkeypatch):
    folder = old_project('core_2020', 'gan_2019')
    shutil.rmtree(folder / '.git')
    (folder / 'data').mkdir()
    (folder / 'data/big.bin').write_bytes(b'0')
    before = files(folder)
    adopt(folder, with_mends=True)
    copy = folder.with_name('gan_2019-adopted')
    assert files(folder) == before and (copy / REPORT).is_file() and (copy / 'data').is_symlink()
    with pytest.raises(UserError, match='exists'):
        adopt(folder)


def test_adoption_that_cannot_be_checked_out_is_none(old_project, monkeypatch):
    """The disk is full, Ctrl-C: git leaves what it has written until then."""
    folder = old_project('core_2020', 'gan_2019')
    before = files(folder)
    must = project_git.must

    def failing(place, *arguments, **variables):
        if arguments[0] == 'checkout':
            (folder / 'armature/run').mkdir(parents=True)
            (folder / 'armature/errors.py').touch()
            (folder / 'base/base_trainer.py').write_text('half')
            raise KeyboardInterrupt
        return must(place, *arguments, **variables)

    with monkeypatch.context() as patch:
        patch.setattr(project_git, 'must', failing)
        with pytest.raises(KeyboardInterrupt):
            adopt(folder)
    assert files(folder) == before and not (folder / 'armature').exists()
    assert git(folder, 'branch').stdout == '* main\n'
    assert f'on the branch {BRANCH}' in adopt(folder)


@pytest.mark.parametrize(
    'head, encoding, line_end',
    [('# -*- coding: cp949 -*-\n', 'cp949', '\n'), ('', 'utf-8', '\r\n'), ('', 'utf-8-sig', '\n')],
)
def test_file_stays_in_its_encoding_with_its_line_ends(old_project, head, encoding, line_end):
    def change(folder):
        text = f'{head}WORD = "이름"  # 한글\n' + (folder / 'utils/util.py').read_text()
        (folder / 'utils/util.py').write_text(text, encoding=encoding, newline=line_end)

    folder = old_project('core_2020', 'digits_2020', change)
    adopt(folder)
    now = (folder / 'utils/util.py').read_bytes()
    assert 'armature.template' in now.decode(encoding) and '"이름"  # 한글' in now.decode(encoding)
    assert now.decode(encoding).startswith(head) and now.count(b'\n') == now.count(
        line_end.encode()
    )
    compile(now, 'util.py', 'exec')
    assert now.decode(encoding).encode(encoding) == now  # also the byte order mark


def test_copy_for_a_trial_takes_what_is_there(tmp_path):
    """Also links that lead nowhere, pipes, and no installed Python; and it writes through none."""
    folder = tmp_path / 'old'
    write_files(
        folder,
        {
            'model/model.py': b'',
            'data/a.csv': b'',
            'myenv/pyvenv.cfg': b'',
            'myenv/lib/x.py': b'',
            'shared.py': b'mine',
            'data.zip': bytes(project_prove.SMALL_BYTES),
        },
    )
    for place in ('.git', 'empty', 'base'):
        (folder / place).mkdir()
    for place in ('gone', 'data/gone', 'model/gone'):
        (folder / place).symlink_to('/nowhere/at/all')
    for place in ('pipe', 'data/pipe', 'model/pipe'):
        os.mkfifo(folder / place)
    (folder / 'base/linked.py').symlink_to(folder / 'shared.py')
    for is_trial in (True, False):
        copy = tmp_path / str(is_trial) / 'old'
        project_prove.copy_project(folder, copy, is_trial)
        assert (copy / 'data.zip').is_symlink() and not (copy / 'shared.py').is_symlink()
        assert (copy / 'model/model.py').is_file() and not os.path.lexists(copy / '.git')
        assert all((copy / each).is_symlink() != is_trial for each in ('empty', 'myenv'))
    write_files(tmp_path / 'True/old', {'base/linked.py': b'new'})
    assert (folder / 'shared.py').read_bytes() == b'mine'
    assert project_take_over.python_files(folder) == [
        'base/linked.py',
        'model/model.py',
        'shared.py',
    ]


def test_trial_changes_nothing_outside_of_its_copy(tmp_path):
    """Large data is linked into the copy: a project that writes it anew would write the user's."""
    mine, copy = tmp_path / 'mine', tmp_path / 'adopt-x/before/old'
    write_files(mine, dict.fromkeys(['a.bin', 'b.bin', 'c.bin', 'd/e.bin'], b'mine'))
    for path in (*mine.iterdir(), *mine.glob('*/*')):
        os.utime(path, (1, 1))
    code = {
        'write': "open('a.bin', 'wb')",
        'append': "open('a.bin', 'a')",
        'rename': f"import os\nos.rename('own.txt', r'{mine / 'b.bin'}')",
        'remove': f"import os\nos.remove(r'{mine / 'c.bin'}')",
        'tree': f"import shutil\nshutil.rmtree(r'{mine / 'd'}')",
        'fresh': f"for _ in 1, 2:\n    open(r'{mine / 'new.txt'}', 'w').close()",
        'inside': "open('own.txt', 'w').close()\nimport os\nos.remove('a.bin')",
    }
    write_files(copy, {f'{name}.py': text.encode() for name, text in code.items()})
    write_files(copy, {'own.txt': b''})
    (copy / 'a.bin').symlink_to(mine / 'a.bin')
    command = [sys.executable, project_prove.TRIAL, copy.parent / 'results', '', '', *code]
    subprocess.run(command, cwd=copy, check=True)
    found = project_prove.finish_trial(subprocess.Popen(['true']), copy.parent / 'results')
    assert [name for name in code if not found[name]] == ['fresh', 'inside']
    assert all('changes nothing outside' in problem for problem in found.values() if problem)
    assert {path.read_bytes() for path in mine.rglob('*.bin')} == {b'mine'}
    assert len(list(mine.rglob('*.bin'))) == 4


def test_trials_end_with_the_command(tmp_path, monkeypatch):
    started = []

    def start(*_):
        started.append(subprocess.Popen(['sleep', '60'], start_new_session=True))
        return started[-1], tmp_path / 'results'

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(project_prove, 'start_trial', start)
    monkeypatch.setattr(project_prove, 'finish_trial', interrupted)
    with pytest.raises(KeyboardInterrupt):
        project_prove.prove(tmp_path, {}, None)
    assert [each.poll() for each in started] == [-9, -9]


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda folder: (folder / 'base/base_model.py').write_text('print "old"'), 'not Python of today'),
        (lambda folder: (folder / 'base/base_trainer.py').unlink(), 'as far as one can see'),
        (lambda folder: (folder / 'armature.py').write_text(''), 'something called armature'),
        (lambda folder: (folder / 'ADOPTED.md').mkdir(), 'where the template has a file: move it'),
    ],
)  # fmt: skip
def test_project_that_cannot_be_adopted_is_left_as_it_was(old_project, change, message):
    folder = old_project('core_2020', 'gan_2019', change)
    before = files(folder)
    with pytest.raises(UserError, match=message):
        adopt(folder)
    assert files(folder) == before
    assert git(folder, 'branch', '--show-current').stdout.strip() == 'main'


def test_folder_with_the_project_inside_says_where(old_project):
    folder = old_project('core_2020', 'gan_2019')
    with pytest.raises(UserError, match=f'Is it {folder}'):
        adopt(folder.parent)


def test_names_are_found_where_they_were_imported_from(old_project):
    def change(folder):
        (folder / 'utils/plots.py').write_text(
            'from utils.util import MetricTracker, Path, pd\n'
            'from base.base_trainer import BaseTrainer, torch\n'
        )
        (folder / 'utils/star.py').write_text('from utils import *\n\nassert np and fix_seeds\n')
        (folder / 'utils/__init__.py').write_text('from .util import *\nfrom .plots import *\n')

    folder = old_project('core_2020', 'digits_2020', change)
    adopt(folder)
    run_script('-c', 'import utils.star; import utils.plots; import train', cwd=folder)


def test_names_that_a_star_passes_on_stay_importable(old_project):
    def change(folder):
        (folder / 'trainer/writer.py').write_text('from logger import WriterTensorboardX\n')

    folder = old_project('core_2019', 'sequence_2019', change)
    adopt(folder)
    run_script('-c', 'import trainer.writer', cwd=folder)


def test_modules_of_2018_work_at_their_old_places(old_project):
    def change(folder):
        for name in ('logger', 'visualization'):
            (folder / f'logger/{name}.py').rename(folder / f'utils/{name}.py')
        shutil.rmtree(folder / 'logger')
        replace_in('base/base_trainer.py', ('from logger.vis', 'from utils.vis'))(folder)
        (folder / 'logger.py').write_text((folder / 'utils/logger.py').read_text())
        (folder / 'plot.py').write_text('print "old"')
        (folder / 'trainer/extra.py').write_text(
            'from utils.visualization import WriterTensorboardX\n'
            'from utils import ensure_dir\nfrom logger import Logger\n'
        )

    folder = old_project('core_2018', 'plain_2018', change)
    adopt(folder)
    run_script('-c', 'import trainer.extra, logger; logger.TensorboardWriter', cwd=folder)
    assert (folder / 'logger.py').exists() and not (folder / 'logger/__init__.py').exists()


ROTTEN = """\
import collections
import inspect
import numpy as np
import pandas as pd
import torch
import yaml
from collections import OrderedDict, Mapping
from sklearn.externals import joblib
from torchvision import models

x = np.float(1) + np.zeros(2, dtype=np.int).sum()
table = pd.DataFrame()
table = table.append({'a': 1}, ignore_index=True)
saved = torch.load(resume_path, map_location='cpu')
names = inspect.getargspec(len)
batch = iter(loader).next()
other = iterator.next()
net = models.resnet18(pretrained=True)
net = models.resnet18(pretrained=wanted).cuda()
settings = yaml.load(file)
kind = isinstance(settings, collections.Mapping)
"""


def test_what_is_safe_is_mended_and_the_rest_is_named():
    (mended,) = mend({'x.py': ROTTEN})
    text = mended.text
    for after in (
        'from collections import OrderedDict\nfrom collections.abc import Mapping',
        'import joblib',
        'float(1) + np.zeros(2, dtype=int)',
        "pandas.concat([table, pandas.DataFrame([{'a': 1}])], ignore_index=True)",
        'load_any_checkpoint(resume_path)\n',
        'inspect.getfullargspec(len)',
        'next(iter(loader))',
        'iterator.next()',
        "resnet18(weights='IMAGENET1K_V1')",
        "resnet18(weights='IMAGENET1K_V1' if wanted else None).cuda()",
        'yaml.safe_load(file)',
        'collections.abc.Mapping)',
        'from armature.checkpoint.files import load as load_any_checkpoint\n',
    ):
        assert after in text
    assert len(mended.lines) == len(
        mended.text and [line for line in mended.lines if 'x.py' in line]
    )
    left = remarks({'x.py': text}, is_mended=True)
    assert [places for remark, places in left.items() if '.cuda()' in remark] == [
        [f'`x.py` line {text[: text.index(".cuda")].count(chr(10)) + 1}']
    ]
    assert mend({'x.py': text}) == []


@pytest.mark.parametrize(
    'text',
    [
        'names, _, _, defaults = inspect.getargspec(f)\n',
        'layers = layers.append(layer)\n',
        'model.load_state_dict(torch.load(checkpoint_path))\n',
        'checkpoint = torch.load(path_of_checkpoint)\nmodel.load_state_dict(checkpoint)\n',
    ],
)
def test_what_would_mean_something_else_is_not_mended(text):
    assert mend({'x.py': f'import inspect\nimport torch\n{text}'}) == []
    assert remarks({'x.py': f'import inspect\nimport torch\n{text}'}, is_mended=True)


def test_mended_function_does_not_call_itself():
    (mended,) = mend(
        {'x.py': 'import torch\n\n\ndef load_checkpoint(resume):\n    return torch.load(resume)\n'}
    )
    assert mended.text.count('load_checkpoint(') == 1


@pytest.mark.skipif(sys.platform != 'linux', reason='names are Unicode on other systems')
def test_file_of_a_broken_name_is_one_line_of_the_report(old_project):
    """As an archive that was packed on a Korean Windows leaves them."""

    def change(folder):
        place = folder / 'model' / os.fsdecode('한글.py'.encode('cp949'))
        place.write_text('import numpy as np\nONE = np.float(1)\nnet = net.cuda()\n')

    folder = old_project('core_2020', 'digits_2020', change)
    adopt(folder, with_mends=True)
    report = (folder / REPORT).read_text(encoding='utf-8')
    assert '`model/?ѱ?.py` line 2: `np.float` -> `float`' in report
    assert git(folder, 'status', '--porcelain').stdout == ''


def test_mends_are_a_commit_of_their_own(old_project):
    folder = old_project(
        'core_2020',
        'digits_2020',
        add_to('model/metric.py', '\nimport numpy\nONE = numpy.float(1)\n'),
        add_to('.gitignore', 'scratch.py\n'),
        add_to('scratch.py', 'import numpy\nONE = numpy.float(1)\n'),
    )
    adopt(folder, with_mends=True)
    changed = git(folder, 'show', '--stat=200', '--format=%s', 'HEAD').stdout
    assert changed.startswith('Mend what has become outdated') and 'model/metric.py' in changed
    assert '`numpy.float` -> `float`' in (folder / REPORT).read_text()
    assert 'numpy.float' in (folder / 'scratch.py').read_text()  # git could not bring it back
    git(folder, 'revert', '--no-edit', 'HEAD')
    assert 'numpy.float(1)' in (folder / 'model/metric.py').read_text()


def test_habits_have_the_lines_they_are_on():
    source = (
        'import numpy as np\nimport torch\nm = nn.DataParallel(m)\nloss = eval(config["loss"])\n'
        'ok = torch.load(p, weights_only=True)\nmean = total / len(self.data_loader)\nx = '
        'np.float(1)\n'
    )
    found = {remark.split()[0]: places for remark, places in remarks({'x': source}, False).items()}
    assert found == {
        'DataParallel': ['`x` line 3'],
        'text': ['`x` line 4'],
        'an': ['`x` line 6'],
        'numpy.float': ['`x` line 7'],
    }


@pytest.mark.parametrize(
    'scripts, configs, expected',
    [
        (['train.py', 'test.py'], ['config.json'], 'python train.py -c config.json'),
        (['run_train.py', 'test.py'], ['configs/b.json', 'configs/a.json'], 'python run_train.py -c configs/a.json'),
        (['scripts/train.py'], ['config.json', 'other.json'], 'python scripts/train.py -c config.json'),
        (['test.py'], ['config.json'], 'None'),
        (['train.py'], [], 'None'),
    ],
)  # fmt: skip
def test_script_and_config_that_are_named_exist(tmp_path, scripts, configs, expected):
    script = b"from parse_config import ConfigParser\nif __name__ == '__main__':\n    pass\n"
    config = b'{"name": "x", "arch": {}, "trainer": {}}'
    write_files(tmp_path, dict.fromkeys(scripts, script) | dict.fromkeys(configs, config))
    write_files(tmp_path, {'package.json': b'{"name": "x"}', 'model/model.py': b''})
    assert str(project_prove.find_command(tmp_path)) == expected


def test_copies_are_told_from_what_only_looks_like_them():
    text = (GALLERY / 'core_2020/utils/util.py').read_text()
    tree = project_old.parse(text)
    parts = {part.name: part for part in project_old.parts(tree)}
    assert (
        parts['inf_loop'].is_same and parts['read_json'].is_copy and not parts['read_json'].is_same
    )
    assert not parts['fix_seeds'].is_known
    tracker = project_old.find_class(tree, 'MetricTracker')
    assert not project_old.is_same_class(tracker)
    del tracker.body[3]  # the method of their own
    assert project_old.is_same_class(tracker)
