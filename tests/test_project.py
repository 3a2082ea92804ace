"""Starting and updating projects.

What `new_project.py NAME` makes is whole, and an update loses nothing.
"""

import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.errors import UserError
from new_project import main
from tests.conftest import ROOT, run_script
from tests.test_project_git import commit_all
from tools import project, project_update
from tools.project import create, files_below, write_files
from tools.project_git import git, start_repository
from tools.project_update import merge, update_project

CHANGED = [
    'base/base_model.py',
    'armature/run/monitor.py',
    'logger/logger.py',
    'armature/batch.py',
    'armature/seed.py',
]


def test_new_project_trains_resumes_and_passes_its_own_tests(tmp_path):
    run_script('new_project.py', 'digits', cwd=tmp_path)
    folder = tmp_path / 'digits'
    assert git(folder, 'status', '--porcelain').stdout == ''
    left_out = ('new_project.py', 'old_style.py', '__pycache__')
    assert (
        not [path for path in folder.rglob('*') if path.name in left_out]
        and not (folder / 'data').exists()
    )
    alone = ('-n', 0, '--basetemp', tmp_path / 'tests')
    assert '1 passed' in run_script('-m', 'pytest', *alone, cwd=folder).stdout
    assert git(folder, 'status', '--porcelain').stdout == ''


def test_bare_project_has_an_experiment_of_its_own(tmp_path):
    folder = create(tmp_path / 'bare', bare=True)
    run_script(
        'train.py',
        '-c',
        'config.json',
        '--set',
        'trainer.epochs=1',
        '-d',
        'cpu',
        script_folder=folder,
        cwd=tmp_path,
    )
    assert not (folder / 'configs').exists()
    assert 'Mnist' not in ''.join(path.read_text() for path in folder.glob('[mdc]*/*.py'))


def test_example_becomes_the_default_experiment(tmp_path, newer):
    newer()
    example = project.TEMPLATE / 'examples/small'
    example.mkdir(parents=True)
    (example / 'model.py').write_text('SIZE = 1\n')
    (example / 'config.json').write_text(
        '{"base": "../../config.json", "name": "small", "arch": {"args": {"num_classes": 10}}}'
    )
    folder = create(tmp_path / 'from_example', example='small')
    config, default = (
        json.loads((place / 'config.json').read_text()) for place in (folder, project.TEMPLATE)
    )
    assert config == {
        **default,
        'name': 'small',
        'arch': {**default['arch'], 'args': {'num_classes': 10}},
    }
    assert (folder / 'examples/small/model.py').is_file()
    with pytest.raises(UserError, match='expected one of small'):
        create(tmp_path / 'other', example='nothing')


def test_template_files_in_a_project_are_as_they_are_here(tmp_path):
    folder = create(tmp_path / 'same')
    manifest = json.loads((folder / '.template.json').read_text())
    assert project_update.read_pristine(folder, manifest) == files_below(ROOT, project.KEPT)
    n_bytes = sum(map(len, files_below(ROOT, project.KEPT).values()))
    assert (folder / '.template.tar.xz').stat().st_size < n_bytes / 4
    assert (
        create(tmp_path / 'again').joinpath('.template.tar.xz').read_bytes()
        == (folder / '.template.tar.xz').read_bytes()
    )


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['full'], 'exists and is not an empty folder'),
        (['a/file/name'], 'cannot be made'),
        ([300 * 'n'], 'cannot be made: File name too long'),
        (['--update', 300 * 'n'], 'File name too long. Mend that'),
        (['--adopt', 300 * 'n'], 'File name too long. Mend that'),
        (['loop'], 'exists and is not an empty folder'),
        (['x', '--example', 'nothing'], '--example nothing'),
        (['x', '--example', 'gan', '--bare'], 'exclude each other'),
        (['--update', 'full'], 'no project made from this template'),
        (['--update', 'missing'], 'no project made'),
        (['--adopt', 'full'], 'as far as one can see'),
        (['--adopt', 'missing'], 'is no folder'),
        ([], 'say one of'),
        (['x', '--update', 'y'], 'say one of'),
        (['x', '--dry-run'], '--dry-run goes with'),
    ],
)
def test_mistake_is_one_message_and_changes_nothing(
    tmp_path, monkeypatch, capsys, arguments, message
):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/mine.py').write_text('mine')
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a/file').write_text('')
    (tmp_path / 'loop').symlink_to('loop')
    before = sorted(tmp_path.rglob('*'))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2 and message in capsys.readouterr().err
    assert sorted(tmp_path.rglob('*')) == before


