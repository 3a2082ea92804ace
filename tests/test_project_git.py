"""What new_project.py does with git.

In the repository it is pointed at, whatever surrounds it, and never to a user's loss.
"""

import os
import subprocess
import sys

import pytest

from armature.errors import UserError
from new_project import main
from tests.conftest import ROOT, run_script
from tools import project_update
from tools.project_adopt import adopt_project
from tools.project_git import (
    IDENTITY,
    commit,
    git,
    repository_of,
    require_clean,
    require_known,
    start_repository,
)
from tools.project_update import update_project


def commit_all(folder):
    for command in (
        ['add', '-A'],
        ['-c', 'user.name=u', '-c', 'user.email=u@localhost', 'commit', '-q', '-m', 'as it was'],
    ):
        assert git(folder, *command).returncode == 0


def start(folder):
    """new_project.py in this process."""
    main([str(folder)])
    return folder


@pytest.fixture
def host(tmp_path):
    """The user's repository, in which a command of ours may be started."""
    folder = tmp_path / 'host'
    folder.mkdir()
    start_repository(folder)
    (folder / 'mine.txt').write_text('precious')
    commit_all(folder)
    return folder


def state(folder):
    """All that git knows of a repository: its branches, what is staged, what has changed."""
    return [
        git(folder, *command).stdout
        for command in (['log', '--all', '--oneline'], ['status', '--porcelain', '--branch'])
    ]


def is_repository_of_its_own(folder):
    return (
        repository_of(folder) == folder
        and git(folder, 'status', '--porcelain', '--ignored').stdout == ''
        and git(folder, 'rev-list', '--count', 'HEAD').stdout == '1\n'
        and git(folder, 'cat-file', '-e', 'HEAD:train.py').returncode == 0
    )


@pytest.mark.parametrize(
    'variables',
    [
        {'GIT_DIR': '.git'},
        {'GIT_DIR': '.git', 'GIT_WORK_TREE': '.'},
        {'GIT_WORK_TREE': '.'},
        {'GIT_INDEX_FILE': '.git/index'},
        {'GIT_OBJECT_DIRECTORY': '.git/objects'},
        {'GIT_NAMESPACE': 'other'},
        {'GIT_COMMON_DIR': '.git'},
        {'GIT_CONFIG_COUNT': '1', 'GIT_CONFIG_KEY_0': 'core.worktree', 'GIT_CONFIG_VALUE_0': '.'},
    ],
    ids=lambda variables: '+'.join(variables),
)
def test_variables_of_git_lead_into_no_other_repository(tmp_path, host, monkeypatch, variables):
    before = state(host)
    monkeypatch.chdir(host)
    for name, value in variables.items():
        monkeypatch.setenv(
            name, str(host / value) if '.' in value and name != 'GIT_CONFIG_KEY_0' else value
        )
    folder = start(tmp_path / 'fresh')
    update_project(folder)
    monkeypatch.undo()
    assert state(host) == before and is_repository_of_its_own(folder)


@pytest.mark.parametrize('how', ['hook', 'alias of a linked worktree', 'rebase'])
def test_project_started_by_git_has_a_repository_of_its_own(tmp_path, host, how):
    """git runs a hook, an alias or a command of a rebase with its own variables set."""
    command = f'"{sys.executable}" "{ROOT / "new_project.py"}" "{tmp_path / "fresh"}"'
    place, commit_it = (
        host,
        [
            'git',
            '-c',
            'user.name=u',
            '-c',
            'user.email=u@l',
            'commit',
            '-q',
            '--allow-empty',
            '-m',
            'two',
        ],
    )
    if how == 'hook':
        hook = host / '.git/hooks/pre-commit'
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f'#!/bin/sh\n{command}\n')
        hook.chmod(0o755)
        start_it = commit_it
    elif how == 'rebase':
        subprocess.run(commit_it, cwd=host, check=True)
        start_it = ['git', 'rebase', '-q', '--exec', command, 'HEAD~1']
    else:
        place = tmp_path / 'linked'
        git(host, 'worktree', 'add', '-q', str(place), '-b', 'work')
        start_it = ['git', '-c', f'alias.start=!{command}', 'start']
    done = subprocess.run(start_it, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        git(place, 'ls-tree', '-r', '--name-only', 'HEAD').stdout == 'mine.txt\n'
        and (place / 'mine.txt').is_file()
    )
    assert is_repository_of_its_own(tmp_path / 'fresh')


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Writes the user's ~/.gitconfig."""
    home = tmp_path / 'home'
    home.mkdir()
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.delenv('XDG_CONFIG_HOME', raising=False)

    def write(**values):
        for name, value in values.items():
            section, key = name.split('_')
            subprocess.run(
                ['git', 'config', '--global', f'{section}.{key}', str(value)], check=True
            )

    return write


def test_ignored_everywhere_is_committed_all_the_same(tmp_path, settings):
    ignored = tmp_path / 'ignored'
    ignored.write_text('*\n')
    settings(core_excludesFile=ignored)
    folder = start(tmp_path / 'fresh')
    assert git(folder, 'ls-files').stdout.count('\n') == sum(
        path.is_file() for path in folder.rglob('*') if '.git' not in path.parts
    )
    assert 'is up to date' in update_project(folder)[0]