def test_printed_commands_can_be_typed_as_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["sp ace/it's"])
    line = next(each for each in capsys.readouterr().out.splitlines() if ' cd ' in each)
    assert shlex.split(line) == ['cd', str(tmp_path / "sp ace/it's")]


def test_new_project_leaves_all_that_stands_beside_it(tmp_path):
    (tmp_path / '.fun.unfinished').mkdir()
    (tmp_path / '.fun.unfinished/mine').touch()
    (tmp_path / 'plain').mkdir()
    folder = create(tmp_path / 'fun')
    assert sorted(os.listdir(tmp_path)) == ['.fun.unfinished', 'fun', 'plain']
    assert (tmp_path / '.fun.unfinished/mine').is_file()
    assert folder.stat().st_mode == (tmp_path / 'plain').stat().st_mode


def test_empty_folder_that_is_there_stays_the_same_one(tmp_path):
    """Somebody may stand in it, it may be mounted, and its owner may write nowhere else."""
    folder = tmp_path / 'mine'
    folder.mkdir()
    folder.chmod(0o770)
    before = folder.stat()
    create(folder)
    now = folder.stat()
    assert (now.st_ino, now.st_mode) == (before.st_ino, before.st_mode)
    assert os.listdir(tmp_path) == ['mine'] and not list(folder.glob('.unfinished*'))
    assert (folder / 'train.py').is_file() and (folder / 'saved').is_dir()
    assert git(folder, 'status', '--porcelain').stdout == ''


def test_cloned_empty_repository_gets_the_project(tmp_path):
    folder = tmp_path / 'cloned'
    folder.mkdir()
    start_repository(folder)
    git(folder, 'remote', 'add', 'origin', 'https://somewhere.invalid')
    create(folder)
    assert git(folder, 'remote').stdout == 'origin\n'
    assert git(folder, 'status', '--porcelain').stdout == ''
    assert git(folder, 'rev-list', '--count', 'HEAD').stdout == '1\n'


def test_file_that_is_elsewhere_in_a_project_may_go_from_the_template():
    assert project.template_files({'base/gone.py': 'armature/template/base/gone.py'})


@pytest.mark.skipif(sys.platform != 'linux', reason='names are Unicode on other systems')
def test_folder_may_have_any_name(tmp_path):
    folder = create(tmp_path / os.fsdecode(b'caf\xe9 {name}'))
    assert (folder / 'README.md').read_bytes().startswith(b'# caf\xe9 {name}\n')
    assert git(folder, 'status', '--porcelain').stdout == ''


# Updating


@pytest.fixture
def newer(tmp_path, monkeypatch):
    """A newer template: a copy of this one that differs in ten places."""
    template = tmp_path / 'template'
    project.write_files(template, files_below(ROOT, (*project.KEPT, *project.OWNED)))
    shutil.copytree(ROOT / 'tools/project_files', template / 'tools/project_files')
    for path in CHANGED:
        edit(template / path, lambda lines: ['# new, above', *lines, '# new, below'])
    (template / 'base/brand_new.py').write_text('NEW = 1\n')
    (template / 'logger/visualization.py').unlink()
    edit(template / 'train.py', lambda lines: [*lines, '# newer recipe'])

    def switch():
        for module in (project, project_update):
            monkeypatch.setattr(module, 'TEMPLATE', template)
            monkeypatch.setattr(module, 'VERSION', '2.1.0')

    return switch


@pytest.fixture
def old(tmp_path):
    """A project that its user has changed in ten places."""
    folder = create(tmp_path / 'project')
    for path in CHANGED[1:]:
        edit(
            folder / path,
            lambda lines: [*lines[: len(lines) // 2], '# mine', *lines[len(lines) // 2 :]],
        )
    edit(
        folder / CHANGED[-1], lambda lines: ['# mine on top', *lines]
    )  # where the template has put a line too
    edit(folder / 'trainer/trainer.py', lambda lines: [*lines, '# my trainer'])
    edit(folder / 'train.py', lambda lines: [*lines, '# my recipe'])
    (folder / 'utils/mine.py').write_text('MINE = 1\n')
    (folder / 'armature/run/metric_tracker.py').unlink()
    (folder / 'armature/errors.py').write_bytes(
        (folder / 'armature/errors.py').read_bytes().replace(b'\n', b'\r\n')
    )
    commit_all(folder)
    return folder


def edit(path, change):
    path.write_text('\n'.join(change(path.read_text().splitlines())) + '\n')


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and '.git' not in path.parts
    }


def test_update_merges_both_sides_and_loses_nothing(old, newer):
    before = contents(old)
    newer()
    promised, _ = update_project(old, dry_run=True)
    assert contents(old) == before
    summary, complete = update_project(old)
    assert not complete and summary.splitlines()[1:-1] == promised.splitlines()[1:]
    now = contents(old)
    assert now['base/base_model.py'] == (project.TEMPLATE / 'base/base_model.py').read_bytes()
    for path in CHANGED[1:-1]:
        assert (
            all(line in now[path].decode() for line in ('# mine', '# new, above', '# new, below'))
            and b'<<<<' not in now[path]
        )
    conflict = now['armature/seed.py'].decode()
    assert (
        conflict.startswith(
            '<<<<<<< yours\n# mine on top\n=======\n# new, above\n>>>>>>> template 2.1.0\n'
        )
        and '# mine\n' in conflict
    )
    assert (
        now['base/brand_new.py'] == b'NEW = 1\n'
        and 'logger/visualization.py' not in now
        and 'armature/run/metric_tracker.py' not in now
    )
    untouched = (
        'trainer/trainer.py',
        'train.py',
        'utils/mine.py',
        'armature/errors.py',
        'config.json',
    )
    assert all(now[path] == before[path] for path in untouched)
    assert (
        'CONFLICTS: look for <<<<<<< in:\n    armature/seed.py' in summary
        and 'yours; left alone:\n    train.py' in summary
    )
    git(old, 'checkout', '.')
    git(old, 'clean', '-fq')
    assert contents(old) == before


def test_update_interrupted_at_any_moment_is_finished_by_the_next(old, newer, monkeypatch):
    newer()
    git(old, 'config', 'core.autocrlf', 'false')
    update_project(old)
    expected = contents(old)
    replace = os.replace
    for n_calls in range(len(CHANGED) + 5):
        git(old, 'checkout', '.')
        git(old, 'clean', '-fdq')
        left = [n_calls]

        def limited(source, target, left=left):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, 'replace', limited)
            with suppress(KeyboardInterrupt):
                update_project(old)
        if contents(old) != expected:
            update_project(old)
        assert contents(old) == expected


def test_undo_of_an_update_stays_in_the_project(tmp_path, newer):
    """Typed anywhere, in a repository that holds more than the project."""
    folder, others = create(tmp_path / 'all of it/my project'), tmp_path / 'all of it/mine.txt'
    shutil.rmtree(folder / '.git')
    others.write_text('as committed')
    start_repository(others.parent)
    commit_all(others.parent)
    before = contents(folder)
    newer()
    summary, _ = update_project(folder)
    assert contents(folder) != before
    others.write_text('not committed yet')
    (others.parent / 'new').mkdir()
    (others.parent / 'new/notes.txt').touch()
    (folder / 'model/later.py').touch()
    (folder / 'train.py').write_text('written later')
    before |= {'model/later.py': b'', 'train.py': b'written later'}
    undo = re.search(r'`([^`]*checkout[^`]*)` undoes it', summary)[1]
    subprocess.run(undo, shell=True, cwd=others.parent, check=True)
    assert contents(folder) == before
    assert others.read_text() == 'not committed yet'
    assert (others.parent / 'new/notes.txt').is_file()