def test_hooks_templates_and_signing_of_the_user_do_not_take_part(tmp_path, settings):
    refusing = tmp_path / 'hooks'
    refusing.mkdir()
    for name in ('pre-commit', 'commit-msg', 'post-checkout', 'post-commit'):
        (refusing / name).write_text(f'#!/bin/sh\ntouch "{tmp_path}/ran"\nexit 1\n')
        (refusing / name).chmod(0o755)
    template = tmp_path / 'template'
    (template / 'info').mkdir(parents=True)
    (template / 'info/exclude').write_text('*.py\n')
    settings(
        core_hooksPath=refusing,
        init_templateDir=template,
        commit_gpgsign='true',
        gpg_program='false',
        user_useConfigOnly='true',
    )
    assert is_repository_of_its_own(start(tmp_path / 'fresh'))
    assert not (tmp_path / 'ran').exists()


def test_settings_that_change_what_git_prints_hide_no_change(tmp_path, settings):
    folder = start(tmp_path / 'fresh')
    settings(status_showUntrackedFiles='no', color_ui='always', status_short='true')
    (folder / '한글.py').write_text('x = 1\n')
    with pytest.raises(UserError, match=r'not committed(.|\n)*\?\? 한글.py'):
        update_project(folder)


def sparse(folder):
    git(folder, 'sparse-checkout', 'set', '--no-cone', '/*', '!/armature/run/')


def edited_unseen(folder):
    git(folder, 'update-index', '--assume-unchanged', 'armature/run/monitor.py')
    (folder / 'armature/run/monitor.py').write_text('precious')


def merging(folder):
    for command in (
        ['checkout', '-q', '-b', 'side'],
        [*IDENTITY, 'commit', '-q', '--allow-empty', '-m', 'two'],
        ['checkout', '-q', '-'],
        ['merge', '-q', '--no-ff', '--no-commit', 'side'],
    ):
        assert git(folder, *command).returncode == 0


@pytest.mark.parametrize(
    'prepare, message',
    [
        (sparse, 'is not whole(.|\n)*sparse-checkout disable'),
        (edited_unseen, 'told not to see(.|\n)*no-assume-unchanged'),
        (merging, 'a merge is under way'),
    ],
)
def test_what_git_could_not_bring_back_is_not_touched(tmp_path, prepare, message):
    folder = start(tmp_path / 'fresh')
    (folder / 'armature/run/monitor.py').write_text('old')
    commit_all(folder)
    prepare(folder)
    before = state(folder), sorted(folder.rglob('*'))
    with pytest.raises(UserError, match=message):
        require_clean(folder)
        require_known(folder, ['armature/run/monitor.py'])
    assert (state(folder), sorted(folder.rglob('*'))) == before


def test_folders_of_the_frame_are_code_whatever_an_ignore_file_says(tmp_path):
    folder = start(tmp_path / 'fresh')
    (folder / '.gitignore').write_text('data/\nrun*\ncheckpoint*\n__pycache__/\n')
    (folder / 'armature/data/new.py').touch()
    (folder / 'armature/data/__pycache__').mkdir()
    (folder / 'armature/data/__pycache__/new.pyc').touch()
    said = git(folder, 'status', '--porcelain', '--untracked-files=all').stdout
    assert said == ' M .gitignore\n?? armature/data/new.py\n'


def test_project_inside_another_repository_is_a_repository_of_its_own(host):
    before = state(host)[0]
    folder = start(host / 'inner/fresh')
    assert is_repository_of_its_own(folder) and state(host)[0] == before


def test_what_a_repository_further_up_does_not_keep_is_not_changed_in_place(host, monkeypatch):
    """A home folder under git ignores nearly everything: it could bring nothing back."""
    (host / '.gitignore').write_text('*\n')
    git(host, 'add', '-f', '.gitignore')
    commit_all(host)
    folder = start(host / 'fresh')
    (folder / '.git').rename(host.parent / 'gone')
    (folder / 'armature/run/monitor.py').write_text('')
    monkeypatch.setattr(project_update, 'VERSION', '2.1.0')
    with pytest.raises(UserError, match='git does not keep these files'):
        update_project(folder)
    assert (folder / 'armature/run/monitor.py').read_text() == ''


@pytest.mark.skipif(
    not hasattr(os, 'geteuid') or os.geteuid() != 0,
    reason='only root can give a folder to another user',
)
def test_refusal_of_git_is_passed_on_in_its_own_words(tmp_path, host, settings):
    folder = start(tmp_path / 'fresh')
    for path in (folder, folder / '.git'):
        os.chown(path, 12345, 12345)
    for do in (update_project, adopt_project, require_clean):
        if do is adopt_project:
            (folder / '.template.json').unlink()
        with pytest.raises(UserError, match='dubious ownership(.|\n)*safe.directory') as refused:
            do(folder)
        assert 'no git repository' not in str(refused.value)
    os.chown(folder / '.git', 0, 0)


def test_damaged_repository_is_not_taken_for_none(tmp_path):
    folder = start(tmp_path / 'fresh')
    (folder / '.git/HEAD').unlink()
    with pytest.raises(UserError, match='git refuses to work in'):
        update_project(folder)


def test_commit_never_removes_a_file(host):
    (host / 'other.txt').write_text('new')
    (host / 'mine.txt').unlink()
    before = state(host)
    with pytest.raises(UserError, match='mine.txt vanished'):
        commit(host, 'message', ['other.txt', 'mine.txt'])
    assert state(host) == before
    commit(host, 'message', ['other.txt'])
    assert git(host, 'ls-tree', '-r', '--name-only', 'HEAD').stdout == 'mine.txt\nother.txt\n'
    commit(host, 'message', ['mine.txt'], removed=['mine.txt'])
    assert git(host, 'ls-tree', '-r', '--name-only', 'HEAD').stdout == 'other.txt\n'


def test_without_git_a_project_is_whole(tmp_path):
    done = run_script('new_project.py', 'fresh', cwd=tmp_path, PATH=str(tmp_path))
    assert 'git is not installed' in done.stderr and (tmp_path / 'fresh/train.py').is_file()