def folder_for_a_file(path):
    path.mkdir()
    (path / 'mine.txt').touch()


@pytest.mark.parametrize(
    'place, put, message',
    [
        ('base/brand_new.py', folder_for_a_file, 'stands where the template has a file'),
        ('base/brand_new.py', lambda path: path.symlink_to('gone'), 'has a file: move it away'),
        ('base/brand_new.py', lambda path: path.symlink_to('/etc/passwd'), 'leaves the project'),
        (
            'base/new',
            lambda path: path.write_text('mine'),
            'stands where the template has a folder',
        ),
        ('.template-update', folder_for_a_file, 'holds what no update has written (mine.txt)'),
        (
            '.template-update',
            lambda path: write_files(path, {'todo.json': b''}),
            'is damaged: remove',
        ),
    ],
)
@pytest.mark.parametrize('dry_run', [True, False])
def test_what_is_in_the_way_of_an_update_is_named_before_it_begins(
    tmp_path, newer, place, put, message, dry_run
):
    folder = create(tmp_path / 'project')
    put(folder / place)
    commit_all(folder)
    before = sorted(folder.rglob('*'))
    newer()
    (project.TEMPLATE / 'base/new').mkdir()
    (project.TEMPLATE / 'base/new/part.py').touch()
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        update_project(folder, dry_run)
    assert '\n' not in str(refused.value)
    assert sorted(folder.rglob('*')) == before
    assert git(folder, 'status', '--porcelain').stdout == ''


def test_update_that_cannot_write_says_where_and_goes_on_later(old, newer, monkeypatch, capsys):
    newer()
    replace = os.replace

    def full(source, target):
        if str(target).endswith('armature/seed.py'):
            raise OSError(errno.EROFS, 'Read-only file system', source, None, target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', full)
        with pytest.raises(SystemExit) as left:
            main(['--update', str(old)])
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.count('\n') == 1
    assert f'{old}/armature/seed.py: Read-only file system. Mend that' in error
    assert 'is now finished' in update_project(old)[0] and not (old / '.template-update').exists()
    monkeypatch.setattr(os, 'access', lambda path, mode: Path(path).name != 'base')
    git(old, 'checkout', '.')
    git(old, 'clean', '-fdq')
    with pytest.raises(UserError, match='base writable; nothing was changed'):
        update_project(old)


def test_second_update_has_nothing_to_do(old, newer):
    newer()
    update_project(old)
    commit_all(old)
    assert 'is up to date with template 2.1.0' in update_project(old)[0]


@pytest.mark.parametrize(
    'spoil, message',
    [
        (lambda folder: (folder / 'train.py').write_text('x'), 'not committed'),
        (lambda folder: shutil.rmtree(folder / '.git'), 'in no git repository'),
        (
            lambda folder: (folder / '.template.json').write_text('{'),
            'not what this template writes',
        ),
        (
            lambda folder: (folder / '.template.json').write_text(
                '{"template": "other", "version": "2.0.0", "files": {}}'
            ),
            'not what this',
        ),
        (
            lambda folder: (folder / '.template.json').write_text(
                (folder / '.template.json').read_text().replace('2.0.0', '9.0.0')
            ),
            'newer',
        ),
        (lambda folder: (folder / '.template.tar.xz').write_bytes(b'x'), 'cannot be read'),
        (
            lambda folder: (folder / '.template.tar.xz').write_bytes(
                (folder / '.template.tar.xz').read_bytes().replace(b'\r\n', b'\n')[:-9]
            ),
            'cannot be read(.|\n)*checkout COMMIT',
        ),
        (
            lambda folder: (folder / '.template.json').write_text(
                (folder / '.template.json').read_text().replace('"moved"', '"away"')
            ),
            'not what this(.|\n)*checkout COMMIT',
        ),
        (lambda folder: (folder / '.template.json').unlink(), 'copy .template.json and'),
    ],
)
def test_project_that_cannot_be_updated_is_left_as_it_was(tmp_path, spoil, message, monkeypatch):
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path))
    folder = create(tmp_path / 'project')
    spoil(folder)
    if 'committed' not in message and (folder / '.git').exists():
        commit_all(folder)
    before = contents(folder)
    with pytest.raises(UserError, match=message):
        update_project(folder)
    assert contents(folder) == before


@pytest.mark.parametrize('has_pytest, code', [(True, 5), (False, 1)])
def test_update_without_tests_to_run_has_not_failed(tmp_path, monkeypatch, has_pytest, code):
    (tmp_path / 'tests').mkdir()
    if not has_pytest:
        monkeypatch.setattr(project_update, 'find_spec', lambda name: None)
    assert project_update.run_tests(tmp_path, lambda *_, **__: code) == 0


def test_what_editors_leave_in_the_template_stays_there(tmp_path, newer):
    newer()
    for path in ('tools/.DS_Store', 'model/.ipynb_checkpoints/model.py', 'base/.a.py.swp'):
        (project.TEMPLATE / path).parent.mkdir(exist_ok=True)
        (project.TEMPLATE / path).touch()
    folder = create(tmp_path / 'fresh')
    hidden = {path.name for path in folder.rglob('.*') if '.git' not in path.parts}
    assert hidden == {'.gitignore', '.template.json', '.template.tar.xz'}


@st.composite
def edited(draw, lines, mark):
    """The same lines with some removed and some added that no other side has."""
    result = []
    for number, line in enumerate([*lines, None]):
        if draw(st.integers(0, 5)) == 0:
            result.append(f'{mark}{number}')
        if line is not None and draw(st.integers(0, 7)) > 0:
            result.append(line)
    return result


@st.composite
def three_sides(draw):
    base = [f'line {n % 5}' for n in range(draw(st.integers(0, 12)))]
    return base, draw(edited(base, 'mine ')), draw(edited(base, 'theirs '))


@settings(max_examples=100, deadline=None)
@given(three_sides(), st.sampled_from(['\n', '\r\n']))
def test_merge_never_loses_a_users_line(sides, line_end):
    base, mine, theirs = (''.join(f'{line}\n' for line in side) for side in sides)
    merged, _ = merge(
        mine.replace('\n', line_end).encode(), base.encode(), theirs.encode(), 'before', 'now'
    )
    lines = [line.rstrip('\r') for line in merged.decode().split('\n')]
    mine_alone, theirs_alone = (
        [line for line in side if line.startswith(('mine', 'theirs'))] for side in sides[1:]
    )
    kept = iter(lines)
    assert all(line in kept for line in mine_alone)  # all of them, in their order
    assert set(theirs_alone) <= set(lines)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from('abcd'),
        st.tuples(*[st.sampled_from([None, '', 'one\n', 'one\ntwo\n', 'two\nthree\n'])] * 3),
    )
)
def test_plan_never_removes_what_a_user_has_written(files):
    sides = [
        {
            path: versions[side].encode()
            for path, versions in files.items()
            if versions[side] is not None
        }
        for side in range(3)
    ]
    pristine, mine, theirs = sides
    changes, _ = project_update.plan(mine, pristine, theirs, 'before', 'now')
    for path, content in mine.items():
        if content != pristine.get(path):
            own = set(content.split(b'\n')) - set(pristine.get(path, b'').split(b'\n'))
            now = changes.get(path, content)
            assert now is not None and own <= set(now.split(b'\n'))
